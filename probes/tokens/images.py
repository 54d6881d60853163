"""Images to look at, from anything that holds some: a source's split, or all files below a folder.

Tokenising needs classes and splits; looking at pictures does not. So any folder will do here.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.base.errors import UserError, listed
from star.base.randomness import generator
from star.codes.open import is_code_folder
from star.images.decode import MAX_MEGAPIXELS, BadImageError, require_megapixels
from star.images.folders import flat_split
from star.images.left_out import LeftOut, left_out_line
from star.images.open import Split, is_flat_folder, load_image, open_source
from star.images.source import measured_split

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["drawn", "holds_many", "one_image", "picture_split", "readable"]

SOURCES = ("digits", "photos")
ARCHIVES = (".tar", ".parquet")


def holds_many(data: str) -> bool:
    """Whether ``data`` names many images: ``digits``, ``photos``, a folder, a tar or parquet file."""
    path = Path(data)
    return data in SOURCES or path.is_dir() or (path.suffix.lower() in ARCHIVES and path.exists())


def picture_split(
    data: str,
    split: str | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    on_message: Callable[[str], None] = lambda text: None,
) -> tuple[Split, str]:
    """The images of ``data`` and the split's name ("all" of a folder that is no source).

    Of a source without ``split``: test, else val, else train. ``on_message`` hears what is left out.
    Raises ``UserError`` for a folder without images, and if ``split`` is asked of what has none.
    """
    require_megapixels(max_megapixels)
    if is_code_folder(data):
        raise UserError(f"{data} holds codes; expected images (those the codes were made from)")
    if is_flat_folder(data):
        if split is not None:
            raise UserError(f"{data} has no folder train, so no splits; leave out --split {split}")
        left_out = LeftOut()
        images, name, counts = flat_split(Path(data), left_out), "all", left_out.counts()
    else:
        source = open_source(data, need_labels=False)
        name = split or measured_split(source.splits)
        images, counts = source.split(name), source.left_out
    line = left_out_line(data, counts)
    if line:
        on_message(line)
    return _limited(images, max_megapixels), name


def _limited(split: Split, max_megapixels: float) -> Split:
    """The same images with this limit, and the advice of a command that can raise it."""

    def read(name: str, _: float) -> "Image.Image":
        try:
            return split.read(name, max_megapixels)
        except BadImageError as error:
            message = str(error)
            if "megapixels are read" in message and "--max-megapixels" not in message:
                message += ", or allow it with --max-megapixels"
            raise BadImageError(message) from error

    return dataclasses.replace(split, read=read)


def one_image(name: str, max_megapixels: float = MAX_MEGAPIXELS) -> Split:
    """The image called ``name`` (``star.images.open.load_image``) as a split of one, read at once."""
    found = Split(
        names=(name,),
        labels=np.zeros(1, dtype=np.int64),
        read=lambda name, most: load_image(name, max_megapixels=most),
        content=lambda _: str(image.size),
    )
    found = _limited(found, max_megapixels)
    image = found.load(0)
    return dataclasses.replace(found, read=lambda *_: image)


def drawn(split: Split, count: int, seed: int) -> Split:
    """``count`` images (0: all) in a random order, a function of ``seed``."""
    order = generator(seed, "pictures").permutation(len(split))[: count or None]
    return split.select(order)


def readable(split: Split, on_message: Callable[[str], None] = lambda text: None) -> Split:
    """The images of ``split`` that can be read; ``on_message`` hears the names of those that cannot.

    Raises ``UserError`` if there are none.
    """
    kept, left_out = [], []
    for place in range(len(split)):
        try:
            split.load(place)
            kept.append(place)
        except BadImageError:
            left_out.append(split.name(place))
    if left_out:
        on_message(f"left out, since they cannot be read: {listed(left_out)}")
    if not kept:
        raise UserError("none of the images can be read")
    return split.select(kept)
