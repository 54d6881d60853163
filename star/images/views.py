"""Views of an image: the fixed crops that LlamaGen stores, random affine ones, or a single crop.

The paper trains on stored codes of several augmentations of each image. Following LlamaGen, the
default is ADM's centre crop to int(size x 1.1) pixels followed by ten-crop: four corners, the centre,
and the same five of the mirrored image, in the order of torchvision's ``TenCrop``. Images that must not
be mirrored (digits) get random rotations, scales and shifts instead.

Shapes: uint8 images are (H, W, 3); views are (views, size, size, 3); a batch is N,H,W,3 or N,3,H,W.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.base.errors import UserError
from star.base.randomness import generator
from star.base.record import Record

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "ViewSet",
    "center_crop",
    "inverse_affine",
    "random_crop",
    "scaled",
    "ten_crop_names",
    "to_model_range",
    "view_set",
]

_CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right", "centre")
_TEN = (*_CORNERS, *(f"mirrored-{name}" for name in _CORNERS))
_BOTH = "ten-crop-1.1+1.05"
DEFAULT_CROP_RANGE = 1.1
DEFAULT_RANDOM = 10
DEFAULT_AFFINE = 16
MAX_ROTATION = 12.0  # degrees
SCALES = (0.85, 1.15)
MAX_SHIFT = 0.14  # of the side
MAX_RESIZED = 100_000_000  # pixels
LEAST_CROP = 0.8  # share of the short side that a random crop keeps at least


@dataclass(frozen=True, kw_only=True)
class ViewSet:
    """A function from an RGB image to its views. ``test_view`` is the row that tests use.

    Calling it gives uint8 (views, size, size, 3). ``image_index`` is the image's place in its split;
    it matters to random views only.
    """

    name: str
    size: int
    view_names: tuple[str, ...]
    test_view: int = 0

    def __len__(self) -> int:
        return len(self.view_names)

    def __call__(self, image: "Image.Image", image_index: int) -> np.ndarray:
        raise NotImplementedError

    def describe(self) -> Record:
        """Plain dictionary for manifests: everything that the pixels of the views depend on."""
        return {"name": self.name, "size": self.size, **self._details()}

    def test_only(self) -> "ViewSet":
        """The same views without all but the test view."""
        return replace(self, view_names=(self.view_names[self.test_view],), test_view=0)

    def _details(self) -> Record:
        return {}


@dataclass(frozen=True, kw_only=True)
class PlainView(ViewSet):
    """One ADM centre crop."""

    view_names: tuple[str, ...] = ("centre",)

    def __call__(self, image: "Image.Image", image_index: int) -> np.ndarray:
        return np.asarray(center_crop(image, self.size))[None]

    def _details(self) -> Record:
        return {"crop": "ADM centre crop"}


@dataclass(frozen=True, kw_only=True)
class TenCrop(ViewSet):
    """ADM centre crop to ``crop_size``, then ten crops of ``size`` in torchvision's order.

    The image is mirrored before it is cut, so view 5 is view 1 mirrored; and where ``crop_size - size``
    is odd (281 - 256), view 9 is view 4 mirrored only up to a shift by one pixel, as in torchvision.
    """

    view_names: tuple[str, ...] = _TEN
    test_view: int = _TEN.index("centre")
    crop_range: float = DEFAULT_CROP_RANGE

    @property
    def crop_size(self) -> int:
        """Side of the centre crop that the ten crops are cut from, in pixels."""
        return int(self.size * self.crop_range)

    def __call__(self, image: "Image.Image", image_index: int) -> np.ndarray:
        square = np.asarray(center_crop(image, self.crop_size))
        return np.stack([self._cut(square, name) for name in self.view_names])

    def _cut(self, square: np.ndarray, name: str) -> np.ndarray:
        if name.startswith("mirrored-"):  # mirrored before the cut: its top left is from the right
            square = square[:, ::-1]
        name = name.removeprefix("mirrored-")
        rest = self.crop_size - self.size
        middle = round(rest / 2)  # rounds half to even, as torchvision does
        top = middle if name == "centre" else rest * name.startswith("bottom")
        left = middle if name == "centre" else rest * name.endswith("right")
        return square[top : top + self.size, left : left + self.size]

    def _details(self) -> Record:
        return {
            "crop": "ADM centre crop to crop_size, then torchvision's TenCrop",
            "crop_range": self.crop_range,
            "crop_size": self.crop_size,
        }


@dataclass(frozen=True, kw_only=True)
class TenCrops(ViewSet):
    """The ten crops of several crop ranges, one range after the other, as LlamaGen stores 1.1 and 1.05.

    The test view is the centre of the first.
    """

    test_view: int = _TEN.index("centre")
    crop_ranges: tuple[float, ...]

    def __call__(self, image: "Image.Image", image_index: int) -> np.ndarray:
        wanted = set(self.view_names)
        views = []
        for crop_range in self.crop_ranges:
            names = ten_crop_names(crop_range)
            kept = tuple(name for name, full in zip(_TEN, names, strict=True) if full in wanted)
            if kept:
                one = TenCrop(name="", size=self.size, view_names=kept, crop_range=crop_range)
                views.append(one(image, image_index))
        return np.concatenate(views)

    def _details(self) -> Record:
        return {
            "crop": "ADM centre crop to each of crop_sizes, then torchvision's TenCrop",
            "crop_ranges": list(self.crop_ranges),
            "crop_sizes": [int(self.size * crop_range) for crop_range in self.crop_ranges],
        }


def ten_crop_names(crop_range: float | None = None) -> tuple[str, ...]:
    """Names of the ten crops, with their crop range where there are several."""
    return _TEN if crop_range is None else tuple(f"{crop_range:g}-{name}" for name in _TEN)


@dataclass(frozen=True, kw_only=True)
class Flip(ViewSet):
    """The ADM centre crop and its mirror image, in this order, as LlamaGen stores them."""

    view_names: tuple[str, ...] = ("centre", "mirrored-centre")

    def __call__(self, image: "Image.Image", image_index: int) -> np.ndarray:
        pixels = np.asarray(center_crop(image, self.size))
        return np.stack([pixels, pixels[:, ::-1]])[: len(self)]

    def _details(self) -> Record:
        return {"crop": "ADM centre crop, and its mirror image"}


@dataclass(frozen=True, kw_only=True)
class RandomCrops(ViewSet):
    """View 0 is the plain centre crop; the others ADM's random crops, mirrored with probability 1/2.

    View v of an image is a function of ``seed``, ``image_index`` and v alone.
    """

    seed: int = field(default=0)

    def __call__(self, image: "Image.Image", image_index: int) -> np.ndarray:
        views = [np.asarray(center_crop(image, self.size))]
        for view in range(1, len(self)):
            rng = generator(self.seed, "random crops", image_index, view)
            crop = np.asarray(random_crop(image, self.size, rng))
            views.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        return np.stack(views)

    def _details(self) -> Record:
        return {
            "crop": "ADM centre crop, then ADM random crops, each mirrored with probability 1/2",
            "seed": self.seed,
            "least_crop": LEAST_CROP,
        }


@dataclass(frozen=True, kw_only=True)
class Affine(ViewSet):
    """View 0 is the plain centre crop; the others are random rotations, scales and shifts of it.

    The parameters of an image are a function of ``seed`` and ``image_index`` alone, and those of view v
    do not depend on how many views there are. What the warp uncovers gets the median colour of the
    crop's border.
    """

    seed: int = field(default=0)

    def __call__(self, image: "Image.Image", image_index: int) -> np.ndarray:
        from PIL import Image

        crop = center_crop(image, self.size)
        pixels = np.asarray(crop)
        border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
        fill = tuple(int(value) for value in np.median(border, axis=0))
        draws = generator(self.seed, "views", image_index).uniform(-1, 1, size=(len(self) - 1, 4))
        views = [pixels]
        for draw in draws:
            view = crop.transform(
                crop.size,
                Image.Transform.AFFINE,
                affine_coefficients(self.size, draw),
                resample=Image.Resampling.BICUBIC,
                fillcolor=fill,
            )
            views.append(np.asarray(view))
        return np.stack(views)

    def _details(self) -> Record:
        return {
            "crop": "ADM centre crop, then a random affine warp (bicubic, border median outside)",
            "seed": self.seed,
            "rotation_degrees": MAX_ROTATION,
            "scale": list(SCALES),
            "shift": MAX_SHIFT,
        }


def affine_coefficients(size: int, draw: np.ndarray) -> tuple[float, ...]:
    """PIL's six numbers (output pixel -> input pixel) of one warp about the image's centre.

    ``draw`` holds four numbers in [-1, 1]: rotation, scale, and shift in x and y. The determinant is
    positive whatever they are: nothing is ever mirrored.
    """
    scale = (SCALES[0] + SCALES[1]) / 2 + (SCALES[1] - SCALES[0]) / 2 * draw[1]
    shift = MAX_SHIFT * size
    return inverse_affine(size, MAX_ROTATION * draw[0], scale, shift * draw[2], shift * draw[3])


def inverse_affine(
    size: int, degrees: float, scale: float, shift_x: float, shift_y: float
) -> tuple[float, ...]:
    """PIL's six numbers of a rotation, scale and shift (pixels) about the centre of a square image."""
    angle = math.radians(degrees)
    # out = centre + shift + scale R (in - centre), solved for in
    cos, sin, centre = math.cos(angle) / scale, math.sin(angle) / scale, size / 2
    x0, y0 = centre + shift_x, centre + shift_y
    return (cos, sin, centre - cos * x0 - sin * y0, -sin, cos, centre + sin * x0 - cos * y0)


