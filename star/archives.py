"""Images in an uncompressed tar: read where they lie by an index of offsets; nothing is unpacked.

Members are ``train/<class>/x.jpg`` (``val/``, ``test/``; a leading folder is fine), or those of a web
dataset: ``x.jpg`` beside ``x.cls`` (a number or a name), where the shard's own name says the split
(``train-000000.tar``) and a tar by itself is train. Links, devices, sparse members and paths that are
absolute or climb out of the archive are left out, with a note. A compressed tar is refused: no image of
it could be read without all before it.
"""

import io
import os
import posixpath
import re
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.decoding import MAX_MEGAPIXELS, SUFFIXES, read_image
from star.errors import UserError, listed
from star.shards import ClassNames, find_shards
from star.splits import ImageSource, assign_splits, make_split, native_size

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["is_compressed_tar", "tar_files", "tar_source"]

_IN_FOLDERS = re.compile(r"(?:^|.*/)(train|val|test)/([^/]+)/[^/]+$")
_MOST_CLS = 1000  # bytes of a .cls


def tar_files(root: Path) -> dict[str, list[Path]]:
    """Tar shards by split; {} where there is none. A folder with train/<class>/ is no shard folder."""
    return find_shards(root, ".tar")


def is_compressed_tar(path: Path) -> bool:
    """Whether the name is that of a tar inside a compressed stream."""
    return re.search(r"\.(tgz|tbz2?|txz|tar\.\w+)$", path.name) is not None


def tar_source(root: Path, shards: dict[str, list[Path]]) -> ImageSource:
    """The images in ``shards``; ``UserError`` where a tar is damaged or holds another layout."""
    name = root.resolve().name.removesuffix(".tar")
    places: dict[str, tuple[Path, int, int]] = {}
    values: dict[str, dict[str, object]] = {}
    left_out = 0
    for shard_split, paths in shards.items():
        for path in paths:
            images, ignored = _index(path)
            left_out += ignored
            for member, (split, value, offset, size) in images.items():
                key = member if len(shards) == 1 and len(paths) == 1 else f"{path.name}/{member}"
                places[key] = (path, offset, size)
                values.setdefault(split or shard_split, {})[key] = value
    if not values.get("train"):
        raise UserError(
            f"{root} holds no images of train; expected members train/<class>/x.jpg, or x.jpg beside "
            f"x.cls; found splits: {listed(values) or 'none'}"
        )
    train = list(values["train"].values())
    if len({isinstance(value, str) for value in train}) > 1:
        raise UserError(f"{root} mixes numbers and names of classes; expected either")
    classes = ClassNames(str(root), train, None)
    found = {}
    for split, of in values.items():
        names = sorted(of)
        labels = classes.labels(split, [of[key] for key in names])
        found[split] = (np.array(names, dtype=object), labels)
    read = _Reader(places)
    splits, notes = assign_splits(name, found)
    if left_out:
        notes.append(f"{name}: {left_out} members left out (links, devices, paths outside)")
    return ImageSource(
        name=name,
        class_names=classes.names,
        native_size=native_size(read, found["train"][0]),
        default_views="ten-crop",
        splits={split: make_split(*items, read, read.content) for split, items in splits.items()},
        notes=notes,
    )


def _index(path: Path) -> tuple[dict[str, tuple[str | None, object, int, int]], int]:
    """{member: (split if its path says so, class, offset, size)}, and how many were left out."""
    members, classes, left_out = {}, {}, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # else it keeps every header
                if member.isdir():
                    continue
                name = posixpath.normpath(member.name)
                outside = member.name.startswith("/") or name.split("/")[0] == ".."
                if not member.isreg() or member.sparse is not None or outside:
                    left_out += 1
                    continue
                stem, suffix = posixpath.splitext(name)
                if posixpath.basename(name).startswith("."):
                    continue
                if suffix.lower() in SUFFIXES:
                    members[name] = (stem, member.offset_data, member.size)
                elif suffix == ".cls" and member.size <= _MOST_CLS:
                    classes[stem] = tar.extractfile(member).read().decode(errors="replace").strip()
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"cannot read {path} as an uncompressed tar ({error})") from error
    size = path.stat().st_size
    found = {}
    for name, (stem, offset, length) in members.items():
        if offset + length > size:
            raise UserError(f"{path} is cut short: it ends inside {name}")
        match = _IN_FOLDERS.match(name)
        if stem in classes:
            value = classes[stem]
            found[name] = (None, int(value) if value.isdecimal() else value, offset, length)
        elif match:
            found[name] = (match[1], match[2], offset, length)
    return found, left_out


class _Reader:
    """From a member's name to its image; a process opens the archives it reads, once."""

    def __init__(self, places: dict[str, tuple[Path, int, int]]) -> None:
        self.places = places
        self._open: dict[tuple[int, Path], io.FileIO] = {}

    def __getstate__(self) -> dict:
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
