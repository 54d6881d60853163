"""What a checkpoint may name beside tensors, and what it gets for each name: data alone, never code.

A pickle rebuilds an object by calling what it names. The names of NumPy's numbers, arrays and random
generators, of ``argparse.Namespace`` and of PyTorch's version lead here to small stand-ins that take
plain data and call nothing: NumPy's own functions would believe a crafted type description. Arrays of
objects and structured types are refused. No file can change the classes.
"""

import argparse
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from star.base.record import Record

__all__ = ["ALLOWED", "NotPlainError"]

_TYPE = re.compile(r"[biufc]\d{1,2}|[SU]\d{1,9}|[mM]8")  # of numbers, text and times
_UNIT = re.compile(rb"generic|[YMWDhms]|[munpfa]s")
_ORDERS = ("<", ">", "=", "|")


class NotPlainError(ValueError):
    """A NumPy object that is more than numbers, text or times."""


class _Fixed(type):
    def __setattr__(cls, name: str, value: object) -> None:
        raise TypeError(f"{cls.__name__} cannot be changed")


class _Namespace(argparse.Namespace, metaclass=_Fixed):
    """Stands for ``argparse.Namespace`` and ``types.SimpleNamespace``: attributes and nothing else."""


class _Array(metaclass=_Fixed):
    """Stands for the name ``numpy.ndarray``, which is never called."""


class _Generator(metaclass=_Fixed):
    """Stands for a NumPy random generator and its parts; nothing of them is kept."""

    def __init__(self, *parts: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _DType(metaclass=_Fixed):
    """Stands for ``numpy.dtype``: a kind, a size, a byte order, and the unit of times."""

    def __init__(self, text: object, align: object = False, copy: object = True) -> None:
        if not (isinstance(text, str) and _TYPE.fullmatch(text)):
            of_objects = isinstance(text, str) and text.startswith("O")
            raise NotPlainError("numpy.ndarray of objects" if of_objects else f"numpy.dtype {text!r}")
        self.text = text
        self.order: Literal["<", ">", "=", "|"] = "|"

    def __setstate__(self, state: object) -> None:
        # (version, order, subarray, names, fields, size, alignment, flags[, (metadata, unit)])
        if not (isinstance(state, tuple) and len(state) >= 8 and state[1] in _ORDERS):
            raise NotPlainError("numpy.dtype of an unknown state")
        if any(part is not None for part in state[2:5]):
            raise NotPlainError("numpy.dtype with fields")
        self.order = state[1]
        if self.text in ("m8", "M8"):
            unit, count = state[8][1][:2]
            if not (isinstance(unit, bytes) and _UNIT.fullmatch(unit) and type(count) is int):
                raise NotPlainError(f"numpy.dtype {self.text!r} of an unknown unit")
            self.text += "" if unit == b"generic" else f"[{count}{unit.decode()}]"

    def build(self) -> np.dtype:
        return np.dtype(self.text).newbyteorder(self.order)


class _Values(np.ndarray, metaclass=_Fixed):
    """An array whose content comes after it was made, as pickles want it."""

    def __setstate__(self, state: object) -> None:
        # (version, shape, dtype, in Fortran's order, bytes)
        if not (isinstance(state, tuple) and len(state) == 5):
            raise NotPlainError("numpy.ndarray of an unknown state")
        values = _array(state[4], state[2], state[1], "F" if state[3] else "C")
        own = (1, values.shape, values.dtype, bool(state[3]), values.tobytes("A"))
        super().__setstate__(own)  # type: ignore[arg-type]  # NumPy's stub wants its own bool, which fails


def _array(data: object, dtype: object, shape: Any, order: Literal["C", "F"] = "C") -> np.ndarray:
    if not (isinstance(data, bytes | bytearray) and isinstance(dtype, _DType)):
        raise NotPlainError("numpy.ndarray of objects")
    values: np.ndarray = np.frombuffer(bytes(data), dtype.build()).reshape(shape, order=order)
    return values


def _reconstruct(subtype: object, shape: object, typecode: object) -> np.ndarray:
    """``numpy._core.multiarray._reconstruct``: an empty array, filled by its state."""
    if subtype is not _Array:
        raise NotPlainError("numpy.ndarray of a class of its own")
    return np.empty(0, np.uint8).view(_Values)


def _scalar(dtype: object, data: object) -> np.generic:
    """``numpy._core.multiarray.scalar``."""
    value: np.generic = _array(data, dtype, (1,))[0]
    return value


def _frombuffer(data: object, dtype: object, shape: object, order: object, *rest: object) -> np.ndarray:
    """``numpy._core.numeric._frombuffer``, which pickle protocol 5 uses."""
    return _array(data, dtype, shape, "F" if order == "F" else "C")


class _Factory(metaclass=_Fixed):
    """Stands for what a ``defaultdict`` calls for a missing key, which is never called."""


def _no_default(factory: object = None) -> Record:
    """``collections.defaultdict`` without the default: a dictionary."""
    return {}


def _no_bytes() -> bytes:
    """``bytes()``, as pickle protocol 2 writes bytes of length 0."""
    return b""


_RANDOM = (
    "_pickle.__generator_ctor", "_pickle.__bit_generator_ctor", "_pickle.__randomstate_ctor",
    "bit_generator.__pyx_unpickle_SeedSequence", "bit_generator.SeedSequence", "_pcg64.PCG64",
    "_pcg64.PCG64DXSM", "_mt19937.MT19937", "_philox.Philox", "_sfc64.SFC64",
)  # fmt: skip
# By the name in a file. NumPy 2 renamed numpy.core; files carry either spelling.
_NUMPY_CORE: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _frombuffer,
}
ALLOWED: Mapping[str, Callable[..., Any]] = types.MappingProxyType(
    {
        "argparse.Namespace": _Namespace,
        "types.SimpleNamespace": _Namespace,
        "builtins.bytes": _no_bytes,
        "collections.defaultdict": _no_default,
        **{f"builtins.{name}": _Factory for name in ("dict", "float", "int", "list", "str")},
        "torch.torch_version.TorchVersion": str,
        "numpy.dtype": _DType,
        "numpy.ndarray": _Array,
        **{f"numpy.core.{name}": stand_in for name, stand_in in _NUMPY_CORE.items()},
        **{f"numpy._core.{name}": stand_in for name, stand_in in _NUMPY_CORE.items()},
        **{f"numpy.random.{name}": _Generator for name in _RANDOM},
        # What ``_reconstruct`` made may be filled. No file can name it: a name ends with its line.
        "numpy\narray": _Values,
    }
)
