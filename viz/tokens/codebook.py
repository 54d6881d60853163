"""A tokenizer's codebook in pictures: how codes are used, the most used drawn, their neighbours."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from viz.base.checks import check_columns, check_images, require
from viz.base.names import in_heading
from viz.base.style import MUTED, OKABE_ITO, new_figure, styled

__all__ = ["codebook_pictures", "codebook_usage"]

_ACROSS = 16


@styled
def codebook_usage(table: pd.DataFrame, *, perplexity: float, title: str | None = None) -> Figure:
    """Left: share of each code by rank (log-log), beside even use; right: cosine to the nearest code.

    ``table`` is that of ``probes.tokens.codebook``. ``UserError`` on missing columns or if no code is
    used.
    """
    check_columns("the table", table, ("count", "share", "rank", "cosine"))
    require(table["count"].sum() > 0, "the table counts no code at all")
    figure = new_figure(9.6, 3.8)
    usage, near = figure.subplots(1, 2)
    used = table[table["count"] > 0].sort_values("rank")
    usage.loglog(used["rank"], 100 * used["share"], color=OKABE_ITO["blue"], linewidth=1.8)
    usage.axhline(100 / len(table), color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    for axis in (usage.xaxis, usage.yaxis):
        axis.set_major_formatter(lambda value, place: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())  # short axes would get powers in mathtext
    usage.set_xlabel("rank of the code")
    usage.set_ylabel("share of all tokens (%)")
    dead = len(table) - len(used)
    usage.set_title(
        f"{len(used)} of {len(table)} codes used, perplexity {perplexity:.0f}", loc="left", fontsize=10
    )
    usage.annotate(
        "dashed: every code as often" + f"; {dead} never" * bool(dead), (0.03, 0.04),
        xycoords="axes fraction", color=MUTED, fontsize=8.5,
    )  # fmt: skip
    usage.grid(axis="y")
    near.hist(table["cosine"], bins=40, color=OKABE_ITO["green"], edgecolor="white", linewidth=0.3)
    near.set_xlabel("cosine to the nearest other code")
    near.set_ylabel("codes")
    near.set_title("How close codes lie", loc="left", fontsize=10)
    near.yaxis.get_major_locator().set_params(integer=True)
    near.grid(axis="y")
    figure.suptitle(in_heading(title or "Codebook"))
    return figure


@styled
def codebook_pictures(
    pictures: np.ndarray,
    neighbours: np.ndarray,
    codes: Sequence[int],
    shares: Sequence[float],
    cosines: Sequence[float],
    *,
    title: str | None = None,
) -> Figure:
    """Codes drawn, the most used first; below each its nearest other code and their cosine.

    ``pictures`` and ``neighbours`` (K, s, s, 3) uint8, ``shares`` fractions of all tokens.
    """
    pictures = check_images("pictures", pictures)
    neighbours = check_images("neighbours", neighbours)
    lengths = {len(pictures), len(neighbours), len(codes), len(shares), len(cosines)}
    require(
        len(lengths) == 1, f"pictures, neighbours, codes, shares and cosines have lengths {lengths}"
    )
    rows = -(-len(codes) // _ACROSS)
    figure = new_figure(9.6, 0.75 + 1.5 * rows, layout=None)
    figure.text(0.016, 1 - 0.22 / figure.get_figheight(), in_heading(title or "Most used codes"),
                weight="bold", size=12, va="center")  # fmt: skip
    side = 0.5
    for place, code in enumerate(codes):
        row, column = divmod(place, _ACROSS)
        x, y = 0.15 + 0.587 * column, 0.6 + 1.5 * row
        _cell(figure, pictures[place], x, y, side, f"{code}", f"{100 * shares[place]:.2g} %")
        _cell(
            figure,
            neighbours[place],
            x + 0.15 * side,
            y + 0.74,
            side * 0.7,
            "",
            f"{cosines[place]:.2f}",
        )
    return figure


def _cell(
    figure: Figure, picture: np.ndarray, x: float, y: float, side: float, above: str, below: str
) -> Axes:
    width, height = figure.get_size_inches()
    axes = figure.add_axes((x / width, 1 - (y + side) / height, side / width, side / height))
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():  # a white code on a white page
        spine.set(visible=True, linewidth=0.5, color=MUTED)
    if above:
        axes.set_title(above, fontsize=7.5, pad=2, weight="bold")
    axes.annotate(below, (0.5, 0), (0, -2), xycoords="axes fraction", textcoords="offset points",
                  ha="center", va="top", fontsize=6.5, color=MUTED)  # fmt: skip
    return axes
