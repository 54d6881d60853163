"""Everything the doctor looks at, in order; a check that breaks is a line, and the next one follows."""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from probes.doctor import folders, machine, threads, tools, versions
from probes.doctor.devices import device_lines
from probes.doctor.lines import FAIL, NOTE, OK, Line, checked, one
from probes.doctor.self_test import self_test
from star.base.errors import UserError
from star.base.threads import cpu_quota, usable_cores
from star.base.versions import installed_version

__all__ = ["as_data", "examine", "worst"]


def examine(device: str = "auto", *, every: bool = False) -> Iterator[Line]:
    """All lines, one after the other as they are found.

    The self-test runs on ``device`` (``star.base.device.parse_device``), or on the CPU and ``every``
    CUDA device. Raises ``UserError`` for a device that is not here, and in a folder that is gone (where
    torch may end the process when it is loaded).
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the working folder cannot be read ({error.strerror}); cd to another"
        ) from error
    before = dict(os.environ)
    if device != "auto":
        _devices(device, every)  # a mistake is said before anything else
    yield from checked(versions.SECTION, "star", versions.program_lines)
    for package in versions.PACKAGES:
        yield from checked(versions.SECTION, package.name, one(partial(_package, package)))
    for section, name, check in (
        ("platform", "platform", machine.platform_lines),
        ("processor", "processor", lambda: machine.processor_lines(_cpuinfo())),
        ("processor", "used by torch", one(_kernels)),
        ("cores and threads", "cores", one(_cores)),
        ("cores and threads", "threads of torch", one(_threads)),
        ("environment", "variables", lambda: _environment(before)),
        ("memory", "memory", lambda: machine.memory_lines(shared=machine.shared_memory())),
        ("folders", "cache", one(folders.cache_line)),
        ("folders", "kept in the cache", one(folders.contents_line)),
        ("folders", "working folder", one(folders.working_line)),
        ("devices", "devices", device_lines),
        ("several processes", "libraries", tools.process_lines),
        ("compiler", "compiler", _compiler),
        ("drawing", "matplotlib backend", one(tools.drawing_line)),
    ):
        yield from checked(section, name, check)
    for name in _devices(device, every):
        yield from self_test(name, folders.all_folders)


def worst(lines: Iterable[Line]) -> str:
    """FAIL, else note, else ok."""
    found = {line.status for line in lines}
    return next((status for status in (FAIL, NOTE) if status in found), OK)


def as_data(lines: Sequence[Line]) -> dict:
    """``status`` (the worst) and ``lines`` for JSON."""
    return {"status": worst(lines), "lines": [vars(line) for line in lines]}


def _package(package: versions.Package) -> Line:
    return versions.package_line(package, versions.minimums().get(package.name, ""))


def _environment(before: Mapping[str, str]) -> Iterator[Line]:
    return threads.environment_lines(os.environ, threads.given_environment(), before)


def _cpuinfo() -> str:
    return machine.read_file("/proc/cpuinfo") or ""


def _kernels() -> Line:
    import torch

    kernels = torch.backends.cpu.get_cpu_capability()
    return machine.kernel_line(_cpuinfo(), machine.torch_units(), kernels)


def _cores() -> Line:
    affinity = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    quota = cpu_quota(machine.read_file)
    return threads.core_line(usable_cores(), len(affinity), os.cpu_count() or 1, quota)


def _threads() -> Line:
    import torch

    return threads.thread_line(torch.get_num_threads(), usable_cores())


def _compiler() -> Iterator[Line]:
    there = importlib.util.find_spec("triton") is not None
    return tools.compiler_lines(_cards(), triton=installed_version("triton") if there else None)


def _cards() -> int:
    import torch

    return torch.cuda.device_count()


def _devices(device: str, every: bool) -> list[str]:
    try:
        from star.base.device import resolve_device

        if every:
            return ["cpu", *(f"cuda:{index}" for index in range(_cards()))]
        return [str(resolve_device(device))]
    except UserError:
        raise
    except Exception:  # torch is broken, as other lines say; every test will say what it misses
        return ["cpu"]
