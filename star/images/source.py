"""Splits of an image source, and the rule that takes one out of another.

``Split`` lists images in a fixed order and reads their pixels when asked; ``ImageSource`` is a data set
of splits. A split that we draw ourselves is stratified by class and fixed: within a class the images
whose sha256 of "split seed 0" and name is smallest leave train. It depends on no library, no machine
and no file order.
"""

import hashlib
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from star.base.errors import UserError
from star.base.names import shown
from star.images.decode import MAX_MEGAPIXELS, BadImageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "SPLITS",
    "ImageSource",
    "Split",
    "assign_splits",
    "make_split",
    "native_size",
    "stratified",
]

SPLITS = ("train", "val", "test")
_SPLIT_SALT = "split seed 0"
ReadImage = Callable[[str, float], "Image.Image"]  # of a name and the most megapixels
Content = Callable[[str], str]
Listing = dict[str, tuple[np.ndarray, np.ndarray]]  # names and labels of each split


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images of one split in a fixed order.

    ``labels`` is int64 (N,). ``names`` are relative paths such as "train/cat/1.jpg", or "digits/17", as
    ``read`` finds them; messages and files say ``name(index)``.
    ``read`` turns a name (and the most megapixels) into an RGB image, ``content`` a name into a short
    text that changes when the image's data does (a file's size).
    """

    labels: np.ndarray
    names: tuple[str, ...]
    read: ReadImage = field(repr=False)
    content: Content = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Name of image ``index``, as used in messages and manifests (``star.base.names.shown``)."""
        return shown(self.names[index])

    def load(self, index: int, max_megapixels: float = MAX_MEGAPIXELS) -> "Image.Image":
        """Image ``index`` as a PIL image in RGB.

        Raises ``BadImageError`` if it cannot be decoded or has more than ``max_megapixels``.
        """
        return self.read(self.names[index], max_megapixels)

    def select(self, places: Sequence[int] | np.ndarray) -> "Split":
        """The images at ``places``, in this order."""
        names = tuple(self.names[place] for place in places)
        return replace(self, names=names, labels=self.labels[list(places)])

    def fingerprint(self) -> str:
        """Hex sha256 over the names, sizes and labels of all images (not over a folder's pixels)."""
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(f"{name}\0{self.content(name)}\0{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """A data set: its classes, its splits, and how to look at it by default.

    ``native_size`` is a side in pixels. ``default_views`` names a view set of ``star.images.views``.
    ``notes`` are sentences on how the splits came about, ``left_out`` counts by reason what of the
    source is not used: both for manifests. ``label_column`` is the one that was asked for.
    Bytes in names that are no UTF-8 are escaped (``star.base.names.shown``); ``UserError`` if that
    makes two classes one.
    """

    name: str
    class_names: tuple[str, ...]
    native_size: int
    default_views: str
    splits: dict[str, Split]
    notes: list[str]
    left_out: dict[str, int] = field(default_factory=dict)
    label_column: str | None = None

    def __post_init__(self) -> None:
        text = {name: shown(name) for name in self.class_names}
        if len(set(text.values())) < len(text):
            twice = next(name for name in text if list(text.values()).count(text[name]) > 1)
            raise UserError(
                f"{shown(self.name)} has two classes that are both written {text[twice]}; rename one"
            )
        object.__setattr__(self, "class_names", tuple(text[name] for name in self.class_names))
        object.__setattr__(self, "name", shown(self.name))
        object.__setattr__(self, "notes", [shown(note) for note in self.notes])

    def split(self, name: str) -> Split:
        """The split called ``name``; raises ``UserError`` naming those there are."""
        if name not in self.splits:
            raise UserError(f"{self.name} has no {name} split; it has: {', '.join(self.splits)}")
        return self.splits[name]

    def fingerprints(self) -> dict[str, str]:
        """``Split.fingerprint`` of every split: what a run saw."""
        return {name: split.fingerprint() for name, split in self.splits.items()}


def measured_split(splits: Container[str]) -> str:
    """Which split is measured on where nobody names one: test, else val, else train."""
    return next(name for name in ("test", "val", "train") if name in splits)


def make_split(names: Iterable[str], labels: np.ndarray, read: ReadImage, content: Content) -> Split:
    """A split of names and labels in their order."""
    return Split(names=tuple(names), labels=labels, read=read, content=content)


def native_size(read: ReadImage, names: np.ndarray) -> int:
    """Smaller side of the first image that can be read; 256 if the first ten cannot."""
    for name in names[:10]:
        try:
            return min(read(name, MAX_MEGAPIXELS).size)
        except BadImageError:  # loading it again will say so
            continue
    return 256


def assign_splits(
    name: str, listed: Listing, called: dict[str, str] | None = None
) -> tuple[Listing, list[str]]:
    """Train, val and test out of the folders there are, and notes that say which is which.

    ``called`` says what a source calls its splits. ImageNet's custom is for the name ``val`` alone:
    where there is no test split, it is tested on, and val is cut from train. What is called otherwise
    (valid, validation, dev) is taken at its word: val is what it holds, and train stays whole.
    """
    names, labels = listed["train"]
    splits, notes = dict(listed), []
    own = (called or {}).get("val", "val")
    if "test" not in listed and "val" in listed and own == "val":
        splits["test"] = splits.pop("val")
        notes.append(f"{name}: test is the folder's val/ (there is no test/)")
    elif "test" not in listed and "val" in listed:
        notes.append(f"{name}: no test split; val is {own}, whole, and train is not cut")
    elif "test" not in listed:
        notes.append(f"{name}: no test split (there is neither val/ nor test/ with labels)")
    if "val" not in splits:
        classes = len(np.unique(labels))
        count = max(min(len(names) // 20, 5000), classes)
        taken = stratified(names, labels, count)
        splits["train"] = (names[~taken], labels[~taken])
        if taken.any():
            splits["val"] = (names[taken], labels[taken])
        notes.append(
            f"{name}: val is {int(taken.sum())} of the {len(names)} images of train/, fixed, "
            "stratified by class, and not used as train"
        )
    return {split: splits[split] for split in SPLITS if split in splits}, notes


def stratified(names: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Boolean (N,): ``count`` images in the proportions of the classes, drawn by the hash of names.

    Each class gives its rounded share (largest remainders), at least one image, and keeps one.
    """
    sizes = np.bincount(labels)
    exact = sizes * count / len(labels)
    quota = np.floor(exact).astype(int)
    order = np.argsort(-(exact - quota), kind="stable")
    quota[order[: count - quota.sum()]] += 1
    quota = np.clip(quota, 1, np.maximum(sizes - 1, 0))
    taken = np.zeros(len(labels), dtype=bool)
    for label, number in enumerate(quota):
        members = np.flatnonzero(labels == label)
        ranked = sorted(members, key=lambda i: _rank(str(names[i])))
        taken[np.array(ranked[:number], dtype=int)] = True
    return taken


def _rank(name: str) -> bytes:
    return hashlib.sha256(f"{_SPLIT_SALT}/{name}".encode(errors="surrogateescape")).digest()
