"""Parquet shards with an image a row, as Hugging Face's ``datasets`` stores them.

The column of images holds the file's bytes, alone or in a struct {bytes, path}, that of labels a number
or a name (``star.images.label_columns`` finds both). The names of the classes are the schema's. Rows
are read by row group, the last few of which are kept; the labels alone are read beforehand. Needs
pyarrow, an optional dependency.
"""

import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.base.errors import UserError, listed
from star.base.files import plain_path
from star.base.record import Record
from star.images.class_names import ClassNames
from star.images.decode import MAX_MEGAPIXELS, BadImageError, read_image
from star.images.label_columns import choose_columns, label_values
from star.images.left_out import LeftOut
from star.images.shards import (
    called,
    count_beside,
    find_shards,
    is_unlabelled,
    leave_out_unlabelled,
    names_of,
)
from star.images.source import ImageSource, assign_splits, make_split, native_size

if TYPE_CHECKING:
    from PIL import Image
    from pyarrow import ChunkedArray, Table
    from pyarrow.parquet import ParquetFile

__all__ = ["parquet_files", "parquet_source"]

_KEPT_GROUPS = 2  # of 100 to 1,000 images each


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """Parquet shards by split; {} where there is none."""
    return find_shards(root, ".parquet")


def parquet_source(
    root: Path,
    shards: dict[str, list[Path]],
    label_column: str | None = None,
    *,
    need_labels: bool = True,
) -> ImageSource:
    """The images of ``shards``; ``UserError`` where pyarrow or a column is missing.

    ``label_column`` names the column of labels. Unless ``need_labels``, shards of which it cannot be
    told are taken as one class.
    """
    name, left_out = root.resolve().name.removesuffix(".parquet"), LeftOut()
    first = _Shard(shards["train"][0])
    columns = choose_columns(
        first.path, first.types(), first.features(), label_column, labels=need_labels
    )
    keys = names_of(root, [path for paths in shards.values() for path in paths])
    rows, notes = {}, []
    for split, paths in shards.items():
        readers = {keys[path]: _Shard(path, columns.image) for path in paths}
        names = [f"{key}/{row}" for key, reader in readers.items() for row in range(reader.rows)]
        if not names:
            raise UserError(f"{', '.join(map(str, paths))} has no rows")
        values = _labels(root, split, readers.values(), columns.label)
        if is_unlabelled(split, values):
            notes.append(leave_out_unlabelled(name, split, values, left_out))
            continue
        rows[split] = (names, values, readers)
    count_beside(root, shards, left_out)
    if columns.label is None:
        class_names: tuple[str, ...] = ("image",)
        found = {split: np.zeros(len(names), np.int64) for split, (names, _, _) in rows.items()}
    else:
        classes = ClassNames(str(root), rows["train"][1], columns.classes)
        class_names = classes.names
        notes += classes.notes
        found = {split: classes.labels(split, values) for split, (_, values, _) in rows.items()}
    listing = {
        split: (np.array(rows[split][0], dtype=object), labels) for split, labels in found.items()
    }
    read = _Reader({key: reader for _, _, part in rows.values() for key, reader in part.items()})
    splits, more = assign_splits(name, listing, called(shards))
    return ImageSource(
        name=name,
        class_names=class_names,
        native_size=native_size(read, listing["train"][0]),
        default_views="ten-crop",
        splits={split: make_split(*items, read, read.content) for split, items in splits.items()},
        notes=notes + more,
        left_out=left_out.counts(),
        label_column=label_column,
    )


def _labels(
    root: Path, split: str, readers: Iterable["_Shard"], column: str | None
) -> list[int | str | None]:
    """The labels of a split's rows; None where another split than train has no such column."""
    readers = list(readers)
    if column is None:
        return [0 for reader in readers for _ in range(reader.rows)]
    if split != "train" and not any(column in reader.types() for reader in readers):
        return [None for reader in readers for _ in range(reader.rows)]
    values = [value for reader in readers for value in reader.labels(column)]
    if None in values and not is_unlabelled(split, values):
        raise UserError(f"{root}: {split} has rows without a {column}; expected a class for each")
    return values


