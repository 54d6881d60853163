"""What every computing command begins with: how its threads wait, ``--threads``, and a first line.

All of it happens before torch is imported, which takes seconds and reads the environment only then.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from cli.options import Threads, sign
from star.base.errors import UserError
from star.base.threads import COUNTS, compute_threads, thread_settings, usable_cores

__all__ = ["computing", "prepare_threads", "share_cores"]

MOST_THREADS = 1024
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_ours: set[str] = set()  # variables that the user has not set


def prepare_threads() -> None:
    """Set how threads wait, and how many there are under a CPU quota, unless the user has."""
    settings = thread_settings(os.environ)
    _ours.update(settings)
    os.environ.update(settings)


def share_cores(processes: int) -> None:
    """Divide the cores among processes about to be started, unless the user has set a number."""
    if all(name in _ours or name not in os.environ for name in COUNTS):
        os.environ[COUNTS[0]] = str(max(1, compute_threads() // processes))


def computing(
    doing: str, *, option: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command that computes: it gets ``--threads`` and says at once what it is ``doing``.

    The line goes to stdout like all progress, with ``--json`` to stderr, and only where torch is yet to
    be loaded. ``option``: whether the number of threads matters to the command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(threads: int | None = None, **values: Any) -> None:
            say = functools.partial(print, file=sys.stderr if values.get("json_") else None, flush=True)
            if threads is not None and not 1 <= threads <= MOST_THREADS:
                raise UserError(f"threads is {threads}; expected 1 to {MOST_THREADS}")
            if "torch" not in sys.modules and "RANK" not in os.environ:
                say(f"{doing}; torch is loaded first")
            if threads is not None:
                _use(threads)
                if (values.get("nproc") or 1) == 1 and os.environ.get("RANK", "0") == "0":
                    _note_more_than_cores(threads, say)
            command(**values)

        if option:
            more = inspect.Parameter("threads", _KEYWORD, default=None, annotation=Threads)
            own = inspect.signature(command).parameters.values()
            signature = inspect.Signature([*(p.replace(kind=_KEYWORD) for p in own), more])
            sign(run, signature, {**command.__annotations__, "threads": Threads})
        return run

    return decorate


def _use(threads: int) -> None:
    settings = thread_settings(os.environ, threads=threads)
    os.environ.update(settings)
    _ours.difference_update(settings)  # now it is the user's number
    if "torch" in sys.modules:  # called from Python: too late for the environment
        sys.modules["torch"].set_num_threads(threads)


def _note_more_than_cores(threads: int, say: Callable[[str], None]) -> None:
    processes, cores = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), usable_cores()
    if threads * processes > cores:
        every = f" in each of {processes} processes" if processes > 1 else ""
        say(f"note: {threads} threads{every}, but {cores} cores may be used: they take turns")
