"""Drawings of linear-probe tables: the paper's Figures 1(b) and 4, and layer x step heatmaps.

The tables are those of ``probes.results`` (``PROBE_COLUMNS``): accuracies and their 95 % bounds are
fractions 0..1 there and percent in the pictures; differences are in percentage points.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from viz.checks import check_columns, require
from viz.style import (
    ACCURACY_MAP,
    INK,
    MODEL_COLOURS,
    MUTED,
    OKABE_ITO,
    diverging_map,
    model_styles,
    new_figure,
    styled,
    text_colour,
    thinned,
)

__all__ = ["draw_probe_curves", "probe_curves", "probe_heatmap", "probe_heatmap_difference"]

_NUMBERED = 16  # columns of a heatmap that have room for a number; more show their colour alone
_CURVE_COLUMNS = ("layer", "step", "accuracy", "low", "high")


@styled
def probe_curves(
    tables: Mapping[str, pd.DataFrame],
    layer: int,
    *,
    total_steps: int,
    chance: float | None = None,
    title: str | None = None,
) -> Figure:
    """Accuracy (percent) against step at one layer, one line a model: Figures 1(b) and 4.

    ``tables`` maps a model's name to its table; a table holds one row per step at ``layer`` (select
    protocol, control and split before). The band and the whiskers are the 95 % interval (``low``,
    ``high``; left out where empty). ``chance`` is the accuracy of guessing, a fraction. ``UserError``
    if a table lacks columns, the layer, or holds a step twice.
    """
    figure = new_figure(7.6, 4.3)
    axes = figure.subplots()
    draw_probe_curves(axes, tables, layer, total_steps=total_steps, chance=chance)
    axes.set_title(title or f"What layer {layer} knows of the class, step by step", loc="left", pad=10)
    return figure


def draw_probe_curves(
    axes: Axes,
    tables: Mapping[str, pd.DataFrame],
    layer: int,
    *,
    total_steps: int,
    chance: float | None = None,
) -> None:
    """Draw ``probe_curves`` into given axes (without a title); same arguments and errors."""
    require(len(tables) > 0, "tables is empty; expected at least one model's table")
    curves = {name: _curve(name, table, layer, total_steps) for name, table in tables.items()}
    styles = model_styles(curves)
    for place, (name, curve) in enumerate(curves.items()):
        # Models side by side at a step, so that whiskers do not hide each other.
        aside = 0.007 * total_steps * (place - (len(curves) - 1) / 2)
        _draw_curve(axes, curve, aside, {**styles[name], "label": name})
    steps = sorted(set().union(*(curve["step"] for curve in curves.values())))
    _draw_frame(axes, steps, total_steps, layer)
    ends = {}
    if chance is not None:
        require(0 <= chance <= 1, f"chance is {chance}; expected a fraction 0..1")
        axes.axhline(100 * chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 100 * chance - 0.04 * (high - low)), high)
        ends[f"chance {100 * chance:.3g} %"] = (100 * chance, {"color": MUTED, "fontsize": 8.5})
    if len({style["color"] for style in styles.values()}) == len(styles):
        for name, curve in curves.items():
            words = {"color": styles[name]["color"], "fontweight": "bold"}
            ends[name] = (100 * float(curve["accuracy"].iloc[-1]), words)
    else:  # variants in one colour: the legend shows their dashes and markers
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), handlelength=3)
    _label_ends(axes, ends)


@styled
def probe_heatmap(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Accuracy (percent) of every layer (down) at every step (across), as numbers up to 16 steps.

    ``table`` holds one row per layer and step; pairs never measured stay blank. ``UserError`` on
    missing columns or a pair measured twice.
    """
    grid = 100 * _grid("table", table)
    low, high = np.nanmin(grid.to_numpy()), np.nanmax(grid.to_numpy())
    norm = Normalize(low, high if high > low else low + 1)
    title = title or "Linear probe accuracy by layer and step"
    return _heatmap(grid, ACCURACY_MAP, norm, "{:.1f}", "accuracy (%)", title)


