"""What one uncompressed tar holds and where: offsets of its images, the classes written beside them."""

import posixpath
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from star.base.errors import UserError
from star.images.layout import is_label_list
from star.images.left_out import HIDDEN, LeftOut, is_hidden, is_image
from star.images.split_names import split_of

__all__ = ["OUTSIDE", "Archive", "index_tar"]

OUTSIDE = "links, devices and paths outside (archive)"
_MOST_CLS = 1000  # bytes of a .cls
_MOST_LIST = 1 << 26  # bytes of a list of labels


@dataclass
class Archive:
    """One tar; ``prefix`` goes before its members' paths where a source has several.

    ``images`` holds the offset and size of each member that is an image, ``classes`` the content of
    each .cls by the path without it, ``lists`` the content of lists of labels.
    """

    path: Path
    split: str
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    lists: dict[str, bytes] = field(default_factory=dict)
    prefix: str = ""

    def beside_cls(self) -> dict[str, str | int]:
        """{name: class} of the images beside a .cls; -1 is how some write that there is no label."""
        found = {}
        for member in self.images:
            value = self.classes.get(posixpath.splitext(member)[0])
            if value is not None:
                number = value.isdecimal() or value == "-1"
                found[self.prefix + member] = int(value) if number else value
        return found

    def others(self) -> list[str]:
        """Images without a .cls, and lists of labels."""
        images = [m for m in self.images if posixpath.splitext(m)[0] not in self.classes]
        return [*images, *self.lists]


def index_tar(path: Path, split: str, left_out: LeftOut) -> Archive:
    """The index of the tar at ``path``; ``UserError`` where it is damaged or cut short."""
    archive = Archive(path, split)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
                if not member.isdir():
                    _take(archive, tar, member, left_out)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"cannot read {path} as an uncompressed tar ({error})") from error
    size = path.stat().st_size
    for name, (offset, length) in archive.images.items():
        if offset + length > size:
            raise UserError(f"{path} is cut short: it ends inside {name}")
    stems = {posixpath.splitext(member)[0] for member in archive.images}
    left_out.add("classes (.cls) without an image", len(archive.classes.keys() - stems))
    return archive


def _is_hidden(parts: list[str]) -> bool:
    """Whether a member is hidden; folders that lead to those of the splits may have any name."""
    leading = next((i for i, name in enumerate(parts[:-1]) if split_of(name)), len(parts) - 1)
    return "__MACOSX" in parts or any(map(is_hidden, parts[leading:]))


def _take(archive: Archive, tar: tarfile.TarFile, member: tarfile.TarInfo, left_out: LeftOut) -> None:
    name = posixpath.normpath(member.name)
    parts = name.split("/")
    stem, suffix = posixpath.splitext(name)
    if not member.isreg() or member.sparse is not None or name.startswith("/") or parts[0] == "..":
        left_out.add(OUTSIDE)
    elif _is_hidden(parts):
        left_out.add(HIDDEN)
    elif is_image(name):
        left_out.add("members replaced by a later one of the same path", int(name in archive.images))
        archive.images[name] = (member.offset_data, member.size)
    elif suffix.lower() == ".cls" and member.size <= _MOST_CLS:
        archive.classes[stem] = _content(tar, member).decode(errors="replace").strip()
    elif is_label_list(parts[-1]) and member.size <= _MOST_LIST:
        archive.lists[name] = _content(tar, member)
    else:
        left_out.file(name)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    return file.read()
