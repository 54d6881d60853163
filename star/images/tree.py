"""What lies below a folder: files at any depth, links followed, and the rest counted by reason."""

import errno
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from star.images.left_out import CIRCLE, HIDDEN, NOTHING, LeftOut, is_hidden

__all__ = ["Tree", "list_tree", "visible_folders"]

_FOLDER, _FILE = "a folder", "a file"
_SPECIAL = "neither files nor folders"
_CLOSED = "folders that cannot be opened"


@dataclass
class Tree:
    """Relative paths ("ant/0.jpg"), in no order."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def list_tree(
    root: Path, left_out: LeftOut, *, skip: Collection[str] = frozenset(), strict: bool
) -> Tree:
    """Every file and folder below ``root``, links to either followed, hidden ones left out.

    A folder is entered once along a branch: a link back to one above (of ``root`` too) is counted, as
    are links to nothing, pipes and devices. ``skip`` names entries of ``root`` itself to pass over. A
    folder that cannot be opened is counted too; ``strict`` raises its ``OSError``, as for ``root``.
    """
    found, top = Tree(), os.path.realpath(root)
    above = frozenset(_identity(os.stat(path)) for path in (Path(top), *Path(top).parents))
    pending = [("", above)]
    while pending:
        inside, above = pending.pop()
        try:
            with os.scandir(os.path.join(root, inside)) as listing:
                entries = [entry for entry in listing if inside or entry.name not in skip]
        except OSError:
            if strict or not inside:
                raise
            left_out.add(_CLOSED)
            continue
        for entry in entries:
            kind = HIDDEN if is_hidden(entry.name) else _kind(entry)
            identity = _identity(entry.stat()) if kind == _FOLDER else None
            if kind == _FILE:
                found.files.append(inside + entry.name)
            elif identity is not None and identity not in above:
                found.folders.append(inside + entry.name)
                pending.append((f"{inside}{entry.name}/", above | {identity}))
            else:
                left_out.add(CIRCLE if kind == _FOLDER else kind)
    return found


def visible_folders(root: Path) -> list[str]:
    """Names of the folders (and links to folders) in ``root`` that are not hidden, sorted."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if not is_hidden(e.name) and _kind(e) == _FOLDER)


def _kind(entry: os.DirEntry[str]) -> str:
    """A folder, a file, or the reason why it is neither; links are what they lead to."""
    try:
        if entry.is_dir():
            return _FOLDER
        if entry.is_file():
            return _FILE
        if entry.is_symlink():
            entry.stat()
    except FileNotFoundError:
        return NOTHING
    except OSError as error:
        if not entry.is_symlink():
            raise
        return CIRCLE if error.errno == errno.ELOOP else NOTHING
    return _SPECIAL


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
