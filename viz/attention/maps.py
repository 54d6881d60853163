"""Attention maps over the image: the paper's Figures 1(a), 2 and 5, models and heads compared.

Every function takes weights that are already reduced to one query a panel (``viz.base.panel`` says
what a panel shows) and draws all panels on one stated colour scale, so that panels can be compared.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from viz.base.checks import check_image, require
from viz.base.names import in_heading, legible
from viz.base.panel import (
    PANEL_ASPECT,
    check_maps,
    draw_panel,
    draw_scale,
    heat_scale,
    legend_handles,
    place_axes,
)
from viz.base.style import INK, MUTED, RULE, model_styles, new_figure, shorten, styled

__all__ = [
    "attention_compare",
    "attention_grid",
    "attention_heads",
    "attention_row",
    "check_legible",
    "check_models",
    "draw_heading",
]

_WIDTH = 9.6  # inches: 1536 pixels, about what a README shows at half size
_MOST_STEPS = 16  # panels side by side; in smaller ones no token can be told from the next
_MOST_ROWS = 96  # a longer picture is past what viewers and PDF readers open
_GAP = 0.12
_NUMBER = 0.2  # below each map, for the class weight
_LETTER = 0.0092  # inches a point of a bold letter, on average
_LETTERS = 13  # of a line of a name that stands beside its row
_BESIDE = 0.95  # inches for such a line
_GROUP_GAP = 0.14  # between layers, where each holds a row a model


@dataclass(frozen=True)
class _Row:
    """One row of panels: ``maps`` (steps, T) and ``class_weights`` (steps,) over ``image``."""

    name: str
    image: np.ndarray
    maps: np.ndarray
    class_weights: np.ndarray
    colour: str = INK
    group: str | None = None


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
    note: str | None = None,
    scale_max: float | None = None,
    top: int = 5,
) -> Figure:
    """Layers down, steps across: Figures 2 and 5.

    ``image`` (H, W, 3) uint8; ``maps`` (layers, steps, T) with T = grid²: the weight of the query at
    step t on each image token, 0 where unseen; ``class_weights`` (layers, steps): its weight on the
    class token. ``note`` is a line below the title. ``scale_max`` is the weight of the darkest colour
    (default: the median over panels of their largest weight); ``top`` bounds the number of yellow
    tokens. ``UserError`` on a wrong shape or on weight that lies on an unseen token.
    """
    names = [f"layer {layer}" for layer in layers]
    rows, steps = _rows("attention", image, maps, class_weights, names, steps, grid)
    title = title or "Attention by layer (down) and step (across)"
    return _panels(rows, steps, grid, title, note, scale_max, top)


@styled
def attention_heads(
    image: np.ndarray,
    maps: np.ndarray,
    *,
    layer: int,
    steps: Sequence[int],
    grid: int,
    class_weights: np.ndarray,
    title: str | None = None,
    note: str | None = None,
    scale_max: float | None = None,
    top: int = 5,
) -> Figure:
    """The heads of one layer down, steps across. ``maps`` (heads, steps, T), the rest as above."""
    names = [f"head {head}" for head in range(1, len(maps) + 1)]
    rows, steps = _rows("attention", image, maps, class_weights, names, steps, grid)
    title = title or f"Attention of the heads of layer {layer}"
    return _panels(rows, steps, grid, title, note, scale_max, top)


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
    maps, weights = np.asarray(maps)[None], np.asarray(class_weights)[None]
    rows, steps = _rows("attention", image, maps, weights, [f"layer {layer}"], steps, grid)
    title = title or f"Attention of layer {layer} over the steps"
    return _panels(rows, steps, grid, title, None, scale_max, top)


@styled
def attention_compare(
    images: np.ndarray | Mapping[str, np.ndarray],
    maps_by_model: Mapping[str, np.ndarray],
    *,
    layers: Sequence[int],
    steps: Sequence[int],
    grid: int,
    class_weights: Mapping[str, np.ndarray],
    title: str | None = None,
    note: str | None = None,
    scale_max: float | None = None,
    top: int = 5,
) -> Figure:
    """For every layer the models under each other, steps across.

    ``images``: one image, or one a model; ``maps_by_model[name]`` (layers, steps, T) and
    ``class_weights[name]`` (layers, steps); the rest as in ``attention_grid``.
    """
    images = check_models(images, maps_by_model, class_weights)
    styles = model_styles(maps_by_model)
    names = [f"layer {layer}" for layer in layers]
    by_model = {
        name: _rows(name, images[name], maps, class_weights[name], names, steps, grid)[0]
        for name, maps in maps_by_model.items()
    }
    rows = [
        _Row(legible(name), row.image, row.maps, row.class_weights, styles[name]["color"], group)
        for place, group in enumerate(names)
        for name, row in ((name, of_model[place]) for name, of_model in by_model.items())
    ]
    title = title or "Attention by layer and step, model by model"
    return _panels(rows, list(steps), grid, title, note, scale_max, top)


def check_models(
    images: np.ndarray | Mapping[str, np.ndarray],
    maps_by_model: Mapping[str, np.ndarray],
    class_weights: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The image of each model; ``UserError`` unless all three speak of the same models."""
    names = list(maps_by_model)
    require(len(names) > 0, "maps_by_model is empty; expected at least one model")
    if not isinstance(images, Mapping):
        images = dict.fromkeys(names, images)
    for what, given in (("class_weights", class_weights), ("images", images)):
        require(
            set(names) == set(given),
            f"{what} is of {', '.join(given)}; expected the models {', '.join(names)}",
        )
    return dict(images)


