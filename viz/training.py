"""Training curves from metrics rows: losses, learning rate, gradient norm, in-loop diagnostics."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from viz.base.checks import check_columns, require
from viz.base.names import in_heading, legend_label
from viz.base.style import MUTED, model_styles, new_figure, styled

__all__ = ["PANELS", "training_curves"]

# metrics column: title of its panel
PANELS = {
    "loss": "total loss",
    "ar": "L_AR: next token (nats)",
    "mim": "L_MIM: masked modelling",
    "step_contrast": "L_step: across steps",
    "view_contrast": "L_view: across views",
    "val_nll": "validation NLL (nats)",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "knn_acc": "kNN accuracy, mean over steps",
    "cond_acc": "class seen, teacher",
    "cond_acc_student": "class seen, student",
    "effective_rank": "effective rank",
    "image_cosine": "cosine between images",
    "teacher_student_cosine": "cosine teacher, student",
    "attention_distance": "attention distance (cells)",
    "class_share": "attention on the class token",
    "l1": "mean absolute error of pixels",
    "l2": "mean squared error of pixels",
    "commitment": "distance to the code, squared",
    "lpips": "LPIPS",
    "gen": "L_G: adversarial",
    "disc": "L_D: discriminator",
    "acc": "accuracy on a batch",
    "val_acc": "validation accuracy",
    "codes_used": "codes used by a batch",
    "val_psnr": "validation PSNR (dB)",
    "val_ssim": "validation SSIM",
    "val_perplexity": "perplexity of the codes",
    "grad_cos_ar_mim": "gradient cosine: AR, MIM",
    "grad_cos_ar_step": "gradient cosine: AR, step",
    "grad_cos_ar_view": "gradient cosine: AR, view",
    "grad_cos_mim_step": "gradient cosine: MIM, step",
    "grad_cos_mim_view": "gradient cosine: MIM, view",
    "grad_cos_step_view": "gradient cosine: step, view",
}
_SMOOTH_FROM = 120  # rows: a longer, noisy curve is drawn faint under its running mean


@styled
def training_curves(metrics: Mapping[str, pd.DataFrame], *, title: str | None = None) -> Figure:
    """Small multiples, one panel per column of ``PANELS`` that any run has, one line a run.

    ``metrics`` maps a run's name to its rows: ``step`` and any columns of ``PANELS``; empty cells
    (validation is measured seldom) are skipped. ``UserError`` if there is nothing to draw.
    """
    require(len(metrics) > 0, "metrics is empty; expected at least one run's table")
    for name, table in metrics.items():
        check_columns(f"the metrics of {name}", table, ["step"])
    columns = [key for key in PANELS if any(_has(table, key) for table in metrics.values())]
    require(bool(columns), f"the metrics have none of the columns: {', '.join(PANELS)}")
    across = min(4, len(columns)) if len(columns) != 3 else 3
    down = math.ceil(len(columns) / across)
    figure = new_figure(max(2.75 * across, 5.5), 0.75 + 2.0 * down)
    grid = figure.subplots(down, across, squeeze=False, sharex=True)
    for spare in grid.flat[len(columns) :]:
        spare.remove()
    styles = model_styles(metrics)
    for axes, key in zip(grid.flat, columns, strict=False):
        _draw_metric(axes, key, metrics, styles)
    for axes in grid.flat[max(len(columns) - across, 0) : len(columns)]:
        axes.set_xlabel("training step")
        axes.tick_params(labelbottom=True)
    handles, names = _legend(grid.flat[: len(columns)])
    figure.suptitle(in_heading(title or "Training"), x=0.01, ha="left")
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 5))
    return figure


def _has(table: pd.DataFrame, key: str) -> bool:
    return key in table.columns and bool(pd.to_numeric(table[key], errors="coerce").notna().any())


def _draw_metric(axes: Axes, key: str, metrics: Mapping[str, pd.DataFrame], styles: Mapping) -> None:
    for name, table in metrics.items():
        if not _has(table, key):
            continue
        style = {**styles[name], "marker": None, "label": legend_label(name), "linewidth": 1.7}
        rows = table[["step", key]].apply(pd.to_numeric, errors="coerce").dropna().sort_values("step")
        x, y = rows["step"].to_numpy(), rows[key]
        if len(rows) == 1:  # a line of one point would be invisible
            style["marker"] = styles[name]["marker"]
        if len(rows) >= _SMOOTH_FROM and key != "lr":
            axes.plot(x, y, color=style["color"], alpha=0.22, linewidth=0.7)
            y = y.rolling(max(len(rows) // 40, 5), center=True, min_periods=1).mean()
        axes.plot(x, y, **style)
    axes.set_title(PANELS[key] + _counts(key, metrics), size=9.5, loc="left")
    if key.startswith("cond_acc"):
        _draw_worth(axes, metrics)
    if key == "grad_norm" and np.all(np.concatenate([line.get_ydata() for line in axes.lines]) > 0):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if key.startswith("grad_cos_"):  # above 0 two losses pull the same way, below they fight
        axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    if key == "lr":
        axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y")


def _counts(key: str, metrics: Mapping[str, pd.DataFrame]) -> str:
    """The neighbours that voted, where a run recorded fewer than usual; the samples looked at."""
    counted = {
        "knn_acc": ("knn_k", "k"),
        "cond_acc": ("cond_n", "n"),
        "cond_acc_student": ("cond_n", "n"),
    }
    if key not in counted:
        return ""
    column, letter = counted[key]
    values = _values(column, metrics)
    return f", {letter} = {', '.join(f'{value:g}' for value in values)}" if values else ""


def _values(column: str, metrics: Mapping[str, pd.DataFrame]) -> list[float]:
    """The different values of a column that stays the same through a run."""
    found = [
        pd.to_numeric(table[column], errors="coerce").dropna()
        for table in metrics.values()
        if _has(table, column)
    ]
    return sorted({float(value) for of_run in found for value in of_run})


def _draw_worth(axes: Axes, metrics: Mapping[str, pd.DataFrame]) -> None:
    """How often the classifier is right on real images, and on those the tokenizer redraws."""
    axes.margins(y=0.12)  # room for the words
    place = axes.get_yaxis_transform()  # at the left edge, whatever the steps are
    for column, name, side in (
        ("cond_acc_real", "real images", "bottom"),
        ("cond_acc_redrawn", "redrawn", "top"),
    ):
        for value in _values(column, metrics):
            axes.axhline(value, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            axes.text(0.02, value, name, transform=place, size=7.5, color=MUTED, va=side)


def _legend(panels: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    """One handle per run over all panels (a run may lack some columns)."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    return list(handles.values()), list(handles)
