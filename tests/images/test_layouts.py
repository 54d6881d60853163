"""What folders and tars mean by their paths: classes, splits, labels; the rest is counted."""

import os
import tarfile
import unicodedata

import numpy as np
import pytest
from layouts import KINDS, counts, in_folder, in_tar, pictures, split_of
from PIL import Image

from star.base.errors import UserError
from star.images.left_out import LeftOut, left_out_line
from star.images.open import open_images, open_source

THREE = split_of("train", each=4) | split_of("val") | split_of("test")
SYNSETS = ("n01", "n02", "n03")


@pytest.fixture(params=list(KINDS))
def made(request, tmp_path):
    """Write files as a folder or a tar and open what there is."""
    return lambda files, open=open_source: open(KINDS[request.param](tmp_path, files))


def without_prefix(names):
    return [name.removeprefix("test/some data/") for name in names]


# --- classes -------------------------------------------------------------------------------------


def test_images_at_any_depth_are_their_class_folders(made):
    files = THREE | pictures(
        "train/ant/trip/9.png", "train/ant/trip/day 2/8.png", "train/bee/x/y/7.PNG"
    )
    source = made(files)
    assert counts(source) == {"train": 11, "val": 4, "test": 4} and source.left_out == {}
    assert without_prefix(source.splits["train"].names) == sorted(f for f in files if f[:5] == "train")
    assert source.splits["train"].labels.tolist() == [0] * 6 + [1] * 5
    for name, place in (("train/ant/trip/day 2/8.png", 5), ("train/bee/x/y/7.PNG", 10)):
        assert without_prefix(source.splits["train"].names)[place] == name
        assert source.splits["train"].load(place).size == (8, 6)


def tiny_imagenet(listed):
    files = pictures(*(f"train/{s}/images/{s}_{i}.JPEG" for s in SYNSETS for i in range(4)))
    files |= {f"train/{s}/{s}_boxes.txt": b"x\t0\t0\t1\t1\n" for s in SYNSETS}
    files |= pictures(*(f"val/images/val_{i}.JPEG" for i in range(6)))
    files |= pictures(*(f"test/images/test_{i}.JPEG" for i in range(5)))
    lines = "".join(f"{file}\t{synset}\t0\t0\t31\t31\n" for file, synset in listed)
    return files | {"val/val_annotations.txt": lines.encode()}


LISTED = [(f"val_{i}.JPEG", SYNSETS[i % 2]) for i in range(6)]


def test_tiny_imagenet_has_its_labels_in_folders_and_in_a_list(made):
    source = made(tiny_imagenet(LISTED))
    assert source.class_names == SYNSETS and counts(source) == {"train": 9, "val": 3, "test": 6}
    found = dict(
        zip(without_prefix(source.splits["test"].names), source.splits["test"].labels, strict=True)
    )
    assert found == {f"val/images/val_{i}.JPEG": i % 2 for i in range(6)}
    assert source.left_out == {"images of test/ without labels": 5, "not an image (.txt)": 3}
    assert source.notes[0] == "set: its test/ has no labels and is left out"


def test_a_list_and_the_files_beside_it_may_differ(made):
    source = made(tiny_imagenet([*LISTED[:4], ("gone.JPEG", "n01"), ("gone too.JPEG", "n02")]))
    assert counts(source)["test"] == 4
    assert source.left_out["images of val/ that val_annotations.txt does not name"] == 2
    assert source.left_out["files that val_annotations.txt names and that are not there"] == 2


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([("gone.JPEG", "n01")], "val_annotations.txt names none of the 6 images beside it"),
        ([*LISTED, ("val_0.JPEG", "n03")], "val_annotations.txt gives val_0.JPEG two classes"),
        ([("val_0.JPEG", "n09")], "classes that train has not: n09"),
        ([*LISTED, ("val_9.JPEG", "")], "line 7 is 'val_9.JPEG.*expected file and class"),
    ],
)
def test_lists_that_fit_nothing_are_refused(made, listed, message):
    with pytest.raises(UserError, match=message):
        made(tiny_imagenet(listed))


def test_a_list_beside_class_folders_is_not_needed(made):
    files = tiny_imagenet(LISTED)
    for index, (file, synset) in enumerate(LISTED):
        files[f"val/{synset}/{file}"] = files.pop(f"val/images/val_{index}.JPEG")
    source = made(files)
    assert counts(source)["test"] == 6 and source.left_out["not an image (.txt)"] == 4


