"""What CUDA refuses and what makes the host wait for it, as rules for the pretended device.

Sources: torch's ``TensorIterator.cpp`` (one zero-dim CPU operand of an elementwise operation),
``PointwiseOpsKernel.cu`` (addcmul, addcdiv), ``TensorAdvancedIndexing.cpp`` (CPU indices are moved to
the device; a mask with one CPU value becomes a fill) and the tags of ``native_functions.yaml`` (an
output whose shape or value depends on data). Where torch's versions differ, the stricter one counts.
"""

import functools

import torch
from torch import Tensor

__all__ = ["TRANSFERS", "flat", "mixing", "moved_indices", "what_is_read"]

aten = torch.ops.aten

TRANSFERS = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default}
FILLS = {  # the last argument is a value, which they take to the host
    aten.fill_.Tensor, aten.fill.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor,
    aten.index_fill.int_Tensor, aten.index_fill_.int_Tensor,
}  # fmt: skip
INDEXING = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._unsafe_index_put.default, aten._index_put_impl_.default,
}  # fmt: skip
# Elementwise operations with a rule of their own: the operands that may be a zero-dim CPU tensor.
SCALAR_PLACES = {
    "where": (0, 1, 2), "addcmul": (2,), "addcmul_": (2,), "addcdiv": (2,), "addcdiv_": (2,),
    "lerp": (2,), "lerp_": (2,), "clamp": (), "clamp_": (), "equal": (),
}  # fmt: skip
# Their kernels look at what the solver reports.
CHECKED = {
    "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_eigvals",
    "_linalg_eigvals", "linalg_lstsq",
}  # fmt: skip


def flat(value: object, kind: type = Tensor) -> list:
    """What is of ``kind`` in the arguments of an operation, lists opened."""
    if isinstance(value, (list, tuple)):
        return [v for part in value if part is not None for v in flat(part, kind)]
    return [value] if isinstance(value, kind) else []


def mixing(func, args: tuple, ours: type) -> Tensor | None:
    """Operands on both sides: the first off the device that CUDA refuses beside ``ours``, or None."""
    if func in TRANSFERS:
        return None
    if func in INDEXING:
        return _mixed_indexing(args, ours)
    operands = args[:-1] if func in FILLS else args
    sides = [isinstance(tensor, ours) for tensor in flat(operands)]
    if all(sides) or not any(sides):
        return None
    places = _scalar_places(func)
    most = len(places) if _name(func) == "where" else 1
    for place, value in enumerate(operands):
        for tensor in flat(value):
            if isinstance(tensor, ours):
                continue
            written = func._schema.arguments[place].alias_info is not None
            scalar = (
                tensor.ndim == 0 and tensor.device.type == "cpu" and place in places and not written
            )
            most -= 1
            if not scalar or most < 0:
                return tensor
    return None


def _mixed_indexing(args: tuple, ours: type) -> Tensor | None:
    written, indices = args[0], flat(args[1])
    values = [] if len(args) < 3 or args[2].ndim == 0 else [args[2]]
    if isinstance(written, ours):
        return next((value for value in values if not isinstance(value, ours)), None)
    return written if any(isinstance(tensor, ours) for tensor in (*indices, *values)) else None


@functools.cache
def _scalar_places(func) -> tuple[int, ...]:
    plain = (0, 1) if torch.Tag.pointwise in func.tags else ()
    return SCALAR_PLACES.get(_name(func), plain)


def _name(func) -> str:
    return func._schema.name.removeprefix("aten::")


def moved_indices(func, args: tuple, ours: type) -> list[Tensor]:
    """CPU indices of a tensor on the device: torch copies them there and waits."""
    if func not in INDEXING or not isinstance(args[0], ours):
        return []
    return [index for index in flat(args[1]) if not isinstance(index, ours)]


def what_is_read(func, args: tuple, kwargs: dict, ours: type) -> str | None:
    """What the host waits for when ``func`` runs on the device; None where it only queues work."""
    if func in INDEXING:
        masks = [i for i in flat(args[1]) if i.dtype in (torch.bool, torch.uint8)]
        fill = len(args) > 2 and args[2].numel() == 1 and not isinstance(args[2], ours)
        if fill and len(masks) == 1 and len(flat(args[1])) == 1:
            return None
        return "boolean index" if any(isinstance(mask, ours) for mask in masks) else None
    if func in FILLS:
        return "value of a fill" if isinstance(args[-1], ours) else None
    if kwargs.get("output_size") is not None:  # of repeat_interleave
        return None
    return _depends(func)


@functools.cache
def _depends(func) -> str | None:
    name = _name(func)
    tags = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags)
    if tags or name in CHECKED:
        return "item" if name == "_local_scalar_dense" else name
    return None
