"""The sources that need no files: scikit-learn's handwritten digits and its two photographs.

- ``digits``: 1,797 handwritten digits (8 x 8, values 0..16), enlarged bicubically to 32 x 32.
  Train 1,297 / val 140 / test 360.
- ``photos``: two photographs, one a class, a train split only.
"""

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.images.decode import MAX_MEGAPIXELS
from star.images.source import SPLITS, ImageSource, make_split, stratified

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["DIGITS", "PHOTOS", "digit", "digits_source", "photo", "photos_source"]

PHOTOS = ("china.jpg", "flower.jpg")
DIGITS = 1797
_DIGIT_COUNTS = {"test": 360, "val": 140}  # train is the rest: 1,297


@functools.cache
def _digit_data() -> tuple[np.ndarray, np.ndarray]:
    """Values 0..16 as uint8 (1797, 8, 8), and labels int64 (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def digit(name: str, max_megapixels: float = MAX_MEGAPIXELS) -> "Image.Image":
    """The scan called "digits/17", enlarged; it is never too large."""
    from PIL import Image

    values = _digit_data()[0][int(name.removeprefix("digits/"))]
    grey = np.round(values * (255 / 16)).astype(np.uint8)
    return Image.fromarray(grey).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")


def photo(name: str, max_megapixels: float = MAX_MEGAPIXELS) -> "Image.Image":
    """One of ``PHOTOS``; it is never too large."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(name))


def _digit_content(name: str) -> str:
    values: np.ndarray = _digit_data()[0][int(name.removeprefix("digits/"))]
    return values.tobytes().hex()


def _photo_content(name: str) -> str:
    return hashlib.sha256(photo(name).tobytes()).hexdigest()


def digits_source() -> ImageSource:
    """The digits, with a fixed split."""
    labels = _digit_data()[1]
    names = np.array([f"digits/{index}" for index in range(len(labels))], dtype=object)
    rest = np.arange(len(labels))
    places = {}
    for split, count in _DIGIT_COUNTS.items():
        taken = stratified(names[rest], labels[rest], count)
        places[split], rest = rest[taken], rest[~taken]
    places["train"] = rest
    return ImageSource(
        name="digits",
        class_names=tuple(str(value) for value in range(10)),
        native_size=32,
        default_views="affine",  # a mirrored digit is another shape
        splits={
            split: make_split(names[places[split]], labels[places[split]], digit, _digit_content)
            for split in SPLITS
        },
        notes=["digits: a fixed split stratified by class, train 1297 / val 140 / test 360"],
    )


def photos_source() -> ImageSource:
    """The two photographs."""
    train = make_split(PHOTOS, np.arange(len(PHOTOS), dtype=np.int64), photo, _photo_content)
    return ImageSource(
        name="photos",
        class_names=tuple(Path(name).stem for name in PHOTOS),
        native_size=256,
        default_views="ten-crop",
        splits={"train": train},
        notes=["photos: two images, a train split only"],
    )
