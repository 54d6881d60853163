"""Layer x step heatmaps of linear-probe tables: one model's accuracy, the difference of two.

The tables are those of ``probes.results`` (``PROBE_COLUMNS``): accuracies are fractions 0..1 there and
percent in the pictures, differences are percentage points. Several seeds are drawn as their mean.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from viz.base.checks import check_columns, check_probe_cells, require
from viz.base.names import in_heading, legible
from viz.base.style import (
    ACCURACY_MAP,
    INK,
    MODEL_COLOURS,
    OKABE_ITO,
    diverging_map,
    new_figure,
    styled,
    text_colour,
    thinned,
)

__all__ = ["draw_cells", "probe_heatmap", "probe_heatmap_difference"]

_NUMBERED = 16  # columns of a heatmap that have room for a number; more show their colour alone


@styled
def probe_heatmap(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Accuracy (percent) of every layer (down) at every step (across), as numbers up to 16 steps.

    ``table`` holds one row per layer, step and seed; pairs never measured stay blank. ``UserError`` on
    missing columns or a pair measured twice.
    """
    grid = 100 * _grid("table", table)
    low, high = np.nanmin(grid.to_numpy()), np.nanmax(grid.to_numpy())
    norm = Normalize(low, high if high > low else low + 1)
    title = title or "Probe accuracy by layer and step"
    return _heatmap(grid, ACCURACY_MAP, norm, "{:.1f}", "accuracy (%)", title)


@styled
def probe_heatmap_difference(
    a: pd.DataFrame,
    b: pd.DataFrame,
    names: Sequence[str],
    *,
    tested: pd.DataFrame | None = None,
) -> Figure:
    """Accuracy of ``a`` minus accuracy of ``b`` in percentage points, by layer and step.

    ``names`` are the two models' names, a's first. Zero is white; the colour of a cell is that of the
    model that is ahead. ``tested`` is the table of ``probes.linear.compare`` on the same two models, in
    either order: a dot marks the cells where its corrected test found one better. ``UserError`` if
    the tables do not hold the same layers and steps, or ``tested`` lacks one.
    """
    require(len(names) == 2, f"names is {list(names)}; expected the two models' names")
    first, second = _grid(names[0], a), _grid(names[1], b)
    require(
        first.index.equals(second.index) and first.columns.equals(second.columns),
        f"{names[0]} and {names[1]} were not probed at the same layers and steps",
    )
    difference = 100 * (first - second)
    bound = max(np.nanmax(np.abs(difference.to_numpy())), 0.1)
    positive = MODEL_COLOURS.get(names[0], OKABE_ITO["blue"])
    negative = MODEL_COLOURS.get(names[1], OKABE_ITO["vermillion"])
    if positive == negative:
        positive, negative = OKABE_ITO["blue"], OKABE_ITO["vermillion"]
    marked = None if tested is None else _marked(tested, difference, names)
    return _heatmap(
        difference, diverging_map(negative, positive), Normalize(-bound, bound), "{:+z.1f}",
        "difference (percentage points)", "Probe accuracy: " + " minus ".join(map(legible, names)),
        marked,
    )  # fmt: skip


def draw_cells(
    axes: Axes,
    values: np.ndarray,
    colours: Colormap,
    norm: Normalize,
    number: str | None,
    *,
    line: float = 1.5,
    shown: np.ndarray | None = None,
    size: float = 9,
) -> AxesImage:
    """Draw a matrix as coloured cells with white lines (points) between; NaN stays blank.

    ``number`` is the format of the number in each cell, ``size`` its size in points; None leaves the
    numbers out. ``shown`` are the numbers, if they are others than the coloured ``values``.
    """
    shown = values if shown is None else shown
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, aspect="auto")
    if number is not None:
        for row, column in np.argwhere(np.isfinite(values)):
            ink = text_colour(colours(norm(values[row, column])))
            text = number.format(shown[row, column])
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)
    rows, columns = values.shape
    axes.spines[:].set_visible(False)
    if line:
        axes.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=line)
    axes.tick_params(which="both", length=0)
    return image


def _grid(name: str, table: pd.DataFrame) -> pd.DataFrame:
    check_columns(name, table, ("layer", "step", "accuracy"))
    table = check_probe_cells(name, table)
    grid = table.pivot(index="layer", columns="step", values="accuracy").astype(float)
    require(bool(grid.notna().any(axis=None)), f"{name} holds no accuracy")
    return grid


def _marked(tested: pd.DataFrame, grid: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Where the table of tests names one of the models, as a bool array in the grid's shape."""
    check_columns("tested", tested, ("layer", "step", "higher"))
    better = tested.set_index(["layer", "step"])["higher"].unstack().reindex_like(grid)
    blank = np.argwhere((better.isna() & grid.notna()).to_numpy())
    if len(blank):
        row, column = blank[0]
        require(
            False,
            f"tested has no test at layer {grid.index[row]} step {grid.columns[column]}; "
            "expected the comparison of the same two models at the same layers and steps",
        )
    others = sorted(set(better.to_numpy().ravel()) - {*names, "neither", np.nan}, key=str)
    require(
        not others, f"tested finds {', '.join(map(str, others))} better; expected {' or '.join(names)}"
    )
    return better.isin(list(names)).to_numpy()


def _heatmap(
    grid: pd.DataFrame,
    colours: Colormap,
    norm: Normalize,
    number: str,
    unit: str,
    title: str,
    marked: np.ndarray | None = None,
) -> Figure:
    rows, columns = grid.shape
    numbered = columns <= _NUMBERED
    # At least wide enough for the title, at least high enough for the colour bar's label.
    across = 0.72 * columns if numbered else 0.72 * _NUMBERED
    note = 0 if marked is None else 0.25
    figure = new_figure(max(5.6, 1.8 + across), max(2.9, 1.3 + 0.42 * rows) + note)
    axes = figure.subplots()
    values = grid.to_numpy()
    image = draw_cells(
        axes, values, colours, norm, number if numbered else None, line=1.5 if numbered else 0.5
    )
    shown = range(columns) if numbered else thinned(range(columns))
    axes.set_xticks(shown, [str(grid.columns[place]) for place in shown])
    axes.set_yticks(range(rows), [str(layer) for layer in grid.index])
    axes.set_xlabel("step")
    axes.set_ylabel("layer")
    axes.set_title(in_heading(title), loc="left", color=INK, pad=10)
    if marked is not None:
        aside, up = (0.4, 0.32) if numbered else (0, 0)  # the number keeps the middle
        inks = [text_colour(colours(norm(value))) for value in values[marked]]
        y, x = np.nonzero(marked)
        axes.scatter(x + aside, y - up, s=9, c=inks, linewidths=0)
        axes.set_xlabel("step\n•  one is ahead: McNemar's test, Holm-corrected, p < 0.05")
    bar = figure.colorbar(image, ax=axes, label=unit, pad=0.02, fraction=0.06)
    bar.outline.set_visible(False)
    return figure
