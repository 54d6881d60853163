"""One attention panel: a faded image, the heat of one query's attention, and what stands out in it.

At step t (1..T) the query has seen the class and the image tokens 1..t-1 in raster order. A panel shows
the weight of the query on each of them as colour; the **current token** t-1, the newest one seen, red;
the **most attended tokens** yellow; what is not yet seen grey and hatched; and, as a bar beside the
map, the weight on the class token, which has no place in the image. Step 1 has seen only the class.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.transforms import Bbox

from viz.base.checks import check_image, check_steps, require
from viz.base.style import CURRENT, HEAT_MAP, INK, MUTED, TOP, UNSEEN

__all__ = [
    "PANEL_ASPECT",
    "check_maps",
    "draw_backdrop",
    "draw_panel",
    "draw_query",
    "draw_scale",
    "heat_scale",
    "legend_handles",
    "most_attended",
    "outline_cells",
    "place_axes",
    "points_high",
    "unseen_outline",
]

PANEL_ASPECT = 1.2  # a panel is its map (1 x 1) and the bar of the class weight
_BAR_LEFT, _BAR_WIDTH = 1.05, 0.07  # of the bar, in sides of the map
_SHARE = 0.5
_LEAST = 0.02  # of all weight: below, the class has all but noise, and no token stands out
_SMALL = 7  # points: cells this small have room for one frame


def most_attended(weights_T: np.ndarray, *, top: int = 5, share: float = _SHARE) -> list[int]:
    """Places (0-based) of the fewest image tokens holding ``share`` of the weight, at most ``top``."""
    total = float(np.sum(weights_T))
    if total < _LEAST or top < 1:
        return []
    order = np.argsort(-weights_T, kind="stable")[:top]
    held = np.cumsum(weights_T[order])
    enough = int(np.searchsorted(held, share * total * (1 - 1e-9))) + 1
    return [int(place) for place in order[:enough] if weights_T[place] > 0]


def check_maps(
    name: str,
    maps: np.ndarray,
    class_weights: np.ndarray,
    shape: tuple[int, ...],
    steps: Sequence[int],
    grid: int,
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """``(maps, class_weights, steps)``, the first two as arrays of ``shape`` (+ T), all checked.

    The last axis of ``shape`` is the steps. ``UserError`` on a wrong shape, a negative or non-finite
    weight, one above 1, or weight on a token that step t has not seen. (Weights of a query need not
    sum to 1: the largest over heads do not.)
    """
    require(grid >= 1, f"grid is {grid}; expected at least 1")
    steps = check_steps(steps, grid * grid)
    maps, class_weights = np.asarray(maps, dtype=float), np.asarray(class_weights, dtype=float)
    expected = (*shape, grid * grid)
    require(maps.shape == expected, f"{name}: maps have shape {maps.shape}; expected {expected}")
    require(
        class_weights.shape == shape,
        f"{name}: class weights have shape {class_weights.shape}; expected {shape}",
    )
    finite = np.isfinite(maps).all() and np.isfinite(class_weights).all()
    require(
        bool(finite) and maps.min() >= 0 and class_weights.min() >= 0,
        f"{name}: attention weights must be finite and not negative",
    )
    most = max(float(maps.max()), float(class_weights.max()))
    require(most <= 1.01, f"{name}: an attention weight is {most:.3g}; expected at most 1")
    unseen = np.arange(grid * grid) >= np.asarray(steps)[:, None] - 1
    require(
        float((maps * unseen).max()) <= 1e-6,
        f"{name}: weight on tokens that the step has not seen; step t sees tokens 1..t-1",
    )
    return maps, class_weights, steps


def heat_scale(maps: Sequence[np.ndarray], scale_max: float | None) -> Normalize:
    """The shared colour scale of panels: 0 to ``scale_max``, else to the panels' median largest weight.

    Early steps share all weight among few tokens; the median keeps them from turning every other panel
    pale. It is rounded up to two digits, so that the colour bar can say it.
    """
    if scale_max is None:
        largest = np.concatenate([values.max(axis=-1).ravel() for values in maps])
        largest = largest[largest > 0]
        scale_max = float(np.median(largest)) if largest.size else 1.0
        unit = 10.0 ** (math.floor(math.log10(scale_max)) - 1)
        scale_max = min(math.ceil(scale_max / unit - 1e-9) * unit, 1.0)
    require(scale_max > 0, f"scale_max is {scale_max}; expected a positive weight")
    return Normalize(0, scale_max, clip=True)


def draw_panel(
    axes: Axes,
    image: np.ndarray,
    weights_T: np.ndarray,
    *,
    step: int,
    grid: int,
    class_weight: float,
    norm: Normalize,
    top: int = 5,
    number_size: float = 8,
) -> None:
    """Draw one panel into ``axes``; its map spans 0..grid in both axes, the bar stands right of it."""
    draw_backdrop(axes, image, grid)
    draw_query(
        axes, weights_T, step=step, grid=grid, class_weight=class_weight, norm=norm, top=top,
        number_size=number_size,
    )  # fmt: skip


def draw_backdrop(axes: Axes, image: np.ndarray, grid: int) -> None:
    """The part of a panel that is the same at every step: the faded image and the bar's frame."""
    image = check_image("image", image)
    # Half the colour and light: still recognisable, and the heat keeps its colours.
    faded = 0.5 * image.mean(axis=2, keepdims=True) + 0.5 * image
    faded = (255 - 0.42 * (255 - faded)).astype(np.uint8)
    axes.imshow(faded, extent=(0, grid, grid, 0), interpolation="nearest")
    axes.add_patch(
        Rectangle(
            (_BAR_LEFT * grid, 0), _BAR_WIDTH * grid, grid, facecolor="white", edgecolor=MUTED,
            linewidth=0.6,
        )
    )  # fmt: skip
    axes.set_xlim(0, PANEL_ASPECT * grid)
    axes.set_ylim(grid, 0)
    axes.set_axis_off()


