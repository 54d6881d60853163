"""Curves of linear-probe tables: the paper's Figures 1(b) and 4, with the controls beside them.

The tables are those of ``probes.results`` (``PROBE_COLUMNS``): accuracies and their 95 % bounds are
fractions 0..1 there and percent in the pictures. Several seeds of a probe are drawn as their mean.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viz.base.checks import check_columns, check_probe_cells, require
from viz.base.names import in_heading, legend_label, legible
from viz.base.style import MUTED, model_styles, new_figure, styled, thinned

__all__ = ["CONTROL_NAMES", "draw_probe_curves", "probe_curves"]

CONTROL_NAMES = {
    "random": "random weights",
    "shuffled": "shuffled labels",
    "codes": "tokens alone",
    "pixels": "raw pixels",
}
# Dashes of the controls, in points; chance has (4, 3).
_CONTROL_DASHES = {
    "random": (0, (1, 1.6)),
    "shuffled": (0, (6, 2, 1.2, 2)),
    "codes": "-",
    "pixels": (0, (9, 2.5)),
}
_CURVE_COLUMNS = ("layer", "step", "accuracy", "low", "high")


@styled
def probe_curves(
    tables: Mapping[str, pd.DataFrame],
    layer: int,
    *,
    total_steps: int,
    chance: float | None = None,
    controls: Mapping[str, pd.DataFrame] | None = None,
    title: str | None = None,
) -> Figure:
    """Accuracy (percent) against step at one layer, one line a model: Figures 1(b) and 4.

    ``tables`` maps a model's name to its table; a table holds one row per step and seed at ``layer``
    (select protocol, control and split before). The band and the whiskers are the 95 % interval
    (``low``, ``high``; left out where empty). ``chance`` is the accuracy of guessing, a fraction.
    ``controls`` maps names likewise to tables with a ``control`` column, whose rows named in
    ``CONTROL_NAMES`` (at ``layer``, or at layer 0) become thin lines: the mean over the tables, in a
    band from the lowest to the highest table where there are several. ``UserError`` if a table lacks
    columns, the layer, or holds a step twice.
    """
    figure = new_figure(7.6, 4.3)
    axes = figure.subplots()
    draw_probe_curves(axes, tables, layer, total_steps=total_steps, chance=chance, controls=controls)
    title = title or f"What layer {layer} knows of the class, step by step"
    axes.set_title(in_heading(title), loc="left", pad=10)
    return figure


def draw_probe_curves(
    axes: Axes,
    tables: Mapping[str, pd.DataFrame],
    layer: int,
    *,
    total_steps: int,
    chance: float | None = None,
    controls: Mapping[str, pd.DataFrame] | None = None,
) -> None:
    """Draw ``probe_curves`` into given axes (without a title); same arguments and errors."""
    require(len(tables) > 0, "tables is empty; expected at least one model's table")
    curves = {name: _curve(name, table, layer, total_steps) for name, table in tables.items()}
    styles = model_styles(curves)
    for place, (name, curve) in enumerate(curves.items()):
        # Models side by side at a step, so that whiskers do not hide each other.
        aside = 0.007 * total_steps * (place - (len(curves) - 1) / 2)
        _draw_curve(axes, curve, aside, {**styles[name], "label": legend_label(name)})
    ends = _draw_controls(axes, controls or {}, layer, total_steps)
    steps = sorted(set().union(*(curve["step"] for curve in curves.values())))
    _draw_frame(axes, steps, total_steps, layer)
    if chance is not None:
        require(0 <= chance <= 1, f"chance is {chance}; expected a fraction 0..1")
        axes.axhline(100 * chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 100 * chance - 0.04 * (high - low)), high)
        ends[f"chance {100 * chance:.3g} %"] = (100 * chance, {"color": MUTED, "fontsize": 8.5})
    if len({style["color"] for style in styles.values()}) == len(styles):
        for name, curve in curves.items():
            words = {"color": styles[name]["color"], "fontweight": "bold"}
            ends[legible(name)] = (100 * float(curve["accuracy"].iloc[-1]), words)
    else:  # variants in one colour: the legend shows their dashes and markers
        beside = {} if controls else {"bbox_to_anchor": (1.01, 1)}  # the controls' labels lie there
        axes.legend(loc="upper left", handlelength=3, **beside)
    _label_ends(axes, ends)


def _curve(name: str, table: pd.DataFrame, layer: int, total_steps: int) -> pd.DataFrame:
    check_columns(f"the table of {name}", table, _CURVE_COLUMNS)
    curve = table[table["layer"] == layer]
    layers = ", ".join(str(value) for value in sorted(table["layer"].unique()))
    require(len(curve) > 0, f"the table of {name} has no layer {layer}; it has: {layers}")
    curve = check_probe_cells(name, curve)
    outside = [int(step) for step in curve["step"] if not 1 <= step <= total_steps]
    require(not outside, f"the table of {name} has steps {outside} outside 1..{total_steps}")
    return curve.sort_values("step")


def _draw_controls(
    axes: Axes, controls: Mapping[str, pd.DataFrame], layer: int, total_steps: int
) -> dict[str, tuple[float, dict]]:
    """Thin lines under the models'; returns the labels of their ends (see ``_label_ends``)."""
    ends = {}
    for control, words in CONTROL_NAMES.items():
        lines = []
        for name, table in controls.items():
            check_columns(f"the controls of {name}", table, (*_CURVE_COLUMNS, "control"))
            rows = table[table["control"] == control]
            own = layer if layer in set(rows["layer"]) else 0  # tokens and pixels belong to no layer
            if own in set(rows["layer"]):
                line = _curve(f"{name}, {words}", rows, own, total_steps)
                lines.append(100 * line.set_index("step")["accuracy"].astype(float))
        if not lines:
            continue
        together = pd.concat(lines, axis=1)
        mean = together.mean(axis=1)
        style: dict[str, Any] = {"color": MUTED, "zorder": 1.5}
        axes.plot(mean.index, mean, linewidth=1.1, linestyle=_CONTROL_DASHES[control], **style)
        if len(lines) > 1:
            axes.fill_between(
                mean.index, together.min(axis=1), together.max(axis=1), alpha=0.15, linewidth=0, **style
            )
        ends[words] = (float(mean.iloc[-1]), {"color": MUTED, "fontsize": 8.5})
    require(
        bool(ends) or not controls,
        f"controls holds none of {', '.join(CONTROL_NAMES)} at layer {layer} or 0; "
        "give tables with such rows in the column control",
    )
    return ends


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
    axes.set_ylabel(f"probe accuracy, layer {layer} (%)")
    axes.grid(axis="y")
    axes.margins(y=0.08)


