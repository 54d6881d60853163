"""Names in pictures: as they are where the pictures' font has their letters, else something legible.

DejaVu Sans has most alphabets but no Chinese, Japanese, Korean or Indian script and few emoji; what a
font lacks is drawn as one and the same empty box.
"""

import functools
import unicodedata
from collections.abc import Iterable, Sequence

from matplotlib.font_manager import FontProperties, findfont, get_font

from star.base.names import shown
from viz.base.style import FONT, shorten

__all__ = ["in_heading", "labels", "legend_label", "legible", "stand_ins"]

# Controls, surrogates, private use, line and paragraph ends: whatever the font has in their places.
_NO_LETTERS = frozenset({"Cc", "Cs", "Co", "Zl", "Zp"})


def legible(name: str) -> str:
    r"""The name of a model, a run or a file, with escapes (``\u732b``) for what the font lacks."""
    return "".join(map(_drawn, shown(str(name))))


def in_heading(text: str) -> str:
    """A heading that may have names in it, likewise; its lines stay lines."""
    return "\n".join(map(legible, str(text).split("\n")))


def labels(
    names: Iterable[str], kind: str = "class", *, first: int = 0, most: int | None = None
) -> list[str]:
    """``names`` as one figure shows them, different names distinct: what the font lacks is "class 3".

    The number is the name's place, from ``first`` on. What has more than ``most`` letters is cut, and
    where that makes two alike (or where they look alike), the place follows in brackets.
    """
    names = [str(name) for name in names]
    taken = set(names)
    whole = [_label(name, f"{kind} {first + place}", taken) for place, name in enumerate(names)]
    short = [label if most is None else shorten(label, most) for label in whole]
    alike: dict[str, set[str]] = {}
    for name, label in zip(names, short, strict=True):
        alike.setdefault(_look(label), set()).add(name)
    for place, label in enumerate(short):
        if len(alike[_look(label)]) > 1:
            end = f" ({first + place})"
            start = label if most is None else shorten(whole[place], most - len(end))
            short[place] = start + end
    return short


def legend_label(name: str) -> str:
    """``legible(name)``; matplotlib leaves out of a legend what begins with an underscore."""
    text = legible(name)
    return f" {text}" if text.startswith("_") else text


def stand_ins(names: Sequence[str], kind: str = "class", *, first: int = 0) -> dict[int, str]:
    """Which of ``names`` are not drawn as they are: the labels in their stead, by their places."""
    taken = {str(name) for name in names}
    found = {}
    for place, name in enumerate(map(str, names)):
        label = _label(name, f"{kind} {first + place}", taken)
        if label != _escaped_bytes(name):
            found[place] = label
    return found


def _label(name: str, stand_in: str, taken: set[str]) -> str:
    text = _escaped_bytes(name)
    if text.strip() and all(map(_has, text)):
        return text
    while stand_in in taken:
        stand_in = f"({stand_in})"
    return stand_in


def _escaped_bytes(name: str) -> str:
    try:
        return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half of a pair, which stands for no byte
        return name


def _look(label: str) -> str:
    """What is seen of a label: an accent's two Unicode forms and characters of no width are one."""
    seen = unicodedata.normalize("NFC", label)
    return " ".join("".join(c for c in seen if unicodedata.category(c) != "Cf").split())


def _drawn(letter: str) -> str:
    return letter if _has(letter) else letter.encode("unicode_escape").decode()


def _has(letter: str) -> bool:
    return ord(letter) in _glyphs() and unicodedata.category(letter) not in _NO_LETTERS


@functools.cache
def _glyphs() -> frozenset[int]:
    """Characters that the pictures' font has in both weights."""
    files = (findfont(FontProperties(family=FONT, weight=weight)) for weight in ("normal", "bold"))
    normal, bold = (set(get_font(file).get_charmap()) for file in files)
    return frozenset(normal & bold)
