"""Dropout whose masks are a function of (seed, step, rank, layer, site), drawn cheaply.

The model takes a ``Dropout`` object as an argument instead of holding a mode, so train and eval mode
compute the same thing and no random state needs saving. One random byte decides one element: the
drop probability is rounded to a multiple of 1/256 (0.1 becomes 26/256) and the scale uses the rounded
value, so expectations are exact. On a CPU the bytes come from NumPy's SFC64, several times cheaper
than a float per element.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from star.base.randomness import seed_sequence, torch_generator

__all__ = ["Dropout", "drop"]


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Dropout of one training step; ``probability`` in [0, 1)."""

    probability: float
    seed: int
    step: int
    rank: int = 0

    @property
    def _threshold(self) -> int:
        return round(256 * self.probability)

    @property
    def scale(self) -> float:
        """Factor on the elements kept."""
        return 256 / (256 - self._threshold)

    def __call__(self, x: Tensor, layer: int, site: int) -> Tensor:
        """``x`` with elements dropped; (layer, site) name the place so that no two share a mask."""
        return drop(x, self.keep(x.shape, x.device, layer, site), self.scale)

    def keep(self, shape: torch.Size, device: torch.device, layer: int, site: int) -> Tensor | None:
        """Boolean mask of the elements kept at (layer, site); None for all."""
        if self._threshold == 0:
            return None
        return self._bytes(shape.numel(), device, layer, site).view(shape) >= self._threshold

    def _bytes(self, count: int, device: torch.device, layer: int, site: int) -> Tensor:
        key = (self.step, self.rank, layer, site)
        if device.type != "cpu":
            generator = torch_generator(self.seed, "dropout", *key, device=device)
            draw = torch.empty(count, dtype=torch.uint8, device=device)
            return draw.random_(0, 256, generator=generator)
        bits = np.random.SFC64(seed_sequence(self.seed, "dropout", key)).random_raw(-(-count // 8))
        return torch.from_numpy(bits.view(np.uint8)[:count])


def drop(x: Tensor, keep: Tensor | None, scale: float) -> Tensor:
    """``x`` with the elements not kept set to 0 and the others scaled, so that the mean stays."""
    return x if keep is None else x * (keep.to(x.dtype) * scale)
