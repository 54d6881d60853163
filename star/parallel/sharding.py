"""FSDP2: weights, gradients, optimiser state and teacher cut over all processes, for the large sizes.

Each block and what is left of the model is one unit (``fully_shard``), gathered when it computes and
freed afterwards; blocks in bfloat16 where that is what they compute in. Checkpoints hold whole tensors,
so a run may go on with another number of processes or without sharding.

torch's own modules for it take a second to import: ``shard`` does that, and where it has not there is
nothing sharded to be found.
"""

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

__all__ = ["gathered", "is_sharded", "local", "set_gradient_sync", "shard", "to_sharded", "whole"]


def shard(*parts: nn.Module, device: torch.device, gathered_in: torch.dtype = torch.float32) -> None:
    """Cut modules in place over all processes, each on its own; the inner ones come first.

    ``device`` is this process's, where the modules are. ``gathered_in``: weights travel (and compute)
    in this dtype, half the bytes for products that autocast would round to it anyway; what is kept,
    and the sums of gradients, stay in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if gathered_in is not torch.float32:
        # The residual stream between the blocks is not to be rounded.
        policy = MixedPrecisionPolicy(
            param_dtype=gathered_in, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    # Without a mesh torch would take the machine's accelerator, wherever the modules are.
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in parts:
        # Freed also after the outermost forward pass: the teacher has no backward pass to free it,
        # and what is written back to must be the part, not a gathered copy.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy)


def is_sharded(module: nn.Module) -> TypeGuard["FSDPModule"]:
    """Whether ``shard`` cut it."""
    return _is_a("torch.distributed.fsdp", "FSDPModule", module)


def set_gradient_sync(module: "FSDPModule", wanted: bool) -> None:
    """Whether the backward passes to come average (and cut) the gradients over processes."""
    module.set_requires_gradient_sync(wanted)


def local(tensor: Tensor) -> Tensor:
    """This process's part of ``tensor``, sharing its memory; the tensor itself if it is whole."""
    return tensor.to_local() if _is_cut(tensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole of ``tensor`` in every process."""
    return tensor.full_tensor() if _is_cut(tensor) else tensor


def whole(state: object) -> object:
    """``state`` (nested dictionaries and lists) with sharded tensors gathered on process 0's CPU.

    Elsewhere they become None, so that no other process holds the whole of them.
    """
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value) for value in state]
    if not _is_cut(state):
        return state
    full = state.full_tensor()
    return full.cpu() if dist.get_rank() == 0 else None


def to_sharded(state: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors of ``state`` cut like those of the same name in ``targets``; no communication."""
    return {key: _cut(value, targets.get(key)) for key, value in state.items()}


def _cut(value: Tensor, target: Tensor | None) -> Tensor:
    # AdamW's step count has no dimensions and stays whole.
    if not _is_cut(target) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(target.device)
    with torch.no_grad():
        return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def _is_cut(value: object) -> TypeGuard["DTensor"]:
    return _is_a("torch.distributed.tensor", "DTensor", value)


def _is_a(module: str, name: str, value: object) -> bool:
    """Whether ``value`` is of a class whose module may not have been imported: then it is not."""
    known = getattr(sys.modules.get(module), name, None)
    return known is not None and isinstance(value, known)