def _label_ends(axes: Axes, labels: Mapping[str, tuple[float, dict]]) -> None:
    """Write labels at the right ends of their lines, pushed apart where lines end together.

    ``labels`` maps a text to its line's last value and how to write it. Nothing is drawn out there, so
    no whisker runs through a label; a label far from its line's end gets a thin connector.
    """
    if not labels:
        return
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height / axes.figure.dpi * 72  # points, before the final layout
    point = (high - low) / max(height, 1)
    ends = sorted((value, text) for text, (value, _) in labels.items())
    places = _spread([value for value, _ in ends], 13 * point)
    moved = any(abs(place - value) > 4 * point for place, (value, _) in zip(places, ends, strict=True))
    gap = 16 if moved else 6  # points between the axes and the labels
    for place, (value, name) in zip(places, ends, strict=True):
        axes.annotate(
            name, (1.0, place), (gap, 0), xycoords=axes.get_yaxis_transform(),
            annotation_clip=False, textcoords="offset points", va="center", **labels[name][1],
        )  # fmt: skip
        if moved:
            axes.annotate(
                "", (1.0, value), (gap - 2, (place - value) / point),
                xycoords=axes.get_yaxis_transform(), textcoords="offset points", annotation_clip=False,
                arrowprops={
                    "arrowstyle": "-", "color": labels[name][1]["color"], "linewidth": 0.6,
                    "shrinkA": 0, "shrinkB": 2,
                },
            )  # fmt: skip


def _spread(values: list[float], apart: float) -> list[float]:
    """Places at least ``apart`` for increasing ``values``, moved as little as possible (squared).

    Values that are too close form a block around their mean; blocks that touch merge.
    """
    blocks: list[list[float]] = []  # each holds its members' values, shifted to the block's first place
    for place, value in enumerate(values):
        blocks.append([value - place * apart])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    starts = [float(np.mean(block)) for block in blocks for _ in block]
    return [start + place * apart for place, start in enumerate(starts)]
