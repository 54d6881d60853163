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

from star.randomness import seed_sequence, torch_generator

__all__ = ["Dropout"]


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Dropout of one training step; ``probability`` in [0, 1)."""

    probability: float
    seed: int
    step: int
    rank: int = 0

    def __call__(self, x: Tensor, layer: int, site: int) -> Tensor:
        """``x`` with elements dropped; (layer, site) name the place so that no two share a mask."""
        threshold = round(256 * self.probability)
        if threshold == 0:
            return x
        bytes_ = self._bytes(x.numel(), x.device, layer, site).view(x.shape)
        keep = (bytes_ >= threshold).to(x.dtype)
        return x * keep.mul_(256 / (256 - threshold))

    def _bytes(self, count: int, device: torch.device, layer: int, site: int) -> Tensor:
        key = (self.step, self.rank, layer, site)
        if device.type != "cpu":
            generator = torch_generator(self.seed, "dropout", *key, device=device)
            draw = torch.empty(count, dtype=torch.uint8, device=device)
            return draw.random_(0, 256, generator=generator)
        bits = np.random.SFC64(seed_sequence(self.seed, "dropout", key)).random_raw(-(-count // 8))
        return torch.from_numpy(bits.view(np.uint8)[:count])
