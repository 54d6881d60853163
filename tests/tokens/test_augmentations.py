"""Augmentations: what each does to pixels, names and strengths, and where the pictures come from."""

import io

import numpy as np
import pytest
from cell_tokenizer import random_pictures
from PIL import Image

from probes.tokens.augmentations import AUGMENTATIONS, chosen_views, nudge
from probes.tokens.images import drawn, holds_many, one_image, picture_split
from star.base.errors import UserError
from star.base.randomness import generator


def applied(text, image):
    (view,) = chosen_views(text, size=len(image), stride=4)
    return view(image, generator(0, "noise"))


@pytest.fixture(scope="module")
def image():
    return random_pictures(1, 32)[0]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_view_is_a_picture_of_the_same_size_and_leaves_the_image_alone(name, image):
    before = image.copy()
    image.flags.writeable = False
    for view in chosen_views(name, size=32, stride=4):
        changed = view(image, generator(0, "noise"))
        assert changed.shape == image.shape and changed.dtype == np.uint8
        same = np.array_equal(changed, image)
        assert same if view.is_identity else not same, view
    np.testing.assert_array_equal(image, before)


def test_colours_are_torchvisions(image):
    # Half, rounded down; PIL and torchvision agree within one level.
    assert np.abs(applied("brightness:0.5", image).astype(int) - image // 2).max() <= 1
    grey = applied("saturation:0", image)
    luma = image @ np.array([0.2989, 0.587, 0.114])
    assert np.abs(grey - luma[..., None]).max() <= 1
    flat = applied("contrast:0", image)
    assert np.ptp(flat) == 0 and abs(int(flat[0, 0, 0]) - luma.mean()) <= 1
    red = np.zeros((4, 4, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
    np.testing.assert_array_equal(applied("hue:120", red)[0, 0], [0, 200, 0])


def test_blur_is_a_gaussian_of_sigma_pixels():
    dot = np.zeros((33, 33, 3), np.uint8)
    dot[16, 16] = 255
    blurred = applied("blur:1", dot).astype(float)[..., 0]
    places = np.arange(-16, 17)
    bell = np.exp(-(places**2) / 2)
    wanted = 255 * np.outer(bell, bell) / bell.sum() ** 2
    assert np.abs(blurred - wanted).max() <= 1  # rounding, and the tails beyond 3 sigma
    tiny = random_pictures(1, 4)[0]
    assert applied("blur:30", tiny).shape == (4, 4, 3)  # a kernel wider than the picture


def test_jpeg_is_pillows_and_noise_has_the_spread_asked_for(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=50)
    np.testing.assert_array_equal(applied("jpeg:50", image), np.asarray(Image.open(buffer)))
    grey = np.full((64, 64, 3), 128, np.uint8)
    noise = applied("noise:10", grey).astype(float) - 128
    # 12,288 draws: the standard error of the spread is 10 / sqrt(2 * 12288) = 0.06
    assert abs(noise.std() - 10) < 0.3 and abs(noise.mean()) < 0.3


def test_a_crop_enlarges_the_middle(image):
    middle = Image.fromarray(image).crop((8, 8, 24, 24)).resize((32, 32), Image.Resampling.BICUBIC)
    inside = np.s_[4:-4, 4:-4]  # at its edge the filter sees beyond the crop
    difference = applied("crop:50", image).astype(int) - np.asarray(middle).astype(int)
    assert np.abs(difference[inside]).max() <= 1


@pytest.mark.parametrize("options", [{"scale": 0.3}, {"rotate": 45}, {"rotate": 30, "scale": 0.5}])
def test_no_edge_appears(options):
    white = Image.new("RGB", (32, 32), "white")
    assert np.asarray(nudge(white, shift=5, **options)).min() == 255


def test_views_are_named_with_or_without_strengths():
    def named(*arguments, **options):
        return [(v.augmentation.name, v.strength) for v in chosen_views(*arguments, **options)]

    assert named("noise:0, 2,flip,blur:1,1", size=32, stride=4) == [
        ("noise", 0), ("noise", 2), ("flip", 0), ("flip", 1), ("blur", 1),
    ]  # fmt: skip
    assert [s for _, s in named("shift", size=256, stride=16)] == [0, 1, 2, 4, 8, 16]
    assert [s for _, s in named("shift", size=32, stride=4, coarsest=16)] == [0, 1, 2, 4, 8, 16]
    # A picture of two cells has no room for shifts by 2 and 3.
    assert [s for _, s in named("cells", size=8, stride=4)] == [0, 1]
    assert {name for name, _ in named(None, size=32, stride=4)} == set(AUGMENTATIONS)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("nope", "augment is 'nope'; expected one of: shift, cells, flip, turn"),
        ("", "augment is ''; expected one of: shift"),
        ("5", "augment is '5'; expected one of: shift"),
        ("noise:x", "noise:x is no strength; expected 0 to 255 .*such as noise:0,1,2"),
        ("noise:", "noise: is no strength"),
        ("noise:nan", "noise:nan is no strength"),
        ("blur:inf", "blur:inf is no strength"),
        ("noise:1,-1", "noise:-1 is no strength"),
        ("turn:45", "turn:45 is no strength; expected 0 to 270 in steps of 90"),
        ("jpeg:50.5", "jpeg:50.5 is no strength; expected 1 to 100 in steps of 1"),
        ("shift:32", "shift:32 is 32 pixels; expected less than the image's 32"),
        ("cells:-8", "cells:-8 is 32 pixels"),
        ("noise,blur,noise:3", "augment names noise twice"),
    ],
)
def test_a_name_or_strength_that_is_none_is_refused(asked, message):
    with pytest.raises(UserError, match=message):
        chosen_views(asked, size=32, stride=4)


def test_pictures_of_any_folder_of_a_source_and_alone(digit_folder, tmp_path):
    split, name = picture_split(str(digit_folder))
    assert (len(split), name) == (16, "test")
    assert split.load(0).size == (32, 32)
    assert picture_split(str(digit_folder), "train")[1] == "train"
    flat, name = picture_split(str(digit_folder / "train"))  # classes without a folder train
    assert (len(flat), name) == (48, "all") and flat.names[0].startswith("one/")
    (tmp_path / "a b").mkdir()
    for place in ("x.PNG", "a b/y.jpg", ".hidden.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    (tmp_path / "notes.txt").write_text("no image")
    found, _ = picture_split(str(tmp_path))
    assert found.names == ("a b/y.jpg", "x.PNG")
    assert holds_many(str(tmp_path)) and holds_many("photos") and not holds_many("digits/3")
    assert one_image("digits/3").load(0).size == (32, 32)
    assert picture_split("photos")[1] == "train"


def test_images_are_drawn_by_the_seed_in_a_random_order(digit_folder):
    split, _ = picture_split(str(digit_folder), "train")
    first, again, other = (drawn(split, 10, seed) for seed in (0, 0, 1))
    assert first.names == again.names != other.names and len(set(first.names)) == 10
    everything = drawn(split, 0, 0)
    assert set(everything.names) == set(split.names) and everything.names != split.names
    assert everything.names[:10] == first.names


def test_folders_without_pictures_are_refused(stores, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="holds no image; expected files"):
        picture_split(str(tmp_path))
    with pytest.raises(UserError, match="has no folder train, so no splits; leave out --split val"):
        picture_split(str(tmp_path), "val")
    with pytest.raises(UserError, match="holds codes; expected images"):
        picture_split(str(stores))
