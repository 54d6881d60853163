"""Views: ADM's crop against its definition, ten-crop against torchvision, affine views by seed."""

import numpy as np
import pytest
import torch
from PIL import Image

from star.base.errors import UserError
from star.images.open import load_image
from star.images.views import affine_coefficients, center_crop, random_crop, to_model_range, view_set


def _noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _bicubic_weights(source, target):
    """(target, source) weights of antialiased Keys bicubic resampling, a = -0.5 (Pillow's)."""
    scale = source / target
    support = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    x = np.abs((np.arange(source) + 0.5)[None] - centres[:, None]) / support
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def _to_8_bits(pixels):
    return np.clip(np.floor(pixels + 0.5), 0, 255)


def _slow_center_crop(image, size):
    """ADM's centre crop with matrices in float64: box halvings, bicubic resize, cut.

    Like Pillow, each resize goes over the columns first and rounds to 8 bits after either pass.
    """
    pixels = np.asarray(image).astype(np.float64)
    while min(pixels.shape[:2]) >= 2 * size:
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        assert pixels.shape[:2] == (2 * height, 2 * width), "the reference halves even sides only"
        pixels = _to_8_bits(pixels.reshape(2 * height, width, 2, 3).mean(axis=2))
        pixels = _to_8_bits(pixels.reshape(height, 2, width, 3).mean(axis=1))
    scale = size / min(pixels.shape[:2])
    height, width = (round(side * scale) for side in pixels.shape[:2])
    rows, columns = _bicubic_weights(pixels.shape[0], height), _bicubic_weights(pixels.shape[1], width)
    pixels = _to_8_bits(np.einsum("wW,HWc->Hwc", columns, pixels))
    pixels = _to_8_bits(np.einsum("hH,HWc->hWc", rows, pixels))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(64, 48, 24), (48, 64, 23), (50, 40, 32), (33, 57, 40), (128, 96, 24), (32, 32, 32), (8, 8, 32)],
)
def test_center_crop_against_matrices(width, height, size):
    image = _noise(width, height)
    found = np.asarray(center_crop(image, size)).astype(float)
    expected = _slow_center_crop(image, size)
    assert found.shape == (size, size, 3)
    # one level: Pillow's weights are fixed-point numbers, which turns a few roundings around
    assert abs(found - expected).max() <= 1 and (found != expected).mean() < 0.05


def test_center_crop_known_behaviour():
    same = _noise(32, 32)
    assert np.array_equal(np.asarray(center_crop(same, 32)), np.asarray(same))
    # exactly twice: halved by the box filter, then nothing left to resize
    twice = _noise(64, 64)
    boxed = twice.resize((32, 32), Image.Resampling.BOX)
    assert np.array_equal(np.asarray(center_crop(twice, 32)), np.asarray(boxed))
    # one pixel less than twice: no halving
    less = _noise(63, 63)
    cubic = less.resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(center_crop(less, 32)), np.asarray(cubic))
    # an odd rest of the long side is cut to the left
    wide = _noise(37, 32)
    assert np.array_equal(np.asarray(center_crop(wide, 32)), np.asarray(wide)[:, 2:34])


def test_strips_too_narrow_to_enlarge_are_refused():
    with pytest.raises(UserError, match="1 x 9000 pixels would have to be enlarged"):
        center_crop(_noise(1, 9000), 256)


@pytest.mark.parametrize(
    ("name", "size", "crop_size"),
    [("ten-crop", 256, 281), ("ten-crop-1.05", 256, 268), ("ten-crop", 32, 35)],
)
def test_ten_crop_is_torchvisions(name, size, crop_size):
    from torchvision.transforms import TenCrop

    image = load_image("china.jpg")
    views = view_set(name, size)
    found = views(image, 0)
    expected = np.stack([np.asarray(crop) for crop in TenCrop(size)(center_crop(image, crop_size))])
    assert found.dtype == np.uint8 and np.array_equal(found, expected)
    assert len(views) == 10 and views.test_view == 4 and views.view_names[4] == "centre"
    # mirrored before it is cut: the mirrored top left is the top right, mirrored
    assert np.array_equal(found[5], found[1][:, ::-1])
    assert views.describe()["crop_size"] == crop_size
    only = views.test_only()
    assert only.view_names == ("centre",) and only.test_view == 0
    assert np.array_equal(only(image, 0), found[4:5])


