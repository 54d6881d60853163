"""Bytes of the tensors that are alive, on any device: how a peak comes about."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Within it, counts the storages that operations make, until nothing refers to them.

    ``now`` and ``peak`` are bytes. What an operation needs inside itself is not seen.
    """

    def __init__(self, at_least: int = 0) -> None:
        """Storages smaller than ``at_least`` bytes are not counted."""
        super().__init__()
        self.at_least, self.now, self.peak = at_least, 0, 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = function(*args, **(kwargs or {}))
        for storage in _storages(made):
            if storage._cdata not in given:  # else a view, or what was changed in place
                self._count(storage)
        self.peak = max(self.peak, self.now)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or size < self.at_least:
            return

        def gone(_) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
