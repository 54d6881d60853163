"""Sentences that several studies say."""

from collections.abc import Iterable, Sequence
from typing import Any

from probes.stats.intervals import FEWEST
from star.base.errors import listed
from viz.base.names import stand_ins

__all__ = ["OTHER_RUNS", "difference", "few_images", "names_in_pictures"]

OTHER_RUNS = "nothing here says whether other runs of the two recipes would differ so"


def difference(
    row: Any, names: tuple[str, str], *, factor: float = 1, digits: int = 3, unit: str = ""
) -> str:
    """Both sides of a row of ``probes.stats.paired`` (the second first), what is between, and p."""
    first, other = names
    numbers = (factor * n for n in (row.second, row.first, row.difference, row.low, row.high))
    b, a, apart, low, high = numbers
    tested = f", Holm-corrected p {row.p_holm:.2g}" if row.p_holm == row.p_holm else ""
    return (
        f"{other} {b:.{digits}f}{unit}, {first} {a:.{digits}f}{unit}, difference {apart:+.{digits}f} "
        f"[{low:+.{digits}f}, {high:+.{digits}f}] on these {row.n} images{tested}"
    )


def few_images(images: int) -> list[str]:
    """Said where too few images stand behind an interval over images."""
    if images >= FEWEST:
        return []
    return [
        f"note: {images} images; below {FEWEST} nothing is tested, and 95 % intervals (Student's t) "
        "hold for numbers that are about normal"
    ]


def names_in_pictures(class_names: Sequence[str], drawn: Iterable[int] | None = None) -> list[str]:
    """Which classes (of those ``drawn``) pictures call by number: their font lacks the names."""
    found = stand_ins(class_names)
    places = sorted(found if drawn is None else set(found) & set(drawn))
    if not places:
        return []
    said = listed(f"{found[place]} is {class_names[place]}" for place in places)
    return [f"in pictures, whose font lacks these names: {said}"]
