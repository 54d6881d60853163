"""From paths to classes: what the folders train/, val/ and test/ of a source say of their images.

``<split>/<class>/...`` at any depth, in a folder and in a tar alike. A split without classes (the flat
test/ of Kaggle and of Tiny-ImageNet) has no labels; Tiny-ImageNet's val/ has them in a list,
``val_annotations.txt``: file, class, and a box.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from star.base.errors import UserError
from star.images.class_names import same_name
from star.images.left_out import LeftOut, is_image
from star.images.split_names import split_of

__all__ = [
    "FOLDERS",
    "LIST",
    "NOWHERE",
    "Part",
    "is_label_list",
    "labelled",
    "labels_from",
    "located",
    "sorted_out",
]

FOLDERS, LIST, NOWHERE = "folders", "a list", "nowhere"  # where the labels of a split are
# A single folder of such a name is where all images of an unlabelled split lie, and no class.
_NO_CLASS = {"image", "images", "img", "imgs", "unknown", "unlabeled", "unlabelled"}


@dataclass
class Part:
    """The images of one split.

    ``images`` holds the path below the split's folder ("ant/0.jpg") and the name in the source of each;
    ``lists`` the names of lists of labels and what reads them.
    """

    folder: str
    images: list[tuple[str, str]] = field(default_factory=list)
    lists: dict[str, Callable[[], bytes]] = field(default_factory=dict)

    @functools.cached_property
    def by_class(self) -> dict[str, list[str]]:
        """Names of the images below each class folder, sorted."""
        found: dict[str, list[str]] = {}
        for path, name in self.images:
            head, inside, _ = path.partition("/")
            if inside:
                found.setdefault(head, []).append(name)
        return {head: sorted(names) for head, names in sorted(found.items())}


def is_label_list(path: str) -> bool:
    """Whether a path below a split's folder is that of a list of labels."""
    match = re.fullmatch(r"([a-z]+)_annotations\.txt", path.lower())
    return match is not None and split_of(match[1]) is not None


def sorted_out(
    folder: str,
    files: Iterable[tuple[str, str]],
    read: Callable[[str], bytes],
    left_out: LeftOut,
) -> Part:
    """The images among ``files`` (path below the split's folder, name in the source) of one split.

    ``read`` gives the content of a file by its name; other files are counted.
    """
    part = Part(folder)
    for path, name in files:
        if is_image(path):
            part.images.append((path, name))
        elif is_label_list(path):
            part.lists[path] = functools.partial(read, name)
        else:
            left_out.file(path)
    return part


def labels_from(part: Part, train: Collection[str]) -> str:
    """Where the labels of a split are: in its ``FOLDERS``, a ``LIST``, or ``NOWHERE``.

    ``train`` are train's classes: a single folder that is none of them, and is called images, unknown
    or as a split is, holds images without labels.
    """
    own, known = part.by_class, {same_name(name) for name in train}
    if any(same_name(name) in known for name in own):
        return FOLDERS
    if part.lists:
        return LIST
    no_class = len(own) < 2 and all(name.lower() in _NO_CLASS or split_of(name) for name in own)
    return NOWHERE if part.images and no_class else FOLDERS


def labelled(part: Part, kind: str, left_out: LeftOut, where: str) -> list[tuple[str, str]] | None:
    """(name, class) of a split's images, by class and name; None where the labels are ``NOWHERE``.

    ``kind`` is that of ``labels_from``. ``UserError``, with ``where``, for a list that fits no image.
    """
    if kind == LIST:
        return _by_list(part, left_out, where)
    for name in part.lists:
        left_out.file(name)
    if kind == NOWHERE:
        left_out.add(f"images of {part.folder}/ without labels", len(part.images))
        return None
    loose = sum("/" not in path for path, _ in part.images)
    left_out.add(f"images of {part.folder}/ in no class folder", loose)
    return [(image, name) for name, images in part.by_class.items() for image in images]


def _by_list(part: Part, left_out: LeftOut, where: str) -> list[tuple[str, str]]:
    """As the split's list of labels says; its files may lie in a folder such as images/."""
    first, *others = sorted(part.lists)
    if others:
        raise UserError(f"{where} has two lists of labels: {first}, {others[0]}; remove one")
    classes: dict[str, str] = {}
    text = part.lists[first]().decode("utf-8-sig", errors="surrogateescape")
    for number, line in enumerate(text.splitlines(), 1):
        columns = [c.strip() for c in (line.split("\t") if "\t" in line else line.split())]
        if not any(columns):
            continue
        if len(columns) < 2 or not all(columns[:2]):
            raise UserError(f"{where}/{first}: line {number} is {line!r}; expected file and class")
        if classes.setdefault(same_name(columns[0]), columns[1]) != columns[1]:
            raise UserError(f"{where}/{first} gives {columns[0]} two classes; expected one")
    found, used = [], set()
    for path, name in sorted(part.images):
        path = same_name(path)
        short = path if "/" not in path else path.split("/", 1)[1]
        key = next((key for key in (path, short) if key in classes and key not in used), None)
        if key is not None:
            used.add(key)
            found.append((name, classes[key]))
    if not found:
        raise UserError(f"{where}/{first} names none of the {len(part.images)} images beside it")
    left_out.add(f"images of {part.folder}/ that {first} does not name", len(part.images) - len(found))
    left_out.add(f"files that {first} names and that are not there", len(classes) - len(used))
    return sorted(found)


def located(members: Iterable[str], left_out: LeftOut) -> dict[str, tuple[str, str]]:
    """{member: (its split's folder, the path below it)} of an archive's paths, whatever lies before.

    The level of the splits is the first below what all paths share, if train is there; else the last
    split in what they share; else each path's first. Images at no such place are counted.
    """
    folders = {member: PurePosixPath(member).parent.parts for member in members}
    shared = _shared([parts for parts in folders.values() if any(map(split_of, parts))])
    below = (parts[len(shared)] for parts in folders.values() if len(parts) > len(shared))
    if any(split_of(name) == "train" for name in below):
        level: int | None = len(shared)
    else:
        level = max((i for i, name in enumerate(shared) if split_of(name)), default=None)
    found = {}
    for member, parts in folders.items():
        first = next((i for i, name in enumerate(parts) if split_of(name)), len(parts))
        own = first if level is None else level
        if own < len(parts) and split_of(parts[own]):
            path = PurePosixPath(*parts[own + 1 :], PurePosixPath(member).name)
            found[member] = (parts[own], str(path))
    for member in folders.keys() - found.keys():
        parts = folders[member]
        if not is_image(member):
            left_out.file(member)
        elif not found:
            left_out.add("images in no folder of a split and without .cls")
        elif parts:
            left_out.image_in("/".join(parts[: (level or 0) + 1]))
        else:
            left_out.add("images in no folder of a split")
    return found


def _shared(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The folders that all paths begin with."""
    if not paths:
        return ()
    low, high = min(paths), max(paths)
    count = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), None)
    return low[: min(len(low), len(high)) if count is None else count]
