"""Token indices of two slightly different views of one image: the paper's Figure 1(c)."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from viz.base.checks import check_image, check_indices, require
from viz.base.names import in_heading, legible
from viz.base.panel import place_axes, points_high
from viz.base.style import INK, MUTED, OKABE_ITO, new_figure, styled

__all__ = ["draw_indices", "token_views"]

CHANGED, CALM = "#FAD7A8", "#F4F5F6"  # a light orange that ink can be read on; near white
_CELLS = ListedColormap([CALM, CHANGED])
_LABEL = 18  # letters of a view's name that fit above its picture; longer ones go to the caption
_READABLE = 5.5  # points: smaller numbers are left out
_DIGIT = 0.7  # width of a bold digit of DejaVu Sans, in font sizes


@styled
def token_views(
    image_a: np.ndarray,
    image_b: np.ndarray,
    indices_a_gg: np.ndarray,
    indices_b_gg: np.ndarray,
    *,
    labels: tuple[str, str] = ("image", "shifted by 1 px"),
    share: float | None = None,
    chance: float | None = None,
    title: str | None = None,
) -> Figure:
    """Two views, their index grids, and which cells changed: Figure 1(c).

    Images (H, W, 3) uint8; indices (g, g) integers. A changed cell is orange, has a corner mark and a
    bold number; numbers too small to read are left out. The share of unchanged indices of this pair is
    counted here; ``share`` is its mean over the images measured and ``chance`` that between unrelated
    images (fractions). ``UserError`` on wrong shapes or different grids.
    """
    images = [check_image("image_a", image_a), check_image("image_b", image_b)]
    indices = [check_indices("indices_a_gg", indices_a_gg), check_indices("indices_b_gg", indices_b_gg)]
    require(len(labels) == 2, f"labels is {labels}; expected the names of the two views")
    changed = _changed(*indices)
    side = _grid_side(len(changed), max(int(values.max()) for values in indices))
    picture = min(2.1, (side - 0.35) / 2)
    labels = legible(labels[0]), legible(labels[1])
    short = [
        label if len(label) <= _LABEL else ("first view", "second view")[place]
        for place, label in enumerate(labels)
    ]
    left, gap, head, foot = 0.2, 0.3, 0.98, 0.45
    width = left + picture + 2 * (gap + side) + 0.2
    figure = new_figure(width, head + side + foot, layout=None)
    title = (
        title
        or f"{changed.sum()} of {changed.size} token indices change: {short[0]} against {short[1]}"
    )
    figure.text(
        left / width, 1 - 0.24 / figure.get_figheight(), in_heading(title), va="center", weight="bold",
        size=12,
    )  # fmt: skip
    for place, (image, values, label) in enumerate(zip(images, indices, short, strict=True)):
        axes = place_axes(figure, left, head + place * (side - picture), picture, picture)
        _draw_view(axes, image, len(changed))
        axes.set_title(label, size=10, weight="normal", pad=4)
        axes = place_axes(figure, left + picture + gap + place * (side + gap), head, side, side)
        draw_indices(axes, values, changed)
        axes.set_title(f"token indices, {label}", size=10, weight="normal", pad=4)
    long = [f"{name}: {label}" for name, label in zip(short, labels, strict=True) if name != label]
    _draw_caption(figure, long, changed, share, chance)
    return figure


def draw_indices(axes: Axes, indices_gg: np.ndarray, changed_gg: np.ndarray) -> None:
    """Draw one index grid into ``axes`` with the changed cells marked, numbers where readable."""
    grid = len(indices_gg)
    points = points_high(axes) / grid
    digits = len(str(int(indices_gg.max())))
    size = min(_number_size(points, digits), 10)
    axes.pcolormesh(
        np.arange(grid + 1), np.arange(grid + 1), changed_gg, cmap=_CELLS, vmin=0, vmax=1,
        edgecolors="white", linewidth=min(1.2, points / 12),
    )  # fmt: skip
    rows, columns = np.nonzero(changed_gg)
    corner = 0.27
    marks = [
        [(column + 1 - corner, row), (column + 1, row), (column + 1, row + corner)]
        for row, column in zip(rows, columns, strict=True)
    ]
    axes.add_collection(PolyCollection(marks, facecolor=OKABE_ITO["vermillion"], linewidth=0))
    if size >= _READABLE:
        for row, column in np.ndindex(grid, grid):
            new = changed_gg[row, column]
            axes.text(
                column + 0.5, row + 0.54, str(indices_gg[row, column]), ha="center", va="center",
                size=size, color=INK if new else MUTED, weight="bold" if new else "normal",
            )  # fmt: skip
    axes.set_xlim(0, grid)
    axes.set_ylim(grid, 0)
    axes.set_axis_off()


def _changed(indices_a_gg: np.ndarray, indices_b_gg: np.ndarray) -> np.ndarray:
    require(
        indices_a_gg.shape == indices_b_gg.shape,
        f"the index grids have shapes {indices_a_gg.shape} and {indices_b_gg.shape}; expected the same",
    )
    return indices_a_gg != indices_b_gg


def _number_size(cell: float, digits: int) -> float:
    """Font size (points) at which bold ``digits`` fit a cell (points) beside its corner mark."""
    return cell / (_DIGIT * digits + 0.5)


def _grid_side(grid: int, largest: int) -> float:
    """Inches of an index grid: large enough to read its numbers, within limits."""
    wanted = grid * 8 / _number_size(72, len(str(largest)))
    smallest = grid * _READABLE / _number_size(72, len(str(largest)))
    return float(np.clip(wanted, 3.3, 5.2)) if smallest <= 5.2 else 4.2


def _draw_view(axes: Axes, image: np.ndarray, grid: int) -> None:
    axes.imshow(image, extent=(0, grid, grid, 0), interpolation="nearest")
    lines = np.arange(1, grid)
    axes.vlines(lines, 0, grid, color="white", alpha=0.35, linewidth=0.5)
    axes.hlines(lines, 0, grid, color="white", alpha=0.35, linewidth=0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)


def _draw_caption(
    figure: Figure, words: list[str], changed: np.ndarray, share: float | None, chance: float | None
) -> None:
    width, height = figure.get_size_inches()
    parts = [f"unchanged: {100 * (1 - changed.mean()):.0f} % in this pair"]
    for value, whose in ((share, "on average"), (chance, "between unrelated images")):
        if value is not None:
            require(
                0 <= value <= 1, f"a share of unchanged indices is {value}; expected a fraction 0..1"
            )
            parts.append(f"{100 * value:.3g} % {whose}")
    said = "; ".join([*words, ", ".join(parts)])
    figure.text(0.2 / width, 1 - 0.5 / height, said, va="center", size=10, color=MUTED)
    figure.legend(
        handles=[
            Patch(facecolor=CHANGED, edgecolor=OKABE_ITO["vermillion"], label="changed (marked)"),
            Patch(facecolor=CALM, edgecolor=MUTED, linewidth=0.5, label="unchanged"),
        ],
        ncols=2, loc="center right", bbox_to_anchor=(1 - 0.1 / width, 0.22 / height), borderaxespad=0,
        handlelength=1.2, handleheight=1.2,
    )  # fmt: skip
