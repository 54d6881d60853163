"""Attention statistics as small multiples: curves over steps, maps of layer x step and layer x head.

The table is that of ``probes.attention.stats`` (columns layer, step, head, measure, value, low, high,
uniform; 0 is the mean over all), the differences are those of ``probes.attention.compare``. Every panel
shows what even attention would give: as a dashed line, or as the white of a map.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from viz.base.checks import check_columns, require
from viz.base.names import in_heading, legend_label, legible
from viz.base.style import (
    LAYER_MAP,
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
from viz.linear.maps import draw_cells

__all__ = ["attention_curves", "attention_difference", "attention_heads", "attention_layers"]

# measure: heading of its panel, format of its numbers
_WORDS = {
    "class_share": ("Class token: weight", "{:.2f}"),
    "class_norm_share": ("Class token: share of norms", "{:.2f}"),
    "self_share": ("Current token: weight", "{:.2f}"),
    "neighbourhood_share": ("Causal 3 x 3: weight", "{:.2f}"),
    "row_above_share": ("Row above: weight", "{:.2f}"),
    "first_share": ("First token: weight", "{:.2f}"),
    "largest_share": ("Largest weight on a token", "{:.2f}"),
    "distance": ("Distance (cells)", "{:.1f}"),
    "entropy": ("Entropy (nats)", "{:.1f}"),
}
_COLUMNS = ("layer", "step", "head", "measure", "value", "low", "high", "uniform")
_LESS, _MORE = OKABE_ITO["vermillion"], OKABE_ITO["blue"]
_NUMBERED = 12  # columns of a map that leave room for numbers
_ACROSS = 3


@styled
def attention_curves(tables: Mapping[str, pd.DataFrame], *, total_steps: int) -> Figure:
    """Every measure against the step, heads averaged; the dashed line is even attention.

    One model: a line a layer (darker: later). Several: a line each, layers averaged. Bands: 95 %.
    ``UserError`` on missing columns or if a model lacks a measure or step of the first.
    """
    require(len(tables) > 0, "tables is empty; expected at least one model's table")
    for name, table in tables.items():
        check_columns(f"the table of {name}", table, _COLUMNS)
    first = next(iter(tables.values()))
    measures = _measures(first)
    figure, panels = _panels(measures, 2.35)
    several = len(tables) > 1
    layers = sorted(set(first["layer"]) - {0})
    for measure, axes in panels.items():
        for name, table in tables.items():
            rows = table[table["measure"].eq(measure) & table["head"].eq(0) & table["step"].gt(0)]
            require(len(rows) > 0, f"the table of {name} has no {measure}")
            if several:
                style = model_styles(tables)[name]
                _curve(axes, rows[rows["layer"].eq(0)], {**style, "markersize": 4})
            for place, layer in enumerate([] if several else layers):
                colour = LAYER_MAP(place / max(1, len(layers) - 1))
                _curve(axes, rows[rows["layer"].eq(layer)], {"color": colour, "markersize": 3})
            even = rows[rows["layer"].eq(0)].sort_values("step")
            # Only the share of norms has an even attention that depends on the model.
            own = several and measure == "class_norm_share"
            ink = model_styles(tables)[name]["color"] if own else MUTED
            axes.plot(even["step"], even["uniform"], color=ink, linewidth=1.2, linestyle=(0, (4, 3)))
        steps = sorted(set(first["step"]) - {0})
        axes.set_xticks(thinned(steps, 8))
        axes.grid(axis="y")
        axes.margins(y=0.08)
    lines = [Line2D([], [], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="even attention")]
    if several:
        styles = model_styles(tables)
        named = {legend_label(name): style for name, style in styles.items()}
        lines = [Line2D([], [], **style, label=label) for label, style in named.items()] + lines
    else:
        shown = thinned(layers, 6)
        lines = [
            Line2D(
                [], [], color=LAYER_MAP(layers.index(n) / max(1, len(layers) - 1)), label=f"layer {n}"
            )
            for n in shown
        ] + lines
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    for axes in list(panels.values())[-_ACROSS:]:
        axes.set_xlabel(f"step t of {total_steps}")
    whose = "mean over layers and" if several else f"{legible(next(iter(tables)))}, mean over"
    figure.suptitle(f"Where attention goes, step by step ({whose} heads)")
    return figure


@styled
def attention_layers(table: pd.DataFrame, *, title: str) -> Figure:
    """Every measure at layer (down) x step (across), heads averaged; colour: against even attention."""
    check_columns("the table", table, _COLUMNS)
    return _maps(table[table["head"].eq(0)], "step", title)


@styled
def attention_heads(table: pd.DataFrame, *, title: str) -> Figure:
    """Every measure at layer (down) x head (across), mean over steps; colour as above."""
    check_columns("the table", table, _COLUMNS)
    require(bool(table["head"].gt(0).any()), "the table has no single heads (those of rollout do not)")
    return _maps(table[table["step"].eq(0) & table["head"].gt(0)], "head", title)


@styled
def attention_difference(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Second model minus first at layer x step; a dot where the corrected paired test decides.

    ``table`` is that of ``probes.attention.compare``, ``names`` are (first, second).
    """
    columns = ("measure", "layer", "step", "difference", "higher")
    check_columns("the table", table, columns)
    require(len(names) == 2, f"names is {list(names)}; expected the two models' names")
    cells = table[table["step"].gt(0)]
    figure, panels = _panels(_measures(table), _height(cells["layer"].nunique()))
    less, more = (MODEL_COLOURS.get(name) for name in names)
    if less is None or more is None or less == more:
        less, more = _LESS, _MORE
    colours = diverging_map(less, more)
    for measure, axes in panels.items():
        rows = cells[cells["measure"].eq(measure)]
        grid = rows.pivot(index="layer", columns="step", values="difference").astype(float)
        decided = rows.pivot(index="layer", columns="step", values="higher") != "neither"
        number = _WORDS[measure][1].replace(":", ":+z")
        norm = _draw_map(axes, grid, grid.to_numpy(), number, colours)
        y, x = np.nonzero(decided.to_numpy())
        inks = [text_colour(colours(norm(grid.to_numpy()[at]))) for at in zip(y, x, strict=True)]
        axes.scatter(x + 0.38, y - 0.32, s=4, c=inks or None, linewidths=0)
    figure.supxlabel("step     •  differs: paired z test, Holm-corrected, p < 0.05", fontsize=10)
    figure.supylabel("layer", fontsize=10)
    first, second = map(legible, names)
    figure.suptitle(f"Attention: {second} minus {first}")
    _draw_key(figure, panels, colours, (f"{first} more", "equal", f"{second} more"))
    return figure