class _Shard:
    """One file, opened anew in each process; threads take turns."""

    _groups: dict[int, "ChunkedArray"]  # the images of the row groups read last

    def __init__(self, path: Path, image: str = "") -> None:
        self.path, self.image = path, image
        self._process: int | None = None
        self._lock = threading.Lock()
        file = self._file()
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self.rows = int(self.ends[-1]) if len(sizes) else 0
        self.fingerprint = _footer_hash(path)

    def __getstate__(self) -> Record:
        kept = ("path", "image", "ends", "rows", "fingerprint")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: Record) -> None:
        self.__dict__.update(state)
        self._process = None
        self._lock = threading.Lock()

    def _file(self) -> "ParquetFile":
        if self._process != os.getpid():
            self._open, self._groups, self._process = _open_parquet(self.path), {}, os.getpid()
        return self._open

    def types(self) -> dict[str, str]:
        """The top-level columns and their Arrow types."""
        schema = self._file().schema_arrow
        return {name: str(schema.field(place).type) for place, name in enumerate(schema.names)}

    def features(self) -> Record:
        """What Hugging Face's metadata say of the columns; {} without."""
        metadata = self._file().schema_arrow.metadata or {}
        try:
            found = json.loads(metadata[b"huggingface"])["info"]["features"]
        except (KeyError, ValueError, TypeError):
            return {}
        found = found if isinstance(found, dict) else {}
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}

    def labels(self, column: str) -> list[int | str | None]:
        """All values of the label column; ``UserError`` if they are missing or of another kind."""
        there = self.types()
        if column not in there or self.image not in there:
            raise UserError(
                f"{self.path} has the columns {listed(there)}; expected {self.image} and {column}, as "
                "in the first shard"
            )
        table = self._read(lambda file: file.read(columns=[column], use_threads=False))
        return label_values(table[column].to_pylist(), f"{self.path}: {column}")

    def bytes_of(self, row: int) -> bytes | None:
        """The image file in ``row``; None where it holds none."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        with self._lock:
            file = self._file()
            if group not in self._groups:
                table = self._read(
                    lambda file: file.read_row_group(group, columns=[self.image], use_threads=False)
                )
                while len(self._groups) >= _KEPT_GROUPS:
                    del self._groups[next(iter(self._groups))]
                self._groups[group] = table[self.image]
            column = self._groups[group]
        before = int(self.ends[group]) - file.metadata.row_group(group).num_rows
        value = column[row - before].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        return value if isinstance(value, bytes) else None

    def _read(self, get: Callable[["ParquetFile"], "Table"]) -> "Table":
        try:
            return get(self._file())
        except Exception as error:  # pyarrow raises half a dozen types on damaged files
            raise UserError(f"cannot read {self.path}: {str(error).splitlines()[0]}") from error


class _Reader:
    """From "shard.parquet/17" to the image; goes to other processes as paths and row counts."""

    def __init__(self, shards: dict[str, _Shard]) -> None:
        self.shards = shards

    def __call__(self, name: str, max_megapixels: float = MAX_MEGAPIXELS) -> "Image.Image":
        shard, row = self._find(name)
        content = shard.bytes_of(row)
        if content is None:
            raise BadImageError(
                f"{name} holds no image bytes (a path alone, or nothing): remove it or pass --skip-bad"
            )
        return read_image(io.BytesIO(content), name, max_megapixels)

    def content(self, name: str) -> str:
        """The hash of the shard's footer: sizes, places and statistics of all its columns."""
        return self._find(name)[0].fingerprint

    def _find(self, name: str) -> tuple[_Shard, int]:
        file, _, row = name.rpartition("/")
        return self.shards[file], int(row)


def _open_parquet(path: Path) -> "ParquetFile":
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f'reading {path} needs pyarrow: pip install "star-autoregressive[parquet]"'
        ) from error
    try:
        with plain_path(path) as plain:
            return pyarrow.parquet.ParquetFile(plain)
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{path} is no parquet file ({str(error).splitlines()[0]})") from error
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is no parquet file ({str(error).splitlines()[0]})") from error


def _footer_hash(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8 - length))
        return hashlib.sha256(file.read() + str(size).encode()).hexdigest()
