"""Modules on torch's meta device, which has shapes and no memory, and memory for them afterwards.

What torch itself does there for an embedding's first numbers, and to give a module memory, imports its
compiler: a second of every command that opens a model.
"""

import torch
from torch import nn

__all__ = ["embedding", "give_memory"]


def embedding(size: int, width: int) -> nn.Embedding:
    """``nn.Embedding`` as torch initialises it; on the meta device with a shape and nothing drawn."""
    weight = torch.empty(size, width)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding(size, width, _weight=weight)


def give_memory(module: nn.Module, device: torch.device | str) -> None:
    """Give all that a module's state dictionary names memory on ``device``, with anything in it."""
    state = {
        name: torch.empty(value.shape, dtype=value.dtype, device=device)
        for name, value in module.state_dict().items()
    }
    module.load_state_dict(state, assign=True)