def _measures(table: pd.DataFrame) -> list[str]:
    found = [measure for measure in _WORDS if measure in set(table["measure"])]
    require(bool(found), f"the table has none of the measures {', '.join(_WORDS)}")
    return found


def _panels(measures: list[str], height: float) -> tuple[Figure, dict[str, Axes]]:
    """A figure with one titled panel a measure, three a row."""
    across = min(_ACROSS, len(measures))
    down = -(-len(measures) // across)
    figure = new_figure(max(5.6, 3.9 * across), 1.3 + height * down)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(measures) :]:
        axes.set_axis_off()
    panels = dict(zip(measures, grid, strict=False))
    for measure, axes in panels.items():
        axes.set_title(_WORDS[measure][0], loc="left", fontsize=10)
    return figure, panels


def _curve(axes: Axes, rows: pd.DataFrame, style: dict) -> None:
    rows = rows.sort_values("step")
    x, value, low, high = (rows[key].to_numpy(float) for key in ("step", "value", "low", "high"))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(x, value, **{"marker": "o", "linewidth": 1.6, **style})


def _height(rows: int) -> float:
    return 0.75 + max(0.24 * rows, 1.0)


def _maps(table: pd.DataFrame, across: str, title: str) -> Figure:
    cells = table[table["layer"].gt(0) & table[across].gt(0)]
    figure, panels = _panels(_measures(cells), _height(cells["layer"].nunique()))
    colours = diverging_map(_LESS, _MORE)
    for measure, axes in panels.items():
        rows = cells[cells["measure"].eq(measure)]
        value, even = (
            rows.pivot(index="layer", columns=across, values=key).astype(float)
            for key in ("value", "uniform")
        )
        _draw_map(axes, value - even, value.to_numpy(), _WORDS[measure][1], colours)
    figure.supxlabel(across, fontsize=10)
    figure.supylabel("layer", fontsize=10)
    figure.suptitle(in_heading(title))
    _draw_key(figure, panels, colours, ("less", "as even attention", "more"))
    return figure


def _draw_map(
    axes: Axes, grid: pd.DataFrame, shown: np.ndarray, number: str, colours: Colormap
) -> Normalize:
    rows, columns = grid.shape
    values = grid.to_numpy()
    bound = max(float(np.nanmax(np.abs(values))), 1e-9)
    norm = Normalize(-bound, bound)
    numbered = columns <= _NUMBERED
    draw_cells(
        axes, values, colours, norm, number if numbered else None,
        line=1.0 if numbered else 0.3, shown=shown, size=7,
    )  # fmt: skip
    at = thinned(range(columns), 12)
    axes.set_xticks(at, [str(grid.columns[place]) for place in at], fontsize=8)
    at = thinned(range(rows), 12)
    axes.set_yticks(at, [str(grid.index[place]) for place in at], fontsize=8)
    return norm


def _draw_key(
    figure: Figure, panels: dict[str, Axes], colours: Colormap, words: tuple[str, str, str]
) -> None:
    """What the colours mean; every panel is scaled to its own largest difference."""
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), colours), ax=list(panels.values()), orientation="horizontal",
        fraction=0.02, shrink=0.5, aspect=40, pad=0.02, ticks=[-1, 0, 1],
    )  # fmt: skip
    bar.ax.set_xticklabels(words)
    bar.set_label("each panel has its own scale", fontsize=8.5)
    bar.ax.tick_params(length=0, labelsize=8.5)
    bar.outline.set_visible(False)
