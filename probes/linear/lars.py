"""LARS on stacks of linear heads, and the learning rate of MAE's linear probing.

The public MAE code (``util/lars.py``, ``util/lr_sched.py``): momentum 0.9, weight decay 0, and for
tensors of more than one dimension the gradient is scaled by trust |w| / |g| (by 1 where either norm is
0); biases are not. When heads are stacked in one tensor, every head has norms of its own.
"""

import math

import torch
from torch import Tensor

__all__ = ["lars_step", "linprobe_lr"]

MOMENTUM = 0.9
TRUST = 0.001


@torch.no_grad()
def lars_step(
    weight: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    lr: Tensor | float,
    *,
    head_dims: tuple[int, ...] = (),
    adapt: bool,
) -> None:
    """One step in place: velocity = momentum velocity + scaled gradient, weight -= lr velocity.

    ``head_dims`` are the dimensions that belong to one head, over which its norms are taken; ``lr``
    broadcasts against ``weight``. ``adapt`` False (biases) leaves the gradient as it is.
    """
    if adapt:
        weight_norm = weight.square().sum(head_dims, keepdim=True).sqrt()
        gradient_norm = gradient.square().sum(head_dims, keepdim=True).sqrt()
        usable = (weight_norm > 0) & (gradient_norm > 0)
        ratio = TRUST * weight_norm / gradient_norm.where(usable, torch.ones_like(gradient_norm))
        gradient = gradient * ratio.where(usable, torch.ones_like(ratio))
    velocity.mul_(MOMENTUM).add_(gradient)
    weight.sub_(velocity * lr)


def linprobe_lr(epoch: float, base: float, *, epochs: int, warmup_epochs: float) -> float:
    """Rate at a fractional ``epoch``: linear from 0 to ``base``, then a half cosine to 0."""
    if epoch < warmup_epochs:
        return base * epoch / warmup_epochs
    return base * 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))
