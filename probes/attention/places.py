"""Where a key lies from its query on the token grid: the sets of places that attention is summed over.

Position p >= 1 holds image token p in raster order; it is the *current token* of step p + 1. Position 0
is the class. Every set is a (N, N) bool pattern, N = T + 1, of (query, key) pairs within what the query
sees (causal). The same patterns are summed over by the statistics and cut by the ablations.

Shapes: N positions (class first), T tokens, g grid.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

__all__ = [
    "chebyshev_distance",
    "cut_beyond",
    "euclidean_distance",
    "place_cells",
    "place_patterns",
    "predicted_distance",
]


def place_patterns(grid: int) -> dict[str, Tensor]:
    """(N, N) bool patterns by name.

    ``class``: position 0. ``self``: the query's own position. ``neighbourhood``: the current token and
    those of its eight neighbours that lie before it in raster order. ``row_above``: the row of the grid
    above the current token's. ``first``: image token 1. ``image``: all image tokens.
    """
    positions = grid * grid + 1
    causal = torch.ones(positions, positions, dtype=torch.bool).tril()
    image = causal.clone()
    image[:, 0] = False
    rows_N = torch.cat([torch.full((1,), -2), torch.arange(grid).repeat_interleave(grid)])
    only = torch.zeros_like(causal)
    of_class, first = only.clone(), only.clone()
    of_class[:, 0], first[:, 1] = True, True
    return {
        "class": of_class,
        "self": torch.eye(positions, dtype=torch.bool),
        "neighbourhood": image & (chebyshev_distance(grid) <= 1),
        "row_above": image & (rows_N[:, None] - rows_N == 1),
        "first": image & first,
        "image": image,
    }


def place_cells(places: np.ndarray, grid: int) -> dict[str, pd.api.extensions.ExtensionArray]:
    """Columns ``row`` and ``column`` (from 1) of a table of places; empty for the class, place 0."""
    row, column = np.divmod(places - 1, grid)
    found = {}
    for name, values in (("row", row), ("column", column)):
        found[name] = pd.array(values + 1, dtype="Int64")
        found[name][places == 0] = pd.NA
    return found


def cut_beyond(grid: int, reach: int) -> Tensor:
    """(N, N) bool: image tokens farther than ``reach`` cells from the cell that the query predicts.

    Chebyshev distance, and from the predicted cell, not from the current token: at the end of a row the
    two are g - 1 columns apart, and a model that looks one cell up would seem to look across the image.
    ``reach`` 0 leaves the class and the query's own position, 1 adds what touches the predicted cell,
    g - 1 leaves everything.
    """
    return place_patterns(grid)["image"] & (predicted_distance(grid) > reach)


def predicted_distance(grid: int) -> Tensor:
    """(N, N) Chebyshev distance from the cell that a query predicts to the cell of a key.

    Position p predicts the cell of position p + 1; the last position predicts nothing and takes its own
    cell. Infinite for the class as a key.
    """
    distance_NN = chebyshev_distance(grid)
    return torch.cat([distance_NN[1:], distance_NN[-1:]])


def euclidean_distance(grid: int) -> Tensor:
    """(N, N) distance in cells between the tokens at two positions; infinite to and from the class."""
    return _between(grid, lambda offsets: offsets.square().sum(-1).sqrt())


def chebyshev_distance(grid: int) -> Tensor:
    """(N, N) the larger of the row and the column offset; infinite to and from the class."""
    return _between(grid, lambda offsets: offsets.abs().amax(-1))


def _between(grid: int, length: Callable[[Tensor], Tensor]) -> Tensor:
    cells_T2 = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)).float().view(-1, 2)
    distance_NN = torch.full((grid * grid + 1, grid * grid + 1), torch.inf)
    distance_NN[1:, 1:] = length(cells_T2[:, None] - cells_T2)
    return distance_NN
