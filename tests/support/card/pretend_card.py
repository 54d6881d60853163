"""What ``torch.cuda`` and the rest of torch's Python say while one pretended card is there.

Names of the card become ``BELOW`` before torch's C++ sees them (``pretend`` says why).
"""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from pretend_graph import Capture, Graph
from torch import Tensor, nn
from torch.utils import _foreach_utils as foreach_utils
from torch.utils._pytree import tree_map

__all__ = ["BELOW", "CPU", "CUDA", "RealGenerator", "below", "is_card", "patches"]

CUDA, CPU, BELOW = torch.device("cuda", 0), torch.device("cpu"), torch.device("lazy", 0)
RealGenerator = torch.Generator
CARD = SimpleNamespace(
    name="pretended", total_memory=80 << 30, major=8, minor=0, multi_processor_count=108
)


def is_card(device: torch.device | str) -> bool:
    """Whether ``device`` names the card; ``RuntimeError`` for a card that is not there."""
    device = torch.device(device)
    if device.type == "cuda" and device.index not in (None, 0):
        raise RuntimeError(f"CUDA error: invalid device ordinal ({device})")
    return device.type in (CUDA.type, BELOW.type)


def below(value: object, names: bool = False) -> object:
    """A device, or arguments that hold some, with the card as ``BELOW``.

    Strings count as devices where they are ``names``.
    """
    if isinstance(value, tuple):
        return tuple(below(part, names) for part in value)
    if isinstance(value, dict):
        return {key: below(part, names and key == "device") for key, part in value.items()}
    if isinstance(value, torch.device) or (names and isinstance(value, str) and value[:4] == "cuda"):
        return BELOW if is_card(value) else value
    return value


class _Generator(RealGenerator):
    """A CPU generator that claims to be the card's."""

    device = property(lambda self: CUDA)


class _EveryGenerator(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, RealGenerator)


def patches(
    note: Callable[[str, str], None], kept: dict[str, dict[int, object]], ours: type
) -> Iterator[tuple[object, str, object]]:
    """(object, attribute, value while the card is there).

    ``note`` counts. ``kept`` holds by address what is ``pinned``, what was ``saved`` to a file and the
    card's ``generators``: alive, so that nothing else takes the address. ``ours``: the card's tensors.
    """
    pinned, saved, generators = kept["pinned"], kept["saved"], kept["generators"]

    class Generators(metaclass=_EveryGenerator):
        """Stands for ``torch.Generator``: makes generators of the CPU and of the card."""

        def __new__(cls, device: torch.device | str = "cpu") -> RealGenerator:
            if not is_card(device):
                return RealGenerator(device)
            made = _Generator()
            generators[made._cdata] = made
            return made

    def load(file, map_location=None, **options):
        if not (isinstance(map_location, (str, torch.device)) and is_card(map_location)):
            return real_load(file, map_location=map_location, **options)
        content = real_load(file, map_location="cpu", **options)
        return tree_map(lambda v: v.to(BELOW) if isinstance(v, Tensor) else v, content)

    def pin(tensor: Tensor, *_) -> Tensor:
        copy = tensor.clone()
        pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def backward(tensor, gradient=None, retain_graph=None, create_graph=False, inputs=None):
        torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)

    def grouped(lists, with_indices=False):
        found = real_grouped(lists, with_indices).items()
        return {(CUDA if at == BELOW else at, dtype): value for (at, dtype), value in found}

    real_grouped = torch._C._group_tensors_by_device_and_dtype
    real_load, real_tag = torch.load, torch.serialization.location_tag
    for name, value in {
        "is_available": True, "device_count": 1, "current_device": 0, "_lazy_init": None,
        "is_initialized": True, "get_device_properties": CARD, "get_device_name": CARD.name,
        "get_device_capability": (CARD.major, CARD.minor), "is_bf16_supported": True,
        "set_device": None, "memory_allocated": 1 << 20, "max_memory_allocated": 1 << 21,
        "memory_reserved": 1 << 21, "max_memory_reserved": 1 << 21, "reset_peak_memory_stats": None,
        "empty_cache": None, "mem_get_info": (CARD.total_memory, CARD.total_memory),
        "manual_seed": None, "manual_seed_all": None, "is_current_stream_capturing": False,
    }.items():  # fmt: skip
        yield torch.cuda, name, lambda *_, value=value, **__: value
    yield torch.cuda, "device", lambda device: contextlib.nullcontext(is_card(device))
    yield torch.cuda, "CUDAGraph", Graph
    yield torch.cuda, "graph", lambda graph, **_: Capture(graph, note)
    yield torch.cuda, "synchronize", lambda *_: note("read", "synchronize")
    for name, value in {
        "is_available": True, "device_count": 1, "current_accelerator": torch.device("cuda"),
        "current_device_index": 0, "set_device_index": None,
        "current_stream": SimpleNamespace(is_capturing=lambda: False),
    }.items():  # fmt: skip
        yield torch.accelerator, name, lambda *_, value=value, **__: value
    yield torch.accelerator, "synchronize", lambda *_: note("read", "synchronize")
    yield torch, "Generator", Generators
    yield torch, "load", load
    yield (
        torch.serialization,
        "location_tag",
        lambda storage: str(CUDA) if storage.data_ptr() in saved else real_tag(storage),
    )
    yield Tensor, "pin_memory", pin
    yield Tensor, "is_pinned", lambda tensor, *_: tensor.untyped_storage().data_ptr() in pinned
    yield foreach_utils, "_foreach_supported_types", [*foreach_utils._foreach_supported_types, ours]
    yield torch._C, "_group_tensors_by_device_and_dtype", grouped
    # A function mode is off inside the calls it sees, and would be in what a backward pass recomputes.
    yield torch.autograd, "has_torch_function", lambda *_: False
    yield Tensor, "backward", backward
    yield torch, "compile", lambda model=None, **_: model if model is not None else lambda m: m
    yield nn.Module, "compile", lambda module, *_, **__: None