def check_legible(steps: Sequence[int], rows: int = 1) -> None:
    """Raise ``UserError`` for more steps side by side, or rows, than one picture can show."""
    require(
        len(steps) <= _MOST_STEPS,
        f"{len(steps)} steps were asked for; one picture shows up to {_MOST_STEPS}: name the ones that "
        "matter, such as --at 12,40,64",
    )
    require(
        rows <= _MOST_ROWS,
        f"{rows} rows of maps were asked for; one picture shows up to {_MOST_ROWS}: name fewer layers",
    )


def draw_heading(figure: Figure, title: str, note: str | None) -> None:
    """Title, and a small line below it, at the figure's top left, cut to its width."""
    width, height = figure.get_size_inches()
    title, note = in_heading(title), in_heading(note or "")
    upper = figure.text(0.15 / width, 1 - 0.2 / height, title, va="center", weight="bold", size=12)
    lower = figure.text(0.15 / width, 1 - 0.43 / height, note, va="center", size=9, color=MUTED)
    for text in (upper, lower):
        while text.get_window_extent().x1 > figure.bbox.x1 - 0.1 * figure.dpi:
            text.set_text(shorten(text.get_text(), len(text.get_text()) - 2))


def _rows(
    name: str,
    image: np.ndarray,
    maps: np.ndarray,
    class_weights: np.ndarray,
    names: list[str],
    steps: Sequence[int],
    grid: int,
) -> tuple[list[_Row], list[int]]:
    """Checked rows of ``maps`` (rows, steps, T), and the steps."""
    require(len(names) > 0, f"{name}: expected at least one layer, head or model")
    shape = (len(names), len(steps))
    maps, class_weights, steps = check_maps(name, maps, class_weights, shape, steps, grid)
    image = check_image("image", image)
    found = zip(names, maps, class_weights, strict=True)
    return [_Row(label, image, of_row, weights) for label, of_row, weights in found], steps


