"""The code store: the VQ codes of every view of every image of one split, in two arrays and a manifest.

A store is a folder with ``codes.npy`` (uint16 N, views, T), ``labels.npy`` (int64 N) and
``manifest.json``. Opening maps the codes into memory and compares shapes with the manifest, which is
instant for any size; ``verify`` reads everything and compares hashes and ranges. A folder of stores
holds one store a split: train/, val/, test/. Nothing here is ever pickled.

N images, T = grid x grid tokens in row order.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from star.base.errors import UserError
from star.base.files import publish_file, sha256_file, write_json
from star.base.names import shown
from star.base.record import Record

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "CodeStore",
    "StoreWriter",
    "check_rows",
    "open_codes",
    "open_splits",
    "same_images",
]

FORMAT = "star-codes"
FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
_REMARKS = ("notes", "left_out")  # of a source: on its images, not part of them
_CHUNK = 1 << 24  # elements read at once
_LEAST = {"images": 1, "views": 1, "tokens": 1, "grid": 1, "vocab_size": 1, "test_view": 0}
_LISTS = {"class_names": str, "class_counts": int, "view_names": str}


class Codes(Protocol):
    """What reading the test views of images needs: of a store, or of a sample of one in memory."""

    def __len__(self) -> int: ...
    @property
    def path(self) -> Path: ...
    @property
    def codes(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def grid(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def test_view(self) -> int: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeStore:
    """An open store: ``codes`` (N, views, T) uint16, mapped from disk; ``labels`` (N,) int64."""

    path: Path
    codes: np.ndarray
    labels: np.ndarray
    manifest: Record

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Callable[[Path], "CodeStore"], tuple[Path]]:
        # A loader process maps the file itself; pickling the map would copy all of it.
        return open_codes, (self.path,)

    @property
    def grid(self) -> int:
        """Tokens along one side of an image."""
        return int(self.manifest["grid"])

    @property
    def tokens(self) -> int:
        """T, tokens of one view: grid squared."""
        return int(self.manifest["tokens"])

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(shown(name) for name in self.manifest["class_names"])

    @property
    def num_classes(self) -> int:
        return len(self.manifest["class_names"])

    @property
    def views(self) -> int:
        """Number of stored views of each image."""
        return int(self.manifest["views"])

    @property
    def view_names(self) -> tuple[str, ...]:
        return tuple(self.manifest["view_names"])

    @property
    def test_view(self) -> int:
        """Row of the view axis that tests use."""
        return int(self.manifest["test_view"])

    @property
    def tokenizer_sha256(self) -> str:
        """Identity of the tokenizer that made the codes; "" if nobody said (imported codes)."""
        return str(self.manifest["tokenizer_sha256"])

    @property
    def skipped(self) -> list[str]:
        """Names of the images that could not be read and were left out."""
        return self._noted("skipped")

    @property
    def animated(self) -> list[str]:
        """Names of the images of several frames, of which the first was taken."""
        return self._noted("animated")

    def _noted(self, what: str) -> list[str]:
        noted = self.manifest.get(what)
        names = noted.get("names") if isinstance(noted, dict) else None
        return [str(name) for name in names] if isinstance(names, list) else []

    def verify(self) -> None:
        """Read everything; raise ``UserError`` on the first difference from the manifest."""
        for name in ("labels.npy", "codes.npy"):
            found, expected = sha256_file(self.path / name), self.manifest["sha256"].get(name)
            if found != expected:
                raise UserError(
                    f"{self.path / name} has sha256 {found[:12]}..., its manifest says "
                    f"{str(expected)[:12]}...; the file was changed: {_REDO}"
                )
        rows = max(1, _CHUNK // (self.views * self.tokens))
        for start in range(0, len(self), rows):
            check_rows(self, self.codes[start : start + rows], self.labels[start : start + rows])
        counts = np.bincount(self.labels, minlength=self.num_classes).tolist()
        if counts != self.manifest["class_counts"]:
            raise UserError(f"{self.path}: images per class differ from the manifest's: {_REDO}")


_REDO = "remove the whole folder of stores and run the command that made it again"


def same_images(source: object, other: object) -> bool:
    """Whether two manifests' ``source`` are of the same images, whatever was noted or left out."""
    if not (isinstance(source, dict) and isinstance(other, dict)):
        return source == other
    kept = ({key: v for key, v in of.items() if key not in _REMARKS} for of in (source, other))
    return next(kept) == next(kept)


