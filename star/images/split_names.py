"""Which split a name means: the words of Hugging Face's data sets, in any case.

Folders are named by the word alone (``Valid``); files of shards have it anywhere between other
characters than letters (``imagenet-train-0001.tar``).
Source: https://huggingface.co/docs/hub/datasets-file-names-and-splits.
"""

import re
from collections.abc import Callable
from pathlib import Path

from star.base.errors import UserError
from star.images.tree import visible_folders

__all__ = ["SPLIT_WORDS", "one_folder_each", "split_folders", "split_of", "split_words"]

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "val", "valid": "val", "val": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def split_of(name: str) -> str | None:
    """The split that a folder of this name is; None for another folder."""
    return SPLIT_WORDS.get(name.lower())


def split_words(name: str) -> list[str]:
    """The words of splits in a file's name, in their order."""
    return [word for word in re.findall(r"[^\W\d_]+", name.lower()) if word in SPLIT_WORDS]


def split_folders(root: Path) -> dict[str, list[str]]:
    """Folders in ``root`` by the split that they mean: {"train": ["train"], "val": ["valid"]}."""
    found: dict[str, list[str]] = {}
    for name in visible_folders(root):
        if split := split_of(name):
            found.setdefault(split, []).append(name)
    return found


def one_folder_each(
    folders: dict[str, list[str]], where: str, holds_image: Callable[[str], bool]
) -> dict[str, str]:
    """The folder of each split; of two that mean the same, the one that holds images.

    Raises ``UserError``, with ``where``, if both do.
    """
    found = {}
    for split, names in folders.items():
        full = [name for name in names if holds_image(name)] if len(names) > 1 else names
        if len(full) > 1:
            raise UserError(
                f"{where} has {len(full)} folders that mean {split}: {', '.join(full)}; expected one: "
                "rename or remove the others"
            )
        found[split] = (full or names)[0]
    return found
