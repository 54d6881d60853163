"""A curve as text: braille characters of 2 x 4 dots, so that a few lines of a terminal show a trend."""

from collections.abc import Sequence

__all__ = ["braille_curve"]

# Bit of the dot in column 0 or 1, row 0 (top) to 3 of a character (Unicode block 2800).
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def braille_curve(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """``height`` strings of ``width`` characters: the line through ``points`` (x ascending, y).

    The axes span the points' own range; points that share a column of dots are averaged.
    """
    columns, rows = 2 * width, 4 * height
    filled = [[False] * columns for _ in range(rows)]
    levels = _levels(points, columns)
    low, high = (min(levels, default=0), max(levels, default=0))
    # A constant curve is drawn in the middle.
    places = [
        round((high - level) / (high - low) * (rows - 1)) if high > low else rows // 2
        for level in levels
    ]
    for column, place in enumerate(places):
        before = places[column - 1] if column else place
        # Every dot down (or up) from the one before, so that a steep line has no gaps.
        for row in range(
            min(place, before + (place > before)), max(place, before - (place < before)) + 1
        ):
            filled[row][column] = True
    return [
        "".join(_character(filled, 4 * line, 2 * place) for place in range(width))
        for line in range(height)
    ]


def _levels(points: Sequence[tuple[float, float]], columns: int) -> list[float]:
    """The mean y of each column of dots, interpolated where a column has no point."""
    if not points:
        return []
    first, last = points[0][0], points[-1][0]
    if last == first:
        return [points[-1][1]]
    sums: dict[int, list[float]] = {}
    for x, y in points:
        sums.setdefault(round((x - first) / (last - first) * (columns - 1)), []).append(y)
    known = {column: sum(values) / len(values) for column, values in sums.items()}
    levels, left = [], 0
    for column in range(columns):
        if column in known:
            left = column
            levels.append(known[column])
            continue
        right = next(place for place in range(column, columns) if place in known)
        share = (column - left) / (right - left)
        levels.append(known[left] + share * (known[right] - known[left]))
    return levels


def _character(filled: list[list[bool]], top: int, left: int) -> str:
    bits = 0
    for x, dots in enumerate(_DOTS):
        for y, dot in enumerate(dots):
            bits |= dot * filled[top + y][left + x]
    return chr(0x2800 + bits) if bits else " "
