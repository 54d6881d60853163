"""Weights read from a file: whether they are a module's (keys, shapes, all finite); an optimiser's."""

from pathlib import Path

import torch

from star.base.errors import UserError
from star.base.record import Record

__all__ = ["check_weights", "load_optimizer"]

SHOWN = 4  # differences that an error lists


def check_weights(module: torch.nn.Module, state: Record, path: Path) -> None:
    """Raise ``UserError`` unless ``state`` holds numbers of the keys and shapes of ``module``.

    Numbers are floating point of any precision, finite in float32, to which they are converted; counts
    (of a batch norm) are whole. Differences are listed on both sides; ``module`` may be a meta one.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{path} is broken: {key} is a {type(value).__name__}, not a tensor")
    given = {key: tuple(value.shape) for key, value in state.items()}
    differences = [
        *(f"missing {key}" for key in expected if key not in given),
        *(f"unexpected {key}" for key in given if key not in expected),
        *(
            f"{key} has shape {given[key]}, expected {shape}"
            for key, shape in expected.items()
            if key in given and given[key] != shape
        ),
    ]
    if differences:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise UserError(f"{path} does not fit the model: {'; '.join(differences[:SHOWN])}{more}")
    counts = {key for key, value in module.state_dict().items() if not value.is_floating_point()}
    for key, value in state.items():
        kind = str(value.dtype).removeprefix("torch.")
        if value.is_meta or value.layout != torch.strided:
            raise UserError(f"{path} is broken: {key} has no values (it is {value.layout}, {kind})")
        if key in counts:
            continue
        if not value.is_floating_point() or value.is_quantized:
            raise UserError(f"{path} is broken: {key} holds {kind}; expected floating-point numbers")
        if not torch.isfinite(value.float()).all():
            raise UserError(f"{path} is broken: {key} holds values that are not finite in float32")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Record) -> None:
    """Let ``optimizer`` take over ``state``, in memory of its own: torch would keep these tensors."""
    optimizer.load_state_dict(state)
    for values in optimizer.state.values():
        for name, value in values.items():
            if (
                isinstance(value, torch.Tensor) and value.device.type == "cpu"
            ):  # others were copied there
                values[name] = value.clone()