def _panels(
    rows: list[_Row],
    steps: Sequence[int],
    grid: int,
    title: str,
    note: str | None,
    scale_max: float | None,
    top: int,
) -> Figure:
    """The common layout, in inches: title, steps across, named rows, key and colour bar below."""
    check_legible(steps, len(rows))
    norm = heat_scale([row.maps for row in rows], scale_max)
    grouped = rows[0].group is not None
    tall = max(1.1, 10 / len(rows))  # of one map: many rows of few steps stay short
    left = 0.65 if grouped else 0.35
    side = _side(left, len(steps), tall)
    size = 10 if len(steps) <= 10 else 8
    longest = max(len(row.name) for row in rows) * _LETTER * size
    beside = longest > side + _NUMBER  # too long to stand upright
    if beside:
        left += _BESIDE
    side = _side(left, len(steps), tall)
    panel = side * PANEL_ASPECT
    own_left, used = left, left + 0.15 + len(steps) * panel + _GAP * (len(steps) - 1)
    width = max(used, _WIDTH)
    left += (width - used) / 2  # fewer panels than fill the width stand in its middle
    head = 0.95 if note else 0.72
    tops = _tops(rows, head, side + _NUMBER + 0.06)
    figure = new_figure(width, tops[-1] + side + _NUMBER + 0.06 + 0.85, layout=None)
    draw_heading(figure, title, note)
    for row, y in zip(rows, tops, strict=True):
        for column, step in enumerate(steps):
            axes = place_axes(figure, left + column * (panel + _GAP), y, panel, side)
            draw_panel(
                axes, row.image, row.maps[column], step=step, grid=grid, norm=norm, top=top,
                class_weight=float(row.class_weights[column]),
            )  # fmt: skip
            if row is rows[0]:
                axes.text(grid / 2, -0.06 * grid, f"step {step}", ha="center", va="bottom", size=size)
            if column == 0:
                _name_row(axes, grid, row, beside, size)
    if grouped:
        names = left - 0.45 - _BESIDE * beside
        _name_groups(figure, rows, tops, side, names, left + used - own_left - 0.15)
    clipped = any(bool(row.maps.max() > norm.vmax) for row in rows)
    _draw_foot(figure, norm, clipped, top)
    return figure


def _side(left: float, steps: int, tall: float) -> float:
    """Side of a map, of ``steps`` in a row."""
    room = _WIDTH - left - 0.15 - _GAP * (steps - 1)
    return min(room / steps / PANEL_ASPECT, tall, 2.4)


def _tops(rows: list[_Row], head: float, height: float) -> list[float]:
    """Upper edge of each row; groups are further apart."""
    tops = [head]
    for before, row in itertools.pairwise(rows):
        tops.append(tops[-1] + height + (_GROUP_GAP if row.group != before.group else 0))
    return tops


def _name_row(axes: Axes, grid: int, row: _Row, beside: bool, size: float) -> None:
    place: dict[str, Any] = {"x": -0.06 * grid, "y": grid / 2, "ha": "right", "va": "center"}
    place["color"] = row.colour
    if not beside:
        axes.text(s=row.name, rotation=90, size=size, weight="bold", **place)
        return
    lines = textwrap.wrap(row.name, _LETTERS) or [row.name]
    if len(lines) > 4:
        lines = [*lines[:2], "…", lines[-1]]
    axes.text(s="\n".join(lines), size=8, weight="bold", linespacing=1.1, **place)


def _name_groups(
    figure: Figure, rows: list[_Row], tops: list[float], side: float, x: float, right: float
) -> None:
    """The layer's name at ``x`` inches, a line between layers up to ``right``."""
    width, height = figure.get_size_inches()
    for group in dict.fromkeys(row.group for row in rows if row.group is not None):
        own = [y for row, y in zip(rows, tops, strict=True) if row.group == group]
        middle = (own[0] + own[-1] + side) / 2
        figure.text(
            x / width, 1 - middle / height, group, rotation=90, ha="center", va="center", size=10,
            weight="bold", color=INK,
        )  # fmt: skip
        if own[0] > tops[0]:
            y = 1 - (own[0] - _GROUP_GAP / 2 - 0.03) / height
            figure.add_artist(
                Line2D([(x - 0.12) / width, right / width], [y, y], color=RULE, linewidth=0.8)
            )


def _draw_foot(figure: Figure, norm: Normalize, clipped: bool, top: int) -> None:
    width, height = figure.get_size_inches()
    place = Bbox.from_bounds(0.35 / width, 0.52 / height, 2.6 / width, 0.14 / height)
    note = f" (darkest: {norm.vmax:.2g} and more)" if clipped else ""
    draw_scale(figure, place, norm, clipped=clipped, label=f"attention weight{note}")
    figure.legend(
        handles=legend_handles(top), ncols=2, loc="lower right", handlelength=1.3, handleheight=1.2,
        bbox_to_anchor=(1 - 0.1 / width, 0.14 / height), columnspacing=1.4, borderaxespad=0,
    )  # fmt: skip
