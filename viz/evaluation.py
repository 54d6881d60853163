"""How good samples are: every number of several sets side by side, and accuracy class by class.

The tables are those of ``probes.samples.evaluation`` (metric, value, low, high) and
``probes.samples.classifier`` (label, class, accuracy, low, high, chance).
"""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from viz.base.checks import check_columns, require
from viz.base.names import legend_label
from viz.base.style import INK, MUTED, model_styles, new_figure, styled

__all__ = ["evaluation_by_class", "evaluations"]

MOST_CLASSES = 40
LOWER = ("FID", "sFID", "FD", "KID")  # how names begin of which the lower number is the better one
ACROSS = 3  # panels in a row


@styled
def evaluations(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """A panel a number, a row a set of samples, whiskers 95 %; the arrow says which way is better.

    ``UserError`` on missing columns or without tables.
    """
    require(len(tables) > 0, "tables is empty; expected one of each set of samples")
    for name, table in tables.items():
        check_columns(f"the table of {name}", table, ("metric", "value", "low", "high"))
    metrics = list(dict.fromkeys(metric for table in tables.values() for metric in table["metric"]))
    require(len(metrics) > 0, "the tables hold no number")
    down = math.ceil(len(metrics) / ACROSS)
    across = min(ACROSS, len(metrics))
    figure = new_figure(3.2 * across + 0.8, (1.1 + 0.32 * len(tables)) * down + 0.6)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    styles = model_styles(tables)
    for axes, metric in zip(panels, metrics, strict=False):
        for place, (name, table) in enumerate(tables.items()):
            row = table[table["metric"].eq(metric)]
            if len(row):
                value, low, high = (float(row[key].iloc[0]) for key in ("value", "low", "high"))
                reach = [[max(0, value - low)], [max(0, high - value)]] if math.isfinite(low) else None
                style = styles[name] | {"linestyle": "", "markersize": 7}
                axes.errorbar([value], [place], xerr=reach, capsize=3, elinewidth=1.4, **style)
        better = "← better" if metric.startswith(LOWER) else "better →"
        axes.set_title(f"{metric}\n{better}", loc="left", fontsize=9.5)
        axes.set_ylim(len(tables) - 0.5, -0.5)
        axes.set_yticks(range(len(tables)), [legend_label(name) for name in tables])
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x")
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    figure.suptitle("Samples on the same reference, 95 % over samples")
    return figure


@styled
def evaluation_by_class(
    tables: Mapping[str, pd.DataFrame], real: pd.DataFrame | None, network: str
) -> Figure:
    """Share of samples of each class in which the classifier sees it, beside real images (open marks).

    Classes in the order of the first set's accuracy; of more than 40, the 20 lowest and highest.
    ``UserError`` on missing columns or without tables.
    """
    require(len(tables) > 0, "tables is empty; expected one of each set of samples")
    columns = ("label", "class", "accuracy", "low", "high", "chance")
    for name, table in tables.items():
        check_columns(f"the table of {name}", table, columns)
    first = next(iter(tables.values()))
    order = first[first["label"].ge(0)].sort_values("accuracy", kind="stable")["class"].tolist()
    few = order if len(order) <= MOST_CLASSES else order[: MOST_CLASSES // 2] + order[-20:]
    places = {name: place for place, name in enumerate(["all", *few])}
    figure = new_figure(6.4, 1.6 + 0.27 * len(places))
    axes = figure.subplots()
    styles = model_styles(tables)
    if real is not None:
        shown = real[real["class"].isin(places)]
        axes.plot(
            100 * shown["accuracy"], shown["class"].map(places), linestyle="", marker="D",
            markersize=6, markerfacecolor="none", color=INK, label="reference images", clip_on=False,
        )  # fmt: skip
    offsets = [0.22 * (number - (len(tables) - 1) / 2) for number in range(len(tables))]
    for (name, table), offset in zip(tables.items(), offsets, strict=True):
        rows = table[table["class"].isin(places)]
        percent = 100 * rows[["accuracy", "low", "high"]]
        reach = [percent["accuracy"] - percent["low"], percent["high"] - percent["accuracy"]]
        heights = rows["class"].map(places) + offset
        axes.errorbar(
            percent["accuracy"], heights, xerr=pd.DataFrame(reach).clip(lower=0).to_numpy(), capsize=2,
            elinewidth=1.0, label=legend_label(name), clip_on=False,
            **styles[name] | {"linestyle": ""},
        )  # fmt: skip
    chance = 100 * float(first["chance"].iloc[0])
    axes.axvline(chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    axes.axhline(0.5, color=MUTED, linewidth=0.8)
    axes.set_yticks(list(places.values()), [legend_label(name) for name in places])
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_ylabel("class, the least seen first")
    axes.set_xlabel("samples in which the class asked for is seen (%); dashed: chance")
    axes.grid(axis="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16 if len(places) < 15 else -0.08), ncols=3)
    omitted = "" if len(few) == len(order) else f" ({len(few)} of {len(order)} classes)"
    figure.suptitle(f"Does the {network} see the class asked for?{omitted}")
    return figure
