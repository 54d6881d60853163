"""A pretended CUDA device: CPU tensors that claim ``cuda:0`` and refuse what CUDA would refuse.

``with PretendedCuda() as card:`` makes torch say that one card is there. What is created on it or moved
to it is a ``Pretended``: a tensor that wraps one on the CPU and, by ``__torch_dispatch__``, sees every
operation as the kernels do, below autograd, in the backward pass and in optimizers too; a function mode
alone would see what Python calls and miss what C++ does inside. The operation runs on the wrapped
tensors, so numbers are those of a CPU run. Torch's C++ above the dispatcher sees the device type
``lazy``, which nothing else uses here: for ``cuda`` the autograd engine would look for streams.

Refused, as CUDA does: operands on two devices (the exceptions: ``pretend_rules``), a generator of the
other device, ``numpy()`` and what calls it, pinning, a second card. Counted (``pretend_events``), each
with the line of our code: reads, where the host waits for the card (``item``, ``bool``, ``tolist``,
``cpu``, shapes and fills that depend on values, solvers that report, ``synchronize``, printing,
saving), and copies to the card that are not both pinned and non-blocking (CPU indices of its tensors
too).

What it cannot show: which kernels CUDA chooses, whether they exist for a dtype, their rounding, memory,
time, streams and races (a non-blocking copy is done at once), NCCL and several cards, compiled code
(``compile`` does nothing), torch's own branches on ``is_cuda`` in C++, the numbers of CUDA's generator
(they are the CPU's), and threads other than the test's (nothing they create is on the card). CUDA
graphs are captured and replayed (``pretend_graph``), without their pools of memory. Attention and
group norm run the CPU's kernels. Autocast is applied to whole functions, from torch's lists for CUDA:
what a Python function of torch calls inside is not cast.
"""

import contextlib
import functools
import gc
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from pretend_calls import attention, autocast, group_norm
from pretend_card import BELOW, CPU, CUDA, RealGenerator, below, is_card, patches
from pretend_events import Counted, Event, events_of, our_line
from pretend_graph import capturing
from pretend_rules import flat, mixing
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Pretended", "PretendedCuda"]

_card: "PretendedCuda | None" = None  # the one that is there

# Operations with a formula of their own beside the CPU's kernel: for a device type without a kernel
# autograd takes the formula, whose rounding is another. These kernels are never reached.
_kernels = torch.library.Library("aten", "IMPL", "Lazy")
for _name in ("silu_backward", "mish_backward", "native_channel_shuffle"):
    _kernels.impl(_name, lambda *_: NotImplemented)


class PretendedCuda(contextlib.ExitStack):
    """While entered, one card (``device``) is there; ``events`` holds what was counted."""

    device = CUDA

    def __enter__(self) -> "PretendedCuda":
        global _card
        assert _card is None, "one pretended card at a time"
        super().__enter__()
        self.events = Counted()
        self.kept: dict[str, dict] = {"pinned": {}, "saved": {}, "generators": {}}
        for target, name, value in patches(_note, self.kept, Pretended):
            self.enter_context(mock.patch.object(target, name, value))
        _card = self
        self.callback(_take_away)
        if gc.isenabled():  # it may empty tensors that C++ alone holds, in older releases of torch
            gc.disable()
            self.callback(gc.enable)
        self.operations = self.enter_context(_Operations())
        self.enter_context(_Calls())
        return self

    @contextlib.contextmanager
    def counted(self) -> Iterator[Counted]:
        """What is counted in the block alone, complete at its end."""
        found, start = Counted(), len(self.events)
        yield found
        found.extend(self.events[start:])


def _take_away() -> None:
    global _card
    _card = None


class Pretended(Tensor):
    """A tensor on the CPU (``wrapped``) that claims to be on the card."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda, is_cpu = True, False

    @staticmethod
    def __new__(cls, wrapped: Tensor) -> "Pretended":
        self = Tensor._make_wrapper_subclass(
            cls, wrapped.shape, strides=wrapped.stride(), storage_offset=wrapped.storage_offset(),
            dtype=wrapped.dtype, layout=wrapped.layout, device=BELOW,
        )  # fmt: skip
        self.wrapped = wrapped
        torch._C._set_conj(self, wrapped.is_conj())  # so that the code above resolves it
        torch._C._set_neg(self, wrapped.is_neg())
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __tensor_flatten__(self):
        """With this pair ``Module.to`` keeps the parameters' identity, as it does between devices."""
        return ["wrapped"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, size, stride):
        return Pretended(parts["wrapped"])

    def to(self, *args, **kwargs):
        return super().to(*below(args, names=True), **below(kwargs, names=True))

    def cuda(self, device=CUDA, **kwargs):
        return self.to(device, **kwargs)

    def get_device(self) -> int:
        return 0

    def numpy(self, **kwargs):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
            "host memory first."
        )

    def pin_memory(self, *args):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def is_pinned(self, *args) -> bool:
        return False

    def tolist(self):
        _note("read", "tolist")
        return self.wrapped.tolist()

    def __repr__(self, **kwargs) -> str:
        _note("read", "print")
        return f"{repr(self.wrapped)[:-1]}, device='cuda:0')"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 else object.__format__(self, spec)

    def __reduce_ex__(self, protocol):
        """In a file it is a plain tensor whose storage says the card (``location_tag``)."""
        _note("read", "save")
        host = self.wrapped.detach().clone()
        _card.kept["saved"][host.untyped_storage().data_ptr()] = host
        return host.__reduce_ex__(protocol)


