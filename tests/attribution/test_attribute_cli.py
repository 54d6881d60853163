"""``star attribute`` as a user meets it, and the picture it draws."""

import json

import numpy as np
import pandas as pd
import pytest
from asking import asked_from_python
from helpers import GOLDEN, refused
from made_up import made_panels
from PIL import Image

from figures.requests.attribution import Request
from figures.studies import attribution as study
from star.base.errors import UserError
from viz.attribution import SIGNED_MAP, signed_scale
from viz.base import style

QUICK = ("--draws", "1", "--points", "16")


def flat(text):
    return " ".join(text.split())


def read(folder, stem):
    info = json.loads((folder / f"{stem}.json").read_text())
    return pd.read_csv(folder / f"{stem}.csv"), pd.read_csv(folder / f"{stem}-measures.csv"), info


def test_the_first_test_image_at_the_default_step(star, trained, tmp_path):
    code, out, err = star("attribute", trained, *QUICK, "--out", "a")
    assert code == 0, err
    assert "step 48, log-probability of the true token 48" in flat(out), "3T/4 of 64"
    (stem,) = {path.stem for path in (tmp_path / "a").glob("*.png")}
    table, measures, info = read(tmp_path / "a", stem)
    assert len(table) == 3 * 65 and (tmp_path / "a" / f"{stem}.pdf").exists()
    assert not table.query("place >= 48")[["attribution", "attention"]].any(axis=None)
    assert (tmp_path / "a" / f"{stem}.png").stat().st_size > 5000
    values = measures.set_index(["method", "measure"])["value"]
    sums = table.groupby("method")["attribution"].sum()
    for method in ("integrated_gradients", "gradient_x_input", "occlusion"):
        gap = sums[method] - values[method, "difference"]
        # six digits in the tables, 65 contributions summed
        assert values[method, "gap"] == pytest.approx(gap, abs=1e-5)
    assert info["target"] == "logprob" and info["tokenizer"]["sha256"] and info["settings"]["seed"] == 0
    for word in ("completeness gap", "rank correlation", "infidelity", "sensitivity"):
        assert word in flat(out), word
    again = tmp_path / "again"
    assert star("attribute", trained, *QUICK, "--out", again)[0] == 0
    for name in (f"{stem}.csv", f"{stem}-measures.csv"):
        assert (again / name).read_text() == (tmp_path / "a" / name).read_text()


