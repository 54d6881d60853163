"""A run folder, code stores and a tokenizer written before the code got its rooms still work.

They were made from 22 pictures of random 4 x 4 colours, enlarged to 16 x 16 pixels (``make_pictures``
makes them again): a tokenizer of random weights and 16 codes, its stores, and the first two of four
steps of ST-AR on them, on a CPU in float32. What the next two steps gave then is in ``AFTERWARDS``.
"""

import json
import os
import shutil

import numpy as np
import pytest
from helpers import GOLDEN
from PIL import Image

from star.codes.encode import tokenize
from star.codes.store import open_splits
from star.images.open import open_source
from star.tokenizer.file import load_tokenizer

BEFORE = GOLDEN / "before"  # a tokenizer beside the other files would be taken for theirs
TOKENIZER_SHA256 = "0c1822d0bf3b249a3c7dff24cf4bc59f7e5e0c18e26552160a0c207a8ce238e8"
AFTERWARDS = {
    "step": 4, "ar": 2.7490733, "mim": 0.0455876, "step_contrast": 2.4700358,
    "view_contrast": 2.1089125, "loss": 3.9393978, "grad_norm": 13.201206, "val_nll": 2.7479939,
    "val_nll_student": 2.7468137,
    "knn_acc": 0.6875, "attention_distance": 3.8079786, "class_share": 0.0425004,
    "effective_rank": 3.1050568, "image_cosine": 0.1265388, "grad_cos_step_view": 0.3641994,
}  # fmt: skip


def make_pictures(folder):
    """The pictures, split by split and class by class, from one stream of random numbers."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for label, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                colours = (rng.integers(0, 128, (4, 4, 3)) + 128 * label).astype(np.uint8)
                picture = Image.fromarray(colours).resize((16, 16), Image.BILINEAR)
                picture.save(folder / split / name / f"{number}.png")


@pytest.fixture
def before(tmp_path):
    """The files as they lay then: each with its tokenizer, the newest step under both its names."""
    for name in ("run", "codes"):
        shutil.copytree(BEFORE / name, tmp_path / name)
        shutil.copy(BEFORE / "tokenizer.safetensors", tmp_path / name)
    os.link(tmp_path / "run" / "ckpt.pt", tmp_path / "run" / "step-000000002.pt")
    make_pictures(tmp_path / "pictures")
    return tmp_path


def test_the_tokenizer_makes_the_codes_of_the_stores_again(before):
    tokenizer = load_tokenizer(before / "codes" / "tokenizer.safetensors")
    tokenize(open_source(str(before / "pictures")), tokenizer, before / "again")
    again, stores = open_splits(before / "again"), open_splits(before / "codes")
    for name, store in stores.items():
        theirs, ours = store.manifest, again[name].manifest
        changing = ("versions", "sha256", "source")
        assert {k: v for k, v in ours.items() if k not in changing} == {
            k: v for k, v in theirs.items() if k not in changing
        }
        assert ours["tokenizer_sha256"] == TOKENIZER_SHA256
        assert ours["source"]["fingerprint"] == theirs["source"]["fingerprint"]
        # A code that lies between two may turn over on another processor.
        assert (np.asarray(again[name].codes) == np.asarray(store.codes)).mean() > 0.99
        np.testing.assert_array_equal(again[name].labels, store.labels)


def test_the_run_goes_on_as_it_would_have(star, before):
    code, _, err = star("train", "--resume", before / "run")
    assert code == 0, err
    *_, last = (before / "run" / "metrics.jsonl").read_text().splitlines()
    found = json.loads(last)
    assert {name: found[name] for name in AFTERWARDS} == pytest.approx(AFTERWARDS, rel=1e-3, abs=1e-4)


def test_commands_read_them(star, before):
    code, out, err = star("inspect", before / "run", "--json")
    assert code == 0, err
    newest = json.loads(out)["newest"]
    assert newest["step"] == 2 and newest["tokenizer"]["sha256"] == TOKENIZER_SHA256
    code, out, err = star("tokenize", before / "codes", "--verify")
    assert code == 0 and "train: 12 x 10 x 64 codes are as their manifest says" in out, err
    ask = ("--data", "codes", "--layer", "2", "--steps", "2", "--protocol", "knn", "--out", "probe")
    code, _, err = star("probe", "run", *ask, "--device", "cpu", "--precision", "fp32")
    assert code == 0, err
    assert (before / "probe" / "probe-knn-layer-2-teacher-steps-2-codes.csv").is_file()
