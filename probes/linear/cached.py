"""Keep a source's training features in memory where they fit, so that later epochs need no model.

The cache fills as images come by. With many processes each one keeps the images it is asked for, which
are always the same ones (``probes.linear.sharing``).
"""

import numpy as np
import torch
from torch import Tensor

from probes.linear.sources import Source

__all__ = ["CachedSource", "cached"]

GB = 10**9


def cache_bytes(source: Source, images: int) -> int:
    """Bytes of every stored view of ``images`` training images, float32."""
    return 4 * images * source.views * len(source.groups) * source.width


def cached(source: Source, images: int, processes: int, limit_gb: float) -> Source:
    """``source`` with a cache of its training features if a process's part fits ``limit_gb``."""
    if cache_bytes(source, images) / processes > limit_gb * GB:
        return source
    return CachedSource(source, images, processes)


class CachedSource:
    """A source that computes each (image, view) of the training part once."""

    def __init__(self, source: Source, images: int, processes: int = 1) -> None:
        self._source, self._processes = source, processes
        self.groups, self.width, self.views = source.groups, source.width, source.views
        self.device, self.broken = source.device, source.broken
        rows = -(-images // processes)
        # Untouched pages of an empty array take no memory.
        self._features_RGD = torch.empty(rows * self.views, len(self.groups), self.width)
        self._known_R = torch.zeros(rows * self.views, dtype=torch.bool)

    def __call__(self, part: str, images_B: np.ndarray, views_B: np.ndarray | None) -> Tensor:
        if part != "train" or views_B is None:
            return self._source(part, images_B, views_B)
        rows_B = torch.from_numpy((images_B // self._processes) * self.views + views_B)
        missing = (~self._known_R[rows_B]).numpy()
        if missing.any():
            new = self._source(part, images_B[missing], views_B[missing])
            self._features_RGD[rows_B[missing]] = new.transpose(0, 1).cpu()
            self._known_R[rows_B[missing]] = True
        # Laid out as a source does, so that what sums over images rounds alike.
        return self._features_RGD[rows_B].to(self.device).transpose(0, 1).contiguous()
