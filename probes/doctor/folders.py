"""Where files go: free space, whether files can be written, and what star keeps for itself."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from probes.doctor.lines import FAIL, NOTE, OK, Line, size

__all__ = [
    "all_folders",
    "cache_line",
    "contents_line",
    "folder_line",
    "nearest",
    "working_line",
    "writable",
]

SECTION = "folders"
LITTLE = 1 << 30


def nearest(folder: Path) -> Path:
    """``folder``, or the part of its path that is there already."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def writable(folder: Path) -> str:
    """Empty if files can be written into ``folder``, made if need be; else the system's reason.

    Nothing is left there, not even the folder.
    """
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def folder_line(name: str, folder: Path, wrong: str, advice: str) -> Line:
    """Space and rights in ``folder``; ``wrong`` is the status where nothing can be written."""
    made = "" if folder.is_dir() else " (not made yet)"
    why = writable(folder)
    if why:
        return Line(SECTION, name, wrong, f"{folder}{made}: cannot be written ({why})", advice)
    free = shutil.disk_usage(nearest(folder)).free
    value = f"{folder}{made}: can be written, {size(free)} free"
    if free < LITTLE:
        return Line(SECTION, name, NOTE, value, f"make room, or {advice}")
    return Line(SECTION, name, OK, value)


def contents_line() -> Line:
    """How much star keeps in its cache folder."""
    files, total = 0, 0
    for place, _, names in os.walk(cache_folder()):
        for name in names:
            files += 1
            total += os.lstat(os.path.join(place, name)).st_size
    value = f"{files} files, {size(total)}" if files else "empty"
    return Line(SECTION, "kept in the cache", OK, value)


def cache_folder() -> Path:
    """``star.tokenizer.file.cache_folder``, imported when it is asked for: torch comes with it."""
    from star.tokenizer.file import cache_folder

    return cache_folder()


def all_folders() -> Iterator[Path]:
    """Where a checkpoint may be tried."""
    yield cache_folder()
    yield Path.cwd()


def cache_line() -> Line:
    """The cache folder, without which some commands cannot do."""
    return folder_line("cache", cache_folder(), FAIL, "set STAR_CACHE to a folder of yours")


def working_line() -> Line:
    """The working folder, below which most commands write unless told otherwise."""
    return folder_line("working folder", Path.cwd(), NOTE, "give --run and --out another folder")
