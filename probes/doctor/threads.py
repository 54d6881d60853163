"""Cores that may be used, threads that use them, and the variables that decide about both.

Of the environment only what is listed here is ever shown.
"""

import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from probes.doctor.lines import NOTE, OK, Line
from probes.doctor.machine import read_file
from star.base.threads import Read

__all__ = ["SHOWN", "core_line", "environment_lines", "given_environment", "thread_line"]

SECTION = "cores and threads"
SHOWN = (
    "STAR_CACHE", "OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "CUDA_VISIBLE_DEVICES", "NCCL_*",
    "TORCH_*", "MPLBACKEND", "LANG", "LC_ALL",
)  # fmt: skip
ALWAYS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")  # shown also where they are not set
SECRET = ("KEY", "TOKEN", "SECRET", "PASS", "CREDENTIAL", "AUTH")


def core_line(usable: int, affinity: int, cores: int, quota: float | None) -> Line:
    """Cores of the machine, of the affinity mask, and of a container's quota."""
    limit = "no quota" if quota is None else f"quota {quota:g}"
    value = f"{usable} usable (of {cores}; affinity {affinity}, {limit})"
    if quota is not None and quota < 1:
        return Line(SECTION, "cores", NOTE, value, "give the container at least one core")
    return Line(SECTION, "cores", OK, value)


def thread_line(threads: int, usable: int, environment: Mapping[str, str] = os.environ) -> Line:
    """Threads that torch computes with, beside the cores there are."""
    name = "threads of torch"
    if threads <= usable:
        return Line(SECTION, name, OK, f"{threads}")
    given = next((v for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if v in environment), None)
    advice = f"unset {given}" if given else f"set OMP_NUM_THREADS={usable}"
    return Line(SECTION, name, NOTE, f"{threads}, which take turns on {usable} cores", advice)


def given_environment(read: Read = read_file) -> dict[str, str] | None:
    """The environment that this process was started with; None where the system does not tell."""
    text = read("/proc/self/environ")
    if text is None:
        return None
    return {name: value for name, _, value in (part.partition("=") for part in text.split("\0"))}


def environment_lines(
    environment: Mapping[str, str],
    given: Mapping[str, str] | None,
    before: Mapping[str, str],
) -> Iterator[Line]:
    """The variables that matter, and who set them.

    The user has ``given`` some, this program had set others ``before`` the examination began (how
    threads wait), and packages set theirs when they are imported.
    """
    for name in sorted({*environment, *ALWAYS}):
        if not any(fnmatchcase(name, pattern) for pattern in SHOWN):
            continue
        if name not in environment:
            yield Line("environment", name, OK, "not set")
        elif any(word in name.upper() for word in SECRET):
            yield Line("environment", name, OK, "set (not shown)")
        else:
            value = environment[name]
            who = f" ({_who(name, value, given, before)})" if given is not None else ""
            yield Line("environment", name, OK, f"{value or 'empty'}{who}")


def _who(name: str, value: str, given: Mapping[str, str], before: Mapping[str, str]) -> str:
    if given.get(name) == value:
        return "set by you"
    who = "set by this program" if before.get(name) == value else "set by a package"
    return f"{who}; by you: {given[name] or 'empty'}" if name in given else who
