"""Image sources: splits that are fixed and disjoint, and one clear error for every unusable input."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from star.base.errors import UserError
from star.images.open import BadImageError, load_image, open_source


def _picture(path, color=(10, 200, 30), size=(12, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def _folder(root, *splits, classes=("ant", "bee"), images=4):
    for split in splits:
        for name in classes:
            for index in range(images):
                _picture(root / split / name / f"{index}.png", color=(index, 0, 0))
    return root


def test_digits_split_is_fixed_disjoint_and_stratified():
    source, again = open_source("digits"), open_source("digits")
    assert {name: len(split) for name, split in source.splits.items()} == {
        "train": 1297,
        "val": 140,
        "test": 360,
    }
    names = [name for split in source.splits.values() for name in split.names]
    assert len(set(names)) == 1797
    for name, split in source.splits.items():
        assert split.labels.dtype == np.int64
        assert split.names == again.splits[name].names
        assert split.fingerprint() == again.splits[name].fingerprint()
        share = np.bincount(split.labels, minlength=10) / len(split)
        assert abs(share - 0.1).max() < 0.01
    # pinned: a change of the split would silently change every measured number
    assert source.splits["test"].names[:4] == PINNED_TEST
    assert source.class_names == tuple("0123456789")
    assert source.default_views == "affine" and source.native_size == 32


PINNED_TEST = ("digits/1", "digits/6", "digits/11", "digits/14")


def test_digits_are_enlarged_scans():
    from sklearn.datasets import load_digits

    split = open_source("digits").splits["val"]
    image = split.load(5)
    index = int(split.name(5).removeprefix("digits/"))
    assert image.mode == "RGB" and image.size == (32, 32)
    pixels = np.asarray(image).astype(float)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    small = pixels[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    scan = load_digits().images[index] * 255 / 16
    # bicubic enlarging overshoots and is clipped at black and white: close, not equal
    assert abs(small - scan).mean() < 10
    assert split.labels[5] == load_digits().target[index]
    assert np.array_equal(np.asarray(load_image(f"digits/{index}")), np.asarray(image))


def test_photos_have_a_train_split_only():
    source = open_source("photos")
    assert source.class_names == ("china", "flower")
    assert source.native_size == 256 and source.default_views == "ten-crop"
    assert list(source.splits) == ["train"]
    assert source.splits["train"].load(0).size == (640, 427)
    with pytest.raises(UserError, match=r"photos has no test split; it has: train"):
        source.split("test")


def test_folder_with_test_takes_val_out_of_train(tmp_path):
    source = open_source(_folder(tmp_path / "set", "train", "test", images=60))
    assert {name: len(split) for name, split in source.splits.items()} == {
        "train": 114,
        "val": 6,
        "test": 120,
    }
    train, val = source.splits["train"], source.splits["val"]
    assert not set(train.names) & set(val.names)
    assert np.bincount(val.labels).tolist() == [3, 3]
    assert open_source(tmp_path / "set").splits["val"].names == val.names
    assert all(name.startswith("test/") for name in source.splits["test"].names)
    assert len(source.notes) == 1 and "val is 6 of the 120 images" in source.notes[0]
    assert source.native_size == 8 and source.default_views == "ten-crop"
    assert source.class_names == ("ant", "bee") and source.name == "set"


def test_folder_with_val_only_tests_on_it(tmp_path):
    source = open_source(_folder(tmp_path / "set", "train", "val"))
    assert [len(source.splits[name]) for name in ("train", "val", "test")] == [6, 2, 8]
    assert all(name.startswith("val/") for name in source.splits["test"].names)
    assert all(name.startswith("train/") for name in source.splits["val"].names)
    assert "test is the folder's val/" in source.notes[0]


def test_folder_with_all_three_is_taken_as_it_is(tmp_path):
    source = open_source(_folder(tmp_path / "set", "train", "val", "test"))
    for name, split in source.splits.items():
        assert len(split) == 8 and all(image.startswith(f"{name}/") for image in split.names)
    assert source.notes == []


def test_train_alone_gives_no_test_split_and_says_so(tmp_path):
    source = open_source(_folder(tmp_path / "set", "train"))
    assert list(source.splits) == ["train", "val"]
    assert any("no test split" in note for note in source.notes)


def test_only_images_count(tmp_path):
    root = _folder(tmp_path / "set", "train", "val", "test", images=1)
    _picture(root / "train" / "ant" / "UPPER.JPG")
    _picture(root / "train" / "ant" / ".hidden.png")
    _picture(root / "train" / ".cache" / "1.png")
    (root / "train" / "ant" / "notes.txt").write_text("no image")
    (root / "train" / "ant" / "folder.png").mkdir()
    assert open_source(root).splits["train"].names == (
        "train/ant/0.png",
        "train/ant/UPPER.JPG",
        "train/bee/0.png",
    )


def test_fingerprint_follows_names_sizes_and_labels(tmp_path):
    root = _folder(tmp_path / "set", "train", "val", "test")
    before = open_source(root).splits["train"].fingerprint()
    _folder(tmp_path / "copy", "train", "val", "test")
    assert open_source(tmp_path / "copy").splits["train"].fingerprint() == before
    _picture(root / "train" / "ant" / "0.png", size=(300, 200))
    resized = open_source(root).splits["train"].fingerprint()
    (root / "train" / "ant" / "0.png").rename(root / "train" / "bee" / "4.png")
    assert len({before, resized, open_source(root).splits["train"].fingerprint()}) == 3


def test_splits_can_go_to_other_processes(tmp_path):
    split = open_source(_folder(tmp_path / "set", "train")).splits["train"]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(split.load, 0).result().size == (12, 8)


def _modes(tmp_path):
    """(file, expected RGB of the top left pixel) of every pixel format that is converted."""
    grey16 = np.full((8, 8), 40_000, dtype=np.uint16)
    red = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 7, 8, 9])
    see_through = palette.copy()
    see_through.info["transparency"] = 1
    images = {
        "grey.png": (Image.new("L", (8, 8), 77), (77, 77, 77)),
        "grey16.png": (Image.fromarray(grey16), (156, 156, 156)),
        "grey16.tif": (Image.fromarray(grey16), (156, 156, 156)),
        "one.png": (Image.new("1", (8, 8), 1), (255, 255, 255)),
        "rgba.png": (red, (255, 127, 127)),
        "grey_alpha.png": (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        "palette.png": (palette, (7, 8, 9)),
        "see_through.png": (see_through, (255, 255, 255)),
        "cmyk.tif": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
        "cmyk.jpg": (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), (0, 0, 0)),
        "rgb.webp": (Image.new("RGB", (8, 8), (5, 5, 5)), (5, 5, 5)),
        "rgb.bmp": (Image.new("RGB", (8, 8), (5, 6, 7)), (5, 6, 7)),
        "rgb.ppm": (Image.new("RGB", (8, 8), (5, 6, 7)), (5, 6, 7)),
    }
    for name, (image, expected) in images.items():
        image.save(tmp_path / name)
        yield tmp_path / name, expected


def test_every_pixel_format_becomes_rgb(tmp_path):
    for path, expected in _modes(tmp_path):
        image = load_image(path)
        assert image.mode == "RGB" and image.size == (8, 8)
        found = np.asarray(image)[0, 0].astype(int)
        # one level: rounding of alpha and of JPEG's colour transform
        assert abs(found - expected).max() <= 1, (path.name, found)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    path = _picture(tmp_path / "turned.jpg", size=(20, 10), exif=exif)
    assert load_image(path).size == (10, 20)


@pytest.mark.parametrize("make", ["text", "truncated", "empty", "floating"])
def test_bad_images_are_named_with_the_way_out(tmp_path, make):
    root = _folder(tmp_path / "set", "train", "val", "test")
    bad = root / "train" / "ant" / "bad.tif"
    if make == "truncated":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "whole.jpg")
        bad = bad.with_suffix(".jpg")
        bad.write_bytes((tmp_path / "whole.jpg").read_bytes()[:-900])
    elif make == "floating":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(bad)
    else:
        bad.write_text("not an image" if make == "text" else "")
    split = open_source(root).splits["train"]
    index = split.names.index(f"train/ant/{bad.name}")
    with pytest.raises(BadImageError, match=r"bad\.(tif|jpg).*remove it or pass --skip-bad"):
        split.load(index)
    with pytest.raises(BadImageError, match=r"give another file"):
        load_image(bad)


def test_a_file_that_is_gone_is_not_a_bad_image(tmp_path):
    root = _folder(tmp_path / "set", "train", "val", "test")
    split = open_source(root).splits["train"]
    (root / split.name(0)).unlink()
    with pytest.raises(UserError, match=r"cannot read .*0.png: No such file") as caught:
        split.load(0)
    assert not isinstance(caught.value, BadImageError)


@pytest.mark.parametrize("size", [(10_001, 10_000), (14_000, 14_000)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_images_are_refused_with_their_size(tmp_path, size):
    path = tmp_path / "huge.png"
    Image.new("1", size).save(path)
    with pytest.raises(BadImageError, match=rf"huge.png has {size[0]} x {size[1]} pixels; at most 100"):
        load_image(path)


def test_load_image_errors(tmp_path):
    assert load_image("china.jpg").size == (640, 427)
    for missing in ("digits/1797", "digits/-1", "digits/x", "nowhere.png"):
        with pytest.raises(UserError, match=f"no such image: {missing}; expected a file, digits/0"):
            load_image(missing)
    with pytest.raises(UserError, match=r"is a folder"):
        load_image(tmp_path)


def test_unusable_folders(tmp_path):
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere; expected digits, photos"):
        open_source(tmp_path / "nowhere")
    file = _picture(tmp_path / "one.png")
    with pytest.raises(UserError, match=r"is a file; expected"):
        open_source(file)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"is empty; expected train/<class>"):
        open_source(empty)
    flat = _folder(tmp_path / "flat", "cats", "dogs")
    with pytest.raises(UserError, match=r"no folder train; expected train/<class>.*found: cats, dogs"):
        open_source(flat)
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train has no class folders"):
        open_source(tmp_path / "bare")


def test_unusable_classes(tmp_path):
    for split in ("train", "test"):
        root = _folder(tmp_path / f"one-{split}", *{"train", "test"} - {split})
        _folder(root, split, classes=("ant",))
        with pytest.raises(UserError, match=rf"{split} has one class \(ant\)"):
            open_source(root)
    root = _folder(tmp_path / "hollow", "train")
    (root / "train" / "cow").mkdir()
    with pytest.raises(UserError, match=r"cow holds no image"):
        open_source(root)
    root = _folder(_folder(tmp_path / "more", "train"), "test", classes=("ant", "wasp"))
    with pytest.raises(UserError, match=r"test has classes that train has not: wasp"):
        open_source(root)
    root = _folder(tmp_path / "nothing", "train")
    for name in ("ant", "bee"):
        (root / "test" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"test holds no images"):
        open_source(root)


def test_a_class_of_one_image_stays_in_train(tmp_path):
    root = _folder(tmp_path / "set", "train", "test")
    _picture(root / "train" / "cow" / "0.png")
    source = open_source(root)
    assert "train/cow/0.png" in source.splits["train"].names
    assert np.bincount(source.splits["val"].labels, minlength=3).tolist() == [1, 1, 0]
