"""How many cores this process may use, and what to set before torch starts so that it shares them well.

An OpenMP thread that has nothing to do spins for milliseconds in case work comes. Beside other jobs, or
under a CPU quota, it spins away the time that the thread it waits for needs, at every one of a training
step's thousands of parallel loops. The settings here let it sleep after some ``SPINS``: long enough for
the gap to the next loop, far shorter than a time slice.

Cores: those of the affinity mask (``taskset``, cpusets, batch systems), and no more than the quota of
any cgroup around this process, v2's ``cpu.max`` or v1's ``cpu.cfs_quota_us`` (containers, services).
Nothing is read or set on import; torch, numpy and the OpenMP libraries read the variables when they
are loaded.
"""

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import PurePosixPath

__all__ = [
    "cgroups",
    "compute_threads",
    "cpu_quota",
    "thread_settings",
    "usable_cores",
    "without_settings",
]

SPINS = 1000
# Variables that govern one thing; where the user has set one of them, ours stay away.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_ALSO = ("OPENBLAS_NUM_THREADS", "MKL_DYNAMIC")  # follow a number that was asked for

Read = Callable[[str], str | None]


def thread_settings(
    environment: Mapping[str, str] = os.environ,
    *,
    threads: int | None = None,
    cpus: Collection[int] | None = None,
    read: Read | None = None,
) -> dict[str, str]:
    """Environment variables to set before torch is imported; ``os.environ.update`` takes them.

    How threads wait, unless ``environment`` says so already. How many: ``threads`` whatever it says;
    without, the quota, if it leaves fewer than OpenMP would start and ``environment`` names no number.
    ``cpus`` and ``read`` as for ``usable_cores``.
    """
    settings: dict[str, str] = {}
    if not any(name in environment for name in WAITING):
        # The first is OpenMP's own name and goes for every library; the second refines GNU's.
        settings |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": str(SPINS)}
    if threads is not None:
        # MKL would cut a larger number to the cores there are, and torch follows it.
        blas, dynamic = _ALSO
        settings |= dict.fromkeys((*COUNTS, blas), str(threads)) | {dynamic: "FALSE"}
    elif not any(name in environment for name in COUNTS):
        most = compute_threads(cpus, read)
        if most < _distinct_cores(_affinity() if cpus is None else cpus, read or _read):
            settings["OMP_NUM_THREADS"] = str(most)
    return settings


def without_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``environment`` without all that decides about threads: the libraries' own defaults hold."""
    ours = {*WAITING, *COUNTS, *_ALSO}
    return {name: value for name, value in environment.items() if name not in ours}


def usable_cores(cpus: Collection[int] | None = None, read: Read | None = None) -> int:
    """Cores that this process may use at a time, at least 1: for processes that decode, say.

    ``cpus`` are the numbers of its affinity mask and ``read`` gives a file's text, None where it cannot
    be read (defaults: this process's own). A quota counts as the nearest whole number of cores.
    """
    cpus = _affinity() if cpus is None else cpus
    quota = cpu_quota(read or _read)
    return len(cpus) if quota is None else max(1, min(len(cpus), math.floor(quota + 0.5)))


def compute_threads(cpus: Collection[int] | None = None, read: Read | None = None) -> int:
    """``usable_cores`` without hyperthreads, which share the arithmetic units of their core.

    Without a quota that is what torch takes by itself.
    """
    cpus = _affinity() if cpus is None else cpus
    return min(usable_cores(cpus, read), _distinct_cores(cpus, read or _read))


def cpu_quota(read: Read) -> float | None:
    """The least quota, in cores, of the cgroups around this process; None if there is none."""
    found = []
    for folder, version in cgroups(read, "cpu"):
        if version == 2:
            texts = [*(read(f"{folder}/cpu.max") or "").split(), "", ""][:2]
        else:
            texts = [read(f"{folder}/cpu.cfs_{part}_us") or "" for part in ("quota", "period")]
        quota, period = map(_number, texts)
        if quota > 0 and period > 0:  # v1 says -1 and v2 "max" where there is none
            found.append(quota / period)
    return min(found, default=None)


def cgroups(read: Read, controller: str) -> Iterator[tuple[str, int]]:
    """Folders of this process's cgroups that govern ``controller``, innermost first, with version."""
    own: dict[str, str] = {}
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        own |= dict.fromkeys(controllers.split(","), path)  # "": version 2
    for line in (read("/proc/self/mountinfo") or "").splitlines():
        place, _, kind = (part.split() for part in line.partition(" - "))
        if len(place) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        key = "" if kind[0] == "cgroup2" else controller
        if key not in own or (key and key not in kind[2].split(",")):
            continue
        inside = _below(own[key], place[3])
        for depth in range(len(inside), -1, -1):
            yield "/".join([_plain(place[4]), *inside[:depth]]), 1 if key else 2


def _below(path: str, root: str) -> list[str]:
    """The names from the mounted cgroup ``root`` down to ``path``.

    None of them if ``path`` lies elsewhere: a container may see the host's path, or one through "..",
    of what is mounted as its root.
    """
    inner, outer = PurePosixPath(path), PurePosixPath(root)
    if ".." in inner.parts or not inner.is_relative_to(outer):
        return []
    return list(inner.relative_to(outer).parts)


def _plain(place: str) -> str:
    # The kernel writes spaces in mount points as octal numbers.
    return place.replace("\\040", " ").rstrip("/")


def _distinct_cores(cpus: Collection[int], read: Read) -> int:
    """Cores of ``cpus`` when hyperthreads of one core count once; unknown ones count each."""
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({(read(topology.format(cpu)) or f"cpu {cpu}").strip() for cpu in cpus})


def _affinity() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _number(text: str) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):
        return None
