"""The system, the processor and the memory of this machine, or of one that a reader makes up."""

import locale
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from probes.doctor.lines import NOTE, OK, Line, size
from star.base.threads import Read, cgroups

__all__ = [
    "kernel_line",
    "memory_limit",
    "memory_lines",
    "platform_lines",
    "processor_lines",
    "read_file",
    "shared_memory",
    "torch_units",
    "units",
]

# By the line of /proc/cpuinfo that lists them (x86, ARM): our name and the kernel's, widest first.
UNITS = {
    "flags": {
        "AMX": "amx_tile",
        "AVX512-BF16": "avx512_bf16",
        "AVX512": "avx512f",
        "AVX2": "avx2",
    },
    "Features": {"BF16": "bf16", "SVE": "sve", "NEON": "asimd"},
}
LITTLE_MEMORY, LITTLE_SHARED = 1 << 30, 128 << 20
NO_LIMIT = 1 << 60  # cgroup v1 writes a number of this order where there is none


def read_file(path: str) -> str | None:
    """Text of a file, None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None


def platform_lines() -> Iterator[Line]:
    """System, C library and how text is encoded."""
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield Line("platform", "system", OK, system)
    yield Line("platform", "C library", OK, " ".join(platform.libc_ver()).strip() or "not told")
    streams = f"stdout {getattr(sys.stdout, 'encoding', None)}, files {locale.getencoding()}"
    yield Line("platform", "encoding", OK, streams)


def units(cpuinfo: str) -> dict[str, bool]:
    """Which units that matter the processor has; empty if ``cpuinfo`` does not tell."""
    words: dict[str, set[str]] = {}
    for line in cpuinfo.splitlines():
        name, _, values = line.partition(":")
        words.setdefault(name.strip(), set(values.split()))
    for key, known in UNITS.items():
        if key in words:
            return {name: word in words[key] for name, word in known.items()}
    return {}


def torch_units() -> dict[str, bool]:
    """Which units of x86 torch finds."""
    import torch

    names = {
        "AMX": "_is_amx_tile_supported",
        "AVX512-BF16": "_is_avx512_bf16_supported",
        "AVX512": "_is_avx512_supported",
        "AVX2": "_is_avx2_supported",
    }
    tests = {name: getattr(torch.cpu, test, None) for name, test in names.items()}
    return {name: bool(test()) for name, test in tests.items() if test is not None}


def processor_lines(cpuinfo: str) -> Iterator[Line]:
    """Name and units by the text of ``/proc/cpuinfo``."""
    named = (line.partition(":") for line in cpuinfo.splitlines())
    name = next((value.strip() for key, _, value in named if key.strip() == "model name"), "")
    yield Line("processor", "name", OK, name or platform.processor() or "not told by this system")
    found = units(cpuinfo)
    value = ", ".join(f"{unit} {'yes' if there else 'no'}" for unit, there in found.items())
    if not found.get("AVX2", True):
        advice = "expect training to take several times as long as with AVX2"
        yield Line("processor", "units", NOTE, value, advice)
    else:
        yield Line("processor", "units", OK, value or "not told by this system")


def kernel_line(cpuinfo: str, found: Mapping[str, bool], kernels: str) -> Line:
    """Which ``kernels`` torch runs, and whether it has ``found`` the units that there are."""
    missed = [name for name, there in units(cpuinfo).items() if there and not found.get(name, True)]
    if not missed:
        return Line("processor", "used by torch", OK, f"{kernels} kernels")
    value = f"{kernels} kernels; does not see {', '.join(missed)}"
    return Line("processor", "used by torch", NOTE, value, "a newer torch or system may use them")


def memory_limit(read: Read = read_file) -> int | None:
    """The least limit in bytes of the cgroups around this process; None if there is none."""
    found = []
    for folder, version in cgroups(read, "memory"):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        text = (read(f"{folder}/{name}") or "").strip()
        if text.isdigit() and int(text) < NO_LIMIT:  # version 2 says "max"
            found.append(int(text))
    return min(found, default=None)


def memory_lines(read: Read = read_file, shared: tuple[int, int] | None = None) -> Iterator[Line]:
    """Memory available, a container's limit, and the (total, free) bytes of ``/dev/shm``."""
    kib = {}
    for line in (read("/proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        kib[name] = int((value.split() or ["0"])[0])
    if "MemTotal" in kib:
        free = 1024 * kib.get("MemAvailable", kib.get("MemFree", 0))
        yield _enough("available", free, 1024 * kib["MemTotal"], LITTLE_MEMORY, "end other programs")
    else:
        yield Line("memory", "available", OK, "not told by this system")
    limit = memory_limit(read)
    if limit is not None and limit < LITTLE_MEMORY:
        yield Line("memory", "limit", NOTE, size(limit), "give the container or job more memory")
    else:
        yield Line("memory", "limit", OK, "none" if limit is None else size(limit))
    if shared is not None:
        advice = "loader processes need it: docker run --shm-size=1g, or --workers 0"
        yield _enough("shared (/dev/shm)", shared[1], shared[0], LITTLE_SHARED, advice)


def shared_memory() -> tuple[int, int] | None:
    """(total, free) bytes of ``/dev/shm``, through which loader processes hand over batches."""
    try:
        total, _, free = shutil.disk_usage("/dev/shm")
    except OSError:
        return None
    return total, free


def _enough(name: str, free: int, total: int, least: int, advice: str) -> Line:
    value = f"{size(free)} free of {size(total)}"
    if free < least:
        return Line("memory", name, NOTE, value, advice)
    return Line("memory", name, OK, value)
