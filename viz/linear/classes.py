"""What a probe gets right class by class: bars for few classes, the distribution for many.

The tables are those of ``probes.linear.classes.per_class_accuracy``: accuracies and their 95 % bounds
are fractions 0..1 there and percent in the pictures.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viz.base.checks import check_columns, require
from viz.base.names import in_heading, labels, legend_label, legible
from viz.base.style import MUTED, model_styles, new_figure, shorten, styled

__all__ = ["class_accuracy"]

_BARS = 40  # classes that have room for a bar and a name
_NAME = 20  # letters of a class name
_ENDS = 4  # easiest and hardest classes named under a distribution


@styled
def class_accuracy(
    tables: Mapping[str, pd.DataFrame],
    class_names: Sequence[str],
    *,
    chance: float | None = None,
    title: str | None = None,
) -> Figure:
    """Accuracy (percent) of every class at one layer and step, models side by side.

    ``tables`` maps a model's name to its rows of one layer and step (columns class, accuracy, low,
    high); ``class`` is a place in ``class_names``. Up to 40 classes: a bar each with its 95 %
    interval, sorted by the first model. More: every model's accuracies in order (a single model's
    with their intervals) and the names at both ends. Classes without an image are left out.
    ``chance`` is a fraction. ``UserError`` if columns or classes do not fit or a class comes twice.
    """
    require(len(tables) > 0, "tables is empty; expected at least one model's table")
    found = {name: _classes(name, table, len(class_names)) for name, table in tables.items()}
    first = next(iter(found.values()))
    for name, rows in found.items():
        require(
            set(rows.index) == set(first.index),
            f"{name} was tested on other classes than {next(iter(found))}; expected the same",
        )
    order = first.sort_values("accuracy", ascending=False, kind="stable").index
    every = labels(class_names, most=_NAME)
    names = {label: every[label] for label in order}
    figure = _bars(found, order, names) if len(order) <= _BARS else _distribution(found, names)
    axes = figure.axes[0]
    if chance is not None:
        require(0 <= chance <= 1, f"chance is {chance}; expected a fraction 0..1")
        line = axes.axvline if len(order) <= _BARS else axes.axhline
        line(100 * chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=3,
             label=f"chance {100 * chance:.3g} %")  # fmt: skip
    if len(found) > 1 or chance is not None:
        figure.legend(loc="outside lower center", ncols=len(found) + 1)
    axes.set_title(in_heading(title or "Probe accuracy by class"), loc="left", pad=10)
    return figure


def _classes(name: str, table: pd.DataFrame, classes: int) -> pd.DataFrame:
    check_columns(f"the table of {name}", table, ("class", "accuracy", "low", "high"))
    labels = table["class"]
    require(
        labels.is_unique,
        f"the table of {name} holds a class more than once; select one layer and step first",
    )
    require(
        bool(labels.between(0, classes - 1).all()),
        f"the table of {name} has classes {labels.min()}..{labels.max()}; "
        f"{classes} names were given, for 0..{classes - 1}",
    )
    rows = 100 * table.set_index("class")[["accuracy", "low", "high"]].astype(float)
    rows = rows[rows["accuracy"].notna()]
    require(len(rows) > 0, f"the table of {name} holds no accuracy")
    return rows


def _bars(found: Mapping[str, pd.DataFrame], order: Sequence[int], names: Mapping[int, str]) -> Figure:
    models, classes = len(found), len(order)
    figure = new_figure(7.6, 1.2 + classes * (0.13 + 0.15 * models))
    axes, styles = figure.subplots(), model_styles(found)
    height = 0.8 / models
    for place, (name, rows) in enumerate(found.items()):
        rows = rows.loc[order]
        y = np.arange(classes) + height * (place - (models - 1) / 2)
        reach = np.clip([rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]], 0, None)
        axes.barh(
            y, rows["accuracy"], height * 0.92, xerr=np.nan_to_num(reach), color=styles[name]["color"],
            alpha=0.75, label=legend_label(name),
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#222222"},
        )  # fmt: skip
    axes.set_yticks(range(classes), [names[label] for label in order])
    axes.set_ylim(classes - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("probe accuracy (%), 95 % intervals")
    axes.grid(axis="x")
    return figure


def _distribution(found: Mapping[str, pd.DataFrame], names: Mapping[int, str]) -> Figure:
    figure = new_figure(8.6, 4.0 + 0.62 * len(found))
    axes, styles = figure.subplots(), model_styles(found)
    words = []
    for name, rows in found.items():
        rows = rows.sort_values("accuracy", ascending=False, kind="stable")
        place, colour = np.arange(1, len(rows) + 1), styles[name]["color"]
        if len(found) == 1:  # two bands of single classes would hide each other
            axes.fill_between(place, rows["low"], rows["high"], color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            place, rows["accuracy"], color=colour, linestyle=styles[name]["linestyle"],
            label=legend_label(name),
        )  # fmt: skip
        for what, ends in (("best", rows.iloc[:_ENDS]), ("worst", rows.iloc[: -_ENDS - 1 : -1])):
            listed = [f"{names[label]} ({value:.0f} %)" for label, value in ends["accuracy"].items()]
            words.append((f"{legible(name)}, {what}: {', '.join(listed)}", colour))
    _draw_words(axes, words)
    axes.set_xlim(0, len(names) + 1)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"the {len(names)} classes, each model's best first")
    axes.set_ylabel("probe accuracy (%)")
    axes.grid(axis="y")
    return figure


def _draw_words(axes: Axes, words: list[tuple[str, str]]) -> None:
    """Lines of text under the axes' label, one each."""
    for place, (text, colour) in enumerate(words):
        axes.annotate(
            shorten(text, 126), (0, 0), (-30, -46 - 14 * place), xycoords="axes fraction",
            textcoords="offset points", color=colour, fontsize=8.5, va="top", annotation_clip=False,
        )  # fmt: skip