@styled
def probe_heatmap_difference(a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Accuracy of ``a`` minus accuracy of ``b`` in percentage points, by layer and step.

    ``names`` are the two models' names, a's first. Zero is white; the colour of a cell is that of the
    model that is ahead. ``UserError`` if the tables do not hold the same layers and steps.
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
    return _heatmap(
        difference, diverging_map(negative, positive), Normalize(-bound, bound), "{:+.1f}",
        "difference (percentage points)", f"Linear probe accuracy: {names[0]} minus {names[1]}",
    )  # fmt: skip


def _curve(name: str, table: pd.DataFrame, layer: int, total_steps: int) -> pd.DataFrame:
    check_columns(f"the table of {name}", table, _CURVE_COLUMNS)
    curve = table[table["layer"] == layer].sort_values("step")
    layers = ", ".join(str(value) for value in sorted(table["layer"].unique()))
    require(len(curve) > 0, f"the table of {name} has no layer {layer}; it has: {layers}")
    _require_unique(name, curve)
    outside = [int(step) for step in curve["step"] if not 1 <= step <= total_steps]
    require(not outside, f"the table of {name} has steps {outside} outside 1..{total_steps}")
    return curve


def _require_unique(name: str, rows: pd.DataFrame) -> None:
    twice = rows[rows.duplicated(["layer", "step"])]
    if len(twice):
        first = twice.iloc[0]
        require(
            False,
            f"{name} holds layer {first['layer']} step {first['step']} more than once; "
            "select one protocol, control and split first",
        )


def _draw_curve(axes: Axes, curve: pd.DataFrame, aside: float, style: dict) -> None:
    x, accuracy, low, high = (
        curve[key].to_numpy(dtype=float) for key in ("step", "accuracy", "low", "high")
    )
    x = x + aside
    axes.fill_between(x, 100 * low, 100 * high, color=style["color"], alpha=0.16, linewidth=0)
    # An interval on one side of the accuracy (rounding) must not give a negative whisker.
    reach = np.nan_to_num(100 * np.clip([accuracy - low, high - accuracy], 0, None))
    axes.errorbar(x, 100 * accuracy, yerr=reach, capsize=3, elinewidth=1.2, **style)


def _draw_frame(axes: Axes, steps: list[int], total_steps: int, layer: int) -> None:
    axes.set_xticks(steps)
    if len(steps) > 12:  # keep the labels apart
        axes.set_xticks(thinned(steps))
    axes.set_xlim(steps[0] - 0.03 * total_steps, steps[-1] + 0.03 * total_steps)
    axes.set_xlabel(f"step t of {total_steps} (has seen tokens 1 .. t−1)")
    axes.set_ylabel(f"linear probe accuracy, layer {layer} (%)")
    axes.grid(axis="y")
    axes.margins(y=0.08)


def _label_ends(axes: Axes, labels: Mapping[str, tuple[float, dict]]) -> None:
    """Write labels at the right ends of their lines, pushed apart where lines end together.

    ``labels`` maps a text to its line's last value and how to write it. Nothing is drawn out there, so
    no whisker runs through a label.
    """
    if not labels:
        return
    ends = sorted((value, text) for text, (value, _) in labels.items())
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height / axes.figure.dpi * 72  # points, before the final layout
    apart = (high - low) * 13 / max(height, 1)
    place = -np.inf
    places = []
    for value, name in ends:
        place = max(value, place + apart)
        places.append((place, name))
    shift = np.mean([place for place, _ in places]) - np.mean([value for value, _ in ends])
    for place, name in places:
        axes.annotate(
            name, (1.0, place - shift), (6, 0), xycoords=axes.get_yaxis_transform(),
            annotation_clip=False, textcoords="offset points", va="center", **labels[name][1],
        )  # fmt: skip


def _grid(name: str, table: pd.DataFrame) -> pd.DataFrame:
    check_columns(name, table, ("layer", "step", "accuracy"))
    _require_unique(name, table)
    grid = table.pivot(index="layer", columns="step", values="accuracy").astype(float)
    require(bool(grid.notna().any(axis=None)), f"{name} holds no accuracy")
    return grid


def _heatmap(
    grid: pd.DataFrame, colours: Colormap, norm: Normalize, number: str, unit: str, title: str
) -> Figure:
    rows, columns = grid.shape
    numbered = columns <= _NUMBERED
    # At least wide enough for the title, at least high enough for the colour bar's label.
    across = 0.72 * columns if numbered else 0.72 * _NUMBERED
    figure = new_figure(max(5.6, 1.8 + across), max(2.9, 1.3 + 0.42 * rows))
    axes = figure.subplots()
    values = grid.to_numpy()
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, aspect="auto")
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        if numbered and np.isfinite(value):
            ink = text_colour(colours(norm(value)))
            axes.text(
                column, row, number.format(value), ha="center", va="center", color=ink, fontsize=9
            )
    shown = range(columns) if numbered else thinned(range(columns))
    axes.set_xticks(shown, [str(grid.columns[place]) for place in shown])
    axes.set_yticks(range(rows), [str(layer) for layer in grid.index])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5 if numbered else 0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("step")
    axes.set_ylabel("layer")
    axes.set_title(title, loc="left", color=INK, pad=10)
    bar = figure.colorbar(image, ax=axes, label=unit, pad=0.02, fraction=0.06)
    bar.outline.set_visible(False)
    return figure
