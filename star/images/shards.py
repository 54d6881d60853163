"""Which split a shard of a data set belongs to, by the customs of Hugging Face's and web data sets.

Files lie in the folder itself, in its ``data/``, or in a folder a split of either. A word of the split
(``star.images.split_names``) is the folder's name or stands anywhere in the file's:
``train-00000-of-00002.parquet``, ``imagenet1k-validation-00.tar``, ``test/0000.parquet``.
"""

import functools
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from star.base.errors import UserError, listed
from star.images.left_out import LeftOut, is_hidden, is_image
from star.images.split_names import (
    SPLIT_WORDS,
    one_folder_each,
    split_folders,
    split_of,
    split_words,
)
from star.images.tree import list_tree

__all__ = ["called", "count_beside", "find_shards", "is_unlabelled", "leave_out_unlabelled", "names_of"]


def find_shards(root: Path, suffix: str) -> dict[str, list[Path]]:
    """Files that end in ``suffix`` by split, in the order of their names; {} if there is none.

    A file named by itself is train. Raises ``UserError`` for files of no split, or without train.
    """
    if root.is_file():
        return {"train": [root]} if root.suffix.lower() == suffix else {}
    files = [path for folder in _folders(root, suffix) for path in _shards_in(folder, suffix)]
    shards: dict[str, list[Path]] = {}
    for path in files:
        split = _split_of(path, root)
        if split is None and len(files) == 1:
            split = "train"
        if split is None:
            raise UserError(
                f"{path} belongs to no split; expected names such as train-00000{suffix} and "
                f"validation-00000{suffix}"
            )
        shards.setdefault(split, []).append(path)
    if shards and "train" not in shards:
        raise UserError(f"{root} has no shard of train; found: {listed(shards)}")
    return shards


def _holds_shards(place: Path, suffix: str, name: str) -> bool:
    return bool(_shards_in(place / name, suffix))


def _folders(root: Path, suffix: str) -> list[Path]:
    """Where shards may lie, in a fixed order."""
    order = list(SPLIT_WORDS)
    found = []
    for place in (root, root / "data"):
        if place.is_dir():
            each = one_folder_each(
                split_folders(place),
                str(place),
                functools.partial(_holds_shards, place, suffix),
            )
            splits = sorted(each.values(), key=lambda name: order.index(name.lower()))
            found.append([place, *(place / name for name in splits)])
    # data/ itself goes before the folders of splits
    return [folders[0] for folders in found] + [path for folders in found for path in folders[1:]]


def _shards_in(folder: Path, suffix: str) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(suffix) and not is_hidden(e.name)]
    return [path for path in map(folder.joinpath, sorted(names)) if not path.is_dir()]


def _split_of(path: Path, root: Path) -> str | None:
    """The split of a shard: its folder's below ``root``, its name's, or that of ``root``."""
    own = split_of(path.parent.name) if path.parent != root else None
    if own is not None:
        return own
    splits = {SPLIT_WORDS[word] for word in split_words(path.name)}
    if len(splits) > 1:
        raise UserError(
            f"{path} names two splits ({', '.join(sorted(splits))}); expected one: rename it, or put "
            "it into a folder such as train/"
        )
    return splits.pop() if splits else split_of(root.resolve().name)


def called(shards: dict[str, list[Path]]) -> dict[str, str]:
    """What a source of shards calls its splits, for ``star.images.source.assign_splits``.

    Shards as the hub names them (``validation-00000.parquet``, ``val/0.tar``) are ``val``.
    """
    return {
        split: split if all(map(_as_on_the_hub, paths)) else paths[0].name
        for split, paths in shards.items()
    }


def _as_on_the_hub(path: Path) -> bool:
    first = re.split(r"[-_.]", path.name)[0]
    return bool({first, path.parent.name} & {"val", "valid", "validation"})


def names_of(root: Path, paths: Iterable[Path]) -> dict[Path, str]:
    """What shards are called in the names of their images: by their files' names, if all differ."""
    names = {path: path.name for path in paths}
    if len(set(names.values())) == len(names):
        return names
    return {path: path.relative_to(root).as_posix() for path in names}


def count_beside(root: Path, shards: dict[str, list[Path]], left_out: LeftOut) -> None:
    """Count the files below the folder ``root`` that are no shards of it."""
    if not root.is_dir():
        return
    used = {path.relative_to(root).as_posix() for paths in shards.values() for path in paths}
    for path in list_tree(root, left_out, strict=False).files:
        if path in used:
            continue
        if is_image(path):
            left_out.add("images in no shard")
        else:
            left_out.file(path)


def is_unlabelled(split: str, values: Collection[int | str | None]) -> bool:
    """Whether a split has no label at all, as test sets are published (with -1, or none); not train."""
    return split != "train" and len(values) > 0 and set(values) <= {None, -1}


def leave_out_unlabelled(
    name: str, split: str, values: Collection[int | str | None], left_out: LeftOut
) -> str:
    """Count the images of a split without labels; returns the note on it."""
    left_out.add(f"images of {split} without labels", len(values))
    why = "" if None in values else " (-1 throughout)"
    return f"{name}: its {split} split has no labels{why} and is left out"
