"""An image folder: ``train/<class>/...`` and ``val/<class>/...`` and/or ``test/<class>/...``.

A split's folder may go by any of its words in any case (``star.images.split_names``); links are
followed. Where no labels are needed, any folder with images in it or below it will do.
"""

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.base.errors import UserError, listed
from star.images.class_names import ClassNames
from star.images.decode import MAX_MEGAPIXELS, SUFFIXES, read_image
from star.images.layout import FOLDERS, Part, labelled, labels_from, sorted_out
from star.images.left_out import LeftOut, is_hidden, is_image
from star.images.source import ImageSource, Listing, Split, assign_splits, make_split, native_size
from star.images.split_names import one_folder_each, split_folders
from star.images.tree import list_tree

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["flat_source", "flat_split", "folder_source"]

LAYOUT = "train/<class>/* and val/<class>/* and/or test/<class>/*"


def folder_source(root: Path) -> ImageSource:
    """The images below ``root``; ``UserError`` if it has another layout."""
    name, left_out = root.resolve().name, LeftOut()
    there = sorted(_shown(entry) for entry in os.scandir(root) if not is_hidden(entry.name))
    if not there:
        raise UserError(f"{root} is empty; expected {LAYOUT}")
    folders = one_folder_each(split_folders(root), str(root), functools.partial(_holds_image, root))
    if "train" not in folders:
        raise UserError(f"{root} has no folder train; expected {LAYOUT}; found: {listed(there)}")
    classes: ClassNames | None = None
    parts: Listing = {}
    notes = []
    for split in ("train", "val", "test"):
        if split in folders:
            classes, found = _read_split(root, folders[split], split, classes, left_out)
            if found is None:
                notes.append(f"{name}: its {folders[split]}/ has no labels and is left out")
            else:
                parts[split] = found
    assert classes is not None  # train's
    _count_beside(root, set(folders.values()), left_out)
    splits, more = assign_splits(name, parts, folders)
    read, content = functools.partial(_read_in, root), functools.partial(_size_in, root)
    return ImageSource(
        name=name,
        class_names=classes.names,
        native_size=native_size(read, parts["train"][0]),
        default_views="ten-crop",
        splits={split: make_split(*items, read, content) for split, items in splits.items()},
        notes=notes + more,
        left_out=left_out.counts(),
    )


def _shown(entry: os.DirEntry[str]) -> str:
    dangling = entry.is_symlink() and not os.path.exists(entry.path)
    return f"{entry.name} (a link to nothing)" if dangling else entry.name


def _holds_image(root: Path, folder: str) -> bool:
    return any(map(is_image, list_tree(root / folder, LeftOut(), strict=True).files))


def _read_split(
    root: Path, folder: str, split: str, classes: ClassNames | None, left_out: LeftOut
) -> tuple[ClassNames, tuple[np.ndarray, np.ndarray] | None]:
    """The classes (train's, found here where None), and names and labels; None for no labels."""
    where = root / folder
    tree = list_tree(where, left_out, strict=True)
    files = ((path, f"{folder}/{path}") for path in tree.files)
    part = sorted_out(folder, files, lambda name: (root / name).read_bytes(), left_out)
    own = sorted(path for path in tree.folders if "/" not in path)
    if classes is None:
        classes = _train_classes(root, where, own, part)
    kind = labels_from(part, classes.names)
    if kind == FOLDERS:
        _check_folders(where, split, own, classes)
        empty = len(own) - len(part.by_class)
        left_out.add(f"class folders of {folder}/ without images", empty)
    found = labelled(part, kind, left_out, str(where))
    if found is None:
        return classes, None
    if not found:
        raise UserError(f"{where} holds no images; add some or remove the folder")
    names = np.array([image for image, _ in found], dtype=object)
    return classes, (names, classes.labels(split, [name for _, name in found]))


def _train_classes(root: Path, where: Path, own: list[str], part: Part) -> ClassNames:
    _require_two(where, "train", own)
    empty = sorted(set(own) - set(part.by_class))
    if empty:
        suffixes = " ".join(sorted(SUFFIXES))
        raise UserError(f"{where / empty[0]} holds no image ({suffixes}); add some or remove it")
    return ClassNames(str(root), own)


def _check_folders(where: Path, split: str, own: list[str], classes: ClassNames) -> None:
    """Refuse class folders that cannot be those of train's classes."""
    _require_two(where, split, own)
    unknown = classes.unknown(own)
    if unknown:
        raise UserError(
            f"{where} has classes that train has not: {listed(unknown)}; rename or remove them"
        )


def _require_two(where: Path, split: str, own: list[str]) -> None:
    if not own:
        raise UserError(f"{where} has no class folders; expected {split}/<class>/* with image files")
    if len(own) == 1:
        raise UserError(
            f"{where} has one class ({own[0]}); expected at least two folders {split}/<class>"
        )


def _count_beside(root: Path, splits: set[str], left_out: LeftOut) -> None:
    """Count what lies in ``root`` beside the folders of the splits."""
    for path in list_tree(root, left_out, skip=splits, strict=False).files:
        folder, inside, _ = path.partition("/")
        if not is_image(path):
            left_out.file(path)
        elif inside:
            left_out.image_in(folder)
        else:
            left_out.add("images in no folder of a split")


def flat_split(root: Path, left_out: LeftOut) -> Split:
    """All images below ``root`` as one class, in the order of the paths; the rest is counted.

    Raises ``UserError`` if there is none.
    """
    names = []
    for path in list_tree(root, left_out, strict=False).files:
        if is_image(path):
            names.append(path)
        else:
            left_out.file(path)
    if not names:
        raise UserError(
            f"{root} holds no image; expected files ({' '.join(sorted(SUFFIXES))}) in it or below it"
        )
    read, content = functools.partial(_read_in, root), functools.partial(_size_in, root)
    return make_split(sorted(names), np.zeros(len(names), dtype=np.int64), read, content)


def flat_source(root: Path) -> ImageSource:
    """All images below ``root`` as one class, for what needs no labels; val is cut from them."""
    left_out = LeftOut()
    every, name = flat_split(root, left_out), root.resolve().name
    names, read, content = np.array(every.names, dtype=object), every.read, every.content
    splits, notes = assign_splits(name, {"train": (names, every.labels)})
    return ImageSource(
        name=name,
        class_names=("image",),
        native_size=native_size(read, names),
        default_views="ten-crop",
        splits={split: make_split(*items, read, content) for split, items in splits.items()},
        notes=notes,
        left_out=left_out.counts(),
    )


def _read_in(root: Path, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> "Image.Image":
    return read_image(root / name, str(root / name), max_megapixels)


def _size_in(root: Path, name: str) -> str:
    try:
        return str(os.stat(root / name).st_size)
    except OSError as error:
        raise UserError(f"cannot read {root / name}: {error.strerror}") from error
