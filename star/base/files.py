"""Files appear whole or not at all: atomic writes, and hashes that name a file's content."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from star.base.errors import UserError
from star.base.names import shown

__all__ = [
    "plain_path",
    "publish_file",
    "publish_folder",
    "remove_folder",
    "require_writable",
    "sha256_file",
    "write_json",
]


_STEM = 50  # letters of a file's name that its temporary file has too


@contextlib.contextmanager
def publish_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed onto ``path``.

    If the body raises, ``path`` keeps its old content (or stays absent) and the temporary file goes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept: savers such as matplotlib choose the format by it. The rest may be too long to
    # be made longer, or what some of them cannot write.
    prefix, suffix = f".{shown(path.stem[:_STEM])}.", shown(path.suffix)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def plain_path(path: Path) -> Iterator[Path]:
    """A path of the existing file ``path`` for libraries that take no name but in UTF-8.

    It is ``path`` itself, or else goes by a link that lasts as long as the block: to the folder where
    that will do, since writers may put another file in the place of this one.
    """
    if shown(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "link"
        if shown(path.name) == path.name:
            link.symlink_to(path.parent.absolute())
            yield link / path.name
        else:
            link = link.with_suffix(shown(path.suffix))
            link.symlink_to(path.absolute())
            yield link


def publish_folder(temporary: Path, final: Path) -> None:
    """Move a finished folder to its name by one rename; ``final`` must not exist or be empty."""
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    if final.is_dir() and not any(final.iterdir()):
        final.rmdir()
    os.rename(temporary, final)
    _sync(final.parent)


def require_writable(folder: Path, advice: str) -> None:
    """Make ``folder``; raise ``UserError`` with ``advice`` unless files can be written into it.

    For folders whose content takes long to make.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; {advice}") from error


def remove_folder(path: Path) -> None:
    """Delete a work folder of ours if it is there."""
    if path.exists():
        shutil.rmtree(path)


def write_json(path: Path | str, value: object) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with publish_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
