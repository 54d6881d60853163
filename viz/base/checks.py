"""Checks of what a caller hands to a drawing: one clear ``UserError`` line instead of a traceback."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from star.base.errors import UserError

__all__ = [
    "check_columns",
    "check_image",
    "check_images",
    "check_indices",
    "check_probe_cells",
    "check_steps",
    "require",
]


def require(condition: bool, message: str) -> None:
    """Raise ``UserError(message)`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def check_image(name: str, image: np.ndarray) -> np.ndarray:
    """``image`` as an (H, W, 3) uint8 array."""
    image = np.asarray(image)
    require(
        image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size > 0,
        f"{name} is {image.dtype} {image.shape}; expected uint8 (height, width, 3)",
    )
    return image


def check_images(name: str, images: np.ndarray) -> np.ndarray:
    """``images`` as a non-empty (N, H, W, 3) uint8 array."""
    images = np.asarray(images)
    require(
        images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8 and images.size > 0,
        f"{name} is {images.dtype} {images.shape}; expected uint8 (images, height, width, 3)",
    )
    return images


def check_indices(name: str, indices: np.ndarray) -> np.ndarray:
    """``indices`` as a square (g, g) integer array."""
    indices = np.asarray(indices)
    square = indices.ndim == 2 and indices.shape[0] == indices.shape[1] and indices.size > 0
    require(
        square and np.issubdtype(indices.dtype, np.integer),
        f"{name} is {indices.dtype} {indices.shape}; expected whole numbers of shape (grid, grid)",
    )
    return indices


def check_steps(steps: Sequence[int], total: int) -> list[int]:
    """``steps`` as increasing integers within 1..total."""
    steps = [int(step) for step in steps]
    increasing = all(a < b for a, b in itertools.pairwise(steps))
    require(
        bool(steps) and increasing and steps[0] >= 1 and steps[-1] <= total,
        f"steps is {steps}; expected increasing steps within 1..{total}",
    )
    return steps


def check_columns(name: str, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raise ``UserError`` unless ``table`` is a non-empty DataFrame with ``columns``."""
    require(
        isinstance(table, pd.DataFrame), f"{name} is a {type(table).__name__}; expected a DataFrame"
    )
    missing = [column for column in columns if column not in table.columns]
    require(
        not missing,
        f"{name} lacks the columns {', '.join(missing)}; it has: {', '.join(map(str, table.columns))}",
    )
    require(len(table) > 0, f"{name} has no rows")


def check_probe_cells(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """``table`` (columns layer, step, accuracy, ...) with one row per layer and step.

    Where it holds several seeds: the means of accuracy, low and high over them. ``UserError`` if a
    seed holds a layer and step twice.
    """
    cell = ["layer", "step"]
    seeded = "seed" in table.columns
    twice = table[table.duplicated([*cell, "seed"] if seeded else cell)]
    if len(twice):
        first = twice.iloc[0]
        require(
            False,
            f"{name} holds layer {first['layer']} step {first['step']} more than once; "
            "select one protocol, control and split first",
        )
    if not seeded:
        return table
    numbers = [column for column in ("accuracy", "low", "high") if column in table.columns]
    return table.groupby(cell, as_index=False)[numbers].mean()
