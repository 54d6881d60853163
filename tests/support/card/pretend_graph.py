"""CUDA graphs on the pretended card: what is captured does not run until it is replayed.

A capture notes the operations between its beginning and its end; they run to learn their shapes, and
what they wrote is put back at the end. A replay runs them again on the same memory. As in CUDA, nothing
that the host waits for may be captured, and a result holds nothing before the first replay (NaN here).
"""

from collections.abc import Callable

import torch
from pretend_rules import flat
from torch import Tensor

__all__ = ["Capture", "Graph", "capturing"]

_captured: list["Graph"] = []  # the one being captured, if any


def capturing() -> "Graph | None":
    return _captured[-1] if _captured else None


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.steps: list[tuple[Callable, tuple, dict, object]] = []
        self.before: list[tuple[Tensor, Tensor]] = []  # memory that is written, and what it held
        self.made: list[Tensor] = []

    def refuse(self, what: str) -> None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def run(self, func, args: tuple, kwargs: dict) -> object:
        """One operation on the tensors that the card's wrap."""
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before += [(t, t.clone()) for t in flat(given.get(argument.name))]
        out = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, out))
        places = {_place(tensor) for tensor in flat((*args, *kwargs.values()))}
        self.made += [tensor for tensor in flat(out) if _place(tensor) not in places]
        return out

    def put_back(self) -> None:
        for tensor, value in reversed(self.before):
            tensor.copy_(value)
        for tensor in self.made:
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        self.before.clear()

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, out in self.steps:
                for old, new in zip(flat(out), flat(func(*args, **kwargs)), strict=True):
                    if _place(old) != _place(new):  # else it is written in place, or a view
                        old.copy_(new)


class Capture:
    """Stands for ``torch.cuda.graph``, which waits for the card first."""

    def __init__(self, graph: Graph, note: Callable[[str, str], None]) -> None:
        self.graph, self.note = graph, note

    def __enter__(self) -> None:
        self.note("read", "capture")
        _captured.append(self.graph)

    def __exit__(self, *error: object) -> None:
        _captured.pop()
        self.graph.put_back()


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
