"""Some images of a code store: drawn by a seed, or evenly spaced."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from star.base.errors import UserError
from star.base.randomness import generator
from star.codes.store import CodeStore, check_rows

__all__ = ["ImageSample", "draw", "draw_rows", "spread_images", "take"]


@dataclass(frozen=True)
class ImageSample:
    """One view of some images of a store, in memory; read as a store of one view."""

    path: Path
    codes: np.ndarray
    labels: np.ndarray
    grid: int
    vocab_size: int
    num_classes: int
    test_view: int = 0

    def __len__(self) -> int:
        return len(self.labels)


def draw_rows(among: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """``count`` rows of ``among`` (or all of fewer), ascending: a function of (seed, purpose)."""
    chosen = generator(seed, purpose).choice(among, min(count, len(among)), replace=False)
    return np.sort(chosen)


def draw(
    store: CodeStore,
    count: int,
    seed: int,
    purpose: str,
    *,
    view: int | None = None,
    classes: np.ndarray | None = None,
) -> ImageSample:
    """``count`` images (fewer if there are fewer), a function of (seed, purpose).

    view: the test view by default. classes: those drawn from, by default all.
    """
    every = np.arange(len(store))
    among = every if classes is None else np.flatnonzero(np.isin(store.labels, classes))
    return take(store, draw_rows(among, count, seed, purpose), view=view)


def take(store: CodeStore, rows: np.ndarray, *, view: int | None = None) -> ImageSample:
    """The images in ``rows``, in their order; ``view``: the test view by default."""
    return ImageSample(
        path=store.path,
        codes=np.asarray(store.codes[rows, store.test_view if view is None else view])[:, None],
        labels=np.asarray(store.labels[rows]),
        grid=store.grid,
        vocab_size=store.vocab_size,
        num_classes=store.num_classes,
    )


def spread_images(store: CodeStore, count: int) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """Rows (N,), tokens (N, T) int64 and labels (N,) of ``count`` images, test view.

    The rows are evenly spaced from the first on: stores are often sorted by class, and the first few
    would be of one. Raises ``UserError`` if there are fewer.
    """
    if not 1 <= count <= len(store):
        raise UserError(f"images is {count}; expected 1 to {len(store)}, the images in {store.path}")
    rows = np.arange(count) * len(store) // count
    codes = np.asarray(store.codes[rows, store.test_view], dtype=np.int64)
    labels = np.asarray(store.labels[rows], dtype=np.int64)
    check_rows(store, codes, labels)
    return rows, torch.from_numpy(codes), labels