class _Operations(TorchDispatchMode):
    """Sees the operations that have no tensor of the card among their arguments yet."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping would import the compiler

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """What must happen above the dispatcher: names of the card, numbers, autocast, attention."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        if kwargs or name == "to" or torch.device in map(type, args):
            args, kwargs = below(args, names=name == "to"), below(kwargs, names=True)
        if name == "new_tensor" and isinstance(args[0], Pretended):
            kwargs = {"dtype": args[0].dtype, "device": BELOW} | kwargs
            name, func, args = "tensor", torch.tensor, args[1:]
        if name in ("tensor", "as_tensor", "asarray") and kwargs.get("device") == BELOW:
            kwargs.pop("device")
            wanted = kwargs.pop("requires_grad", False)
            made = func(*args, **kwargs).to(BELOW)
            return made.requires_grad_() if wanted else made
        if name == "cuda":
            return args[0].to(*(args[1:] or [BELOW]), **kwargs)
        if name in ("__getitem__", "__setitem__") and isinstance(args[0], Pretended):
            args = (args[0], _index(args[1]), *args[2:])
            if not isinstance(args[-1], Tensor) and name == "__setitem__":
                args = (*args[:2], torch.tensor(args[2], dtype=args[0].dtype))  # stays on the host
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = autocast(name, args, kwargs)
        if name == "scaled_dot_product_attention" and isinstance(args[0], Pretended):
            return attention(*args, **kwargs)
        if name == "group_norm" and isinstance(args[0], Pretended):
            return group_norm(*args, **kwargs)
        if name == "one_hot" and isinstance(args[0], Pretended) and (args[1:] or kwargs):
            start = len(_card.events)
            made = func(*args, **kwargs)
            del _card.events[start:]  # on CUDA it does not check the values
            return made
        return func(*args, **kwargs)


def _run(func, args: tuple, kwargs: dict) -> object:
    """One operation, as the kernels see it."""
    assert _card is not None, "a tensor of the pretended card outlived it"
    if _has_kernel(func, "CompositeImplicitAutograd") and not _has_kernel(func, "CPU"):
        with _card.operations:  # in inference mode it comes whole: see its parts
            return func.decompose(*args, **kwargs)
    everything = (*args, *kwargs.values())
    given = flat(everything)
    here = any(isinstance(tensor, Pretended) for tensor in given)
    asked = kwargs.get("device")
    wanted = here if asked is None else is_card(asked)
    stray = mixing(func, everything, Pretended) if here else None
    if stray is not None:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
            f"{stray.device}! ({func})"
        )
    for generator in [value for value in everything if isinstance(value, RealGenerator)]:
        found = "cuda" if generator._cdata in _card.kept["generators"] else "cpu"
        needed = "cuda" if wanted else "cpu"
        if found != needed:
            raise RuntimeError(f"Expected a '{needed}' device type for generator but found '{found}'")
    if here or wanted:
        for kind, what in events_of(func, args, kwargs, ours=Pretended, wanted=wanted):
            _note(kind, what)
    pinned = not wanted and kwargs.get("pin_memory")
    if wanted and asked is not None:
        kwargs = {**kwargs, "device": CPU}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    graph = capturing() if here or wanted else None
    inner = _wrapped(args), {name: _wrapped(value) for name, value in kwargs.items()}
    out = graph.run(func, *inner) if graph is not None else func(*inner[0], **inner[1])
    if here and torch.Tag.inplace_view in func.tags:
        _reshape(func, args, kwargs)
    known = {id(_wrapped(tensor)): tensor for tensor in given}  # what is written in place stays itself

    def outer(value: object) -> object:
        if isinstance(value, (list, tuple)):
            return type(value)(map(outer, value))
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return Pretended(value) if wanted else value.pin_memory() if pinned else value

    return outer(out)


_has_kernel = functools.cache(
    lambda func, key: torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
)


def _index(index: object) -> object:
    """Numbers listed in an index become tensors of the card, as torch makes them."""
    if isinstance(index, tuple):
        return tuple(_index(list(part) if isinstance(part, tuple) else part) for part in index)
    if not isinstance(index, (list, range, np.ndarray)):
        return index
    return torch.tensor(index, dtype=None if len(index) else torch.long).to(BELOW)


def _reshape(func, args: tuple, kwargs: dict) -> None:
    """Let an operation such as ``squeeze_`` change the shape of the outer tensor too, and only that."""
    meta = torch._C._meta_in_tls_dispatch_include()
    with no_dispatch():
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(meta)


def _wrapped(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_wrapped, value))
    return value.wrapped if isinstance(value, Pretended) else value


def _note(kind: str, what: str) -> None:
    if capturing() is not None:
        capturing().refuse(what)
    if _card is not None:
        _card.events.append(Event(kind, what, our_line()))
