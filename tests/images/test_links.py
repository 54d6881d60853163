"""Links below a source are followed, those that lead nowhere or in a circle are counted."""

import os

import pytest
from layouts import counts, in_folder, pictures, split_of

from star.base.errors import UserError
from star.images.left_out import LeftOut
from star.images.open import open_images, open_source
from star.images.tree import list_tree


@pytest.fixture
def store(tmp_path):
    files = split_of("train", classes=("ant", "bee", "cow"), each=4)
    return in_folder(tmp_path / "store", files | split_of("val", classes=("ant", "bee")))


def linked(root, links):
    for place, target in links.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(target, root / place)
    return root


def test_class_folders_splits_and_files_may_be_links(store, tmp_path):
    one = store / "train" / "ant" / "0.png"
    root = linked(
        tmp_path / "set",
        {"train/ant": store / "train/ant", "train/bee": "../../store/train/bee", "val": store / "val"},
    )
    more = linked(root / "train" / "more", {"own.png": one, "deep/all": store / "train" / "cow"})
    source = open_source(root)
    assert source.class_names == ("ant", "bee", "more") and source.left_out == {}
    assert counts(source) == {"train": 10, "val": 3, "test": 4}
    assert "train/more/deep/all/3.png" in {n for s in source.splits.values() for n in s.names}
    assert source.splits["train"].load(0).size == (8, 6)
    os.symlink(root, tmp_path / "root")
    again = open_source(tmp_path / "root")
    assert again.splits["train"].fingerprint() == source.splits["train"].fingerprint()
    assert len(open_images(more).splits["train"]) == 4, "5 images, of which val has one"


def test_a_folder_without_train_of_links_is_a_folder_of_images(store, tmp_path):
    root = linked(tmp_path / "set", {"ant": store / "train/ant", "bee": store / "train/bee"})
    source = open_images(root)
    assert counts(source) == {"train": 7, "val": 1} and source.left_out == {}
    with pytest.raises(UserError, match=r"no folder train; .*found: ant, bee"):
        open_source(root)


def test_links_to_nothing_and_in_circles_are_counted(store):
    linked(
        store,
        {
            "train/ant/gone.png": "nowhere.png", "train/gone": "nowhere", "gone": "nowhere",
            "train/ant/self.png": "self.png", "train/bee/up": "..", "train/bee/top": "/",
            "train/round": "../train", "val/ant/all": store,
        },
    )  # fmt: skip
    os.mkfifo(store / "train" / "cow" / "pipe.png")
    source = open_source(store)
    assert counts(source) == {"train": 9, "val": 3, "test": 4}
    assert source.left_out == {
        "links in a circle": 5, "links to nothing": 3, "neither files nor folders": 1,
    }  # fmt: skip
    flat = open_images(store / "train")
    assert counts(flat) == {"train": 11, "val": 1}
    assert sum(flat.left_out.values()) == 7


def test_folders_that_link_to_each_other_end(tmp_path):
    root = in_folder(tmp_path / "set", pictures("a/0.png", "b/0.png"))
    linked(root, {"a/b": "../b", "b/a": "../a"})
    left_out = LeftOut()
    found = list_tree(root, left_out, strict=True)
    assert sorted(found.files) == ["a/0.png", "a/b/0.png", "b/0.png", "b/a/0.png"]
    assert left_out.counts() == {"links in a circle": 2}


def test_a_split_that_is_a_link_to_nothing_is_shown_as_one(tmp_path):
    root = linked(in_folder(tmp_path / "set", split_of("val")), {"train": "gone"})
    with pytest.raises(UserError, match=r"no folder train; .*found: train \(a link to nothing\), val"):
        open_source(root)


def test_a_folder_that_cannot_be_opened(store, monkeypatch):
    in_folder(store, pictures("beside/0.png"))
    closed, scandir = "beside", os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert open_source(store).left_out == {"folders that cannot be opened": 1}
    closed = "train/bee"
    with pytest.raises(UserError, match=r"cannot list .*train/bee.*: Permission denied"):
        open_source(store)
