"""Which split a shard of a data set belongs to, by the customs of Hugging Face's and web data sets.

Files lie in the folder itself, in its ``data/``, or in a folder a split; the name begins with the
split: ``train-00000-of-00002.parquet``, ``validation-000000.tar``, ``test/0000.parquet``.
"""

import re
from pathlib import Path

import numpy as np

from star.errors import UserError, listed

__all__ = ["ClassNames", "find_shards"]

_SPLIT_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


def find_shards(root: Path, suffix: str) -> dict[str, list[Path]]:
    """Files that end in ``suffix`` by split, in the order of their names; {} if there is none.

    A file named by itself is train. Raises ``UserError`` for files of no split, or without train.
    """
    if root.is_file():
        return {"train": [root]} if root.suffix == suffix else {}
    folders = [root, root / "data", *(root / name for name in _SPLIT_NAMES)]
    files = [path for folder in folders for path in sorted(folder.glob(f"*{suffix}"))]
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


def _split_of(path: Path, root: Path) -> str | None:
    if path.parent != root and path.parent.name in _SPLIT_NAMES:
        return _SPLIT_NAMES[path.parent.name]
    return _SPLIT_NAMES.get(re.split(r"[-_.]", path.name)[0])


class ClassNames:
    """Numbers and names of classes as a data set's rows give them, to labels.

    Names are numbered in sorted order, those of train; numbers stay as they are and are named by
    ``known``, or else by themselves.
    """

    def __init__(self, source: str, train: list, known: list[str] | None) -> None:
        self.source = source
        self.by_name = any(isinstance(value, str) for value in train)
        if self.by_name:
            self.names = tuple(sorted({str(value) for value in train}))
        else:
            count = max(train, default=-1) + 1 if known is None else len(known)
            self.names = tuple(known or map(str, range(count)))
        if len(self.names) < 2:
            raise UserError(f"{source} has one class ({listed(self.names)}); expected at least two")

    def labels(self, split: str, values: list) -> np.ndarray:
        """Labels (N,) int64; raises ``UserError`` for a class that train has not."""
        places = {name: place for place, name in enumerate(self.names)}
        if self.by_name:
            unknown = sorted({str(value) for value in values} - set(places))
            found = [places.get(str(value), -1) for value in values]
        else:
            unknown = sorted({value for value in values if not 0 <= value < len(self.names)})
            found = values
        if unknown:
            known = f"0 to {len(self.names) - 1}" if not self.by_name else listed(self.names)
            raise UserError(
                f"{self.source}: {split} has classes that train has not: {listed(unknown)}; "
                f"expected {known}"
            )
        return np.array(found, dtype=np.int64)