def check_rows(store: Codes, codes: np.ndarray, labels: np.ndarray) -> None:
    """Raise ``UserError`` unless rows read from ``store`` are in its codebook and its classes."""
    for what, values, end in (("code", codes, store.vocab_size), ("label", labels, store.num_classes)):
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < 0 or high >= end:
            raise UserError(
                f"{store.path} has {what} {low if low < 0 else high}; expected 0 to {end - 1}: {_REDO}"
            )


def open_codes(path: str | Path) -> CodeStore:
    """Open one store. Raises ``UserError`` where a file is missing, damaged or of another format."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no code store at {path}; expected a folder with codes.npy and manifest.json")
    if not (path / "manifest.json").is_file():
        splits = [name for name in SPLITS if (path / name / "manifest.json").is_file()]
        hint = f"it holds the stores {', '.join(splits)}: open {path / splits[0]}" if splits else _REDO
        raise UserError(f"{path} has no manifest.json, so it is no code store; {hint}")
    manifest = _read_manifest(path / "manifest.json")
    codes, labels = _map(path / "codes.npy", "r"), _map(path / "labels.npy", None)
    shape = (manifest["images"], manifest["views"], manifest["tokens"])
    for name, array, dtype, expected in (
        ("codes.npy", codes, np.uint16, shape),
        ("labels.npy", labels, np.int64, shape[:1]),
    ):
        if array.dtype != dtype or array.shape != expected:
            raise UserError(
                f"{path / name} is {array.dtype} {array.shape}; its manifest says "
                f"{np.dtype(dtype)} {expected}: {_REDO}"
            )
    return CodeStore(path=path, codes=codes, labels=labels, manifest=manifest)


def open_splits(path: str | Path) -> dict[str, CodeStore]:
    """Open a folder of stores: those of train/, val/ and test/ that are there, in this order.

    Raises ``UserError`` if there is no train/ or the splits disagree on tokenizer, grid or classes.
    """
    path = Path(path)
    if not (path / "train" / "manifest.json").is_file():
        raise UserError(
            f"{path} is no folder of code stores; expected {path / 'train' / 'manifest.json'} and, "
            "for measuring, val/ and test/ beside it"
        )
    stores = {name: open_codes(path / name) for name in SPLITS if (path / name).is_dir()}
    for name, store in stores.items():
        for key in ("tokenizer_sha256", "vocab_size", "grid", "class_names"):
            if store.manifest[key] != stores["train"].manifest[key]:
                raise UserError(f"{path}: {name} and train differ in {key}; {_REDO}")
    return stores


def _read_manifest(path: Path) -> Record:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): {_REDO}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not the manifest of a code store (format {FORMAT!r})")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}; this program reads {FORMAT_VERSION}: {_REDO}"
        )
    kinds = {**dict.fromkeys(_LEAST, int), **dict.fromkeys(_LISTS, list)}
    for key, kind in (kinds | {"tokenizer_sha256": str, "sha256": dict}).items():
        if type(manifest.get(key)) is not kind:
            raise UserError(
                f"{path}: {key} is {manifest.get(key)!r}; expected {kind.__name__}: {_REDO}"
            )
    for key, least in _LEAST.items():
        if manifest[key] < least:
            raise UserError(f"{path}: {key} is {manifest[key]}; expected at least {least}: {_REDO}")
    for key, kind in _LISTS.items():
        for value in manifest[key]:
            if type(value) is not kind:
                raise UserError(
                    f"{path}: {key} holds {value!r}; expected only {kind.__name__}: {_REDO}"
                )
    consistent = (
        manifest["tokens"] == manifest["grid"] ** 2
        and len(manifest["view_names"]) == manifest["views"]
        and 0 <= manifest["test_view"] < manifest["views"]
        and len(manifest["class_counts"]) == len(manifest["class_names"])
        and sum(manifest["class_counts"]) == manifest["images"]
    )
    if not consistent:
        raise UserError(f"{path} contradicts itself (grid, tokens, views or counts): {_REDO}")
    return manifest


def _map(path: Path, mode: Literal["r", "r+"] | None) -> np.ndarray:
    try:
        loaded: np.ndarray = np.load(path, mmap_mode=mode)  # allow_pickle is False by default
        return loaded
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {_REDO}") from error
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}): {_REDO}") from error


class StoreWriter:
    """Fills a store's arrays in place; a writer opened again on the same folder goes on from there.

    ``done`` counts the source images dealt with, ``written`` the rows they gave, ``skipped`` names the
    images that gave none, ``animated`` those of which only the first frame was taken. Progress is
    recorded after the rows are on disk, so a killed run repeats at most its last ``add``.
    """

    def __init__(self, folder: Path, *, images: int, views: int, tokens: int) -> None:
        self.folder = folder
        self.shape = (images, views, tokens)
        self.done = self.written = 0
        self.skipped: list[str] = []
        self.animated: list[str] = []
        if not self._resume():
            self._start()

    def _resume(self) -> bool:
        try:
            progress = json.loads((self.folder / "progress.json").read_text(encoding="utf-8"))
            self.codes = np.load(self.folder / "codes.npy", mmap_mode="r+")
            self.labels = np.load(self.folder / "labels.npy", mmap_mode="r+")
            shape = tuple(progress["shape"])
            done, written, skipped = (progress[key] for key in ("done", "written", "skipped"))
            animated = progress.get("animated", [])
        except (OSError, ValueError, EOFError, KeyError, TypeError):
            return False
        fits = self.codes.shape == shape == self.shape and self.labels.shape == shape[:1]
        counts = type(done) is int and type(written) is int and isinstance(skipped, list)
        counts = counts and isinstance(animated, list)
        if not (fits and counts and 0 <= written <= done <= shape[0]):
            return False
        self.done, self.written, self.skipped, self.animated = done, written, skipped, animated
        return True

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        images, views, tokens = self.shape
        needed = images * (2 * views * tokens + 8)
        free = shutil.disk_usage(self.folder).free
        if needed > free:  # a mapped file on a full disk would kill the process instead
            raise UserError(
                f"{self.folder} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; "
                "make room or choose another folder"
            )
        create = np.lib.format.open_memmap
        self.codes = create(self.folder / "codes.npy", mode="w+", dtype=np.uint16, shape=self.shape)
        self.labels = create(self.folder / "labels.npy", mode="w+", dtype=np.int64, shape=(images,))

    def add(
        self,
        codes: np.ndarray,
        labels: np.ndarray,
        *,
        skipped: Sequence[str] = (),
        animated: Sequence[str] = (),
    ) -> None:
        """Append rows ``codes`` (n, views, T), ``labels`` (n,), of n + len(skipped) source images."""
        end = self.written + len(labels)
        assert codes.shape == (len(labels), *self.shape[1:]) and end <= self.shape[0], codes.shape
        self.codes[self.written : end] = codes
        self.labels[self.written : end] = labels
        self.codes.flush()
        self.labels.flush()
        self.written = end
        self.done += len(labels) + len(skipped)
        self.skipped = [*self.skipped, *skipped]
        self.animated = [*self.animated, *animated]
        progress = {
            "shape": self.shape,
            "done": self.done,
            "written": self.written,
            "skipped": self.skipped,
            "animated": self.animated,
        }
        write_json(self.folder / "progress.json", progress)

    def finish(self, facts: Record) -> None:
        """Cut the arrays to the rows written, hash them, and write the manifest with ``facts``.

        ``facts`` must hold vocab_size, grid, class_names, view_names, test_view, tokenizer_sha256.
        """
        assert self.done == self.shape[0], (self.done, self.shape)
        classes = len(facts["class_names"])
        counts = np.bincount(self.labels[: self.written], minlength=classes).tolist()
        assert len(counts) == classes, counts
        if self.written < self.shape[0]:
            for name, array in (("codes.npy", self.codes), ("labels.npy", self.labels)):
                self._cut(self.folder / name, array)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "images": self.written,
            "views": self.shape[1],
            "tokens": self.shape[2],
            **facts,
            "class_counts": counts,
            "skipped": {"count": len(self.skipped), "names": self.skipped},
            "animated": {"count": len(self.animated), "names": self.animated},
            "sha256": {name: sha256_file(self.folder / name) for name in ("codes.npy", "labels.npy")},
        }
        write_json(self.folder / "manifest.json", manifest)
        (self.folder / "progress.json").unlink()

    def _cut(self, path: Path, array: np.ndarray) -> None:
        shape = (self.written, *array.shape[1:])
        with publish_file(path) as temporary:
            shorter = np.lib.format.open_memmap(temporary, mode="w+", dtype=array.dtype, shape=shape)
            for start in range(0, self.written, 4096):
                stop = min(start + 4096, self.written)
                shorter[start:stop] = array[start:stop]
            shorter.flush()
