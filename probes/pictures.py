"""Images to look at, from anything that holds some: a source's split, or all files below a folder.

Tokenising needs classes and splits; looking at pictures does not. So any folder will do here.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from star.errors import UserError
from star.images import SUFFIXES, Split, load_image, open_source
from star.prepare import is_code_folder
from star.randomness import generator

__all__ = ["drawn", "holds_many", "one_image", "picture_split"]


def holds_many(data: str) -> bool:
    """Whether ``data`` names a set of images: ``digits``, ``photos`` or a folder."""
    return data in ("digits", "photos") or Path(data).is_dir()


def picture_split(data: str, split: str | None = None) -> tuple[Split, str]:
    """The images of ``data`` and the split's name ("all" of a folder without a folder ``train``).

    Of a source without ``split``: test, else val, else train. Raises ``UserError`` for a folder without
    images, and if ``split`` is asked of what has none.
    """
    root = Path(data)
    if data not in ("digits", "photos") and not (root / "train").is_dir():
        if split is not None:
            raise UserError(f"{data} has no folder train, so no splits; leave out --split {split}")
        return _below(root), "all"
    if is_code_folder(data):
        raise UserError(f"{data} holds codes; expected images (those the codes were made from)")
    source = open_source(data)
    name = split or next(name for name in ("test", "val", "train") if name in source.splits)
    found = source.split(name)
    if data not in ("digits", "photos"):  # no --skip-bad to advise here
        found = dataclasses.replace(found, read=lambda name: load_image(root / name))
    return found, name


def one_image(name: str) -> Split:
    """The image called ``name`` (``star.images.load_image``) as a split of one."""
    image = load_image(name)
    return Split(
        names=(name,),
        labels=np.zeros(1, dtype=np.int64),
        read=lambda _: image,
        content=lambda _: str(image.size),
    )


def drawn(split: Split, count: int, seed: int) -> Split:
    """``count`` images (0: all) in a random order, a function of ``seed``."""
    order = generator(seed, "pictures").permutation(len(split))[: count or None]
    names = tuple(split.names[place] for place in order)
    return dataclasses.replace(split, names=names, labels=split.labels[order])


def _below(root: Path) -> Split:
    """Every image file below ``root`` in the order of the paths; hidden files and folders left out."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        names += [
            (inside / name).as_posix()
            for name in files
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
    if not names:
        raise UserError(
            f"{root} holds no image; expected files ({' '.join(sorted(SUFFIXES))}) in it or below it"
        )
    return Split(
        names=tuple(sorted(names)),
        labels=np.zeros(len(names), dtype=np.int64),
        read=lambda name: load_image(root / name),
        content=lambda name: str((root / name).stat().st_size),
    )