def view_set(name: str, size: int, *, seed: int = 0) -> ViewSet:
    """The view set called ``name`` for square views of ``size`` pixels.

    Names: ``ten-crop`` or ``ten-crop-R`` (crop range R, 1.1 if not given; 1 to 2), ``ten-crop-R+S``
    (both ranges), ``flip``, ``plain``, and with N views ``random-crop-N`` (10 if not given) and
    ``affine-N`` (16). ``seed`` matters to the last two. Raises ``UserError`` for any other name.
    """
    if size < 1:
        raise UserError(f"image size is {size}; expected at least 1 pixel")
    if name in ("plain", "flip"):
        return (PlainView if name == "plain" else Flip)(name=name, size=size)
    if name == "ten-crop":
        return TenCrop(name=name, size=size)
    name = {"affine": f"affine-{DEFAULT_AFFINE}", "random-crop": f"random-crop-{DEFAULT_RANDOM}"}.get(
        name, name
    )
    kind, _, value = name.rpartition("-")
    if kind == "ten-crop":
        return _ten_crop(name, value, size)
    if kind in ("affine", "random-crop"):
        if value.isascii() and value.isdecimal() and 1 <= int(value) <= 1000:
            stem = "affine" if kind == "affine" else "random"
            names = ("plain", *(f"{stem}-{view}" for view in range(1, int(value))))
            made = Affine if kind == "affine" else RandomCrops
            return made(name=name, size=size, view_names=names, seed=seed)
        raise UserError(f"views are {name!r}; expected 1 to 1000 views, such as {kind}-16")
    raise UserError(
        f"views are {name!r}; expected one of: ten-crop, ten-crop-1.05, {_BOTH}, flip, random-crop-10, "
        "affine, affine-8, plain"
    )