def test_images_of_any_size_and_mode(star, trained, tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("grey.png", (50, 70)), ("clear.png", (70, 50, 4))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
        code, out, err = star("attribute", trained, name, "--step", "20", "--draws", "0", "--out", "a")
        assert code == 0, err
        assert "scaled and cropped to 32 px from" in out and "null class" in out
        _, measures, info = read(
            tmp_path / "a", f"attribute-logprob-step-20-{name.replace('.', '-')}-teacher"
        )
        assert info["baseline"]["class"] == "mean of the class embeddings"
        assert "sensitivity" not in set(measures["measure"])


def test_several_images_give_means_with_intervals(star, trained, tmp_path):
    code, out, err = star(
        "attribute", trained, "--images", "5", "--step", "9", "--target", "logit", *QUICK, "--out", "a"
    )
    assert code == 0 and "[95 % intervals over images]" in flat(out), err
    table, measures, info = read(tmp_path / "a", "attribute-logit-step-9-5-images-teacher")
    assert table["image"].nunique() == 5 and len(info["images"]) == 5
    assert {name.split("(")[1] for name in table["image"]} == {"zero)", "one)"}, "both classes"
    mean = measures.query("image == 'mean' and measure == 'rank_correlation'")
    assert (mean["n"] == 5).all() and (mean["low"] < mean["high"]).all()
    assert set(info["data"]) == {"train", "val", "test"}


def test_a_probes_class_score(star, trained, tmp_path):
    options = ("--target", "probe", "--probe-images", "30", *QUICK, "--out", "a")
    code, out, err = star("attribute", trained, "flower.jpg", "--class", "1", *options)
    assert code == 0, err
    assert "the model is shown the null class" in out
    assert "probe of layer 1 at step 48 (ridge, penalty" in flat(out), "half the depth of 2"
    assert "30 training images): accuracy" in flat(out) and "of 16 test images" in flat(out)
    _, _, info = read(tmp_path / "a", "attribute-probe-step-48-flower-jpg-teacher")
    assert info["probe"]["images"]["train"] == 30 and info["attention"]["layers"] == [1]
    assert info["images"][0]["score_index"] == 1 and info["images"][0]["class_shown"] == 2
    assert refused(star("attribute", trained, "flower.jpg", *options), "without one: give --class")
    assert refused(star("attribute", trained, "--class", "2", *options), "--class 2 was given")


def test_python_asks_what_the_command_asks(star, trained, tmp_path):
    options = ("--images", "3", "--target", "probe", "--probe-images", "30", "--step", "9")
    code, out, err = star("attribute", trained, *options, *QUICK, "--out", "a")
    assert code == 0, err
    asked = Request(ckpt=trained, images=3, target="probe", probe_images=30, step=9, draws=1, points=16)
    answer = asked_from_python(study.run, asked, tmp_path)
    assert not set(answer.sentences) - set(out.splitlines())
    places, measures = answer.results.values()
    assert places is answer.result and len(places.table) == 3 * 3 * 65
    assert measures.table["image"].nunique() == 4 and measures.table["image"].iloc[-1] == "mean"
    assert places.info["checkpoint_step"] == 4 and places.info["target"] == "probe"
    assert len(answer.figures) == 1 and len(answer.tables) == 1
    images, probe, score = answer.sentences
    assert images.startswith("3 evenly spaced images of") and probe.startswith("probe of layer 1 at")
    assert score.startswith("step 9, class score of the probe of layer 1: mean score")


def test_codes_without_a_tokenizer(star, tmp_path):
    np.save(tmp_path / "codes.npy", np.arange(16))
    golden = GOLDEN / "llamagen_gpt_tiny.pt"
    code, out, err = star(
        "attribute", golden, "--codes", "codes.npy", "--class", "3", *QUICK, "--out", "a"
    )
    assert code == 0 and "the picture is left grey" in out and "step 12" in out, err


def test_refusals(star, trained, tmp_path):
    def attribute(*options):
        return star("attribute", trained, *options)

    assert refused(attribute("--step", "65"), "step 65 does not exist; expected 2 to 64")
    assert refused(attribute("--step", "200"), "step 200 does not exist; expected 2 to 64")
    assert refused(attribute("--step", "1"), "step 1 has seen only the class")
    assert refused(attribute("--step", "x"), "--step")
    assert refused(attribute("--target", "beauty"), "'beauty' is not one of")
    assert refused(attribute("--layer", "1"), "--layer has an effect only with --target probe")
    assert refused(attribute("--probe-images", "99"), "--probe-images has an effect only")
    assert refused(attribute("--target", "probe", "--layer", "3"), "layer 3 does not exist")
    probe = ("--target", "probe", "--layer", "1")
    assert refused(attribute(*probe, "--attention", "2"), "depend on layers 1 to 1 alone")
    assert refused(attribute(*probe, "--probe-images", "3"), "probe-images is 3; expected at least 20")
    assert refused(attribute("--attention", "9"), "layer 9 does not exist")
    assert refused(attribute("--attention", "six"), "layer is 'six'")
    assert refused(attribute("flower.jpg", "--images", "3"), "--images takes test images")
    assert refused(attribute("flower.jpg", "--codes", "c.npy"), "both name the image")
    assert refused(attribute("--images", "0"), "images is 0; expected at least 1")
    assert refused(attribute("--images", "17"), "images is 17; expected 1 to 16")
    assert refused(attribute("--points", "1"), "points is 1; expected at least 2")
    assert refused(attribute("--patch", "0"), "patch is 0")
    assert refused(attribute("--draws", "-1"), "draws is -1")
    assert refused(attribute("--noise", "0"), "noise is 0.0")
    assert refused(attribute("--seed", "-1"), "seed is -1")
    assert refused(attribute("--class", "5"), "class 5 does not exist")
    assert refused(attribute("missing.png"), "no such image")
    assert refused(star("attribute", "nowhere.pt"), "no such file: nowhere.pt")
    assert refused(star("attribute", GOLDEN / "llamagen_gpt_tiny.pt"), "name an image, or give --codes")
    (tmp_path / "file").touch()
    assert refused(attribute("--out", "file"), "--out file is a file; expected a folder")


# The picture.


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


def test_the_picture_says_scale_gap_and_correlation(tmp_path):
    figure = made_panels(title="What step 6 owes")
    said = "\n".join(texts(figure))
    for part in (
        "What step 6 owes", "one way", "another way", "attention", "first", "second", "score -1.5 nats",
        "baseline -4", "gap +0.25", "rank corr. +0.50", "rank corr. undefined", "token predicted",
        "contribution (nats)", "attention weight",
    ):  # fmt: skip
        assert part in said, part
    (png, pdf) = style.save(figure, tmp_path / "a")
    assert png.stat().st_size > 5000 and pdf.exists()
    assert "token predicted" not in "\n".join(texts(made_panels(predicted=False)))
    width, height = figure.get_size_inches() * figure.dpi
    for text in figure.findobj(lambda artist: hasattr(artist, "get_text")):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text


def test_contributions_are_drawn_centred_at_zero():
    norm = signed_scale(np.array([[-0.123, 0.05]]))
    assert (norm.vmin, norm.vmax) == pytest.approx((-0.13, 0.13))
    assert signed_scale(np.zeros((2, 3))).vmax == 1
    three = np.array([[0.1, -0.2], [-0.4, 0.3], [9.0, 0.0]])
    assert signed_scale(three).vmax == pytest.approx(0.4), "the median panel's largest"
    assert SIGNED_MAP(norm(0.0))[3] == pytest.approx(0, abs=0.01), "nothing is clear"
    positive, negative = SIGNED_MAP(norm(0.13)), SIGNED_MAP(norm(-0.13))
    assert positive[2] > positive[1] and negative[0] > negative[2], "purple adds, orange takes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 5}, "contributions of tokens that step 5 has not seen"),
        ({"contributions": np.zeros((2, 2, 16))}, "contributions has shape"),
        ({"contributions": np.full((2, 2, 17), np.nan)}, "must be finite"),
        ({"names": ["one"]}, "1 names were given for 2 images"),
        ({"images": []}, "0 images were given; one picture shows 1 to 4"),
        ({"gaps": np.zeros(2)}, "gaps has shape"),
        ({"attention": np.zeros((2, 16))}, "attention has shape"),
        ({"step": 0}, "step is 0; expected 1 to 16"),
    ],
)
def test_what_the_picture_refuses(changes, message):
    with pytest.raises(UserError, match=message):
        made_panels(**changes)
