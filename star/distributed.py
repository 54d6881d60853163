"""What the objective needs from other processes, as one-liners that also hold for a single process."""

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_images", "rank", "sum_over_processes", "world_size"]


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process, 0 if there is only one."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _active() else 1


def gather_images(local: Tensor) -> Tensor:
    """Concatenate a gradient-free tensor of all processes along the image axis, in rank order."""
    assert not local.requires_grad
    if world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def sum_over_processes(local: Tensor) -> Tensor:
    """Differentiable all-reduce: the gradient of the sum is the sum of the gradients."""
    return local if world_size() == 1 else _AllReduceSum.apply(local)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
