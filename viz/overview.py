"""The picture at the top of the README: what a probe reads, where a step looks, what tokens do.

Left, accuracy against step of every model (the paper's Figure 4). Right, the attention of the models at
one layer over a few steps (Figures 2 and 5) and the token indices of two nearly equal views (Figure
1(c)). 1400 x 700 pixels; the headings name the subject and claim nothing that the data might not show.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from viz.base.checks import check_image, check_indices, require
from viz.base.names import in_heading, legible
from viz.base.panel import PANEL_ASPECT, check_maps, draw_panel, heat_scale, legend_handles, place_axes
from viz.base.style import INK, MUTED, model_styles, new_figure, styled
from viz.linear.curves import draw_probe_curves
from viz.tokens.change import draw_indices

__all__ = ["overview"]

_WIDTH, _HEIGHT = 8.75, 4.375  # inches
_RIGHT = 4.3  # where the right half starts
_HEADINGS = ("Probe accuracy by step", "Where a step looks", "Two views, two sets of tokens")


@styled
def overview(
    tables: Mapping[str, pd.DataFrame],
    *,
    layer: int,
    total_steps: int,
    chance: float | None = None,
    image: np.ndarray,
    maps_by_model: Mapping[str, np.ndarray],
    class_weights: Mapping[str, np.ndarray],
    attention_layer: int,
    steps: Sequence[int],
    grid: int,
    views: tuple[np.ndarray, np.ndarray],
    indices: tuple[np.ndarray, np.ndarray],
    view_labels: tuple[str, str] = ("image", "shifted by 1 px"),
    share: float | None = None,
    headings: tuple[str, str, str] = _HEADINGS,
) -> Figure:
    """One composite picture, 1400 x 700 pixels.

    ``tables``, ``layer``, ``total_steps``, ``chance``: as in ``viz.linear.curves.probe_curves``.
    ``image``, ``maps_by_model`` (steps, T), ``class_weights`` (steps,), ``steps`` (at most 5),
    ``grid``: as in ``viz.attention.maps.attention_row``, of two models at ``attention_layer``.
    ``views`` two (H, W, 3) uint8 images, ``indices`` their two (g, g) index grids, ``share`` the mean
    share of unchanged indices over the images measured. ``headings`` of up to 28 letters fit.
    ``UserError`` on wrong shapes, more than two models, or names too long for the place.
    """
    longest = max((len(name) for name in tables), default=0)
    require(
        len(tables) <= 2 and longest <= 8,
        f"tables names {', '.join(tables)}; the overview has room for two names of up to 8 letters",
    )
    figure = new_figure(_WIDTH, _HEIGHT, layout=None)
    _head(figure, 0.12, 0.22, headings[0])
    axes = place_axes(figure, 0.62, 0.46, 2.62, 3.38)
    draw_probe_curves(axes, tables, layer, total_steps=total_steps, chance=chance)
    _head(figure, _RIGHT, 0.22, f"{headings[1]} (layer {attention_layer})")
    _draw_attention(figure, image, maps_by_model, class_weights, steps, grid)
    _head(figure, _RIGHT, 3.02, headings[2])
    _draw_tokens(figure, views, indices, view_labels, share)
    return figure


def _head(figure: Figure, left: float, top: float, text: str) -> None:
    figure.text(left / _WIDTH, 1 - top / _HEIGHT, in_heading(text), va="center", weight="bold", size=11)


def _draw_attention(
    figure: Figure,
    image: np.ndarray,
    maps_by_model: Mapping[str, np.ndarray],
    class_weights: Mapping[str, np.ndarray],
    steps: Sequence[int],
    grid: int,
) -> None:
    names = list(maps_by_model)
    require(len(names) == 2, f"maps_by_model holds {len(names)} models; expected two to compare")
    require(set(names) == set(class_weights), "class_weights and maps_by_model name different models")
    require(1 <= len(steps) <= 5, f"steps is {list(steps)}; the overview has room for 1 to 5")
    checked = [
        check_maps(name, maps_by_model[name], class_weights[name], (len(steps),), steps, grid)
        for name in names
    ]
    norm = heat_scale([maps for maps, _, _ in checked], None)
    more = "+" if max(maps.max() for maps, _, _ in checked) > norm.vmax else ""
    figure.text(
        1 - 0.1 / _WIDTH, 1 - 0.22 / _HEIGHT, f"darker: more weight (0 to {norm.vmax:.2g}{more})",
        size=7.5, ha="right", va="center", color=MUTED,
    )  # fmt: skip
    gap, name_width = 0.09, 0.22
    room = _WIDTH - 0.1 - _RIGHT - name_width
    side = min((room - gap * (len(steps) - 1)) / len(steps) / PANEL_ASPECT, 0.83)
    styles = model_styles(names)
    for row, (name, (maps, weights, steps)) in enumerate(zip(names, checked, strict=True)):
        for column, step in enumerate(steps):
            left = _RIGHT + name_width + column * (side * PANEL_ASPECT + gap)
            axes = place_axes(figure, left, 0.62 + row * (side + 0.21), side * PANEL_ASPECT, side)
            draw_panel(
                axes, image, maps[column], step=step, grid=grid, class_weight=float(weights[column]),
                norm=norm, number_size=7.5,
            )  # fmt: skip
            if row == 0:
                axes.text(grid / 2, -0.06 * grid, f"step {step}", ha="center", va="bottom", size=8.5)
            if column == 0:
                axes.text(
                    -0.07 * grid, grid / 2, legible(name), rotation=90, ha="right", va="center", size=9,
                    weight="bold", color=styles[name]["color"],
                )  # fmt: skip
    words = ("current token", "most attended", "not yet seen", "class weight")
    figure.legend(
        legend_handles(5), words, ncols=4, loc="center left", fontsize=8, handlelength=1,
        handleheight=1, borderaxespad=0, borderpad=0, columnspacing=0.9, handletextpad=0.4,
        bbox_to_anchor=((_RIGHT + name_width) / _WIDTH, 1 - 2.73 / _HEIGHT),
    )  # fmt: skip


def _draw_tokens(
    figure: Figure,
    views: Sequence[np.ndarray],
    indices: Sequence[np.ndarray],
    labels: Sequence[str],
    share: float | None,
) -> None:
    require(
        len(views) == len(indices) == len(labels) == 2, "expected two views, index grids and labels"
    )
    grids = [check_indices("indices", values) for values in indices]
    require(
        grids[0].shape == grids[1].shape, f"index grids {grids[0].shape} and {grids[1].shape} differ"
    )
    changed = grids[0] != grids[1]
    side, top = 0.92, 3.36
    for place, (view, label) in enumerate(zip(views, labels, strict=True)):
        axes = place_axes(figure, _RIGHT + 0.02 + place * (side + 0.12), top, side, side)
        axes.imshow(check_image("a view", view), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        axes.set_title(legible(label), size=8.5, weight="normal", pad=3)
    axes = place_axes(figure, _RIGHT + 0.02 + 2 * side + 0.3, top, side, side)
    draw_indices(axes, grids[1], changed)
    axes.set_title("changed tokens", size=8.5, weight="normal", pad=3)
    left = (_RIGHT + 0.02 + 3 * side + 0.44) / _WIDTH
    figure.text(
        left, 1 - (top + 0.2) / _HEIGHT, f"{100 * changed.mean():.0f} %", size=16, weight="bold",
        va="center", color=INK,
    )  # fmt: skip
    words = f"of {changed.size} token\nindices change"
    if share is not None:
        require(0 <= share <= 1, f"share is {share}; expected a fraction 0..1")
        words += f"\n({100 * (1 - share):.0f} % on average)"
    figure.text(
        left, 1 - (top + 0.38) / _HEIGHT, words, size=8.5, va="top", color=MUTED, linespacing=1.3
    )
