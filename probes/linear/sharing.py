"""Probing in several processes: who computes which images, and sums over all of them.

Image i belongs to process i mod W, whatever the batch, so that each can cache its own; sums of
moments and gradients over processes make the result that of one process, up to rounding.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from star.parallel.processes import rank, world_size

__all__ = ["add_up", "mine", "share_broken"]


def mine(images: np.ndarray) -> np.ndarray:
    """Those of ``images`` (indices in their part) that this process computes, in the same order."""
    return images[images % world_size() == rank()]


def add_up(value: Tensor) -> Tensor:
    """Sum over processes, in place."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def share_broken(broken: set[int], groups: int, device: torch.device) -> set[int]:
    """Groups that any process found broken."""
    marks = torch.zeros(groups, device=device)
    marks[sorted(broken)] = 1
    return set(add_up(marks).nonzero().flatten().tolist())
