"""What some commands need besides: libraries of collectives, a compiler, a way to draw."""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from probes.doctor.lines import FAIL, NOTE, OK, Line, reason

__all__ = ["compiler_lines", "drawing_line", "process_library_lines", "process_lines"]

Which = Callable[[str], str | None]


def process_library_lines(nccl: str | None, gloo: bool, cards: int) -> Iterator[Line]:
    """What several processes talk through: NCCL between GPUs, gloo between CPUs and for waiting."""
    section = "several processes"
    if nccl is None and cards > 1:
        advice = "star train --nproc needs it on GPUs: install a torch with NCCL (Linux)"
        yield Line(section, "NCCL", NOTE, "not in this torch", advice)
    else:
        yield Line(section, "NCCL", OK, nccl or "not in this torch (several GPUs need it)")
    if gloo:
        yield Line(section, "gloo", OK, "in this torch")
    else:
        advice = "--nproc needs it: install a torch with gloo"
        yield Line(section, "gloo", NOTE, "not in this torch", advice)


def process_lines() -> Iterator[Line]:
    """``process_library_lines`` of this torch."""
    import torch
    import torch.distributed as dist

    nccl = None
    if dist.is_available() and dist.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    gloo = dist.is_available() and dist.is_gloo_available()
    yield from process_library_lines(nccl, gloo, torch.cuda.device_count())


def compiler_lines(
    cards: int,
    *,
    which: Which = shutil.which,
    triton: str | None = None,
    include: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Iterator[Line]:
    """What ``--compile`` needs: a C++ compiler, Python's headers, and ``triton``'s release for GPUs."""
    section, lost = "compiler", "--compile needs it, everything else does not"
    wanted = environment.get("CXX") or "g++"
    found = which(wanted)
    if found is None:
        yield Line(section, "C++", NOTE, f"no {wanted}", f"{lost}: apt install g++ (or its like)")
    else:
        yield Line(section, "C++", OK, f"{found} ({_first_line([found, '--version'])})")
    headers = Path(include or sysconfig.get_path("include")) / "Python.h"
    if headers.is_file():
        yield Line(section, "Python's headers", OK, f"{headers.parent}")
    else:
        advice = f"{lost}: apt install python3-dev (or its like)"
        yield Line(section, "Python's headers", NOTE, f"no {headers}", advice)
    if triton:
        yield Line(section, "Triton", OK, triton)
    elif cards:
        yield Line(section, "Triton", NOTE, "not installed", f"{lost}: pip install triton")
    else:
        yield Line(section, "Triton", OK, "not installed (GPUs alone need it)")


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return reason(error)
    return (done.stdout or done.stderr).strip().split("\n")[0]


def drawing_line(environment: Mapping[str, str] = os.environ) -> Line:
    """matplotlib's backend: pictures never ask for one, but a wrong name stops matplotlib."""
    name = environment.get("MPLBACKEND")
    value = f"MPLBACKEND is {name}" if name else "MPLBACKEND is not set"
    try:
        import matplotlib  # noqa: F401
    except Exception as error:
        advice = "unset MPLBACKEND" if name else "pip install --force-reinstall matplotlib"
        return Line("drawing", "matplotlib backend", FAIL, f"{value}; {reason(error)}", advice)
    return Line("drawing", "matplotlib backend", OK, f"{value}; star draws with Agg in any case")
