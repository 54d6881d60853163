"""An image folder: ``train/<class>/*`` and ``val/<class>/*`` and/or ``test/<class>/*``.

Where no labels are needed, any folder with images in it or below it will do.
"""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.decoding import MAX_MEGAPIXELS, SUFFIXES, read_image
from star.errors import UserError, listed
from star.splits import ImageSource, Split, assign_splits, make_split, native_size

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["flat_source", "flat_split", "folder_source"]

LAYOUT = "train/<class>/* and val/<class>/* and/or test/<class>/*"


def folder_source(root: Path) -> ImageSource:
    """The images below ``root``; ``UserError`` if it has another layout."""
    name = root.resolve().name
    found = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
    if not found:
        raise UserError(f"{root} is empty; expected {LAYOUT}")
    if not (root / "train").is_dir():
        raise UserError(f"{root} has no folder train; expected {LAYOUT}; found: {listed(found)}")
    classes, *train = _list_split(root, "train", None)
    parts = {"train": train}
    for split in ("val", "test"):
        if (root / split).is_dir():
            parts[split] = _list_split(root, split, classes)[1:]
    splits, notes = assign_splits(name, parts)
    read, content = functools.partial(_read_in, root), functools.partial(_size_in, root)
    return ImageSource(
        name=name,
        class_names=classes,
        native_size=native_size(read, train[0]),
        default_views="ten-crop",
        splits={split: make_split(*items, read, content) for split, items in splits.items()},
        notes=notes,
    )


def _images_below(root: Path) -> np.ndarray:
    """Every image file below ``root`` in the order of the paths; hidden files and folders left out.

    Raises ``UserError`` if there is none.
    """
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
    return np.array(sorted(names), dtype=object)


def flat_split(root: Path) -> Split:
    """All images below ``root`` as one class; ``UserError`` if there is none."""
    names = _images_below(root)
    read, content = functools.partial(_read_in, root), functools.partial(_size_in, root)
    return make_split(names, np.zeros(len(names), dtype=np.int64), read, content)


def flat_source(root: Path) -> ImageSource:
    """All images below ``root`` as one class, for what needs no labels; val is cut from them."""
    every, name = flat_split(root), root.resolve().name
    names, read, content = np.array(every.names, dtype=object), every.read, every.content
    splits, notes = assign_splits(name, {"train": (names, every.labels)})
    return ImageSource(
        name=name,
        class_names=("image",),
        native_size=native_size(read, names),
        default_views="ten-crop",
        splits={split: make_split(*items, read, content) for split, items in splits.items()},
        notes=notes,
    )


def _list_split(
    root: Path, split: str, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Classes, image names and labels of ``root/split``; ``classes`` are train's, if known."""
    folder = root / split
    found = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != "."))
    if not found:
        raise UserError(f"{folder} has no class folders; expected {split}/<class>/* with image files")
    if len(found) == 1:
        raise UserError(
            f"{folder} has one class ({found[0]}); expected at least two folders {split}/<class>"
        )
    unknown = sorted(set(found) - set(classes)) if classes is not None else []
    if unknown:
        raise UserError(
            f"{folder} has classes that train has not: {listed(unknown)}; rename or remove them"
        )
    classes = classes or found
    names: list[str] = []
    labels: list[int] = []
    for name in found:
        images = sorted(e.name for e in os.scandir(folder / name) if _is_image(e))
        if not images and split == "train":
            suffixes = " ".join(sorted(SUFFIXES))
            raise UserError(f"{folder / name} holds no image ({suffixes}); add some or remove it")
        names += [f"{split}/{name}/{image}" for image in images]
        labels += [classes.index(name)] * len(images)
    if not names:
        raise UserError(f"{folder} holds no images; add some or remove the folder")
    return classes, np.array(names, dtype=object), np.array(labels, dtype=np.int64)


def _is_image(entry: os.DirEntry) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in SUFFIXES and not entry.name.startswith(".") and entry.is_file()


def _read_in(root: Path, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> "Image.Image":
    return read_image(root / name, str(root / name), max_megapixels)


def _size_in(root: Path, name: str) -> str:
    try:
        return str(os.stat(root / name).st_size)
    except OSError as error:
        raise UserError(f"cannot read {root / name}: {error.strerror}") from error
