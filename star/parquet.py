"""Parquet shards with an image a row, as Hugging Face's ``datasets`` stores them.

Column ``image`` (or ``img``, or the one that the schema calls an Image) holds the file's bytes, alone
or in a struct {bytes, path}; ``label`` (or the one that the schema calls a ClassLabel) a number or a
name. The names of the classes are the schema's. Rows are read by row group, the last few of which are
kept; the labels alone are read beforehand. Needs pyarrow, an optional dependency.
"""

import hashlib
import io
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.decoding import MAX_MEGAPIXELS, BadImageError, read_image
from star.errors import UserError, listed
from star.files import plain_path
from star.shards import ClassNames, find_shards
from star.splits import ImageSource, assign_splits, make_split, native_size

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["parquet_files", "parquet_source"]

_KEPT_GROUPS = 2  # of 100 to 1,000 images each


def parquet_files(root: Path) -> dict[str, list[Path]]:
    """Parquet shards by split; {} where there is none."""
    return find_shards(root, ".parquet")


def parquet_source(root: Path, shards: dict[str, list[Path]]) -> ImageSource:
    """The images of ``shards``; ``UserError`` where pyarrow or a column is missing."""
    name = root.resolve().name.removesuffix(".parquet")
    first = _Shard(shards["train"][0])
    image, label, known = _columns(first)
    rows, notes = {}, []
    for split, paths in shards.items():
        readers = [_Shard(path, image) for path in paths]
        values = [value for reader in readers for value in reader.column(label)]
        names = [f"{reader.path.name}/{row}" for reader in readers for row in range(reader.rows)]
        if not names:
            raise UserError(f"{', '.join(map(str, paths))} has no rows")
        if any(value is None for value in values):
            raise UserError(f"{root}: {split} has rows without a {label}; expected a class for each")
        if split != "train" and all(value == -1 for value in values):
            notes.append(f"{name}: its {split} split has no labels (-1 throughout) and is left out")
            continue
        rows[split] = (names, values, readers)
    classes = ClassNames(str(root), rows["train"][1], known)
    found = {
        split: (np.array(names, dtype=object), classes.labels(split, values))
        for split, (names, values, _) in rows.items()
    }
    readers = [reader for _, _, part in rows.values() for reader in part]
    read = _Reader({reader.path.name: reader for reader in readers})
    if len(read.shards) < len(readers):
        raise UserError(f"{root} has two shards of one name; rename one")
    splits, more = assign_splits(name, found)
    return ImageSource(
        name=name,
        class_names=classes.names,
        native_size=native_size(read, found["train"][0]),
        default_views="ten-crop",
        splits={split: make_split(*items, read, read.content) for split, items in splits.items()},
        notes=notes + more,
    )


def _columns(shard: "_Shard") -> tuple[str, str, list[str] | None]:
    """Names of the image and the label column, and of the classes where the schema knows them."""
    columns, features = shard.columns(), shard.features()

    def pick(what: str, names: tuple[str, ...], kind: str) -> str:
        typed = [n for n, feature in features.items() if feature.get("_type") == kind and n in columns]
        named = [name for name in names if name in columns]
        if not named and len(typed) != 1:
            raise UserError(
                f"{shard.path} has no column of {what}; expected {' or '.join(names)}; found: "
                f"{listed(columns)}"
            )
        return (named or typed)[0]

    image = pick("images", ("image", "img"), "Image")
    label = pick("labels", ("label", "labels"), "ClassLabel")
    names = features.get(label, {}).get("names")
    if isinstance(names, dict):  # {"0": "cat"} in old files
        names = [names[key] for key in sorted(names, key=int)]
    return image, label, [str(value) for value in names] if names else None


class _Shard:
    """One file, opened anew in each process; threads take turns."""

    def __init__(self, path: Path, image: str = "") -> None:
        self.path, self.image = path, image
        self._process = None
        self._lock = threading.Lock()
        file = self._file()
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self.rows = int(self.ends[-1]) if len(sizes) else 0
        self.fingerprint = _footer_hash(path)

    def __getstate__(self) -> dict:
        kept = ("path", "image", "ends", "rows", "fingerprint")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._process = None
        self._lock = threading.Lock()

    def _file(self):
        if self._process != os.getpid():
            self._open, self._groups, self._process = _open_parquet(self.path), {}, os.getpid()
        return self._open

    def columns(self) -> list[str]:
        """Names of the top-level columns."""
        return list(self._file().schema_arrow.names)

    def features(self) -> dict:
        """What Hugging Face's metadata say of the columns; {} without."""
        metadata = self._file().schema_arrow.metadata or {}
        try:
            found = json.loads(metadata[b"huggingface"])["info"]["features"]
        except (KeyError, ValueError, TypeError):
            return {}
        found = found if isinstance(found, dict) else {}
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}

    def column(self, name: str) -> list:
        """All values of a small column; ``UserError`` if they are missing or of another kind."""
        if name not in self.columns() or self.image not in self.columns():
            raise UserError(
                f"{self.path} has the columns {listed(self.columns())}; expected {self.image} and "
                f"{name}, as in the first shard"
            )
        values = self._read(lambda file: file.read(columns=[name], use_threads=False))[name].to_pylist()
        odd = next((v for v in values if v is not None and type(v) not in (int, str)), None)
        if odd is not None:
            raise UserError(f"{self.path}: {name} holds {odd!r}; expected whole numbers or names")
        return values

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

    def _read(self, get):
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


def _open_parquet(path: Path):
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