def test_affine_views_are_a_function_of_seed_and_index():
    digit = load_image("digits/7")
    views = view_set("affine", 32, seed=3)
    found = views(digit, 11)
    assert found.shape == (16, 32, 32, 3) and len(views) == 16 and views.name == "affine-16"
    assert np.array_equal(found, view_set("affine", 32, seed=3)(digit, 11))
    assert np.array_equal(found[0], np.asarray(digit))
    # fewer views are the first of many; another seed or image has others
    assert np.array_equal(found[:4], view_set("affine-4", 32, seed=3)(digit, 11))
    for other in (view_set("affine", 32, seed=4)(digit, 11), views(digit, 12)):
        assert np.array_equal(other[0], found[0])
        assert all((other[i] != found[i]).any() for i in range(1, 16))
    assert len({view.tobytes() for view in found}) == 16
    only = views.test_only()(digit, 11)
    assert np.array_equal(only, found[:1])


def test_affine_never_mirrors_and_stays_in_its_bounds():
    rng = np.random.default_rng(0)
    for draw in [*rng.uniform(-1, 1, (200, 4)), np.ones(4), -np.ones(4)]:
        a, b, c, d, e, f = affine_coefficients(32, draw)
        forward = np.linalg.inv([[a, b], [d, e]])
        determinant = np.linalg.det(forward)
        assert 0.85**2 - 1e-9 <= determinant <= 1.15**2 + 1e-9
        angle = np.degrees(np.arctan2(forward[1, 0], forward[0, 0]))
        assert abs(angle) <= 12 + 1e-9
        centre = forward @ (np.array([16.0, 16.0]) - [c, f])  # where the image's centre goes
        assert abs(centre - 16).max() <= 0.14 * 32 + 1e-9


def test_affine_moves_pixels_as_its_numbers_say():
    spot = np.zeros((64, 64, 3), dtype=np.uint8)
    spot[20:25, 38:43] = 255  # centre at x = 40.5, y = 22.5
    views = view_set("affine-9", 64, seed=1)
    from star.base.randomness import generator

    draws = generator(1, "views", 5).uniform(-1, 1, size=(8, 4))
    for draw, view in zip(draws, views(Image.fromarray(spot), 5)[1:], strict=True):
        angle, scale = np.radians(12 * draw[0]), 1 + 0.15 * draw[1]
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        expected = 32 + 0.14 * 64 * draw[2:] + turn @ (np.array([40.5, 22.5]) - 32)
        weights = view[..., 0].astype(float)
        y, x = np.mgrid[:64, :64] + 0.5
        found = np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()
        assert abs(found - expected).max() < 0.15  # of a pixel


def test_affine_fills_with_the_border_colour():
    flat = Image.new("RGB", (32, 32), (12, 34, 56))
    assert (view_set("affine", 32)(flat, 0) == (12, 34, 56)).all()


def test_plain_is_the_centre_crop():
    image = load_image("flower.jpg")
    found = view_set("plain", 64)(image, 0)
    assert np.array_equal(found, np.asarray(center_crop(image, 64))[None])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("five-crop", "expected one of: ten-crop"),
        ("", "expected one of"),
        ("ten-crop-0.9", "from 1 to 2"),
        ("ten-crop-nan", "from 1 to 2"),
        ("ten-crop-wide", "from 1 to 2"),
        ("ten-crop-1.1+", "from 1 to 2"),
        ("ten-crop-1.1+1.1", "several different ones"),
        ("random-crop-0", "1 to 1000"),
        ("affine-0", "1 to 1000"),
        ("affine-two", "1 to 1000"),
    ],
)
def test_unknown_views(name, message):
    with pytest.raises(UserError, match=message):
        view_set(name, 32)


def test_size_must_be_positive():
    with pytest.raises(UserError, match="image size is 0"):
        view_set("plain", 0)


