"""How probable models find held-out images: NLL by step, and the reliability of their predictions.

The tables are those of ``probes.likelihood.nll`` (columns measure, split, class, step, value, low,
high) and ``probes.likelihood.calibration`` (confidence, right, low, high).
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viz.base.checks import check_columns, require
from viz.base.names import legend_label
from viz.base.style import MUTED, model_styles, new_figure, styled

__all__ = ["nll_by_step", "reliability"]

_PANELS = (
    ("nll", "own", "NLL given the class", "nats a token"),
    ("class_gain", "own", "What the class adds: NLL without it minus with it", "nats a token"),
)


@styled
def nll_by_step(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """NLL by step given the class, and what the class adds where it was measured; bands are 95 %.

    A line a model. ``UserError`` on missing columns or without rows of held-out NLL.
    """
    require(len(tables) > 0, "tables is empty; expected at least one model's table")
    for name, table in tables.items():
        check_columns(f"the table of {name}", table, ("measure", "split", "class", "step", "value"))
        require(table["measure"].eq("nll").any(), f"the table of {name} has no NLL")
    panels = [
        panel for panel in _PANELS if any(t["measure"].eq(panel[0]).any() for t in tables.values())
    ]
    figure = new_figure(5.0 * len(panels), 3.8)
    styles = model_styles(tables)
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (measure, given, heading, unit) in zip(drawn, panels, strict=True):
        for name, table in tables.items():
            rows = table[
                table["measure"].eq(measure) & table["split"].eq("held out") & table["class"].eq(given)
            ]
            rows = rows[rows["step"].gt(0)].sort_values("step")
            if len(rows):
                _band(axes, rows["step"], rows, styles[name] | {"marker": ""}, legend_label(name))
        if measure == "class_gain":
            axes.axhline(0, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(heading, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.grid(axis="y")
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(tables) > 1:
        drawn[0].legend(loc="best")
    which = f" by {legend_label(next(iter(tables))).strip()}" if len(tables) == 1 else ""
    figure.suptitle(f"How probable held-out images are{which}")
    return figure


@styled
def reliability(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of next tokens guessed right against the guess's probability, beside the diagonal.

    A point a bin of as many predictions, whiskers 95 % over images. ``UserError`` as above.
    """
    require(len(tables) > 0, "tables is empty; expected at least one model's table")
    figure = new_figure(4.8, 4.4)
    axes = figure.subplots()
    styles, most = model_styles(tables), 0.0
    for name, table in tables.items():
        check_columns(f"the table of {name}", table, ("confidence", "right", "low", "high"))
        percent = 100 * table[["confidence", "right", "low", "high"]]
        reach = [percent["right"] - percent["low"], percent["high"] - percent["right"]]
        axes.errorbar(
            percent["confidence"], percent["right"], yerr=pd.DataFrame(reach).fillna(0).to_numpy(),
            capsize=2, elinewidth=1.0, label=legend_label(name), **styles[name],
        )  # fmt: skip
        most = max(most, float(percent[["confidence", "right"]].max().max()))
    most = min(100.0, 1.08 * most)
    axes.plot([0, most], [0, most], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xlim(0, most)
    axes.set_ylim(0, most)
    axes.set_xlabel("probability of the most likely next token (%)")
    axes.set_ylabel("of these, right (%)")
    axes.grid()
    axes.legend(loc="upper left", title="dashed: as often right as sure", title_fontsize=8.5)
    figure.suptitle("Is it as often right as it is sure?")
    return figure


def _band(axes: Axes, x: pd.Series, rows: pd.DataFrame, style: dict, label: str) -> None:
    axes.fill_between(x, rows["low"], rows["high"], color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(x, rows["value"], label=label, **style)