# --- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["val", "valid", "Validation", "VAL", "dev"])
def test_a_validation_split_goes_by_many_names(made, word):
    source = made(split_of("train", each=10) | split_of(word) | split_of("test", each=3))
    assert counts(source) == {"train": 20, "val": 4, "test": 6} and source.left_out == {}
    assert all(name.startswith(f"{word}/") for name in without_prefix(source.splits["val"].names))
    assert source.notes == []


@pytest.mark.parametrize("word", ["valid", "validation", "dev", "Val"])
def test_the_users_own_validation_split_leaves_train_whole(made, word):
    source = made(split_of("train", each=10) | split_of(word))
    assert counts(source) == {"train": 20, "val": 4}
    assert source.notes == [f"set: no test split; val is {word}, whole, and train is not cut"]


def test_val_alone_is_tested_on_as_is_imagenets_custom(made):
    source = made(split_of("train", each=10) | split_of("val"))
    assert counts(source) == {"train": 18, "val": 2, "test": 4}


@pytest.mark.parametrize(
    ("train", "test"), [("TRAIN", "Testing"), ("Training", "TEST"), ("train", "eval")]
)
def test_train_and_test_in_other_words(made, train, test):
    files = split_of(train, each=10) | split_of(test)
    for open in (open_source, open_images):
        source = made(files, open)
        assert counts(source) == {"train": 18, "val": 2, "test": 4}
        assert source.class_names == ("ant", "bee")


@pytest.mark.parametrize("words", [("val", "valid"), ("Train", "train"), ("eval", "test")])
def test_two_folders_of_one_split_are_refused(made, words):
    files = THREE | split_of(words[0]) | split_of(words[1])
    with pytest.raises(UserError, match=rf"2 folders that mean (train|val|test): {', '.join(words)};"):
        made(files)


def test_a_folder_without_images_is_no_rival(made):
    source = made(THREE | {"dev/run.sh": b"x"})
    assert counts(source) == {"train": 8, "val": 4, "test": 4}


def test_what_lies_beside_the_splits_is_named(made):
    files = THREE | pictures("extra/ant/0.png", "extra/1.png", "unlabeled/0.png", "overview.png")
    files |= {"README.md": b"x", "train.zip": b"x", "notes": b"x"}
    source = made(files)
    assert counts(source) == {"train": 8, "val": 4, "test": 4}
    assert sum(source.left_out.values()) == 7
    assert source.left_out["not an image (.md)"] == source.left_out["not an image (.zip)"] == 1
    assert source.left_out["not an image (without ending)"] == 1
    named = {key: count for key, count in source.left_out.items() if "which is no split" in key}
    assert sorted(named.values()) in ([1, 2], [1, 1, 2])
    assert sum("extra/, which" in key for key in named) == 1


@pytest.mark.parametrize("flat", ["test", "val"])
@pytest.mark.parametrize("inside", ["", "images/", "unknown/"])
def test_a_split_without_labels_is_left_out_with_a_note(made, flat, inside):
    other = {"test": "val", "val": "test"}[flat]
    files = (
        split_of("train", each=10)
        | split_of(other)
        | pictures(*(f"{flat}/{inside}{i}.png" for i in range(5)))
    )
    source = made(files)
    assert counts(source) == {"train": 18, "val": 2, "test": 4}
    assert source.left_out == {f"images of {flat}/ without labels": 5}
    assert source.notes[0] == f"set: its {flat}/ has no labels and is left out"


def test_val_and_test_without_labels(made):
    source = made(split_of("train", each=10) | pictures("val/0.png", "test/0.png", "test/1.png"))
    assert counts(source) == {"train": 18, "val": 2}
    assert source.left_out == {"images of test/ without labels": 2, "images of val/ without labels": 1}


def test_train_without_classes_is_refused(tmp_path):
    flat = pictures("train/0.png", "train/1.png") | split_of("val")
    with pytest.raises(UserError, match=r"train has no class folders"):
        open_source(in_folder(tmp_path / "set", flat))
    with pytest.raises(UserError, match=r"holds no images of train"):
        open_source(in_tar(tmp_path / "set.tar", flat))


