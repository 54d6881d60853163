"""Parquet's labels: which column, which values, and what is refused with the way out."""

import numpy as np
import pytest
from helpers import refused
from layouts import counts, in_folder, parquet, split_of

from star.base.errors import UserError
from star.images.open import open_images, open_source

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is optional: pip install .[parquet]")

ROWS = 12


def classes(*names):
    return {"_type": "ClassLabel", "names": list(names)}


def labels(count, of=int):
    return [of(row % count) for row in range(ROWS)]


FINE = {"fine_label": labels(4), "coarse_label": labels(2)}
TYPED = {"fine_label": classes("w", "x", "y", "z"), "coarse_label": classes("one", "two")}


def every_label(source):
    """Labels in the order of the rows, whatever was cut for val."""
    found = {}
    for split in source.splits.values():
        found |= {
            int(name.split("/")[-1]): label
            for name, label in zip(split.names, split.labels, strict=True)
        }
    return [int(found[row]) for row in range(ROWS)]


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"label": labels(3)}, "012"),
        ({"labels": labels(3)}, "012"),
        ({"cls": labels(3), "__key__": labels(12, str), "__url__": ["x.tar"] * ROWS}, "012"),
        ({"class": labels(3, lambda n: "abc"[n])}, "abc"),
        ({"target": labels(3)}, "012"),
        ({"targets": labels(3), "caption": ["text"] * ROWS}, "012"),
        ({"fine_label": labels(3)}, "012"),
        ({"classId": labels(3), "size": labels(5)}, "012"),
        ({"label": labels(3, float)}, "012"),
        ({"label": pyarrow.array(labels(3, lambda n: "abc"[n])).dictionary_encode()}, "abc"),
        ({"label": labels(2, bool)}, ("False", "True")),
        ({"label": labels(3), **FINE}, "012"),
    ],
)
def test_columns_and_values_that_are_labels(tmp_path, columns, names):
    source = open_source(parquet(tmp_path / "set" / "train.parquet", columns).parent)
    assert source.class_names == tuple(names)
    assert every_label(source) == labels(len(names))


def test_the_sole_typed_column_is_taken(tmp_path):
    columns = {"kind": labels(2), "category": labels(3)}
    source = open_source(parquet(tmp_path / "a.parquet", columns, {"kind": classes("x", "y")}))
    assert source.class_names == ("x", "y") and every_label(source) == labels(2)


@pytest.mark.parametrize("features", [None, TYPED])
def test_one_of_several_columns_is_chosen(tmp_path, features):
    path = parquet(tmp_path / "set" / "train-0.parquet", FINE, features, image="img")
    message = r"several columns that may be the labels: fine_label, coarse_label; .*--label-column NAME"
    with pytest.raises(UserError, match=message):
        open_source(path.parent)
    for column, count, names in (("fine_label", 4, "wxyz"), ("coarse_label", 2, ("one", "two"))):
        source = open_source(path.parent, column)
        assert source.class_names == (tuple(names) if features else tuple(map(str, range(count))))
        assert every_label(source) == labels(count) and source.label_column == column
    source = open_images(path.parent)
    assert source.class_names == ("image",) and every_label(source) == [0] * ROWS


def test_a_column_that_is_none_is_refused(tmp_path):
    path = parquet(tmp_path / "a.parquet", {**FINE, "boxes": [[1.0]] * ROWS})
    with pytest.raises(UserError, match=r"no column wine \(--label-column\); found: image, fine_label"):
        open_source(path, "wine")
    for column in ("image", "boxes"):
        with pytest.raises(
            UserError, match=rf"{column} \(--label-column\) holds .*; expected whole numb"
        ):
            open_source(path, column)
    folder = in_folder(tmp_path / "set", split_of("train"))
    for other in ("digits", folder):
        with pytest.raises(
            UserError, match=r"--label-column label names a column of parquet, and .* is none"
        ):
            open_source(other, "label")
    with pytest.raises(UserError, match=r"no column of labels; expected label or labels, cls"):
        open_source(parquet(tmp_path / "b.parquet", {"text": ["a"] * ROWS}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5] + [1.0] * 11, r"label holds 0\.5; expected whole numbers or names"),
        ([float("inf")] + [1.0] * 11, r"label holds inf"),
        ([None] + [1] * 11, r"train has rows without a label"),
        ([float("nan")] + [1.0] * 11, r"train has rows without a label"),
        ([-1] + [1] * 11, r"train has classes that train has not: -1; expected 0 to 1"),
    ],
)
def test_values_that_are_no_labels(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        open_source(parquet(tmp_path / "a.parquet", {"label": values}))


def test_numbers_in_train_and_names_in_val(tmp_path):
    parquet(tmp_path / "set" / "train.parquet", {"label": labels(3)})
    parquet(tmp_path / "set" / "val.parquet", {"label": labels(3, str)})
    with pytest.raises(
        UserError, match=r"val has classes that train has not: 0, 1, 2; expected 0 to 2"
    ):
        open_source(tmp_path / "set")


@pytest.mark.parametrize(
    "columns",
    [{"label": [-1] * ROWS}, {"label": [-1.0] * ROWS}, {"id": labels(12)}, {"label": [None] * ROWS}],
)
def test_shards_without_labels_are_left_out_with_a_note(tmp_path, columns):
    parquet(tmp_path / "set" / "train.parquet", {"label": labels(3)})
    parquet(tmp_path / "set" / "test.parquet", columns)
    source = open_source(tmp_path / "set")
    assert counts(source) == {"train": 9, "val": 3}
    assert source.left_out == {"images of test without labels": ROWS}
    assert "its test split has no labels" in source.notes[0]


def test_the_column_goes_from_the_command_to_the_manifest(star, tmp_path, tokenizer_file):
    parquet(tmp_path / "set" / "train-0.parquet", FINE, TYPED)
    parquet(tmp_path / "set" / "test-0.parquet", FINE, TYPED)
    command = ("tokenize", "set", "out", "--tokenizer", tokenizer_file, "--size", 8, "--views", "plain")
    assert refused(star(*command), "fine_label, coarse_label", "--label-column")
    assert not (tmp_path / "out").exists()
    code, _, err = star(*command, "--label-column", "coarse_label", "--device", "cpu")
    assert code == 0, err
    from figures.studies.probing import given_images
    from probes.linear.splits import probe_splits
    from star.codes.store import open_splits

    stores = open_splits("out")
    assert stores["train"].class_names == ("one", "two")
    assert np.bincount(stores["test"].labels).tolist() == [6, 6]
    assert stores["test"].manifest["source"]["label_column"] == "coarse_label"
    again = given_images("set", probe_splits(stores))
    assert again.splits["test"].fingerprint() == stores["test"].manifest["source"]["fingerprint"]
    assert refused(
        star(*command, "--label-column", "fine_label"), "out exists and was made with another"
    )


def test_numbers_with_wide_gaps_are_said(tmp_path):
    wide = parquet(tmp_path / "wide" / "train.parquet", {"label": [0, 1000] * (ROWS // 2)}).parent
    source = open_source(wide)
    assert len(source.class_names) == 1001
    [note] = [note for note in source.notes if "classes" in note]
    assert note.startswith(f"{wide}: labels go up to 1000, so there are 1,001 classes; 2 of them")
    dense = parquet(tmp_path / "dense" / "train.parquet", {"label": labels(3)}).parent
    assert not [note for note in open_source(dense).notes if "classes" in note]
