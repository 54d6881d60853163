"""``.npz`` files of images and statistics, read safely and batch by batch.

The layout is the ADM suite's: ``arr_0`` uint8 (N, H, W, 3), and of a reference ``mu``, ``sigma``,
``mu_s``, ``sigma_s`` besides. Labels are ``labels``, or ``arr_1``. Objects are never unpickled, and
images are not loaded as a whole.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from star.base.errors import UserError, listed

__all__ = ["image_batches", "image_shape", "read_array", "stored_names"]

IMAGES = "arr_0"
_BROKEN = (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)


def stored_names(path: Path) -> set[str]:
    """Names of the arrays; ``UserError`` if the file is missing, truncated or no ``.npz``."""
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    with _explained(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_array(path: Path, name: str) -> np.ndarray:
    """One array; ``UserError`` if it is truncated or holds objects."""
    with _explained(path), np.load(path, allow_pickle=False) as arrays:
        found: np.ndarray = arrays[name]
    return found


def image_shape(path: Path) -> tuple[int, int, int]:
    """(N, H, W) of ``arr_0``; ``UserError`` unless it is uint8 (N, H, W, 3) of two images at least."""
    if IMAGES not in stored_names(path):
        raise UserError(f"{path} has no array {IMAGES}, where images lie; it has: {_names(path)}")
    with _explained(path), _entry(path) as (_, (shape, _, kind)):
        pass
    if kind.hasobject:
        raise UserError(f"{path} is refused: {IMAGES} holds pickled objects, which could run code")
    if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise UserError(
            f"{path}: {IMAGES} is {kind} {shape}; expected uint8 (images, height, width, 3), "
            "values 0 to 255"
        )
    if shape[0] < 2:
        raise UserError(f"{path} holds {shape[0]} images; expected at least 2")
    return shape[:3]


def image_batches(path: Path, size: int) -> Iterator[np.ndarray]:
    """The images of a file that ``image_shape`` accepts, ``size`` at a time."""
    with _explained(path), _entry(path) as (file, (shape, fortran, _)):
        if fortran:  # rows do not lie one after the other
            images = read_array(path, IMAGES)
            yield from (images[start : start + size] for start in range(0, shape[0], size))
            return
        row = int(np.prod(shape[1:]))
        for start in range(0, shape[0], size):
            count = min(size, shape[0] - start)
            content = file.read(count * row)
            if len(content) < count * row:
                raise EOFError("it is truncated")
            yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])


def _names(path: Path) -> str:
    return listed(sorted(stored_names(path))) or "nothing"


Header = tuple[tuple[int, ...], bool, np.dtype]


@contextlib.contextmanager
def _entry(path: Path) -> Iterator[tuple[IO[bytes], Header]]:
    """The images' entry, opened behind its header."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        yield file, (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _BROKEN as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{path} is refused: it holds pickled objects, which could run code"
            ) from error
        raise UserError(f"cannot read {path}: it is truncated or no .npz ({error})") from error
