"""How a model's rollouts leave the data: curves over the distance from the last real token.

The tables are those of ``probes.likelihood.exposure`` (columns measure, start, span, begin, end,
rollout, real, difference, low, high); drawn are the means over windows of distances.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viz.base.checks import check_columns, require
from viz.base.names import legend_label
from viz.base.style import LAYER_MAP, MUTED, model_styles, new_figure, styled, thinned

__all__ = ["exposure_curves"]

_PANELS = (
    ("nll", "NLL: rollout minus real", "nats a token"),
    ("entropy", "Entropy: what its own prefix changes", "nats a token"),
    (
        "code_distance",
        "Codes: distance to the image's own",
        "1 - cosine (dotted: another of its class)",
    ),
    ("code_histogram", "Histogram of codes: TV beyond chance", "total variation"),
)
STARTS = 4  # drawn of one model: the bands of more would hide one another
_COLUMNS = ("measure", "start", "span", "begin", "end", "rollout", "real", "difference", "low", "high")


@styled
def exposure_curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """A line a start of one model's table, four at most; of several, a line a model from the first.

    Bands are 95 % over images; in the panel of codes, dotted: another real image of the class.
    ``UserError`` on missing columns or without rows.
    """
    require(len(tables) > 0, "tables is empty; expected at least one model's table")
    for name, table in tables.items():
        check_columns(f"the table of {name}", table, _COLUMNS)
        require(table["measure"].eq("nll").any(), f"the table of {name} has no NLL")
    lines = _lines(tables)
    panels = [
        panel for panel in _PANELS if any(t["measure"].eq(panel[0]).any() for t in tables.values())
    ]
    figure = new_figure(9.4, 3.4 * ((len(panels) + 1) // 2))
    drawn = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
    for axes, (measure, heading, unit) in zip(drawn, panels, strict=False):
        for label, (rows, style) in lines.items():
            mine = rows[rows["measure"].eq(measure) & rows["span"].eq("window")].sort_values("begin")
            if len(mine):
                _line(axes, mine, style, label, levels=measure == "code_distance")
        if measure != "code_distance":
            axes.axhline(0, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(heading, loc="left", fontsize=10)
        axes.set_xlabel("distance from the last real token")
        axes.set_ylabel(unit)
        axes.grid(axis="y")
    for axes in drawn[len(panels) :]:
        axes.set_axis_off()
    title = "real tokens" if len(tables) == 1 else "rollouts from the first start"
    handles, labels = drawn[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", title=title, title_fontsize=8.5, ncols=len(lines)
    )
    which = f": {legend_label(next(iter(tables))).strip()}" if len(tables) == 1 else ""
    figure.suptitle(f"How fast rollouts leave the data{which}")
    return figure


def _lines(tables: Mapping[str, pd.DataFrame]) -> dict[str, tuple[pd.DataFrame, dict]]:
    """Rows and style of each line by its label."""
    if len(tables) > 1:
        styles = model_styles(tables)
        return {
            legend_label(name): (table[table["start"].eq(table["start"].min())], styles[name])
            for name, table in tables.items()
        }
    (table,) = tables.values()
    starts = thinned(sorted(table["start"].unique()), STARTS)
    colours = LAYER_MAP(np.linspace(0, 1, max(len(starts), 2)))
    markers = "osD^"
    return {
        str(start): (table[table["start"].eq(start)], {"color": colour, "marker": marker})
        for start, colour, marker in zip(starts, colours, markers, strict=False)
    }


def _line(axes: Axes, rows: pd.DataFrame, style: dict, label: str, *, levels: bool) -> None:
    x = (rows["begin"] + rows["end"]) / 2
    if levels:
        axes.plot(x, rows["rollout"], label=label, **style)
        dashed = style | {"linestyle": (0, (2, 2)), "marker": "", "linewidth": 1.0}
        axes.plot(x, rows["real"], **dashed)
        return
    axes.fill_between(x, rows["low"], rows["high"], color=style["color"], alpha=0.13, linewidth=0)
    axes.plot(x, rows["difference"], label=label, **style)
