"""Images in uncompressed tars: read where they lie by an index of offsets; nothing is unpacked.

Members are ``train/<class>/.../x.jpg`` (any layout of ``star.images.layout``; leading folders are
fine), or those of a web dataset: ``x.jpg`` beside ``x.cls`` (a number or a name), where the shard's
own name says the split (``train-000000.tar``) and a tar by itself is train. Links, devices, sparse
members and paths that are absolute or climb out of the archive are left out, with a note. A compressed
tar is refused: no image of it could be read without all before it.
"""

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.base.errors import UserError, listed
from star.base.record import Record
from star.images.class_names import ClassNames
from star.images.decode import MAX_MEGAPIXELS, read_image
from star.images.layout import Part, labelled, labels_from, located, sorted_out
from star.images.left_out import LeftOut, is_image
from star.images.shards import called, count_beside, find_shards, is_unlabelled, leave_out_unlabelled
from star.images.source import SPLITS, ImageSource, assign_splits, make_split, native_size
from star.images.split_names import one_folder_each, split_of
from star.images.tar_index import OUTSIDE, Archive, index_tar

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["is_compressed_tar", "tar_files", "tar_source"]


def tar_files(root: Path) -> dict[str, list[Path]]:
    """Tar shards by split; {} where there is none. A folder with train/<class>/ is no shard folder."""
    return find_shards(root, ".tar")


def is_compressed_tar(path: Path) -> bool:
    """Whether the name is that of a tar inside a compressed stream."""
    return re.search(r"\.(tgz|tbz2?|txz|tar\.\w+)$", path.name) is not None


def tar_source(root: Path, shards: dict[str, list[Path]]) -> ImageSource:
    """The images in ``shards``; ``UserError`` where a tar is damaged or holds another layout."""
    name, left_out = root.resolve().name.removesuffix(".tar"), LeftOut()
    archives = [index_tar(path, split, left_out) for split, paths in shards.items() for path in paths]
    count_beside(root, shards, left_out)
    _tell_apart(root, archives)
    values, written, notes = _classes(root, name, archives, left_out)
    if "train" not in values:
        raise UserError(
            f"{root} holds no images of train; expected members train/<class>/x.jpg, or x.jpg beside "
            f"x.cls; found splits: {listed(values) or 'none'}"
        )
    train = list(values["train"].values())
    if len({isinstance(value, str) for value in train}) > 1:
        raise UserError(f"{root} mixes numbers and names of classes; expected either")
    classes, found = ClassNames(str(root), train), {}
    notes += classes.notes
    for split, of in values.items():
        names = sorted(of)
        labels = classes.labels(split, [of[key] for key in names])
        found[split] = (np.array(names, dtype=object), labels)
    read = _Reader(
        {a.prefix + member: (a.path, *place) for a in archives for member, place in a.images.items()}
    )
    splits, more = assign_splits(name, found, called(shards) | written)
    counts = left_out.counts()
    if OUTSIDE in counts:
        more.append(f"{name}: {counts[OUTSIDE]} members left out (links, devices, paths outside)")
    return ImageSource(
        name=name,
        class_names=classes.names,
        native_size=native_size(read, found["train"][0]),
        default_views="ten-crop",
        splits={split: make_split(*items, read, read.content) for split, items in splits.items()},
        notes=notes + more,
        left_out=counts,
    )


def _tell_apart(root: Path, archives: list[Archive]) -> None:
    """Prefixes for members' names: none for one tar, its name, or its path where that is not enough."""
    if len(archives) < 2:
        return
    for archive in archives:
        archive.prefix = f"{archive.path.name}/"
    names = [archive.prefix + member for archive in archives for member in archive.images]
    if len(set(names)) < len(names):
        for archive in archives:
            archive.prefix = f"{archive.path.relative_to(root).as_posix()}/"


def _classes(
    root: Path, name: str, archives: list[Archive], left_out: LeftOut
) -> tuple[dict[str, dict[str, str | int | None]], dict[str, str], list[str]]:
    """{split: {image: class}}, the folders of splits, and notes on splits that have no labels."""
    values: dict[str, dict[str, str | int | None]] = {}
    bare = _bare(archives)
    for archive in archives:
        values.setdefault(archive.split, {}).update(archive.beside_cls())
        if archive.split in bare:
            values[archive.split] |= dict.fromkeys(archive.prefix + m for m in archive.images)
    written, notes = {}, []
    rest = [archive for archive in archives if archive.split not in bare]
    for split, part in _parts(root, rest, left_out).items():
        train = part.by_class if split == "train" else map(str, values.get("train", {}).values())
        kind = labels_from(part, set(train))
        found = labelled(part, kind, left_out, f"{root}: {part.folder}")
        if found is None:
            notes.append(f"{name}: its {part.folder}/ has no labels and is left out")
        values.setdefault(split, {}).update(found or [])
        written[split] = part.folder
    for split, of in values.items():
        if is_unlabelled(split, of.values()):
            notes.append(leave_out_unlabelled(name, split, of.values(), left_out))
            of.clear()
    return {split: of for split, of in values.items() if of}, written, notes


def _bare(archives: list[Archive]) -> set[str]:
    """Splits whose shards hold images alone: no .cls, and no folder of a split."""
    said = {"train"}
    for archive in archives:
        if archive.split not in said and (archive.classes or located(archive.others(), LeftOut())):
            said.add(archive.split)
    return {archive.split for archive in archives} - said


def _parts(root: Path, archives: list[Archive], left_out: LeftOut) -> dict[str, Part]:
    """The images of each split that lie in its folder, train first."""
    files: dict[str, list[tuple[str, str]]] = {}
    lists: dict[str, bytes] = {}
    for archive in archives:
        for member, (folder, path) in located(archive.others(), left_out).items():
            files.setdefault(folder, []).append((path, archive.prefix + member))
        lists |= {archive.prefix + member: content for member, content in archive.lists.items()}
    folders: dict[str, list[str]] = {}
    for folder in sorted(files):
        if split := split_of(folder):
            folders.setdefault(split, []).append(folder)
    chosen = one_folder_each(
        folders, str(root), lambda folder: any(is_image(path) for path, _ in files[folder])
    )
    return {
        split: sorted_out(chosen[split], files[chosen[split]], lists.__getitem__, left_out)
        for split in SPLITS
        if split in chosen
    }


class _Reader:
    """From a member's name to its image; a process opens the archives it reads, once."""

    def __init__(self, places: dict[str, tuple[Path, int, int]]) -> None:
        self.places = places
        self._open: dict[tuple[int, Path], io.FileIO] = {}

    def __getstate__(self) -> Record:
        return {"places": self.places, "_open": {}}

    def __call__(self, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> "Image.Image":
        path, offset, size = self.places[name]
        key = (os.getpid(), path)
        if key not in self._open:
            self._open.setdefault(key, io.FileIO(path))
        # pread moves no file position, so threads (and forked processes) may share the file
        content = os.pread(self._open[key].fileno(), size, offset)
        return read_image(io.BytesIO(content), f"{path}: {name}", max_megapixels)

    def content(self, name: str) -> str:
        """The member's size, as of a file in a folder."""
        return str(self.places[name][2])
