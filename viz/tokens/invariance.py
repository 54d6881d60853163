"""What of an image's tokens survives augmentations: curves over strength, and where indices change.

The table is that of ``probes.tokens.invariance`` (its docstring explains the columns), of one
tokenizer or of several. Shares are fractions there and percent in the pictures.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from viz.base.checks import check_columns, check_image, require
from viz.base.names import in_heading, labels, legend_label, legible
from viz.base.panel import place_axes
from viz.base.style import MUTED, SHARE_MAP, UNSEEN, model_styles, new_figure, shorten, styled

__all__ = ["CURVES", "invariance_curves", "invariance_maps"]

Dashes = str | tuple[int, tuple[int, int]]
# measure: axis, factor, range, title, other columns drawn beside it (dashes, what they are)
CURVES: dict[
    str, tuple[str, float, tuple[float, float | None], str, dict[str, tuple[Dashes, str]]]
] = {
    "equal": (
        "same index (%)", 100.0, (-3, 103), "Token indices that stay the same",
        {
            "aligned": (":", "after moving the view's cells back (where that is exact)"),
            "chance": ((0, (5, 3)), "an unrelated image"),
        },
    ),
    "code_distance": (
        "1 − cosine", 1.0, (-0.03, None), "How far changed cells move in the codebook*",
        {"code_distance_chance": ((0, (5, 3)), "different codes of unrelated images")},
    ),
    "histogram": (
        "total variation", 1.0, (-0.03, 1.03), "How an image's code counts change",
        {"histogram_chance": ((0, (5, 3)), "an unrelated image")},
    ),
    "decoded_psnr": (
        "PSNR (dB)", 1.0, (8, 62), "How alike the two decoded pictures are*",
        {
            "input_psnr": ((0, (5, 3)), "the image and its view themselves (60: equal)"),
            "reconstruction_psnr": (":", "the image and what its own tokens draw"),
        },
    ),
}  # fmt: skip
_COLUMNS = ("tokenizer", "augmentation", "strength", "unit")
_ACROSS = 4
_MOVED_BACK = ("code_distance", "decoded_psnr")  # compared after moving back where that is exact
_FALLING = ("jpeg",)  # the lower the number, the larger the change


@styled
def invariance_curves(
    table: pd.DataFrame, measure: str = "equal", *, title: str | None = None, note: str | None = None
) -> Figure:
    """``measure`` against strength, a panel an augmentation, a colour a tokenizer, with 95 % bands.

    Strengths are evenly spaced. Dashed and dotted lines are what the measure is held against
    (``CURVES``); they are left out where blank. ``UserError`` on an unknown measure or missing columns.
    """
    require(measure in CURVES, f"measure is {measure!r}; expected one of: {', '.join(CURVES)}")
    label, factor, limits, heading, beside = CURVES[measure]
    wanted = [f"{name}{end}" for name in (measure, *beside) for end in ("", "_low", "_high")]
    check_columns("the table", table, (*_COLUMNS, *wanted))
    require(table[measure].notna().any(), f"the table has no {measure}")
    names = list(dict.fromkeys(table["augmentation"]))
    across = min(_ACROSS, len(names))
    rows = -(-len(names) // across)
    figure = new_figure(max(2.45 * across, 5.2) + 0.2, 1.2 + 1.95 * rows)
    panels = figure.subplots(rows, across, sharey=True, squeeze=False).ravel()
    styles = model_styles(dict.fromkeys(table["tokenizer"]))
    shown = set()
    for axes, name in zip(panels, names, strict=False):
        part = table[table["augmentation"] == name]
        shown |= _draw_panel(axes, part, styles, (measure, *beside), factor)
        axes.set_title(name, loc="left", fontsize=10)
        axes.tick_params(labelleft=True)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    if limits:
        panels[0].set_ylim(*limits)
    for axes in panels[::across]:
        axes.set_ylabel(label)
    figure.suptitle(in_heading(title or heading), x=0.01, ha="left")
    known = labels(map(legend_label, styles), "tokenizer", first=1, most=60)
    lines = [
        Line2D([], [], label=label, markersize=4, **style)
        for label, style in zip(known, styles.values(), strict=True)
    ]
    lines += [
        Line2D([], [], label=beside[name][1], **_beside_style(measure, name, MUTED))
        for name in beside
        if name in shown
    ]
    if measure in _MOVED_BACK:
        lines.append(Line2D([], [], linestyle="", label="* after moving back, where that is exact"))
    figure.legend(
        handles=lines, loc="outside lower left", ncols=1 if across < 3 else 2, handlelength=3,
        title=shorten(in_heading(note), 64) if note else None, title_fontsize=9, alignment="left",
    )  # fmt: skip
    return figure


@styled
def invariance_maps(
    maps: Mapping[str, np.ndarray],
    *,
    image: np.ndarray | None = None,
    title: str | None = None,
    note: str | None = None,
) -> Figure:
    """Share of strengths (and images) under which each cell's index changes, one map an augmentation.

    ``maps`` (g, g) fractions by augmentation, NaN where nothing was compared (hatched); ``image`` (H,
    W, 3) uint8 stands first. ``UserError`` if there is no map with a number or a share outside 0..1.
    """
    drawn = {name: np.asarray(values, dtype=float) for name, values in maps.items()}
    drawn = {name: values for name, values in drawn.items() if np.isfinite(values).any()}
    require(len(drawn) > 0, "maps holds no number; expected at least one augmentation's map")
    for name, values in drawn.items():
        least, most = np.nanmin(values), np.nanmax(values)
        square = values.ndim == 2 and values.shape[0] == values.shape[1]
        require(
            square and least >= 0 and most <= 1,
            f"the map of {name} is {values.shape}, {least:g} to {most:g}; expected fractions 0..1 of "
            "shape (grid, grid)",
        )
    places = len(drawn) + (image is not None)
    across = min(max(places, 3), 5)
    rows = -(-places // across)
    side, gap, head = 1.55, 0.3, 0.62
    width, height = 0.2 + across * (side + 0.2), head + rows * (side + gap) + 0.72
    figure = new_figure(width, height, layout=None)
    said = in_heading(title or "Where token indices change")
    figure.text(0.2 / width, 1 - 0.22 / height, said, weight="bold", size=12, va="center")
    said = shorten(in_heading(note or ""), int(12.5 * width) - 5)
    figure.text(0.2 / width, 1 - 0.48 / height, said, size=10, va="center", color=MUTED)
    frames = []
    for at in range(places):
        row, column = divmod(at, across)
        x, y = 0.2 + column * (side + 0.2), head + 0.8 * gap + row * (side + gap)
        frames.append(place_axes(figure, x, y, side, side))
    if image is not None:
        frames[0].imshow(check_image("image", image), interpolation="nearest")
        frames[0].set_title("image", fontsize=10, pad=3, weight="normal")
    for axes, (name, values) in zip(frames[image is not None :], drawn.items(), strict=True):
        axes.patch.set(facecolor=UNSEEN, edgecolor="#9A9A9A", hatch="/////")
        axes.imshow(np.ma.masked_invalid(100 * values), cmap=SHARE_MAP, vmin=0, vmax=100)
        said = f"{legible(name)}: {100 * np.nanmean(values):.0f} %"
        axes.set_title(said, fontsize=10, pad=3, weight="normal")
    for axes in frames:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(True)
    _draw_key(figure, any(np.isnan(values).any() for values in drawn.values()))
    return figure


def _draw_key(figure: Figure, hatched: bool) -> None:
    width, height = figure.get_size_inches()
    bar = place_axes(figure, 0.2, height - 0.56, 2.4, 0.12)
    figure.colorbar(
        ScalarMappable(Normalize(0, 100), SHARE_MAP), cax=bar, orientation="horizontal",
        label="index changes (% of views)", ticks=[0, 50, 100],
    ).outline.set_linewidth(0.5)  # fmt: skip
    if hatched:
        figure.text(
            1 - 0.2 / width, 0.5 / height, "hatched: in no view", size=9, color=MUTED, ha="right",
            va="center",
        )  # fmt: skip


def _draw_panel(
    axes: Axes, part: pd.DataFrame, styles: dict[str, dict], columns: tuple[str, ...], factor: float
) -> set[str]:
    """Draw every tokenizer's lines; returns the columns that had numbers."""
    name = part["augmentation"].iloc[0]
    strengths = sorted(set(part["strength"]), reverse=name in _FALLING)
    shown = set()
    for tokenizer, style in styles.items():
        rows = part[part["tokenizer"] == tokenizer]
        require(not rows["strength"].duplicated().any(), f"{tokenizer} has a strength of {name} twice")
        rows = rows.set_index("strength").reindex(strengths)
        breaks = _breaks(rows, columns[0])
        x = np.insert(np.arange(len(strengths), dtype=float), breaks, np.nan)
        for column in columns:
            value, low, high = (
                np.insert(factor * rows[f"{column}{end}"].to_numpy(dtype=float), breaks, np.nan)
                for end in ("", "_low", "_high")
            )
            if not np.isfinite(value).any():
                continue
            shown.add(column)
            if column == columns[0]:
                axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
                axes.plot(x, value, markersize=4, **style, zorder=3)
                continue
            # Grey beside one tokenizer's line, and for what knows no tokenizer; else in its colour.
            own = len(styles) > 1 and column != "input_psnr"
            colour = style["color"] if own else MUTED
            axes.plot(x, value, zorder=2, **_beside_style(columns[0], column, colour))
    axes.set_xticks(range(len(strengths)), [f"{strength:g}" for strength in strengths], fontsize=7.5)
    axes.set_xlim(-0.25, max(len(strengths) - 1, 0.5) + 0.25)
    axes.set_xlabel(part["unit"].iloc[0], fontsize=8.5, labelpad=2)
    axes.grid(axis="y")
    return shown


def _breaks(rows: pd.DataFrame, measure: str) -> np.ndarray:
    """Places before which a line ends: what was moved back is not joined to what was not."""
    if measure not in _MOVED_BACK or "aligned" not in rows:
        return np.zeros(0, dtype=int)
    moved = rows["aligned"].notna().to_numpy() & (rows.index.to_numpy() != 0)
    still = rows.index.to_numpy() == 0  # the image itself is the end of both lines
    differ = (moved[1:] != moved[:-1]) & ~still[1:] & ~still[:-1]
    return np.flatnonzero(differ) + 1


def _beside_style(measure: str, column: str, colour: str) -> dict:
    """A thin line; ``aligned`` has marks, since it may be known at single strengths only."""
    marks = {"marker": "D", "markersize": 4, "markerfacecolor": "white"} if column == "aligned" else {}
    return {"color": colour, "linewidth": 1.5, "linestyle": CURVES[measure][4][column][0], **marks}
