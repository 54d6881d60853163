"""Attributions beside attention: which tokens of the prefix a step's score owes itself to.

One row an image: the image, one panel a method with signed contributions (purple adds to the score,
orange takes from it, as clear as they are small), and the attention of the same step. A method's panels
share one scale, centred at zero and stated below them (pointed where darker means more); methods have
their own, for gradient x input may be far smaller than the others. The bar beside a map is the class.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.transforms import Bbox

from viz.base.checks import check_image, require
from viz.base.names import in_heading, labels, legible
from viz.base.panel import (
    PANEL_ASPECT,
    check_maps,
    draw_panel,
    draw_scale,
    heat_scale,
    outline_cells,
    place_axes,
    points_high,
    unseen_outline,
)
from viz.base.style import CURRENT, INK, MUTED, UNSEEN, new_figure, styled

__all__ = ["MOST_IMAGES", "SIGNED_MAP", "attribution_panels", "signed_scale"]

MOST_IMAGES = 4
# ColorBrewer's PuOr ends, colour-blind safe; nothing is clear, so that the image shows where it is.
NEGATIVE, POSITIVE = "#B35806", "#542788"
SIGNED_MAP = LinearSegmentedColormap.from_list(
    "contribution",
    [(*to_rgb(NEGATIVE), 0.95), (*to_rgb("#F1A340"), 0.7), (0.97, 0.97, 0.97, 0.0),
     (*to_rgb("#998EC3"), 0.7), (*to_rgb(POSITIVE), 0.95)],
)  # fmt: skip

_WIDTH, _LEFT, _GAP = 11.0, 0.5, 0.16  # inches
_HEAD, _TITLES, _NOTES, _FOOT = 0.5, 0.34, 0.62, 1.05


@styled
def attribution_panels(
    images: Sequence[np.ndarray],
    contributions: np.ndarray,
    attention: np.ndarray,
    *,
    step: int,
    grid: int,
    methods: Sequence[str],
    names: Sequence[str],
    scores: np.ndarray,
    gaps: np.ndarray,
    correlations: np.ndarray,
    unit: str,
    predicted: bool = True,
    title: str | None = None,
) -> Figure:
    """Images down; the image, the methods and the attention across.

    ``images`` R of (H, W, 3) uint8; ``contributions`` (R, M, 1 + T), the class first, 0 where step
    ``step`` has not seen; ``attention`` (R, 1 + T); ``scores`` (R, 2) of the input and the baseline;
    ``gaps`` (R, M) completeness gaps in ``unit`` and ``correlations`` (R, M) with attention (NaN:
    undefined), both written below the panels; ``predicted``: frame the token that the step predicts.
    ``UserError`` on a wrong shape, too many images, or a contribution of an unseen token.
    """
    images = [check_image("image", image) for image in images]
    shape = (len(images), len(methods), 1 + grid * grid)
    require(
        1 <= shape[0] <= MOST_IMAGES,
        f"{shape[0]} images were given; one picture shows 1 to {MOST_IMAGES}",
    )
    require(len(names) == shape[0], f"{len(names)} names were given for {shape[0]} images")
    names = labels(names, "image", first=1, most=22)
    values = _check_contributions(contributions, shape, step)
    scores = _check_shape("scores", scores, (shape[0], 2))
    gaps = _check_shape("gaps", gaps, shape[:2])
    correlations = _check_shape("correlations", correlations, shape[:2])
    attention = _check_shape("attention", attention, shape[::2])
    maps, classes, _ = check_maps(
        "attention", attention[:, None, 1:], attention[:, :1], (shape[0], 1), [step], grid
    )
    heat = heat_scale([maps], None)
    scales = [signed_scale(values[:, place, 1:]) for place in range(len(methods))]
    figure, panels = _layout(shape[0], len(methods) + 2)
    heading = in_heading(title or f"What step {step} owes to what it has seen")
    height = figure.get_figheight()
    figure.text(0.15 / _WIDTH, 1 - 0.25 / height, heading, va="center", weight="bold", size=12)
    for axes, said in zip(panels[0], ["image", *map(legible, methods), "attention"], strict=True):
        axes.text(grid / 2, -0.08 * grid, said, ha="center", va="bottom", weight="bold")
    for row, (image, (own, *middle, last)) in enumerate(zip(images, panels, strict=True)):
        _draw_image(own, image, step, grid)
        _note(own, grid, f"score {scores[row, 0]:+.3g} {unit}", f"baseline {scores[row, 1]:+.3g}")
        own.text(
            -0.06 * grid, grid / 2, names[row], ha="right", va="center", rotation=90,
            weight="bold", size=9,
        )  # fmt: skip
        for place, axes in enumerate(middle):
            _draw_contributions(axes, image, values[row, place], step, grid, scales[place])
            agreement = _number(correlations[row, place])
            _note(axes, grid, f"gap {gaps[row, place]:+.2g}", f"rank corr. {agreement}")
        draw_panel(
            last, image, maps[row, 0], step=step, grid=grid, norm=heat, top=0,
            class_weight=float(classes[row, 0]),
        )  # fmt: skip
        for axes in panels[row] if predicted else ():
            _frame_predicted(axes, step - 1, grid)
    over = [bool(np.abs(values[:, i]).max() > scale.vmax) for i, scale in enumerate(scales)]
    over.append(bool(maps.max() > heat.vmax))
    _draw_foot(figure, panels[0], [*scales, heat], over, unit, predicted)
    return figure


def _layout(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """The figure and its panels, row by row."""
    panel = (_WIDTH - _LEFT - 0.15 - _GAP * (columns - 1)) / columns  # a map and its bar
    side = panel / PANEL_ASPECT
    head, height = _HEAD + _TITLES, side + _NOTES
    figure = new_figure(_WIDTH, head + rows * height + _FOOT, layout=None)
    return figure, [
        [
            place_axes(figure, _LEFT + column * (panel + _GAP), head + row * height, panel, side)
            for column in range(columns)
        ]
        for row in range(rows)
    ]


def _draw_foot(
    figure: Figure,
    panels: list[Axes],
    scales: list[Normalize],
    over: list[bool],
    unit: str,
    predicted: bool,
) -> None:
    """A scale below each column but the first, pointed where values go ``over`` it, and the key."""
    height = figure.get_figheight()
    places = [
        Bbox.from_bounds(box.x0, 0.88 / height, box.width / PANEL_ASPECT, 0.12 / height)
        for box in (axes.get_position() for axes in panels[1:])
    ]
    for place, scale, clipped in zip(places[:-1], scales[:-1], over[:-1], strict=True):
        _draw_signed_scale(figure, place, scale, clipped, unit)
    draw_scale(figure, places[-1], scales[-1], clipped=over[-1], label="attention weight")
    figure.legend(
        handles=_legend(predicted), ncols=6, loc="lower left", handlelength=1.3, handleheight=1.2,
        bbox_to_anchor=(_LEFT / _WIDTH, 0.1 / height), columnspacing=1.4, borderaxespad=0,
    )  # fmt: skip


def signed_scale(values_RT: np.ndarray) -> Normalize:
    """-m..m, m the median over panels of their largest absolute value, rounded up to two digits.

    The median keeps one panel with a large contribution from turning the others pale. 1 if all are 0.
    """
    largest = np.abs(values_RT).max(axis=-1)
    largest = largest[largest > 0]
    most = float(np.median(largest)) if largest.size else 1.0
    unit = 10.0 ** (math.floor(math.log10(most)) - 1)
    most = math.ceil(most / unit - 1e-9) * unit
    return Normalize(-most, most, clip=True)


def _check_shape(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    require(values.shape == shape, f"{name} has shape {values.shape}; expected {shape}")
    return values


def _check_contributions(values: np.ndarray, shape: tuple[int, ...], step: int) -> np.ndarray:
    values = _check_shape("contributions", values, shape)
    require(bool(np.isfinite(values).all()), "contributions must be finite")
    require(1 <= step < shape[2], f"step is {step}; expected 1 to {shape[2] - 1}")
    require(
        not values[..., step:].any(),
        f"contributions of tokens that step {step} has not seen; it sees tokens 1..{step - 1}",
    )
    return values


def _draw_image(axes: Axes, image: np.ndarray, step: int, grid: int) -> None:
    axes.imshow(image, extent=(0, grid, grid, 0), interpolation="nearest")
    _finish(axes, step, grid)


def _draw_contributions(
    axes: Axes, image: np.ndarray, values: np.ndarray, step: int, grid: int, norm: Normalize
) -> None:
    extent = (0, grid, grid, 0)
    grey = 255 - 0.35 * (255 - image.mean(axis=2))  # colours in the panel are contributions alone
    axes.imshow(grey, extent=extent, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    shown = SIGNED_MAP(norm(values[1:].reshape(grid, grid)))
    axes.imshow(shown, extent=extent, interpolation="nearest")
    _finish(axes, step, grid)
    left, width = 1.05 * grid, 0.07 * grid
    axes.add_patch(
        Rectangle(
            (left, 0), width, grid, facecolor=SIGNED_MAP(norm(values[0])), edgecolor=MUTED,
            linewidth=0.6,
        )
    )  # fmt: skip
    axes.annotate(
        f"{values[0]:+.2g}", (left + width, grid), (0, -2), ha="right", va="top",
        textcoords="offset points", fontsize=8, annotation_clip=False,
    )  # fmt: skip


def _finish(axes: Axes, step: int, grid: int) -> None:
    """What is not seen, the newest token, the border."""
    seen = step - 1
    colour = (*to_rgb(UNSEEN), 0.82)
    axes.add_patch(
        Polygon(
            unseen_outline(seen, grid), facecolor=colour, edgecolor="#9A9A9A", hatch="////",
            linewidth=0,
        )
    )  # fmt: skip
    if seen:
        outline_cells(axes, [seen - 1], grid, CURRENT, _cell(axes, grid), filled=False)
    axes.add_patch(Rectangle((0, 0), grid, grid, fill=False, edgecolor=MUTED, linewidth=0.6))
    axes.set_xlim(0, PANEL_ASPECT * grid)
    axes.set_ylim(grid, 0)
    axes.set_axis_off()


def _frame_predicted(axes: Axes, place: int, grid: int) -> None:
    row, column = divmod(place, grid)
    axes.add_patch(
        Rectangle((column + 0.08, row + 0.08), 0.84, 0.84, fill=False, edgecolor=INK, linewidth=1.6)
    )


def _cell(axes: Axes, grid: int) -> float:
    """Side of a cell in points."""
    return points_high(axes) / grid


def _note(axes: Axes, grid: int, first: str, second: str) -> None:
    axes.annotate(
        f"{first}\n{second}", (0, grid), (0, -3), ha="left", va="top", textcoords="offset points",
        fontsize=8, annotation_clip=False, linespacing=1.35,
    )  # fmt: skip


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:+.2f}"


def _draw_signed_scale(figure: Figure, place: Bbox, norm: Normalize, clipped: bool, unit: str) -> None:
    axes = figure.add_axes(place.bounds)
    bar = figure.colorbar(
        ScalarMappable(norm, SIGNED_MAP), cax=axes, orientation="horizontal",
        extend="both" if clipped else "neither", label=f"contribution ({unit})",
    )  # fmt: skip
    bar.outline.set_linewidth(0.5)
    assert norm.vmin is not None and norm.vmax is not None
    axes.set_xticks([norm.vmin, 0, norm.vmax], [f"{norm.vmin:+.2g}", "0", f"{norm.vmax:+.2g}"])
    axes.tick_params(labelsize=8)


def _legend(predicted: bool) -> list[Patch]:
    handles = [
        Patch(facecolor=SIGNED_MAP(0.95), label="adds to the score"),
        Patch(facecolor=SIGNED_MAP(0.05), label="takes from it"),
        Patch(facecolor="none", edgecolor=CURRENT, linewidth=2, label="newest token seen"),
        Patch(facecolor=UNSEEN, edgecolor="#9A9A9A", hatch="/////", linewidth=0, label="not yet seen"),
        Patch(facecolor="none", edgecolor=MUTED, linewidth=0.8, label="bar: the class"),
    ]
    if predicted:
        handles.insert(
            3, Patch(facecolor="none", edgecolor=INK, linewidth=1.6, label="token predicted")
        )
    return handles