def test_to_model_range():
    images = np.array([0, 255, 51], dtype=np.uint8).reshape(1, 1, 1, 3)
    found = to_model_range(images)
    assert found.dtype == torch.float32 and found.shape == (1, 3, 1, 1)
    assert torch.allclose(found.flatten(), torch.tensor([-1.0, 1.0, -0.6]))
    noise = np.asarray(_noise(5, 7))[None]
    found = to_model_range(noise)
    expected = torch.tensor(noise.astype(np.float64) / 127.5 - 1).permute(0, 3, 1, 2)
    assert found.shape == (1, 3, 7, 5) and torch.allclose(found.double(), expected, atol=1e-6)


def test_random_crop_is_a_square_of_the_image():
    columns = np.repeat(np.arange(50, dtype=np.uint8)[None] * 5, 40, axis=0)
    image = Image.fromarray(np.repeat(columns[:, :, None], 3, axis=2))
    seen = set()
    for draw in range(200):
        rng = np.random.default_rng(draw)
        crop = np.asarray(random_crop(image, 40, rng)).astype(int)
        assert crop.shape == (40, 40, 3)
        step = (crop[20, 30, 0] - crop[20, 10, 0]) / 20  # 5 per pixel of the image, less if enlarged
        assert 5 * 0.8 - 0.3 <= step <= 5 + 0.3
        seen.add((crop[20, 0, 0], round(step, 1)))
        assert np.array_equal(crop, np.asarray(random_crop(image, 40, np.random.default_rng(draw))))
    assert len(seen) > 60
    # without room to move or to shrink it is the image itself
    same = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    never = type(
        "Lowest", (), {"integers": lambda self, low, high=None, endpoint=False: 4 if high else 0}
    )
    assert np.array_equal(np.asarray(random_crop(same, 4, never())), np.asarray(same))


def test_both_crop_ranges_are_the_two_ten_crops_in_one():
    image = load_image("china.jpg")
    both = view_set("ten-crop-1.1+1.05", 64)
    found = both(image, 0)
    parts = [view_set(one, 64)(image, 0) for one in ("ten-crop", "ten-crop-1.05")]
    assert np.array_equal(found, np.concatenate(parts)) and len(both) == 20
    assert both.view_names[4] == "1.1-centre" and both.view_names[14] == "1.05-centre"
    assert len(set(both.view_names)) == 20 and both.describe()["crop_sizes"] == [70, 67]
    only = both.test_only()
    assert only.view_names == ("1.1-centre",) and np.array_equal(only(image, 0), found[4:5])
    turned = view_set("ten-crop-1.05+1.1", 64)
    assert np.array_equal(turned(image, 0)[10:], parts[0]) and turned.test_view == 4


def test_flip_is_the_centre_crop_and_its_mirror_image():
    image = load_image("flower.jpg")
    views = view_set("flip", 48)
    centre = np.asarray(center_crop(image, 48))
    assert np.array_equal(views(image, 3), np.stack([centre, centre[:, ::-1]]))
    assert views.test_view == 0 and np.array_equal(views.test_only()(image, 3), centre[None])


def test_random_crops_are_a_function_of_seed_index_and_view():
    image = load_image("china.jpg")
    views = view_set("random-crop-6", 32, seed=2)
    found = views(image, 9)
    assert found.shape == (6, 32, 32, 3) and len(view_set("random-crop", 32)) == 10
    assert np.array_equal(found[0], np.asarray(center_crop(image, 32)))
    from star.base.randomness import generator

    mirrored = 0
    for view in range(1, 6):  # each by itself, as its three numbers say
        rng = generator(2, "random crops", 9, view)
        expected = np.asarray(random_crop(image, 32, rng))
        flip = rng.random() < 0.5
        mirrored += flip
        assert np.array_equal(found[view], expected[:, ::-1] if flip else expected)
    assert 0 < mirrored < 5
    assert np.array_equal(view_set("random-crop-3", 32, seed=2)(image, 9), found[:3])
    for other in (view_set("random-crop-6", 32, seed=3)(image, 9), views(image, 10)):
        assert np.array_equal(other[0], found[0])
        assert all((other[view] != found[view]).any() for view in range(1, 6))
    assert np.array_equal(views.test_only()(image, 9), found[:1])
