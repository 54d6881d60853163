"""``star nll``: what it writes and says, what it refuses, and the same from a notebook."""

import math

import numpy as np
import pandas as pd
import pytest
from asking import asked_from_python
from foreign import arguments, weights, write
from helpers import refused

from figures.studies import nll
from probes.results import read_result
from star.codes.store import open_splits
from star.model.config import ModelConfig
from star.training.checkpoint import load_model
from star.training.likelihood import token_nll


def test_the_command_writes_and_says_what_it_finds(star, trained, stores, tmp_path):
    code, out, err = star("nll", trained, "--data", stores, "--out", "n")
    assert code == 0, err
    result = read_result(tmp_path / "n" / "nll-teacher-codes.csv")
    table = result.table.set_index(["measure", "split", "class", "step"])
    test = open_splits(stores)["test"]
    own_NT = token_nll(load_model(trained / "ckpt.pt"), test)
    nll_row = table.loc[("nll", "held out", "own", 0)]
    assert nll_row["value"] == pytest.approx(own_NT.mean(), rel=1e-5) and nll_row["n"] == len(test)
    bits = own_NT.mean() * 64 / (math.log(2) * 32 * 32)
    assert table.loc[("bits_a_pixel", "held out", "own", 0), "value"] == pytest.approx(bits, rel=1e-5)
    assert table.loc[("nll", "train", "own", 0), "n"] == len(test), "as many as held-out images"
    assert table.loc[("class_accuracy", "held out", "each", 0), "n"] == len(test)
    assert result.info["pixels"] == 1024 and result.info["split"] == "test"
    bins = read_result(tmp_path / "n" / "nll-teacher-codes-reliability.csv")
    assert bins.table["predictions"].sum() == 64 * len(test) and len(bins.table) == 15
    assert "15 bins of equal count" in bins.info["binning"]
    for text in (
        f"even guessing is {math.log(256):.3f} nats",
        "NLL given no class (nats a token)",
        "bits a pixel given the class",
        "the class under which an image is most probable is its own in",
        "expected calibration error",
        "note: 16 images; below 20",
    ):
        assert text in out, text
    assert (tmp_path / "n" / "nll-teacher-codes-steps.png").exists()


def test_several_are_compared_and_a_notebook_gets_the_same(star, trained, stores, tmp_path):
    code, out, err = star("nll", trained, trained, "--data", stores, "--images", "8", "--out", "n")
    assert code == 0, err
    pair = pd.read_csv(tmp_path / "n" / "nll-teacher-codes-st-ar-star-again-against-st-ar-star.csv")
    assert np.abs(pair["difference"]).max() == 0 and len(pair) == 2 * 65 + 2
    assert "difference +0.000 [+0.000, +0.000] on these 8 images" in out
    assert "nothing here says whether other runs" in out
    request = nll.Request(ckpts=[trained, trained], data=str(stores), images=8, out=tmp_path / "n")
    answer = asked_from_python(nll.run, request, tmp_path / "n")
    assert "-compared-steps" in " ".join(answer.figures)


def test_a_model_without_a_null_class_is_said_to_have_none(star, tmp_path, stores):
    config = ModelConfig(
        layers=2, heads=2, width=16, grid=8, vocab_size=256, num_classes=2, null_class=False
    )
    said = arguments(n_head=2, num_classes=2, vocab_size=256, image_size=128, class_dropout_prob=0.0)
    path = write(tmp_path / "c.pt", {"model": weights(config=config), "args": said})
    code, out, err = star("nll", path, "--data", stores, "--class-images", "0", "--out", "n")
    assert code == 0, err
    assert "has no null class: NLL given no class and the gain are left out" in " ".join(out.split())
    assert "no image is classified" in out
    table = pd.read_csv(next((tmp_path / "n").glob("*-codes.csv")))
    assert set(table["class"]) == {"own"} and "class_accuracy" not in set(table["measure"])


def test_refusals(star, trained, tmp_path):
    for options, message in (
        (("--images", "1"), "images is 1; expected at least 2"),
        (("--class-images", "-1"), "class-images is -1; expected at least 0"),
        (("--seed", "-1"), "seed is -1"),
    ):
        assert refused(star("nll", trained, *options, "--out", "x"), message), options
        assert not (tmp_path / "x").exists()


def test_the_images_classified_by_default_are_few_where_classes_are_many(trained):
    from types import SimpleNamespace

    for classes, images, expected in ((10, 2000, 1000), (10, 300, 300), (1000, 2000, 20)):
        model = SimpleNamespace(config=SimpleNamespace(num_classes=classes))
        loaded = SimpleNamespace(model=model)
        assert nll.NllStudy().plan(nll.Request(images=images), loaded) == expected
