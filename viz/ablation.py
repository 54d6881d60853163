"""What models lose when attention is cut: by cut, by layer, and by how far a step may look.

The tables are those of ``probes.ablation.nll`` (columns cut, reach, layers, steps, measure, intact,
value, difference, low, high): differences are "with the cut minus without", NLL in nats a token,
accuracies fractions there and percentage points in the pictures.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viz.base.checks import check_columns, require
from viz.base.names import legend_label, legible
from viz.base.style import MUTED, OKABE_ITO, model_styles, new_figure, shorten, styled

__all__ = ["cut_changes", "cut_layers", "reach_curves"]

_COLUMNS = ("cut", "reach", "layers", "steps", "measure", "difference", "low", "high")
_STRICT = "strict window"
_CUT_WORDS = {
    "class": "class token",
    "neighbourhood": "neighbours (causal 3 x 3)",
    "random": "as many random tokens",
    "row_above": "row above",
}
_CUT_COLOURS = [OKABE_ITO[name] for name in ("blue", "vermillion", "green", "purple", "orange")]
_CUT_DASHES = ("-", "--", ":", "-.")  # a sixth cut has the first one's colour
_PROBES = ("accuracy_refit", "accuracy_fixed")
_MEASURES = {
    "nll": ("NLL", "change of NLL (nats a token)", 1.0),
    "nll_cut_steps": ("NLL at the cut steps", "change of NLL (nats a token)", 1.0),
    "accuracy_refit": ("Probe, refit", "change of accuracy (points)", 100.0),
    "accuracy_fixed": ("Probe of the intact model", "change of accuracy (points)", 100.0),
}


@styled
def reach_curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Change of NLL against how far a step may look, a line a model with its 95 % band.

    Left: every layer is limited (farther tokens still arrive in hops); right, if measured: nothing
    farther arrives by any route. ``UserError`` on missing columns or without such rows.
    """
    parts = {name: _reach_rows(name, table) for name, table in tables.items()}
    require(len(parts) > 0, "tables is empty; expected at least one model's table")
    strict = any(rows["cut"].eq(_STRICT).any() for rows in parts.values())
    figure = new_figure(9.6 if strict else 5.6, 4.0)
    panels = figure.subplots(1, 2 if strict else 1, squeeze=False, sharey=True)[0]
    kinds = ("beyond", _STRICT)[: len(panels)]
    headings = ("Each layer looks at most d cells far", "Nothing farther than d by any route")
    styles = model_styles(parts)
    for axes, kind, heading in zip(panels, kinds, headings, strict=False):
        for name, rows in parts.items():
            rows = rows[rows["cut"].eq(kind)].sort_values("reach")
            style = {**styles[name], "label": legend_label(name)}
            _line(axes, rows["reach"].to_numpy(float), rows, 1.0, style)
        axes.axhline(0, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(heading, loc="left", fontsize=10)
        axes.set_xlabel("d: cells from the cell being predicted")
        axes.grid(axis="y")
        reaches = sorted({int(reach) for rows in parts.values() for reach in rows["reach"]})
        axes.set_xticks(reaches[:: -(-len(reaches) // 12)])
    panels[0].set_ylabel("change of NLL (nats a token)")
    panels[-1].legend(loc="upper right")
    figure.suptitle("How far does the model look? (dashed: nothing cut)")
    return figure


@styled
def cut_changes(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What each cut of all the chosen layers changes: NLL and, if measured, probe accuracy.

    One row a cut, one point a model, whiskers 95 %. ``UserError`` as above.
    """
    rows = {name: _cut_rows(name, table) for name, table in tables.items()}
    first = next(iter(rows.values()))
    measures = [_nll(first), *(key for key in _PROBES if first["measure"].eq(key).any())]
    labels = list(dict.fromkeys(label for part in rows.values() for label in part["label"]))
    lines = max(label.count("\n") + 1 for label in labels)
    figure = new_figure(max(6.4, 2.8 + 3.0 * len(measures)), 1.9 + (0.27 + 0.15 * lines) * len(labels))
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    styles = model_styles(rows)
    for axes, measure in zip(panels, measures, strict=True):
        heading, unit, factor = _MEASURES[measure]
        for place, (name, part) in enumerate(rows.items()):
            part = part[part["measure"].eq(measure)]
            aside = 0.16 * (place - (len(rows) - 1) / 2)
            y = [labels.index(label) + aside for label in part["label"]]
            reach = factor * np.abs(
                part[["low", "high"]].to_numpy(float).T - part["difference"].to_numpy()
            )
            style = {key: value for key, value in styles[name].items() if key != "linestyle"}
            axes.errorbar(
                factor * part["difference"], y, xerr=np.nan_to_num(reach), linestyle="none", capsize=3,
                elinewidth=1.2, label=legend_label(name), **style,
            )  # fmt: skip
        axes.axvline(0, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(heading, loc="left", fontsize=10)
        axes.set_xlabel(unit)
        axes.grid(axis="x")
        axes.margins(x=0.12)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    if len(rows) > 1:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(rows))
    which = f" ({legible(next(iter(rows)))})" if len(rows) == 1 else ""
    figure.suptitle(f"What changes without attention to …{which}{_at(first)}")
    return figure


@styled
def cut_layers(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Change of NLL when one layer alone is cut: a panel a model, a line a cut; errors as above."""
    figure = new_figure(1.2 + 4.2 * len(tables), 3.9)
    panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        rows = _cut_rows(name, table)
        rows = rows[rows["measure"].eq(_nll(rows))]
        require(rows["layers"].str.isdecimal().all(), f"the table of {name} has cuts of several layers")
        for place, (cut, part) in enumerate(rows.groupby("cut", sort=False)):
            colour = _CUT_COLOURS[place % len(_CUT_COLOURS)]
            label = _words(cut).replace("\n", " ")
            part = part.assign(layer=part["layers"].astype(int)).sort_values("layer")
            dashes = _CUT_DASHES[place // len(_CUT_COLOURS) % len(_CUT_DASHES)]
            style = {"color": colour, "marker": "os^Dv"[place % 5], "label": label, "linestyle": dashes}
            _line(axes, part["layer"].to_numpy(float), part, 1.0, style)
        axes.axhline(0, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(legible(name), loc="left", fontsize=10)
        axes.set_xlabel("layer that is cut")
        axes.grid(axis="y")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("change of NLL (nats a token)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2 if len(tables) > 1 else 1)
    figure.set_figheight(3.8 + 0.22 * (-(-len(names) // (2 if len(tables) > 1 else 1))))
    figure.suptitle(f"What one layer's attention is needed for{_at(rows)}")
    return figure


def _nll(rows: pd.DataFrame) -> str:
    """The NLL to draw: at the steps that were cut, where they are not all."""
    return "nll_cut_steps" if rows["measure"].eq("nll_cut_steps").any() else "nll"


def _at(rows: pd.DataFrame) -> str:
    """A second line of a title: which steps' queries are cut, where not all."""
    steps = list(rows["steps"].astype(str).unique())
    if steps == ["all"]:
        return ""
    return f"\nqueries of steps {shorten(', '.join(steps[0].split(',')), 40)}"


def _words(cut: str) -> str:
    return "\n+ ".join(_CUT_WORDS.get(name, name) for name in cut.split("+"))


def _reach_rows(name: str, table: pd.DataFrame) -> pd.DataFrame:
    check_columns(f"the table of {name}", table, _COLUMNS)
    rows = table[table["cut"].isin(["beyond", _STRICT]) & table["measure"].eq("nll")]
    require(rows["cut"].eq("beyond").any(), f"the table of {name} has no cut beyond a reach")
    return rows


def _cut_rows(name: str, table: pd.DataFrame) -> pd.DataFrame:
    check_columns(f"the table of {name}", table, _COLUMNS)
    rows = table[table["reach"].isna() & table["measure"].isin(list(_MEASURES))]
    require(len(rows) > 0, f"the table of {name} has no cut without a reach")
    several = rows["layers"].nunique() > 1
    suffix = ", layer " + rows["layers"].astype(str) if several else ""
    return rows.assign(label=rows["cut"].map(_words) + suffix)


def _line(axes: Axes, x: np.ndarray, rows: pd.DataFrame, factor: float, style: dict) -> None:
    value, low, high = (factor * rows[key].to_numpy(float) for key in ("difference", "low", "high"))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(x, value, **style)
