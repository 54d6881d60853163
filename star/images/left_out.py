"""What of a source is not used, counted by reason in plain words: nothing is passed over in silence."""

import os
from collections import Counter

from star.base.errors import listed
from star.images.decode import SUFFIXES

__all__ = ["CIRCLE", "HIDDEN", "NOTHING", "LeftOut", "is_hidden", "is_image", "left_out_line"]

HIDDEN = "hidden"
NOTHING = "links to nothing"
CIRCLE = "links in a circle"
_MOST = 8  # endings, and folders, that are named; the others are summed up
_LONGEST = 12  # characters of what still is an ending


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden: a leading dot (a Mac's ``._x.jpg`` too), or ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def is_image(name: str) -> bool:
    """Whether the ending is that of an image file that is read."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


class LeftOut:
    """Counts by reason; endings of files that are no images, and folders, in groups of their own."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._endings: Counter[str] = Counter()
        self._folders: Counter[str] = Counter()

    def add(self, reason: str, count: int = 1) -> None:
        """Count ``count`` files (or folders, links, rows) left out for ``reason``."""
        if count:
            self._reasons[reason] += count

    def file(self, name: str) -> None:
        """Count a file that is no image, by its ending."""
        ending = os.path.splitext(name)[1].lower()
        self._endings[ending if len(ending) <= _LONGEST else ""] += 1

    def image_in(self, folder: str) -> None:
        """Count an image in a folder that is no split."""
        self._folders[folder] += 1

    def counts(self) -> dict[str, int]:
        """{reason: count}, the largest first."""
        counts = dict(self._reasons)
        for group, one, rest in (
            (self._endings, "not an image ({})", "not an image ({} other endings)"),
            (self._folders, "images in {}/, which is no split", "images in {} other folders"),
        ):
            ranked = sorted(group.items(), key=lambda item: (-item[1], item[0]))
            named = ranked if len(ranked) <= _MOST else ranked[: _MOST - 1]
            counts |= {one.format(name or "without ending"): count for name, count in named}
            if ranked[len(named) :]:
                others = ranked[len(named) :]
                counts[rest.format(len(others))] = sum(count for _, count in others)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def left_out_line(name: str, counts: dict[str, int]) -> str | None:
    """One line for the screen on what of the source ``name`` is not used; None where all is."""
    if not counts:
        return None
    return f"left out of {name}: " + listed(
        (f"{reason}: {count}" for reason, count in counts.items()), 24
    )
