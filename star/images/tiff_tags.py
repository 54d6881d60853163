"""The directory of a TIFF file, or of a block of the same form in a photograph's metadata (Exif, MPF).

A directory is a list of entries (tag, type, count, value or its place). What cannot be read is left
out, never guessed, and nothing here raises on damaged bytes. Source: Adobe's TIFF 6.0, sections 2 and
8; for 64-bit places the BigTIFF design; Exif 2.32 for the orientation.
"""

import struct

__all__ = ["BITS", "ORIENTATION", "PHOTOMETRIC", "first_value", "only_pixel_tags", "tags_of"]

BITS, PHOTOMETRIC, ORIENTATION = 258, 262, 274

# What says how the pixels are stored; all others describe the picture.
_PIXEL_TAGS = frozenset(
    {
        *range(256, 260), PHOTOMETRIC, 266, 273, *range(277, 280), 284, 292, 293, 317, 320,
        *range(322, 326), 332, 338, 339, 347, *range(512, 516), *range(517, 522), *range(529, 533),
        50674,
    }
)  # fmt: skip
_ONE_VALUE = frozenset({256, 257, 259, PHOTOMETRIC, 266, 277, 278, 284, 317, 322, 323})
_WHOLE = {1: "B", 3: "H", 4: "L", 16: "Q"}  # types of whole numbers
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_SAMPLES, _MOST_SAMPLES = 277, 6  # of a pixel
_MOST_PAGES = 10_000


class _Layout:
    """Byte order and widths of a block; ``first`` is the place of its first directory."""

    def __init__(self, block: bytes) -> None:
        self.order = {b"II": "<", b"MM": ">"}[block[:2]]
        self.big = struct.unpack_from(self.order + "H", block, 2)[0] == 43
        self.place = "Q" if self.big else "L"
        self.count = self.order + ("Q" if self.big else "H")
        self.entry = self.order + ("HHQ8s" if self.big else "HHL4s")
        self.first = self.read(self.order + self.place, block, 8 if self.big else 4)

    @staticmethod
    def read(form: str, block: bytes, place: int) -> int:
        number: int = struct.unpack_from(form, block, place)[0]
        return number


def _layout(block: bytes) -> _Layout | None:
    try:
        return _Layout(block)
    except (KeyError, struct.error):
        return None


def _entries(layout: _Layout, block: bytes, place: int) -> tuple[list[tuple[int, bytes]], int]:
    """(tag, its whole entry) of the directory at ``place``, and the place of the next (0: none)."""
    found: list[tuple[int, bytes]] = []
    try:
        count = layout.read(layout.count, block, place)
        start, size = place + struct.calcsize(layout.count), struct.calcsize(layout.entry)
        for at in range(start, min(start + count * size, len(block) - size + 1), size):
            found.append((struct.unpack_from(layout.order + "H", block, at)[0], block[at : at + size]))
        return found, layout.read(layout.order + layout.place, block, start + count * size)
    except (struct.error, OverflowError):  # cut short, or a place beyond the end
        return found, 0


def _value(layout: _Layout, block: bytes, entry: bytes) -> int | None:
    """The first whole number of an entry; None if it holds another kind or lies outside."""
    _, kind, count, inside = struct.unpack(layout.entry, entry)
    form = _WHOLE.get(kind)
    if form is None or count < 1:
        return None
    form = layout.order + form
    try:
        if struct.calcsize(form) * count <= len(inside):
            return layout.read(form, inside, 0)
        return layout.read(form, block, layout.read(layout.order + layout.place, inside, 0))
    except (struct.error, OverflowError):
        return None


def _whole(layout: _Layout, block: bytes, entry: bytes) -> bool:
    """Whether the values of an entry lie inside the file, one where there must be one."""
    tag, kind, count, inside = struct.unpack(layout.entry, entry)
    size: int = _WIDTHS.get(kind, 0) * count
    if not size or (tag in _ONE_VALUE and count != 1):
        return False
    start = 0 if size <= len(inside) else layout.read(layout.order + layout.place, inside, 0)
    return size <= len(inside) or start + size <= len(block)


def tags_of(block: bytes) -> dict[int, int]:
    """First whole number of every tag in the first directory of ``block``; {} if it is none."""
    layout = _layout(block)
    if layout is None:
        return {}
    found: dict[int, int] = {}
    for tag, entry in _entries(layout, block, layout.first)[0]:
        value = _value(layout, block, entry)
        if value is not None:
            found.setdefault(tag, value)
    return found


def first_value(block: bytes, tag: int) -> int | None:
    """The first whole number under ``tag``, or None."""
    return tags_of(block).get(tag)


def only_pixel_tags(content: bytes) -> tuple[bytes, int]:
    """A TIFF file of the same length whose one directory holds pixel tags alone; how many it had.

    Comments, profiles and places on Earth are gone, and with them whatever is broken in them. Raises
    ``ValueError`` where a pixel tag is broken.
    """
    layout = _layout(content)
    if layout is None:
        raise ValueError("TIFF: it is cut short")
    kept, pages = [], 0
    places, seen = layout.first, set()
    while places and places not in seen and pages < _MOST_PAGES:
        seen.add(places)
        entries, places = _entries(layout, content, places)
        if not pages:
            kept = [entry for tag, entry in entries if tag in _PIXEL_TAGS]
        pages += bool(entries)
    if not kept or not all(_whole(layout, content, entry) for entry in kept):
        raise ValueError("TIFF: what it says of its pixels is damaged")
    samples = tags_of(content).get(_SAMPLES, 1)
    if samples > _MOST_SAMPLES:
        raise ValueError(f"TIFF: {samples} samples a pixel")
    count = struct.pack(layout.count, len(kept))
    end = struct.pack(layout.order + layout.place, 0)
    directory = b"".join([count, *kept, end])
    first = layout.first
    return content[:first] + directory + content[first + len(directory) :], pages
