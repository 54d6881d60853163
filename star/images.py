"""Where images come from: the built-in digits and photographs, or a folder with a class per subfolder.

``open_source("digits" | "photos" | folder)`` lists images with their labels, in a fixed order, split
into train, val and test; pixels are read only by ``Split.load``.

- ``digits``: scikit-learn's 1,797 handwritten digits (8 x 8, values 0..16), enlarged bicubically to
  32 x 32. Train 1,297 / val 140 / test 360.
- ``photos``: scikit-learn's two sample photographs, one a class, a train split only.
- a folder: ``train/<class>/*`` and ``val/<class>/*`` and/or ``test/<class>/*``. ``test`` is the
  folder's test/, or else its val/ (the custom of ImageNet); ``val`` is the folder's val/ when there is
  a test/ too, and otherwise it is taken out of train.

A split that we draw ourselves is stratified by class and fixed: within a class the images whose
sha256 of "split seed 0" and name is smallest leave train. It depends on no library, no machine and no
file order.
"""

import functools
import hashlib
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from star.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["BadImageError", "ImageSource", "Split", "load_image", "open_source"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
SPLITS = ("train", "val", "test")
MAX_PIXELS = 100_000_000
_PHOTOS = ("china.jpg", "flower.jpg")
_DIGIT_COUNTS = {"test": 360, "val": 140}  # train is the rest: 1,297
_SPLIT_SALT = "split seed 0"
_ADVICE = "remove it or pass --skip-bad"


class BadImageError(UserError):
    """One image file cannot be used; the others may be fine (``--skip-bad`` leaves it out)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images of one split in a fixed order.

    ``labels`` is int64 (N,). ``names`` are relative paths such as "train/cat/1.jpg", or "digits/17".
    ``read`` turns a name into an RGB image, ``content`` into a short text that changes when the
    image's data does (a file's size).
    """

    labels: np.ndarray
    names: tuple[str, ...]
    read: Callable[[str], "Image.Image"] = field(repr=False)
    content: Callable[[str], str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Name of image ``index``, as used in messages and manifests."""
        return self.names[index]

    def load(self, index: int) -> "Image.Image":
        """Image ``index`` as a PIL image in RGB. Raises ``BadImageError`` if it cannot be decoded."""
        return self.read(self.names[index])

    def fingerprint(self) -> str:
        """Hex sha256 over the names, sizes and labels of all images (not over a folder's pixels)."""
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(f"{name}\0{self.content(name)}\0{label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """A data set: its classes, its splits, and how to look at it by default.

    ``native_size`` is a side in pixels. ``default_views`` names a view set of ``star.views``.
    ``notes`` are sentences on how the splits came about, for manifests and results.
    """

    name: str
    class_names: tuple[str, ...]
    native_size: int
    default_views: str
    splits: dict[str, Split]
    notes: list[str]

    def split(self, name: str) -> Split:
        """The split called ``name``; raises ``UserError`` naming those there are."""
        if name not in self.splits:
            raise UserError(f"{self.name} has no {name} split; it has: {', '.join(self.splits)}")
        return self.splits[name]


def open_source(spec: str | Path) -> ImageSource:
    """Open ``digits``, ``photos`` or an image folder (write ``./digits`` for a folder of that name).

    Raises ``UserError`` for a path that does not exist or does not hold the layout described at the
    top of this module.
    """
    if str(spec) == "digits":
        return _digits()
    if str(spec) == "photos":
        return _photos()
    root = Path(spec)
    if not root.exists():
        raise UserError(f"no such file or folder: {spec}; expected digits, photos or an image folder")
    if not root.is_dir():
        raise UserError(
            f"{spec} is a file; expected digits, photos or an image folder (unpack archives)"
        )
    try:
        return _folder(root)
    except OSError as error:
        raise UserError(f"cannot list {error.filename or spec}: {error.strerror or error}") from error


def load_image(path: str | Path) -> "Image.Image":
    """One image in RGB: a file, or ``digits/17``, ``china.jpg``, ``flower.jpg`` if no such file exists.

    Raises ``UserError`` for a missing file, ``BadImageError`` for one that is no image or has more than
    100 megapixels.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected one image file")
    if not path.exists():
        if str(path) in _PHOTOS:
            return _photo(str(path))
        head, _, index = path.as_posix().partition("/")
        if head == "digits" and index.isdecimal() and int(index) < len(_digit_data()[1]):
            return _digit(path.as_posix())
        raise UserError(
            f"no such image: {path}; expected a file, digits/0 to digits/1796, china.jpg or flower.jpg"
        )
    return _read(path, str(path), "give another file")


# --- decoding ------------------------------------------------------------------------------------


def _read(path: Path, name: str, advice: str = _ADVICE) -> "Image.Image":
    from PIL import Image

    # Pillow would warn of what our own, larger limit allows or refuses in words of its own.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(_too_large(name, f"{image.width} x {image.height} pixels", advice))
            return _to_rgb(image)
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # beyond Pillow's own limit, which is the larger
        pixels = "".join(re.findall(r"\d+ pixels", str(error))[:1])
        raise BadImageError(_too_large(name, pixels, advice)) from error
    except Exception as error:  # decoders raise a dozen types on damaged files
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the image
            raise UserError(f"cannot read {name}: {error.strerror}") from error
        reason = "it is no image" if "cannot identify" in str(error) else str(error) or repr(error)
        raise BadImageError(f"cannot decode {name} ({reason}): {advice}") from error


def _too_large(name: str, pixels: str, advice: str) -> str:
    return f"{name} has {pixels}; at most {MAX_PIXELS // 10**6} megapixels are read: {advice}"


def _to_rgb(image: "Image.Image") -> "Image.Image":
    """RGB, upright by the EXIF tag, 16-bit grey scaled to 8 bits, transparency laid on white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip it
        values = np.clip(np.asarray(image).astype(np.float64), 0, 65535)
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        image.info["transparent_on"] = "white"  # for whoever describes it
    return image.convert("RGB")


# --- built-in sources ----------------------------------------------------------------------------


@functools.cache
def _digit_data() -> tuple[np.ndarray, np.ndarray]:
    """Values 0..16 as uint8 (1797, 8, 8), and labels int64 (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def _digit(name: str) -> "Image.Image":
    from PIL import Image

    values = _digit_data()[0][int(name.removeprefix("digits/"))]
    grey = np.round(values * (255 / 16)).astype(np.uint8)
    return Image.fromarray(grey).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")


def _photo(name: str) -> "Image.Image":
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image(name))


def _digit_content(name: str) -> str:
    return _digit_data()[0][int(name.removeprefix("digits/"))].tobytes().hex()


def _photo_content(name: str) -> str:
    return hashlib.sha256(_photo(name).tobytes()).hexdigest()


def _digits() -> ImageSource:
    labels = _digit_data()[1]
    names = np.array([f"digits/{index}" for index in range(len(labels))], dtype=object)
    rest = np.arange(len(labels))
    places = {}
    for split, count in _DIGIT_COUNTS.items():
        taken = _stratified(names[rest], labels[rest], count)
        places[split], rest = rest[taken], rest[~taken]
    places["train"] = rest
    return ImageSource(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        native_size=32,
        default_views="affine",  # a mirrored digit is another shape
        splits={
            split: _split(names[places[split]], labels[places[split]], _digit, _digit_content)
            for split in SPLITS
        },
        notes=["digits: a fixed split stratified by class, train 1297 / val 140 / test 360"],
    )


def _split(names, labels, read, content) -> Split:
    return Split(names=tuple(names), labels=labels, read=read, content=content)


def _photos() -> ImageSource:
    train = _split(_PHOTOS, np.arange(len(_PHOTOS), dtype=np.int64), _photo, _photo_content)
    return ImageSource(
        name="photos",
        class_names=tuple(Path(name).stem for name in _PHOTOS),
        native_size=256,
        default_views="ten-crop",
        splits={"train": train},
        notes=["photos: two images, a train split only"],
    )


# --- folders -------------------------------------------------------------------------------------


def _folder(root: Path) -> ImageSource:
    name = root.resolve().name
    found = sorted(entry.name for entry in os.scandir(root) if not entry.name.startswith("."))
    layout = "train/<class>/* and val/<class>/* and/or test/<class>/*"
    if not found:
        raise UserError(f"{root} is empty; expected {layout}")
    if not (root / "train").is_dir():
        listed = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise UserError(f"{root} has no folder train; expected {layout}; found: {listed}")
    classes, *train = _list_split(root, "train", None)
    listed = {"train": train}
    for split in ("val", "test"):
        if (root / split).is_dir():
            listed[split] = _list_split(root, split, classes)[1:]
    splits, notes = _assign(name, listed)
    read, content = functools.partial(_read_in, root), functools.partial(_size_in, root)
    return ImageSource(
        name=name,
        class_names=classes,
        native_size=_native_size(root, train[0]),
        default_views="ten-crop",
        splits={split: _split(*items, read, content) for split, items in splits.items()},
        notes=notes,
    )


def _list_split(
    root: Path, split: str, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Classes, image names and labels of ``root/split``; ``classes`` are train's, if known."""
    folder = root / split
    found = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != "."))
    if not found:
        raise UserError(f"{folder} has no class folders; expected {split}/<class>/* with image files")
    if len(found) == 1:
        raise UserError(
            f"{folder} has one class ({found[0]}); expected at least two folders {split}/<class>"
        )
    unknown = sorted(set(found) - set(classes)) if classes is not None else []
    if unknown:
        listed = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise UserError(f"{folder} has classes that train has not: {listed}; rename or remove them")
    classes = classes or found
    names: list[str] = []
    labels: list[int] = []
    for name in found:
        images = sorted(e.name for e in os.scandir(folder / name) if _is_image(e))
        if not images and split == "train":
            suffixes = " ".join(sorted(SUFFIXES))
            raise UserError(f"{folder / name} holds no image ({suffixes}); add some or remove it")
        names += [f"{split}/{name}/{image}" for image in images]
        labels += [classes.index(name)] * len(images)
    if not names:
        raise UserError(f"{folder} holds no images; add some or remove the folder")
    return classes, np.array(names, dtype=object), np.array(labels, dtype=np.int64)


def _is_image(entry: os.DirEntry) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in SUFFIXES and not entry.name.startswith(".") and entry.is_file()


def _assign(name: str, listed: dict) -> tuple[dict, list[str]]:
    """Train, val and test out of the folders there are, and notes that say which is which."""
    names, labels = listed["train"]
    splits, notes = dict(listed), []
    if "test" not in listed and "val" in listed:
        splits["test"] = splits.pop("val")
        notes.append(f"{name}: test is the folder's val/ (there is no test/)")
    elif "test" not in listed:
        notes.append(f"{name}: no test split (there is neither val/ nor test/)")
    if "val" not in splits:
        classes = len(np.unique(labels))
        count = max(min(len(names) // 20, 5000), classes)
        taken = _stratified(names, labels, count)
        splits["train"] = (names[~taken], labels[~taken])
        if taken.any():
            splits["val"] = (names[taken], labels[taken])
        notes.append(
            f"{name}: val is {int(taken.sum())} of the {len(names)} images of train/, fixed, "
            "stratified by class, and not used as train"
        )
    return {split: splits[split] for split in SPLITS if split in splits}, notes


def _stratified(names: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
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
        ranked = sorted(members, key=lambda i: _rank(names[i]))
        taken[np.array(ranked[:number], dtype=int)] = True
    return taken


def _rank(name: str) -> bytes:
    return hashlib.sha256(f"{_SPLIT_SALT}/{name}".encode(errors="surrogateescape")).digest()


def _read_in(root: Path, name: str) -> "Image.Image":
    return _read(root / name, str(root / name))


def _size_in(root: Path, name: str) -> str:
    try:
        return str(os.stat(root / name).st_size)
    except OSError as error:
        raise UserError(f"cannot read {root / name}: {error.strerror}") from error


def _native_size(root: Path, names: np.ndarray) -> int:
    """Smaller side of the first image whose header can be read; 256 if the first ten cannot."""
    from PIL import Image

    for name in names[:10]:
        try:
            with Image.open(root / name) as image:
                return min(image.size)
        except Exception:  # a damaged file: loading it will say so
            continue
    return 256
