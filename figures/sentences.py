"""Sentences that several studies say."""

from collections.abc import Iterable, Sequence

from probes.stats.intervals import FEWEST
from star.base.errors import listed
from viz.base.names import stand_ins

__all__ = ["few_images", "names_in_pictures"]


def few_images(images: int) -> list[str]:
    """Said where normal intervals over images are too narrow."""
    if images >= FEWEST:
        return []
    return [f"note: {images} images; below {FEWEST} the 95 % intervals (normal) are too narrow"]


def names_in_pictures(class_names: Sequence[str], drawn: Iterable[int] | None = None) -> list[str]:
    """Which classes (of those ``drawn``) pictures call by number: their font lacks the names."""
    found = stand_ins(class_names)
    places = sorted(found if drawn is None else set(found) & set(drawn))
    if not places:
        return []
    said = listed(f"{found[place]} is {class_names[place]}" for place in places)
    return [f"in pictures, whose font lacks these names: {said}"]
