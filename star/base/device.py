"""Where and in which precision to compute, decided at run time."""

import contextlib
import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from star.base.errors import UserError, require_choice

__all__ = [
    "PRECISIONS",
    "autocast",
    "deterministic",
    "exact_float32",
    "keep_freed_memory",
    "parse_device",
    "peak_memory_bytes",
    "require_devices",
    "require_memory",
    "reset_peak_memory",
    "resident_bytes",
    "resolve_device",
    "resolve_precision",
]


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt's names for its parameters
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *_DTYPES)


def parse_device(name: str) -> torch.device:
    """``auto`` (CUDA if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:1``, here or not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", name):
        raise UserError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N")
    return torch.device(name)


def resolve_device(name: str = "auto") -> torch.device:
    """The device called ``name`` (see ``parse_device``); ``UserError`` if this machine has none."""
    device = parse_device(name)
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        last = f" (cuda:0 to cuda:{count - 1})" if count else ", or a torch without CUDA: give cpu"
        raise UserError(f"device is {name!r}; this machine has {count} CUDA devices{last}")
    return device


def require_devices(name: str, processes: int) -> None:
    """Raise ``UserError`` unless ``processes`` of this machine find a device called ``name`` each."""
    device = resolve_device(name)
    if device.type != "cuda" or processes == 1:
        return
    if device.index is not None:
        raise UserError(
            f"device is {name!r}, one CUDA device; {processes} processes take one each: give cuda"
        )
    count = torch.cuda.device_count()
    if processes > count:
        raise UserError(
            f"{processes} processes need a CUDA device each; this machine has {count}: start at most "
            f"{count}, or give --device cpu"
        )


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Compute dtype for ``auto``, ``fp32``, ``bf16`` or ``fp16``.

    ``auto`` takes bfloat16 where matrix units run it (CUDA devices that support it; CPUs with AMX or
    AVX512-BF16, where it is two to seven times faster), float16 on CUDA devices that have matrix units
    for it alone (compute capability 7), and float32 elsewhere.
    """
    require_choice("precision", name, PRECISIONS)
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported would answer for the current device, which may be another.
        generation = torch.cuda.get_device_capability(device)[0]
        if torch.version.hip or generation >= 8:
            return torch.bfloat16
        return torch.float16 if generation >= 7 else torch.float32
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """In the block torch takes only operations that give the same bits every time, if ``wanted``.

    An operation that has none raises. cuBLAS reads its variable when CUDA starts, so the block must
    begin before the first operation on a GPU. The caller's setting comes back.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic  # torch makes its attribute at run time
    fill = switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    switches.fill_uninitialized_memory = False  # costs time, and we read none
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        switches.fill_uninitialized_memory = fill


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Autocast to ``dtype``, or nothing for float32."""
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """In the block (or the decorated function) float32 products keep all 24 bits of their factors.

    torch lets CUDA convolutions round them to 11 bits (TF32), and a caller may have allowed as much of
    matrix products: enough to change a code or a measurement from one device to the next. The caller's
    settings are back afterwards.
    """
    backends: Any = torch.backends  # some of its attributes are made at run time
    before = []
    try:
        # From the general to the special: what is not exact by now was set there itself, so that its
        # own value is read, and put back, and what only inherits stays unset.
        for place in (
            backends,
            backends.cudnn,
            backends.cudnn.conv,
            backends.cuda.matmul,
            backends.mkldnn.conv,
            backends.mkldnn.matmul,
        ):
            value = place.fp32_precision
            if value != "ieee":
                before.append((place, value))
                place.fp32_precision = "ieee"
        yield
    finally:
        for place, value in reversed(before):
            place.fp32_precision = value


def require_memory(what: str, needed: float, device: torch.device | str) -> None:
    """Raise ``UserError`` if ``what`` needs more bytes than ``device`` has in all."""
    device = torch.device(device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > total:
        raise UserError(
            f"{what} would take {needed / 2**30:,.1f} GiB; {device} has {total / 2**30:,.1f} GiB"
        )


def keep_freed_memory(device: torch.device) -> None:
    """Let the C library keep what a training step frees for the next one (glibc, CPU only).

    Otherwise every large tensor is mapped, zeroed page by page and unmapped again: a tenth of an ST-AR
    step, which holds more of them at a time than a plain one.
    """
    if device.type != "cpu":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory use so far: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage: its maximum begins with that of the process which started this one.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak begin at the present use, where the system can (CUDA, Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def resident_bytes(device: torch.device) -> int:
    """Memory in use now: allocated on the GPU, or resident on a CPU (peak where that is not told)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return peak_memory_bytes(device)
    return pages * os.sysconf("SC_PAGE_SIZE")
