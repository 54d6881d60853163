"""Where images come from: the built-in digits and photographs, an image folder, a tar, parquet shards.

``open_source(what)`` lists images with their labels, in a fixed order, split into train, val and test;
pixels are read only by ``Split.load``. ``what`` is

- ``digits`` or ``photos`` (``star.images.builtin``),
- a folder with a class per subfolder (``star.images.folders``),
- a ``.tar`` of such a folder, or of a web dataset's x.jpg and x.cls (``star.images.tar``),
- ``.parquet`` files in Hugging Face's layout, one or a folder of shards (``star.images.parquet``).

Splits go by the words of ``star.images.split_names``: train or training, val, valid, validation or
dev, test. ``test`` is the source's test split, or else its ``val/`` (the custom of ImageNet,
``star.images.source``); ``val`` is the validation split when there is one beside it, and otherwise it
is taken out of train. What lies below a source and is not used is counted by reason in
``ImageSource.left_out``.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from star.base.errors import UserError
from star.images.arrow import arrow_advice, is_arrow
from star.images.builtin import DIGITS, PHOTOS, digit, digits_source, photo, photos_source
from star.images.decode import MAX_MEGAPIXELS, SUFFIXES, BadImageError, read_image, require_megapixels
from star.images.folders import flat_source, folder_source
from star.images.source import ImageSource, Split
from star.images.split_names import split_folders
from star.images.tree import visible_folders

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "SUFFIXES",
    "BadImageError",
    "ImageSource",
    "Split",
    "is_flat_folder",
    "load_image",
    "open_images",
    "open_source",
]

_BUILT_IN = {"digits": digits_source, "photos": photos_source}
_EXPECTED = "expected digits, photos, an image folder, a .tar or .parquet files"


def open_source(
    spec: str | Path, label_column: str | None = None, *, need_labels: bool = True
) -> ImageSource:
    """Open the source called ``spec`` (write ``./digits`` for a folder of that name).

    ``label_column`` names the column of parquet's labels; parquet of which it cannot be told is one
    class, unless ``need_labels``. Raises ``UserError`` for a path that does not exist or holds none of
    the layouts above, and for a column of what is no parquet.
    """
    if str(spec) in _BUILT_IN:
        _refuse_column(spec, label_column)
        return _BUILT_IN[str(spec)]()
    root = Path(spec)
    if not root.exists():
        raise UserError(f"no such file or folder: {spec}; {_EXPECTED}")
    try:
        return _open(root, label_column, need_labels)
    except OSError as error:
        raise UserError(f"cannot list {error.filename or spec}: {error.strerror or error}") from error


def _refuse_column(spec: str | Path, label_column: str | None) -> None:
    if label_column is not None:
        raise UserError(
            f"--label-column {label_column} names a column of parquet, and {spec} is none; leave it out"
        )


def is_flat_folder(spec: str | Path) -> bool:
    """Whether ``spec`` is a folder that is none of the sources: no train/, no tar, no parquet."""
    from star.images.parquet import parquet_files
    from star.images.tar import tar_files

    root = Path(spec)
    if str(spec) in _BUILT_IN or not root.is_dir() or (root / "train").is_dir():
        return False
    return not (_has_classes(root) or parquet_files(root) or tar_files(root) or is_arrow(root))


def open_images(spec: str | Path) -> ImageSource:
    """As ``open_source``, for what needs no labels: a folder without train/ is taken as it is."""
    return flat_source(Path(spec)) if is_flat_folder(spec) else open_source(spec, need_labels=False)


def _has_classes(root: Path) -> bool:
    """Whether a folder of the train split in ``root`` has folders in it."""
    return any(visible_folders(root / name) for name in split_folders(root).get("train", ()))


def _open(root: Path, label_column: str | None, need_labels: bool) -> ImageSource:
    from star.images.parquet import parquet_files, parquet_source
    from star.images.tar import is_compressed_tar, tar_files, tar_source

    if root.is_dir() and _has_classes(root):
        _refuse_column(root, label_column)
        return folder_source(root)  # whatever else lies beside it
    shards = parquet_files(root)
    if shards:
        return parquet_source(root, shards, label_column, need_labels=need_labels)
    _refuse_column(root, label_column)
    shards = tar_files(root)
    if shards:
        return tar_source(root, shards)
    if is_arrow(root):
        raise UserError(arrow_advice(root))
    if root.is_dir():
        return folder_source(root)
    if is_compressed_tar(root):
        raise UserError(
            f"{root} is compressed, so no image in it can be read without all before it; decompress it "
            "(to a .tar) first"
        )
    raise UserError(f"{root} is a file; {_EXPECTED} (unpack other archives)")


def load_image(path: str | Path, *, max_megapixels: float = MAX_MEGAPIXELS) -> "Image.Image":
    """One image in RGB: a file, or ``digits/17``, ``china.jpg``, ``flower.jpg`` if no such file exists.

    Raises ``UserError`` for a missing file, ``BadImageError`` for one that is no image or has more than
    ``max_megapixels``.
    """
    require_megapixels(max_megapixels)
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected one image file")
    if not path.exists():
        if str(path) in PHOTOS:
            return photo(str(path))
        head, _, index = path.as_posix().partition("/")
        if head == "digits" and index.isdecimal() and int(index) < DIGITS:
            return digit(path.as_posix())
        raise UserError(
            f"no such image: {path}; expected a file, digits/0 to digits/{DIGITS - 1}, china.jpg or "
            "flower.jpg"
        )
    return read_image(path, str(path), max_megapixels, "give another file")
