"""Attention maps over the image: the paper's Figures 1(a), 2 and 5, and models side by side.

Every function takes weights that are already reduced to one query a panel (``viz.panel`` says what a
panel shows) and draws all panels on one stated colour scale, so that panels can be compared.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from viz.checks import check_image, require
from viz.panel import (
    PANEL_ASPECT,
    check_maps,
    draw_panel,
    draw_scale,
    heat_scale,
    legend_handles,
    place_axes,
)
from viz.style import INK, model_styles, new_figure, styled

__all__ = ["attention_compare", "attention_grid", "attention_row", "check_legible"]

_WIDTH = 9.6  # inches: 1536 pixels, about what a README shows at half size
_MOST_STEPS = 16  # panels side by side; in smaller ones no token can be told from the next
_GAP = 0.12
_NUMBER = 0.2  # below each map, for the class weight


@styled
def attention_grid(
    image: np.ndarray,
    maps: np.ndarray,
    *,
    layers: Sequence[int],
    steps: Sequence[int],
    grid: int,
    class_weights: np.ndarray,
    title: str | None = None,
    scale_max: float | None = None,
    top: int = 5,
) -> Figure:
    """Layers down, steps across: Figures 2 and 5.

    ``image`` (H, W, 3) uint8; ``maps`` (layers, steps, T) with T = grid²: the weight of the query at
    step t on each image token, 0 where unseen; ``class_weights`` (layers, steps): its weight on the
    class token. ``scale_max`` is the weight of the darkest colour (default: the median over panels of
    their largest weight); ``top`` bounds the number of yellow tokens. ``UserError`` on a wrong shape
    or on weight that lies on an unseen token.
    """
    rows = [f"layer {layer}" for layer in layers]
    shape = (len(rows), len(steps))
    require(len(rows) > 0, "layers is empty; expected at least one layer")
    maps, class_weights, steps = check_maps("attention", maps, class_weights, shape, steps, grid)
    return _panels(
        image, maps, class_weights, rows, [INK] * len(rows), steps, grid,
        title or "Attention by layer (down) and step (across)", scale_max, top,
    )  # fmt: skip


@styled
def attention_row(
    image: np.ndarray,
    maps: np.ndarray,
    *,
    layer: int,
    steps: Sequence[int],
    grid: int,
    class_weights: np.ndarray,
    title: str | None = None,
    scale_max: float | None = None,
    top: int = 5,
) -> Figure:
    """One layer, steps across, in large panels: Figure 1(a). ``maps`` (steps, T), the rest as above."""
    maps, class_weights, steps = check_maps(
        "attention", maps, class_weights, (len(steps),), steps, grid
    )
    return _panels(
        image, maps[None], class_weights[None], [f"layer {layer}"], [INK], steps, grid,
        title or f"Attention of layer {layer} over the steps", scale_max, top,
    )  # fmt: skip


@styled
def attention_compare(
    image: np.ndarray,
    maps_by_model: Mapping[str, np.ndarray],
    *,
    layer: int,
    steps: Sequence[int],
    grid: int,
    class_weights: Mapping[str, np.ndarray],
    title: str | None = None,
    scale_max: float | None = None,
    top: int = 5,
) -> Figure:
    """Models down, steps across, at one layer. ``maps_by_model[name]`` (steps, T) and
    ``class_weights[name]`` (steps,); the rest as in ``attention_grid``."""
    names = list(maps_by_model)
    require(len(names) > 0, "maps_by_model is empty; expected at least one model")
    require(
        set(names) == set(class_weights),
        f"class_weights is of {', '.join(class_weights)}; expected the models {', '.join(names)}",
    )
    checked = [
        check_maps(name, maps_by_model[name], class_weights[name], (len(steps),), steps, grid)
        for name in names
    ]
    colours = [style["color"] for style in model_styles(names).values()]
    maps = np.stack([maps for maps, _, _ in checked])
    weights = np.stack([weights for _, weights, _ in checked])
    return _panels(
        image, maps, weights, names, colours, checked[0][2], grid,
        title or f"Attention of layer {layer}, model by model", scale_max, top,
    )  # fmt: skip


def check_legible(steps: Sequence[int]) -> None:
    """Raise ``UserError`` for more steps than one picture can show side by side."""
    require(
        len(steps) <= _MOST_STEPS,
        f"{len(steps)} steps were asked for; one picture shows up to {_MOST_STEPS}: name the ones that "
        "matter, such as --at 12,40,64",
    )


def _panels(image, maps, class_weights, rows, colours, steps, grid, title, scale_max, top) -> Figure:
    """The common layout, in inches: title, steps across, named rows, key and colour bar below."""
    check_legible(steps)
    image = check_image("image", image)
    norm = heat_scale([maps], scale_max)
    left = 0.35
    panel = (_WIDTH - left - 0.15 - _GAP * (len(steps) - 1)) / len(steps)  # a map and its bar
    side = min(panel / PANEL_ASPECT, 2.4)
    panel = side * PANEL_ASPECT
    width = max(left + 0.15 + len(steps) * panel + _GAP * (len(steps) - 1), _WIDTH)
    # Fewer panels than fill the width stand in its middle.
    left += (width - left - 0.15 - len(steps) * panel - _GAP * (len(steps) - 1)) / 2
    head, row_height, foot = 0.72, side + _NUMBER + 0.06, 0.85
    figure = new_figure(width, head + len(rows) * row_height + foot, layout=None)
    figure.text(
        0.15 / width, 1 - 0.2 / figure.get_figheight(), title, va="center", weight="bold", size=12
    )
    size = 10 if len(steps) <= 10 else 8
    for row, name in enumerate(rows):
        for column, step in enumerate(steps):
            x, y = left + column * (panel + _GAP), head + row * row_height
            axes = place_axes(figure, x, y, panel, side)
            draw_panel(
                axes, image, maps[row, column], step=step, grid=grid, norm=norm, top=top,
                class_weight=float(class_weights[row, column]),
            )  # fmt: skip
            if row == 0:
                axes.text(grid / 2, -0.06 * grid, f"step {step}", ha="center", va="bottom", size=size)
            if column == 0:
                axes.text(
                    -0.06 * grid, grid / 2, name, ha="right", va="center", rotation=90, size=size,
                    color=colours[row], weight="bold",
                )  # fmt: skip
    _draw_foot(figure, norm, bool(maps.max() > norm.vmax), top)
    return figure


def _draw_foot(figure: Figure, norm, clipped: bool, top: int) -> None:
    width, height = figure.get_size_inches()
    place = Bbox.from_bounds(0.35 / width, 0.52 / height, 2.6 / width, 0.14 / height)
    note = f" (darkest: {norm.vmax:.2g} and more)" if clipped else ""
    draw_scale(figure, place, norm, clipped=clipped, label=f"attention weight{note}")
    figure.legend(
        handles=legend_handles(top), ncols=2, loc="lower right", handlelength=1.3, handleheight=1.2,
        bbox_to_anchor=(1 - 0.1 / width, 0.14 / height), columnspacing=1.4, borderaxespad=0,
    )  # fmt: skip
