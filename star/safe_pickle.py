"""Pickle protocols 3 to 5 for ``torch.load``, whose own safe reader knows protocol 2 alone.

The module goes to ``torch.load`` as ``pickle_module``: everything a file can name is looked up in one
list (``star.safe_globals`` and what tensors are rebuilt by), and nothing is imported. What is handed
out is made anew for each name, or cannot be changed, so that a file leaves no trace in the process.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable

import torch

from star.safe_globals import ALLOWED

__all__ = ["Unpickler", "UnpicklingError", "load"]

UnpicklingError = pickle.UnpicklingError
_BUILDERS = ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
_PLAIN = {
    "builtins.bytearray": bytearray,
    "builtins.complex": complex,
    "builtins.set": set,
    "collections.OrderedDict": OrderedDict,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
}


class Unpickler(pickle.Unpickler):
    """Refuses every name that is not listed, in the words of PyTorch's reader."""

    def find_class(self, module: str, name: str) -> object:
        full = f"{module}.{name}"
        if full in _PLAIN:
            return _PLAIN[full]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "torch._utils" and name in _BUILDERS:
            return _call(getattr(torch._utils, name))
        found = ALLOWED.get(full)
        if found is None:
            raise UnpicklingError(f"Unsupported global: GLOBAL {full} was not an allowed global")
        return found if isinstance(found, type) else _call(found)


def _call(function: Callable) -> Callable:
    """The function behind a new one: a file may set attributes of what it was given."""
    return lambda *given: function(*given)


def load(file, **options: object) -> object:
    """As ``pickle.load``."""
    return Unpickler(file, **options).load()