def test_images_beside_class_folders_and_classes_without_images(tmp_path):
    root = in_folder(tmp_path / "set", THREE | pictures("train/loose.png", "val/loose.png"))
    for index in range(2):
        (root / "val" / "bee" / f"{index}.png").unlink()
    source = open_source(root)
    assert counts(source) == {"train": 8, "val": 2, "test": 4}
    assert source.left_out == {
        "class folders of val/ without images": 1,
        "images of train/ in no class folder": 1,
        "images of val/ in no class folder": 1,
    }


def test_what_leads_to_the_splits_of_a_tar_may_have_any_name(tmp_path):
    files = THREE | pictures("train/.cache/0.png")
    source = open_source(in_tar(tmp_path / "set.tar", files, ".data/my test/"))
    assert counts(source) == {"train": 8, "val": 4, "test": 4} and source.left_out == {"hidden": 1}


def test_a_tar_whose_classes_are_called_as_splits(tmp_path):
    files = split_of("train", classes=("test", "val", "dog"), each=4)
    source = open_source(in_tar(tmp_path / "set.tar", files))
    assert source.class_names == ("dog", "test", "val") and counts(source) == {"train": 9, "val": 3}


# --- what is no image ----------------------------------------------------------------------------


def test_hidden_files_and_other_endings_are_counted(made):
    files = THREE | pictures("train/ant/._0.png", "train/.cache/0.png", "__MACOSX/train/ant/0.png")
    files |= {"train/ant/a.HEIC": b"x", "val/bee/b.heic": b"x", "train/bee/Thumbs.db": b"x"}
    source = made(files)
    assert counts(source) == {"train": 8, "val": 4, "test": 4}
    assert source.left_out == {"hidden": 3, "not an image (.heic)": 2, "not an image (.db)": 1}
    assert left_out_line(source.name, source.left_out) == (
        "left out of set: hidden: 3, not an image (.heic): 2, not an image (.db): 1"
    )


def test_many_endings_and_folders_are_summed_up():
    left_out = LeftOut()
    for index in range(12):
        for _ in range(12 - index):
            left_out.file(f"x.e{index}")
            left_out.image_in(f"f{index}")
    left_out.file("an.ending that is none")
    found = left_out.counts()
    assert found["not an image (.e0)"] == found["images in f0/, which is no split"] == 12
    assert found["not an image (6 other endings)"] == 5 + 4 + 3 + 2 + 1 + 1
    assert found["images in 5 other folders"] == 5 + 4 + 3 + 2 + 1
    assert len(found) == 16 and list(found.values()) == sorted(found.values(), reverse=True)
    assert left_out_line("x", {}) is None


# --- names ---------------------------------------------------------------------------------------


def test_two_unicode_forms_of_a_class_are_one(made):
    apart, whole = (unicodedata.normalize(form, "café") for form in ("NFD", "NFC"))
    files = split_of("train", classes=(apart, "tea"), each=4) | split_of("val", classes=(whole, "tea"))
    source = made(files | split_of("test", classes=(whole, apart, "tea")))
    assert source.class_names == (apart, "tea") and counts(source) == {"train": 8, "val": 4, "test": 6}
    assert np.bincount(source.splits["test"].labels).tolist() == [4, 2]
    assert source.splits["val"].load(0).size == (8, 6)
    both = split_of("train", classes=(apart, whole, "tea"))
    with pytest.raises(
        UserError, match=r"two classes of one name in two Unicode forms: 'cafe.u0301' and"
    ):
        made(both)


def test_names_that_cannot_be_decoded_keep_working(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    source = open_source(in_folder(tmp_path / "set", split_of("train", classes=(odd, "tea"), each=4)))
    assert source.class_names == (r"caf\xe9", "tea") and counts(source) == {"train": 6, "val": 2}
    assert source.splits["train"].fingerprint() and source.splits["train"].load(0).size == (8, 6)


def test_a_member_of_the_same_path_replaces_the_earlier_one(tmp_path):
    path, later = in_tar(tmp_path / "set.tar", THREE), Image.new("RGB", (3, 3))
    later.save(tmp_path / "later.png")
    with tarfile.open(path, "a") as tar:
        tar.add(tmp_path / "later.png", "train/ant/0.png")
    source = open_source(path)
    assert source.left_out == {"members replaced by a later one of the same path": 1}
    assert counts(source)["train"] == 8 and source.splits["train"].load(0).size == (3, 3)
