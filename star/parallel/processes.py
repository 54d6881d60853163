"""What the trainer and the objective need from other processes; all of it also holds for one process.

Processes are started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK: gloo on CPUs, NCCL on
CUDA, one device a process. A second group, gloo everywhere, is for waiting alone.
"""

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from star.base.device import require_devices, resolve_device
from star.parallel.sharding import is_sharded, set_gradient_sync

__all__ = [
    "alone",
    "any_process",
    "distribute",
    "gather_images",
    "gradients_synced",
    "join",
    "leave",
    "main_first",
    "mean_over_processes",
    "rank",
    "sum_over_processes",
    "wait_for_all",
    "world_size",
]

# Rank 0 may tokenise for hours while the others wait; a process that dies is torchrun's to notice.
PATIENCE = timedelta(days=7)
# Of the sums and gathers themselves, by device: one that hangs must not hold cards for days. CPUs may
# differ by hours in their shares of a long measurement, and cost little.
TIMEOUTS = {"cuda": timedelta(minutes=10), "cpu": PATIENCE}


_alone = False
_patient: dist.ProcessGroup | None = None


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and not _alone


def rank() -> int:
    """Index of this process, 0 if there is only one."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _active() else 1


def join(device: str, rendezvous: str | None = None) -> torch.device:
    """Join the processes that torchrun started, if it did; returns this process's device.

    ``rendezvous``: where they meet, if not at the address that torchrun gives (MASTER_ADDR).
    """
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return resolve_device(device)
    where = resolve_device(device)
    if where.type == "cuda":
        require_devices(device, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        where = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(where)
    if not _active():
        global _patient
        # Modules of torch that are first imported while a group exists take it as the default value
        # of their arguments and keep it for ever; its threads then outlive `leave` and may abort the
        # process as the interpreter ends. Optimizers import this one, which imports the others.
        importlib.import_module("torch._dynamo")
        dist.init_process_group(
            "nccl" if where.type == "cuda" else "gloo",
            init_method=rendezvous,
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            timeout=TIMEOUTS[where.type],
            # NCCL then meets now, on this device, instead of at the first collective, on a guessed one.
            device_id=where if where.type == "cuda" else None,
        )
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert not isinstance(group, int)  # torch's mark of a process that is not in the group
        _patient = group
    return where


def leave() -> None:
    """End the process groups, if there are any, together with the other processes.

    Sharded tensors keep the group's threads alive in caches of torch; the barrier lets those threads
    finish with the last collective before the interpreter that they still need goes away. Before it,
    where collectives are given little time, rank 0 may still be drawing.
    """
    global _patient
    if _active():
        wait_for_all()
        dist.barrier()
        dist.destroy_process_group()
        _patient = None


def wait_for_all() -> None:
    """Wait until every process is here, for days if need be; other collectives wait for minutes.

    For what takes one process longer than the others, such as writing a large file.
    """
    if world_size() > 1:
        dist.barrier(_patient)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In the block this process counts as the only one: it gathers nothing and waits for nobody.

    For measurements that every process makes of the same images, whatever the number of processes.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the block first, then the others: what it writes once, they read."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set in any process, so that all decide alike."""
    if world_size() == 1:
        return flag
    vote = torch.tensor(int(flag), device=device)
    dist.all_reduce(vote, dist.ReduceOp.MAX)
    return bool(vote)


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean without gradient; a NaN or infinity anywhere is one everywhere."""
    if world_size() == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def distribute(module: nn.Module) -> nn.Module:
    """``module`` wrapped so that its gradients are averaged over all processes."""
    if world_size() == 1:
        return module
    with warnings.catch_warnings():
        # The only buffers are constant tables; the argument's successor is too new for torch 2.9.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        return nn.parallel.DistributedDataParallel(
            module,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # what is sent is the gradients themselves, not a copy
        )


@contextlib.contextmanager
def gradients_synced(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Let a backward pass through ``module`` average gradients over processes only if ``wanted``."""
    if is_sharded(module):
        set_gradient_sync(module, wanted)
        yield
    elif isinstance(module, nn.parallel.DistributedDataParallel) and not wanted:
        with module.no_sync():
            yield
    else:
        yield


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
    def forward(ctx: object, local: Tensor) -> Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
