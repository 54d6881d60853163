"""Shards: which split a name means, keys beside the images, and what lies beside the shards."""

import pytest
from layouts import counts, in_folder, in_tar, parquet, pictures, split_of, web

from star.base.errors import UserError
from star.images.open import is_flat_folder, open_source

pytest.importorskip("pyarrow", reason="pyarrow is optional: pip install .[parquet]")


@pytest.fixture(params=["tar", "parquet"])
def shard(request, tmp_path):
    """Write a shard of 6 images of 3 classes under a name without its ending."""

    def write(name, first=0):
        path = tmp_path / "set" / f"{name}.{request.param}"
        if request.param == "tar":
            return in_tar(path, web(first))
        return parquet(path, {"label": [number % 3 for number in range(6)]})

    return write


def opened(tmp_path):
    return open_source(tmp_path / "set")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("imagenet-train-000000", "imagenet-val-000000"),
        ("imagenet1k_TRAIN_0", "imagenet1k_Validation_0"),
        ("a.training.0", "a.dev.0"),
        ("my train 1", "my valid 1"),
        ("Train/0", "Valid/0"),
        ("train0001", "dev0001"),
        ("data/x-train", "data/x-val"),
        ("data/train/00", "data/dev/00"),
    ],
)
def test_the_word_of_a_split_may_stand_anywhere(shard, tmp_path, train, val):
    shard(train), shard(val, 50)
    source = opened(tmp_path)
    assert counts(source) == {"train": 6, "val": 6}, "the user's own val, and train is not cut"
    assert source.notes == [
        f"set: no test split; val is {source_name(val, shard)}, whole, and train is not cut"
    ]
    shard("x-test-0", 80)
    assert counts(opened(tmp_path)) == {"train": 6, "val": 6, "test": 6}


def source_name(val, shard):
    return shard(val, 50).name


def test_shards_as_the_hub_names_them_keep_imagenets_custom(shard, tmp_path):
    shard("train-0"), shard("train-1", 6), shard("data/validation-0", 50)
    assert counts(opened(tmp_path)) == {"train": 9, "val": 3, "test": 6}


def test_a_name_of_two_splits(shard, tmp_path):
    shard("x-train-0"), shard("train/val-and-test-0", 6)
    assert counts(opened(tmp_path))["train"] == 9, "its folder says train"
    shard("train-val-0", 20)
    with pytest.raises(UserError, match=r"train-val-0.* names two splits \(train, val\); expected one"):
        opened(tmp_path)


def test_names_without_a_split(shard, tmp_path):
    shard("0")
    assert counts(opened(tmp_path)) == {"train": 3, "val": 3}
    shard("1", 6)
    with pytest.raises(
        UserError, match=r"0\.(tar|parquet) belongs to no split; expected names such as"
    ):
        opened(tmp_path)
    (tmp_path / "set").rename(tmp_path / "Train")
    assert counts(open_source(tmp_path / "Train")) == {"train": 9, "val": 3}


def test_two_shards_of_one_name_in_two_folders_keep_their_own_images(shard, tmp_path):
    paths = [shard("train/0"), shard("train/1", 6), shard("test/0")]
    source = opened(tmp_path)
    assert counts(source) == {"train": 9, "val": 3, "test": 6}
    names = [name for split in source.splits.values() for name in split.names]
    assert len(set(names)) == 18 and all(name.split("/")[0] in ("train", "test") for name in names)
    assert all(name.startswith(f"test/{paths[2].name}/") for name in source.splits["test"].names)


def test_two_folders_of_one_split_are_refused(shard, tmp_path):
    shard("train/0"), shard("val/0", 6), shard("valid/1", 12)
    with pytest.raises(UserError, match="2 folders that mean val: val, valid"):
        opened(tmp_path)


def test_what_lies_beside_shards_is_counted(shard, tmp_path):
    path = shard("train/0")
    beside = {"README.md": b"", "train/nshards.txt": b"", f"train/._0{path.suffix}": b"", ".x/y": b""}
    beside |= pictures("sample.png") | {f"old/deep/0{path.suffix}": b""}
    in_folder(tmp_path / "set", beside)
    source = opened(tmp_path)
    assert counts(source) == {"train": 3, "val": 3}
    found = dict(source.left_out)
    assert found.pop("not an image (.json)", 6) == 6  # the members of the tar
    assert found == {
        "hidden": 2, "images in no shard": 1, "not an image (.md)": 1, "not an image (.txt)": 1,
        f"not an image ({path.suffix})": 1,
    }  # fmt: skip


def test_an_ending_in_capitals(tmp_path):
    in_tar(tmp_path / "set" / "A-TRAIN-0.TAR", web(0))
    assert counts(opened(tmp_path)) == {"train": 3, "val": 3}
    assert counts(open_source(tmp_path / "set" / "A-TRAIN-0.TAR")) == {"train": 3, "val": 3}
    assert not is_flat_folder(tmp_path / "set")


def test_images_without_a_class_and_classes_without_an_image(tmp_path):
    files = web(0) | pictures("alone.png") | {"lost.cls": b"1", "00000.txt": b"a cat"}
    source = open_source(in_tar(tmp_path / "set.tar", files))
    assert counts(source) == {"train": 3, "val": 3}
    assert source.left_out == {
        "not an image (.json)": 6, "classes (.cls) without an image": 1, "not an image (.txt)": 1,
        "images in no folder of a split and without .cls": 1,
    }  # fmt: skip


@pytest.mark.parametrize("label", [b"-1", None])
def test_shards_without_labels_are_left_out_with_a_note(tmp_path, label):
    in_tar(tmp_path / "set" / "train-0.tar", web(0))
    in_tar(tmp_path / "set" / "val-0.tar", web(50))
    test = pictures("a.png", "b.png")
    if label:
        test |= {"a.cls": label, "b.cls": label}
    in_tar(tmp_path / "set" / "test-0.tar", test)
    source = opened(tmp_path)
    assert counts(source) == {"train": 3, "val": 3, "test": 6}
    assert source.left_out["images of test without labels"] == 2
    why = " (-1 throughout)" if label else ""
    assert source.notes[0] == f"set: its test split has no labels{why} and is left out"


def test_splits_in_tars_of_their_own(tmp_path):
    in_tar(tmp_path / "set" / "part-train.tar", split_of("train", each=10))
    in_tar(tmp_path / "set" / "part-val.tar", split_of("valid"), "deep/")
    source = opened(tmp_path)
    assert counts(source) == {"train": 20, "val": 4} and source.class_names == ("ant", "bee")
