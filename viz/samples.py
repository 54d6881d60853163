"""Generated images on one sheet: a row a class, or models side by side with real images."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viz.base.checks import check_images, require
from viz.base.names import in_heading, legible
from viz.base.names import labels as labels_of
from viz.base.panel import place_axes
from viz.base.style import MODEL_COLOURS, MUTED, new_figure, styled

__all__ = ["sample_compare", "sample_grid"]

_WIDTH = 9.6  # inches
_GAP = 0.04  # between images, as a share of one
_REAL = "real images"
_NAME = 28  # letters of a class name; longer ones leave no room for the images


@styled
def sample_grid(
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    title: str | None = None,
    columns: int = 10,
) -> Figure:
    """A row a class, its first ``columns`` images across, the class name at the left.

    ``images`` (N, H, W, 3) uint8; ``labels`` (N,) places in ``class_names``. Only classes with an image
    get a row; a row short of images ends in white. ``UserError`` on wrong shapes or labels.
    """
    images, labels = check_images("images", images), np.asarray(labels)
    require(columns >= 1, f"columns is {columns}; expected at least 1")
    require(
        labels.shape == (len(images),) and np.issubdtype(labels.dtype, np.integer),
        f"labels is {labels.dtype} {labels.shape}; expected {len(images)} whole numbers",
    )
    require(
        labels.min() >= 0 and labels.max() < len(class_names),
        f"labels span {labels.min()}..{labels.max()}; expected 0..{len(class_names) - 1}",
    )
    classes = np.unique(labels)
    rows = [images[labels == label][:columns] for label in classes]
    every = labels_of(class_names, most=_NAME)
    names = [every[label] for label in classes]
    columns = max(len(row) for row in rows)
    left = 0.25 + 0.085 * max(map(len, names))
    side = min((_WIDTH - left - 0.15) / columns, 0.85)
    aspect = images.shape[1] / images.shape[2]
    head = 0.5 if title else 0.12
    width = max(left + columns * side + 0.15, 0.3 + 0.115 * len(title or ""))  # room for the title
    figure = new_figure(width, head + len(rows) * side * aspect + 0.12, layout=None)
    axes = place_axes(figure, left, head, columns * side, len(rows) * side * aspect)
    _draw_sheet(axes, rows, columns)
    axes.set_yticks((np.arange(len(rows)) + 0.5) / len(rows), names)
    axes.tick_params(length=0, labelsize=10)
    if title:
        _draw_title(figure, title)
    return figure


@styled
def sample_compare(
    images: Mapping[str, np.ndarray],
    *,
    reference: np.ndarray | None = None,
    title: str | None = None,
    columns: int = 4,
) -> Figure:
    """One square-ish sheet per name side by side; ``reference`` adds real images as the first sheet.

    Each value (N, H, W, 3) uint8; all sheets show as many images as the shortest has.
    """
    require(len(images) > 0, "images is empty; expected at least one name with images")
    require(columns >= 1, f"columns is {columns}; expected at least 1")
    sheets = {} if reference is None else {_REAL: reference}
    sheets = {name: check_images(name, sheet) for name, sheet in {**sheets, **images}.items()}
    shown = min(len(sheet) for sheet in sheets.values())
    columns = min(columns, shown)
    rows = math.ceil(shown / columns)
    gap, head = 0.25, 0.75 if title else 0.4
    block = min((_WIDTH - 0.3 - gap * (len(sheets) - 1)) / len(sheets), 4.6)
    width = 0.3 + len(sheets) * block + gap * (len(sheets) - 1)
    figure = new_figure(width, head + block * rows / columns + 0.15, layout=None)
    for place, (name, sheet) in enumerate(sheets.items()):
        axes = place_axes(figure, 0.15 + place * (block + gap), head, block, block * rows / columns)
        _draw_sheet(
            axes,
            [sheet[row * columns : min((row + 1) * columns, shown)] for row in range(rows)],
            columns,
        )
        colour = MUTED if name == _REAL else MODEL_COLOURS.get(name, "#222222")
        axes.set_title(legible(name), color=colour, pad=5)
    if title:
        _draw_title(figure, title)
    return figure


def _draw_sheet(axes: Axes, rows: Sequence[np.ndarray], columns: int) -> None:
    """Images in cells of one axes (0..1 both ways), each at its own pixels, cells apart by a gap."""
    height, width = 1 / len(rows), 1 / columns
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            x, y = column * width, row * height
            extent = (x, x + width * (1 - _GAP), y + height * (1 - _GAP), y)
            axes.imshow(image, extent=extent, interpolation="nearest", aspect="auto")
    axes.set_xlim(0, 1 - width * _GAP)
    axes.set_ylim(1 - height * _GAP, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _draw_title(figure: Figure, title: str) -> None:
    width, height = figure.get_size_inches()
    text = in_heading(title)
    figure.text(0.15 / width, 1 - 0.25 / height, text, va="center", weight="bold", size=12)
