"""Which split a measurement takes, and that a picture of a model shows an image of that one."""

import numpy as np
import pytest
from helpers import GOLDEN

from probes.reading.example import find_subjects
from star.codes.store import open_splits
from star.images.source import measured_split
from star.training.checkpoint import open_model

BEFORE = GOLDEN / "before"


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "val", "test"), "test"),
        (("train", "val"), "val"),
        (("train", "test"), "test"),
        (("train",), "train"),
    ],
)
def test_test_comes_before_val_and_val_before_train(splits, expected):
    assert measured_split(splits) == expected


@pytest.mark.parametrize("missing", [(), ("test",), ("test", "val")])
def test_the_image_shown_is_of_that_split(missing):
    stores = open_splits(BEFORE / "codes")
    for name in missing:
        del stores[name]
    (subject,) = find_subjects(
        open_model(BEFORE / "run"),
        images=[],
        codes=None,
        label=None,
        data=stores,
        tokenizer=BEFORE / "tokenizer.safetensors",
    )
    expected = ("test", "val", "train")[len(missing)]
    assert subject.name == f"first {expected} image"
    store = stores[expected]
    np.testing.assert_array_equal(subject.tokens, store.codes[0, store.test_view])
