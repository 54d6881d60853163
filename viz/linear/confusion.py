"""What a probe takes for what: the confusion matrix, and the pairs of classes it confuses most.

Rows are true classes, columns predicted ones; a row is drawn as percent of the class's test images.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from viz.base.checks import require
from viz.base.names import in_heading, labels
from viz.base.panel import place_axes
from viz.base.style import INK, OKABE_ITO, SHARE_MAP, new_figure, styled
from viz.linear.maps import draw_cells

__all__ = ["confused_pairs", "confusion_matrix"]

_NUMBERED = 20  # classes of which every cell has room for its number and every row for its name
_CELLS = 100  # rows of a picture; of more classes, neighbours are drawn as one
_PAIRS = 15
_NAME = 19  # letters of a class name


@styled
def confusion_matrix(
    counts_CC: np.ndarray, class_names: Sequence[str], title: str | None = None
) -> Figure:
    """Percent of each true class (down) that was predicted as each class (across).

    ``counts_CC`` (C, C) whole numbers, row the true class; ``class_names`` (C,). Up to 20 classes show
    names and numbers. More show colours alone (square-root scale, so that rare confusions are seen)
    and the pairs most often confused beside them; above 100 classes, groups of neighbouring classes
    become one cell. A class without an image stays blank. ``UserError`` on other shapes or values.
    """
    counts_CC = _check(counts_CC, class_names)
    names = labels(class_names, most=_NAME)
    title = in_heading(title or "What the probe takes each class for")
    if len(names) <= _NUMBERED:
        return _numbered(counts_CC, names, title)
    return _coloured(counts_CC, names, title)


def confused_pairs(counts_CC: np.ndarray, most: int = _PAIRS) -> list[tuple[int, int, float]]:
    """(true class, predicted class, fraction of the true class) of the largest confusions, in order.

    Equal fractions stay in the order of the classes; pairs that never occur are left out.
    """
    share_CC = _shares(counts_CC)
    np.fill_diagonal(share_CC, 0)
    order = np.argsort(-np.nan_to_num(share_CC), axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, share_CC.shape), strict=True)
    return [(int(a), int(b), float(share_CC[a, b])) for a, b in pairs if share_CC[a, b] > 0]


def _check(counts_CC: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    counts_CC = np.asarray(counts_CC)
    square = counts_CC.ndim == 2 and counts_CC.shape[0] == counts_CC.shape[1] >= 2
    require(
        square and np.issubdtype(counts_CC.dtype, np.integer) and counts_CC.min() >= 0,
        f"counts_CC is {counts_CC.dtype} {counts_CC.shape}; expected counts (classes, classes)",
    )
    require(
        len(class_names) == len(counts_CC),
        f"class_names holds {len(class_names)} names; expected {len(counts_CC)}, one a class",
    )
    require(counts_CC.sum() > 0, "counts_CC holds no image")
    return counts_CC


def _shares(counts_CC: np.ndarray) -> np.ndarray:
    """Rows as fractions; NaN where a class has no image."""
    totals_C1 = counts_CC.sum(1, keepdims=True)
    return np.where(totals_C1 > 0, counts_CC / np.maximum(totals_C1, 1), np.nan)


def _numbered(counts_CC: np.ndarray, names: list[str], title: str) -> Figure:
    classes, room = len(names), 0.078 * max(map(len, names))
    side = max(0.42 * classes, 2.2)
    left = 0.55 + room
    width = max(left + side + 1.15, left + 0.1 * len(title))  # room for the title
    figure = new_figure(width, 0.45 + side + 0.75 * room + 0.55, layout=None)
    axes = place_axes(figure, left, 0.45, side, side)
    image = draw_cells(axes, 100 * _shares(counts_CC), SHARE_MAP, Normalize(0, 100), "{:.0f}")
    axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, loc="left", color=INK, pad=10)
    _draw_bar(figure, image, left, side)
    return figure


def _coloured(counts_CC: np.ndarray, names: list[str], title: str) -> Figure:
    side, left = 4.6, 0.75
    figure = new_figure(11.2, 0.45 + side + 0.65, layout=None)
    axes = place_axes(figure, left, 0.45, side, side)
    group = math.ceil(len(names) / _CELLS)
    starts = np.arange(0, len(names), group)
    grouped = np.add.reduceat(np.add.reduceat(counts_CC, starts, 0), starts, 1)
    norm, line = PowerNorm(0.5, 0, 100), 0.5 if len(starts) <= 50 else 0
    image = draw_cells(axes, 100 * _shares(grouped), SHARE_MAP, norm, None, line=line)
    shown = range(0, len(starts), math.ceil(len(starts) / 10))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(shown, [str(starts[place]) for place in shown])
    grouping = f", {group} neighbours a cell" if group > 1 else ""
    axes.set_xlabel(f"predicted class (its number{grouping})")
    axes.set_ylabel(f"true class (its number{grouping})")
    axes.set_title(title, loc="left", color=INK, pad=10)
    _draw_bar(figure, image, left, side).set_ticks([0, 1, 5, 10, 25, 50, 100])
    _draw_pairs(figure, counts_CC, names, side)
    return figure


def _draw_bar(figure: Figure, image: AxesImage, left: float, side: float) -> Colorbar:
    cax = place_axes(figure, left + side + 0.15, 0.45, 0.16, side)
    bar = figure.colorbar(image, cax=cax, label="of the true class's images (%)")
    bar.outline.set_visible(False)
    return bar


def _draw_pairs(figure: Figure, counts_CC: np.ndarray, names: list[str], side: float) -> None:
    axes = place_axes(figure, 9.35, 0.45, 1.6, side)
    pairs = confused_pairs(counts_CC)
    shares = [100 * share for _, _, share in pairs]
    axes.barh(range(len(pairs)), shares, height=0.7, color=OKABE_ITO["sky"])
    for place, share in enumerate(shares):
        axes.annotate(
            f"{share:.0f} %", (share, place), (3, 0), textcoords="offset points", va="center",
            fontsize=8.5,
        )  # fmt: skip
    axes.set_yticks(range(len(pairs)), [f"{names[a]} → {names[b]}" for a, b, _ in pairs], fontsize=8.5)
    axes.set_ylim(_PAIRS - 0.5, -0.5)
    axes.set_xlim(0, 1.25 * max(shares, default=1))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_title("Most often confused: true → predicted", loc="right", pad=10)
