"""Reproducible weights: every entry of a state dict is a function of its key and its shape alone.

The golden files were made with the public LlamaGen code on weights set by this rule, so any
implementation with the same keys can be compared with them. For an entry with key k and shape s:

    n = RandomState(crc32(k)).standard_normal(s)
    1 + 0.1 n                    one-dimensional "*.weight" (scales of norms)
    n / sqrt(entries per row)    two or more dimensions, "embed" not in k
    std n                        everything else

Integer entries stay as they are.
"""

import math
import zlib

import numpy as np
import torch

__all__ = ["fill_"]


def fill_(module: torch.nn.Module, std: float = 0.08) -> torch.nn.Module:
    """Set every floating-point entry of ``module.state_dict()`` by the rule above; returns it."""
    with torch.no_grad():
        for key, entry in module.state_dict().items():
            if entry.is_floating_point():
                entry.copy_(torch.from_numpy(_values(key, tuple(entry.shape), std)))
    return module


def _values(key: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    normal = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) == 1 and key.endswith("weight"):
        return 1.0 + 0.1 * normal
    if len(shape) >= 2 and "embed" not in key:
        return normal / math.sqrt(math.prod(shape[1:]))
    return std * normal