def draw_query(
    axes: Axes,
    weights_T: np.ndarray,
    *,
    step: int,
    grid: int,
    class_weight: float,
    norm: Normalize,
    top: int = 5,
    number_size: float = 8,
) -> list[Artist]:
    """Draw the part of a panel that belongs to ``step``; returns its artists in drawing order."""
    extent = (0, grid, grid, 0)
    heat = HEAT_MAP(norm(weights_T.reshape(grid, grid)))
    artists: list[Artist] = [axes.imshow(heat, extent=extent, interpolation="nearest")]
    axes.set_xlim(0, PANEL_ASPECT * grid)  # imshow has set them to the map alone
    axes.set_ylim(grid, 0)
    seen = step - 1
    unseen = Polygon(
        unseen_outline(seen, grid), facecolor=(*_rgb(UNSEEN), 0.82), edgecolor="#9A9A9A",
        hatch="////", linewidth=0,
    )  # fmt: skip
    artists.append(axes.add_patch(unseen))
    cell = points_high(axes) / grid
    artists += outline_cells(axes, most_attended(weights_T, top=top), grid, TOP, cell)
    if seen:
        artists += outline_cells(axes, [seen - 1], grid, CURRENT, cell, filled=cell < _SMALL)
    frame = Rectangle((0, 0), grid, grid, fill=False, edgecolor=MUTED, linewidth=0.6)
    artists.append(axes.add_patch(frame))
    return artists + _fill_bar(axes, grid, class_weight, number_size)


def draw_scale(figure: Figure, place: Bbox, norm: Normalize, *, clipped: bool, label: str) -> Axes:
    """A horizontal colour bar of the heat at ``place`` (figure fraction), over white as in the key."""
    assert norm.vmax is not None
    axes = figure.add_axes(place.bounds)
    figure.colorbar(
        ScalarMappable(norm, HEAT_MAP), cax=axes, orientation="horizontal", label=label,
        extend="max" if clipped else "neither", ticks=[0, norm.vmax / 2, norm.vmax], format="%.2g",
    ).outline.set_linewidth(0.5)  # fmt: skip
    axes.tick_params(labelsize=9)
    return axes


def legend_handles(top: int) -> list[Patch]:
    """The key of a panel, for a legend: current token, most attended tokens, unseen, class bar."""
    dark = HEAT_MAP(0.8)
    return [
        Patch(facecolor="none", edgecolor=CURRENT, linewidth=2, label="current token (newest seen)"),
        Patch(
            facecolor=dark, edgecolor=TOP, linewidth=2,
            label=f"most attended: hold half of the image weight, at most {top}",
        ),
        Patch(facecolor=UNSEEN, edgecolor="#9A9A9A", hatch="/////", linewidth=0, label="not yet seen"),
        Patch(facecolor=INK, label="bar: weight on the class (0 to 1)"),
    ]  # fmt: skip


def place_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the figure's top left corner."""
    total_width, total_height = figure.get_size_inches()
    bottom = total_height - top - height
    return figure.add_axes(
        (left / total_width, bottom / total_height, width / total_width, height / total_height)
    )


def points_high(axes: Axes) -> float:
    """Height of ``axes`` in points."""
    assert isinstance(axes.figure, Figure)  # none of the pictures has figures inside
    return axes.get_position().height * axes.figure.get_figheight() * 72


def unseen_outline(seen: int, grid: int) -> list[tuple[float, float]]:
    """Corners of the area after the first ``seen`` cells in raster order."""
    row, column = divmod(seen, grid)
    if column == 0:
        return [(0, row), (grid, row), (grid, grid), (0, grid)]
    return [(column, row), (grid, row), (grid, grid), (0, grid), (0, row + 1), (column, row + 1)]


def outline_cells(
    axes: Axes, places: list[int], grid: int, colour: str, cell: float, filled: bool = False
) -> list[Artist]:
    """Frame cells; the line (points) stays within a fifth of the cell (points)."""
    width = min(max(cell / 7, 0.8), 2.2)
    # The current token's frame lies outside of the yellow one, so that a cell can carry both; cells too
    # small for two frames have the current one filled.
    inset = (0.5 if colour == CURRENT or cell < _SMALL else 1.4) * width / cell
    artists: list[Artist] = []
    for place in places:
        row, column = divmod(place, grid)
        side = max(1 - 2 * inset, 0.4)
        frame = Rectangle(
            (column + (1 - side) / 2, row + (1 - side) / 2), side, side, fill=filled,
            facecolor=colour, edgecolor=colour, linewidth=width, joinstyle="miter",
        )  # fmt: skip
        artists.append(axes.add_patch(frame))
    return artists


def _fill_bar(axes: Axes, grid: int, weight: float, number_size: float) -> list[Artist]:
    left, width = _BAR_LEFT * grid, _BAR_WIDTH * grid
    fill = Rectangle((left, grid * (1 - weight)), width, grid * weight, facecolor=INK, linewidth=0)
    number = axes.annotate(
        f"{weight:.2f}".removeprefix("0"), (left + width / 2, grid), (0, -2), ha="center", va="top",
        textcoords="offset points", fontsize=number_size, annotation_clip=False,
    )  # fmt: skip
    return [axes.add_patch(fill), number]


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
