"""Drawings of representation measures: curves over steps, heatmaps of layer x layer and step x step.

The table is that of ``probes.representation.measures`` (its docstring explains the columns): values
have no unit but kNN's accuracy, a fraction 0..1 there and percent in the pictures.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from viz.base.checks import check_columns, require
from viz.base.names import in_heading
from viz.base.style import (
    ACCURACY_MAP,
    INK,
    LAYER_MAP,
    MUTED,
    OKABE_ITO,
    new_figure,
    styled,
    text_colour,
    thinned,
)

__all__ = ["measure_curves", "measure_figures", "measure_heatmap"]

_COLUMNS = (
    "measure", "against", "layer", "step", "layer_b", "step_b", "value", "low", "high", "baseline",
)  # fmt: skip
# measure: title, axis, name of the baseline
_WORDS = {
    "step_consistency": ("Step consistency", "cosine of a step with the other steps", "two images"),
    "view_consistency": ("View consistency", "cosine of a step under two views", "two images"),
    "alignment": ("Alignment of two views", "squared distance on the unit sphere", "two images"),
    "uniformity": ("Uniformity", "log E exp(−2 distance²)", "spread evenly"),
    "effective_rank": ("Effective rank (RankMe)", "effective rank", ""),
    "knn": ("Nearest-neighbour classification", "kNN accuracy (%)", "most frequent class"),
    "lds": ("Spatial structure (LDS)", "cosine, neighbours minus distant tokens", "two images"),
    "cka": ("CKA", "debiased linear CKA", "independent"),
    "mutual_knn": ("Mutual kNN", "share of nearest neighbours in common", "chance"),
    "cknna": ("CKNNA", "CKNNA", ""),
}
_PAIRED = ("self", "checkpoint")  # sides with layers and steps of their own
_AGAINST = {
    "self": "",
    "checkpoint": " with the other checkpoint",
    "encoder": " with the encoder",
}


@styled
def measure_curves(
    table: pd.DataFrame,
    measure: str,
    *,
    total_steps: int,
    against: str | None = None,
    title: str | None = None,
    votes: int | None = None,
) -> Figure:
    """``measure`` against step, one line a layer (darker: later) with its 95 % band.

    LDS, which has no step, is drawn against layer. Dashed lines are the baseline. Of a measure taken
    with several sides ``against`` names the one to draw; a checkpoint is compared at the same
    layer and step. ``votes``: neighbours that voted, for the title of kNN. ``UserError`` on missing
    columns or if there is nothing to draw.
    """
    rows = _curve_rows(table, measure, against)
    by_layer = not (rows["step"] > 0).any()
    require(
        by_layer or rows["step"].between(1, total_steps).all(),
        f"{measure} has steps outside 1..{total_steps}",
    )
    scale = 100.0 if measure == "knn" else 1.0
    rows = rows.assign(**{key: scale * rows[key] for key in ("value", "low", "high", "baseline")})
    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    layers = sorted(rows["layer"].unique())
    colours = LAYER_MAP(np.linspace(0, 1, len(layers))) if len(layers) > 1 else [OKABE_ITO["blue"]]
    curves = [(rows.sort_values("layer"), OKABE_ITO["blue"])]
    if not by_layer:
        parts = [rows[rows["layer"] == layer].sort_values("step") for layer in layers]
        curves = list(zip(parts, colours, strict=True))
    for curve, colour in curves:
        _draw_curve(axes, curve, "layer" if by_layer else "step", colour)
    heading, unit, baseline = _WORDS[measure]
    _draw_baselines(axes, curves, by_layer, baseline)
    _draw_frame(axes, rows, by_layer, total_steps, unit)
    if not by_layer and len(layers) > 1:
        _draw_layers(figure, axes, layers)
    where = f", layer {layers[0]}" if len(layers) == 1 and not by_layer else ""
    sides = _AGAINST.get(rows["against"].iloc[0], "")
    heading += f", k = {votes}" if measure == "knn" and votes is not None else ""
    axes.set_title(in_heading(title or f"{heading}{sides}{where}"), loc="left", pad=10)
    return figure


@styled
def measure_heatmap(
    table: pd.DataFrame,
    measure: str,
    *,
    layer: int | None = None,
    step: int | None = None,
    against: str = "self",
    title: str | None = None,
) -> Figure:
    """``measure`` of layer x layer at ``step``, or of step x step at ``layer``.

    Give one of ``layer`` and ``step``. Against the model itself the map is symmetric and its diagonal,
    1 by definition, is drawn too; cells that were not measured stay blank. ``UserError`` on missing
    columns or if there is nothing to draw.
    """
    require((layer is None) != (step is None), "give either a layer or a step, and not both")
    require(against in _PAIRED, f"against is {against!r}; expected one of: {', '.join(_PAIRED)}")
    check_columns("the table", table, _COLUMNS)
    fixed, free, at = ("step", "layer", step) if layer is None else ("layer", "step", layer)
    mine = table["measure"].eq(measure) & table["against"].eq(against)
    mine &= table[fixed].eq(at) & table[f"{fixed}_b"].eq(at)
    mine &= table[free].gt(0) & table[f"{free}_b"].gt(0)
    rows = table[mine]
    require(rows["value"].notna().any(), f"the table has no {measure} with {against} at {fixed} {at}")
    grid = rows.pivot(index=free, columns=f"{free}_b", values="value").astype(float)
    if against == "self":
        names = sorted(set(grid.index) | set(grid.columns))
        grid = grid.reindex(index=names, columns=names)
        values = grid.to_numpy().copy()
        values = np.where(np.isnan(values), values.T, values)
        known = np.isfinite(values).any(axis=1)  # a constant side is not even like itself
        values[known, known] = 1.0
        grid = pd.DataFrame(values, index=names, columns=names)
    heading, unit, _ = _WORDS[measure]
    if measure == "step_consistency":
        unit = "cosine of two steps of an image"
    title = title or f"{heading}{_AGAINST[against]}: {free}s at {fixed} {at}"
    side = f"{free}" if against == "self" else f"{free}, other checkpoint"
    return _heatmap(grid, free, side, unit, title)


def measure_figures(
    table: pd.DataFrame, *, total_steps: int, votes: int | None = None
) -> Iterator[tuple[str, Figure]]:
    """(name for a file, figure) of everything in the table that has a drawing, in the table's order.

    ``votes``: neighbours that voted in kNN. Heatmaps are drawn of layers at the last step and of steps
    at the last layer that were measured.
    """
    check_columns("the table", table, _COLUMNS)
    for (measure, against), rows in table.groupby(["measure", "against"], sort=False):
        if rows["value"].isna().all():
            continue
        name = f"{measure}-{against}" if measure in ("cka", "mutual_knn", "cknna") else measure
        name = name.replace("_", "-")
        if against != "self" or measure == "step_consistency":
            options = {"total_steps": total_steps, "against": against, "votes": votes}
            yield name, measure_curves(table, measure, **options)
        pairs = rows[(rows[["layer_b", "step_b"]] > 0).all(axis=1) & rows["value"].notna()]
        if against not in _PAIRED:
            continue
        for fixed, free in (("step", "layer"), ("layer", "step")):
            same = pairs[pairs[fixed].eq(pairs[f"{fixed}_b"]) & pairs[free].ne(pairs[f"{free}_b"])]
            if len(same):
                at = int(same[fixed].max())
                place: dict[str, Any] = {fixed: at}
                figure = measure_heatmap(table, measure, against=against, **place)
                yield f"{name}-{free}s-at-{fixed}-{at}", figure


def _curve_rows(table: pd.DataFrame, measure: str, against: str | None) -> pd.DataFrame:
    check_columns("the table", table, _COLUMNS)
    require(measure in _WORDS, f"measure is {measure!r}; expected one of: {', '.join(_WORDS)}")
    rows = table[table["measure"].eq(measure)]
    require(len(rows) > 0, f"the table has no {measure}")
    sides = list(rows["against"].unique())
    if measure in ("cka", "mutual_knn", "cknna"):
        sides = [side for side in sides if side != "self"]
    wanted = sides if against is None else [side for side in sides if side == against]
    require(
        len(wanted) == 1,
        f"{measure} was taken with {', '.join(sides) or 'itself alone'}; name one with against=, and "
        "draw pairs of layers or steps as a heatmap",
    )
    rows = rows[rows["against"].eq(wanted[0])]
    if measure == "step_consistency":
        rows = rows[rows["step"].gt(0) & rows["step_b"].eq(0)]
    elif wanted[0] == "checkpoint":
        rows = rows[rows["layer"].eq(rows["layer_b"]) & rows["step"].eq(rows["step_b"])]
    require(rows["value"].notna().any(), f"the table has no {measure} to draw as a curve")
    return rows


def _draw_curve(axes: Axes, curve: pd.DataFrame, across: str, colour: ColorType) -> None:
    x, value, low, high = (curve[key].to_numpy(dtype=float) for key in (across, "value", "low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(x, value, color=colour, marker="o", markersize=4, linewidth=1.8)


def _draw_baselines(axes: Axes, curves: list, by_layer: bool, name: str) -> None:
    values = np.concatenate([curve["baseline"].to_numpy(dtype=float) for curve, _ in curves])
    known = values[np.isfinite(values)]
    dashes: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (4, 3)), "zorder": 1}
    if len(known) and np.ptp(known) < 1e-9:
        axes.axhline(known[0], color=MUTED, **dashes)
    elif len(known):
        for curve, colour in curves:
            x = curve["layer" if by_layer else "step"]
            axes.plot(x, curve["baseline"], color=colour, **dashes)
    axes.annotate(
        "band: 95 %" + f"; dashed: {name}" * bool(len(known)), (1, 1), (0, 10), ha="right", va="bottom",
        xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=8.5,
    )  # fmt: skip


def _draw_frame(axes: Axes, rows: pd.DataFrame, by_layer: bool, total: int, unit: str) -> None:
    places = sorted(int(place) for place in rows["layer" if by_layer else "step"].unique())
    axes.set_xticks(thinned(places))
    reach = 0.03 * (max(places) - min(places) or 1)
    axes.set_xlim(places[0] - reach, places[-1] + reach)
    axes.set_xlabel("layer" if by_layer else f"step t of {total} (has seen tokens 1 .. t−1)")
    axes.set_ylabel(unit)
    axes.grid(axis="y")
    axes.margins(y=0.08)


def _draw_layers(figure: Figure, axes: Axes, layers: list[int]) -> None:
    """A bar with one block of colour a layer."""
    edges = np.arange(len(layers) + 1) - 0.5
    norm = BoundaryNorm(edges, LAYER_MAP.N)

    bar = figure.colorbar(
        ScalarMappable(norm, LAYER_MAP), ax=axes, label="layer", pad=0.02, fraction=0.05
    )
    shown = thinned(range(len(layers)))
    bar.set_ticks(shown, labels=[str(layers[place]) for place in shown])
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


def _heatmap(grid: pd.DataFrame, down: str, across: str, unit: str, title: str) -> Figure:
    # imported here because it imports pyplot, which no drawing of ours needs
    import seaborn

    rows, columns = grid.shape
    numbered = columns <= 16
    side = 0.5 if numbered else 0.2
    figure = new_figure(max(5.8, 2.0 + side * columns), max(3.6, 1.5 + 0.84 * side * rows))
    axes = figure.subplots()
    values = grid.to_numpy()
    low = min(0.0, float(np.nanmin(values)))
    high = max(1.0, float(np.nanmax(values)))
    seaborn.heatmap(
        grid, ax=axes, cmap=ACCURACY_MAP, vmin=low, vmax=high, annot=numbered, fmt=".2f",
        annot_kws={"fontsize": 8.5}, linewidths=1.0 if numbered else 0, linecolor="white",
        cbar_kws={"label": unit, "pad": 0.02, "fraction": 0.06},
    )  # fmt: skip
    norm = Normalize(low, high)
    for text in axes.texts:  # seaborn's own choice is hard to read on the middle of the map
        column, row = (int(place) for place in text.get_position())
        text.set_color(text_colour(ACCURACY_MAP(norm(values[row, column]))))
    shown = thinned(range(columns)) if not numbered else range(columns)
    axes.set_xticks([place + 0.5 for place in shown], [str(grid.columns[place]) for place in shown])
    shown = thinned(range(rows)) if not numbered else range(rows)
    axes.set_yticks([place + 0.5 for place in shown], [str(grid.index[place]) for place in shown])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.tick_params(length=0, rotation=0)
    axes.set_title(in_heading(title), loc="left", pad=10, color=INK)
    return figure