def _ten_crop(name: str, value: str, size: int) -> ViewSet:
    ranges = tuple(_number(part) for part in value.split("+"))
    if len(set(ranges)) < len(ranges) or not all(1 <= crop_range <= 2 for crop_range in ranges):
        raise UserError(
            f"views are {name!r}; expected a crop range from 1 to 2, such as ten-crop-1.05, or several "
            f"different ones, such as {_BOTH}"
        )
    if len(ranges) == 1:
        name = "ten-crop" if ranges == (DEFAULT_CROP_RANGE,) else f"ten-crop-{ranges[0]:g}"
        return TenCrop(name=name, size=size, crop_range=ranges[0])
    return TenCrops(
        name="ten-crop-" + "+".join(f"{crop_range:g}" for crop_range in ranges),
        size=size,
        view_names=tuple(name for crop_range in ranges for name in ten_crop_names(crop_range)),
        crop_ranges=ranges,
    )


def center_crop(image: "Image.Image", size: int) -> "Image.Image":
    """ADM's centre crop to ``size`` x ``size`` pixels (guided-diffusion's ``center_crop_arr``).

    Halve with a box filter while the short side is at least twice ``size``, resize bicubically until it
    is ``size``, cut the middle of the long side (rounding down). Raises ``UserError`` for a strip so
    narrow that its enlargement would not fit in memory.
    """
    image = _resize_short_side(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: "Image.Image", size: int, rng: np.random.Generator) -> "Image.Image":
    """ADM's random crop (guided-diffusion's ``random_crop_arr``): at least 0.8 of the short side.

    The short side is resized to a whole number drawn from ``size`` to ``size`` / 0.8, rounded up, as
    ``center_crop`` does it, and a square of ``size`` pixels is cut anywhere. Errors as there.
    """
    short = int(rng.integers(size, math.ceil(size / LEAST_CROP), endpoint=True))
    image = _resize_short_side(image, short)
    left = int(rng.integers(image.width - size, endpoint=True))
    top = int(rng.integers(image.height - size, endpoint=True))
    return image.crop((left, top, left + size, top + size))


def _resize_short_side(image: "Image.Image", size: int) -> "Image.Image":
    """Halve with a box filter while the short side is at least twice ``size``, then bicubic to it."""
    from PIL import Image

    while min(image.size) >= 2 * size:
        halved = (image.width // 2, image.height // 2)
        image = image.resize(halved, resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_RESIZED:
        raise UserError(
            f"an image of {image.width} x {image.height} pixels would have to be enlarged to "
            f"{width} x {height}; crop it first"
        )
    return image.resize((width, height), resample=Image.Resampling.BICUBIC)


def to_model_range(images_NHWC: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1] on ``device``."""
    pixels = torch.from_numpy(np.require(images_NHWC, np.uint8, ["C", "W"])).to(device)
    return scaled(pixels.permute(0, 3, 1, 2)).contiguous()


def scaled(images: torch.Tensor) -> torch.Tensor:
    """uint8 as float32 in [-1, 1]: x / 127.5 - 1. Anything else as it is (who takes it checks it)."""
    return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
