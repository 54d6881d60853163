"""What other jobs on the same cores cost: one piece of work alone and beside competitors.

Under two settings: "before", the environment in which the libraries decide for themselves how their
threads wait, and "after", with ``star.base.threads.thread_settings``. Competitors are "busy", single
threads that compute without a pause, or "alike", further copies of the same work under the same
setting. Every process is fresh and has its environment before it imports torch; all live as long as
the measurement and sleep while it is not their turn.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

from probes.speed.contention_work import GO, STOP, serve
from probes.speed.timing import Timings, alternate
from star.base.errors import UserError
from star.base.threads import thread_settings, usable_cores, without_settings

__all__ = ["ALONE", "SETTINGS", "ContentionBench", "arm", "bench_contention"]

SETTINGS = ("before", "after")
ALONE = "alone"
PATIENCE = 120.0  # seconds for one answer; a machine that takes longer is no place to measure
MOST_SECONDS = 180.0  # of all rounds: where others load the machine already, there are fewer


@dataclass(frozen=True)
class ContentionBench:
    """Seconds of a piece of work; an arm is ``arm(setting, beside)``, beside nobody ``ALONE``.

    ``fair`` says how many times as long the work takes beside each kind of competitor if every runnable
    thread gets the same share of the cores. ``load`` is the load average of the minute before: with
    others at work "alone" is not alone.
    """

    timings: Timings
    environment: dict[str, str]
    threads: dict[str, int]
    fair: dict[str, float]
    load: float


def arm(setting: str, beside: str) -> str:
    """Name of an arm: "after, alone" or "before, beside 2 busy"."""
    return f"{setting}, {beside}"


def bench_contention(
    work: str,
    *,
    jobs: int | None = None,
    alike: int = 2,
    rounds: int = 6,
    units: int = 4,
    seconds: float = 4.0,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> ContentionBench:
    """Time ``work`` (of ``WORKS``) alone, beside ``jobs`` busy threads and beside ``alike`` copies.

    ``jobs`` is by default the number of cores this process may use. A measurement is the mean of
    ``units`` pieces of work, or of those that begin within ``seconds``. ``UserError`` if a process does
    not answer or ends.
    """
    jobs = usable_cores() if jobs is None else jobs
    load = round(os.getloadavg()[0], 2)
    plain = without_settings(os.environ)
    ours = thread_settings(plain)
    environments = dict(zip(SETTINGS, (plain, plain | ours), strict=True))
    with _Crew() as crew:
        busy = [crew.start(plain, "busy") for _ in range(jobs)]
        measured = {name: crew.start(found, work) for name, found in environments.items()}
        others = {
            name: [crew.start(found, work) for _ in range(alike)]
            for name, found in environments.items()
        }
        threads = {name: member.threads() for name, member in measured.items()}
        for member in (*busy, *(copy for copies in others.values() for copy in copies)):
            member.threads()  # wait until it is ready

        def timed(name: str, competitors: list[_Member]) -> Callable[[int], float]:
            return lambda index: measured[name].seconds(units, seconds, competitors)

        arms = {}
        for name in SETTINGS:
            arms[arm(name, ALONE)] = timed(name, [])
            if jobs:
                arms[arm(name, f"beside {jobs} busy")] = timed(name, busy)
            if alike:
                arms[arm(name, f"beside {alike} alike")] = timed(name, others[name])
        timings = alternate(
            arms,
            rounds=rounds,
            most_seconds=MOST_SECONDS,
            measured=lambda elapsed, result: float(result),
            on_round=on_round,
        )
    count, cores = threads[SETTINGS[1]], usable_cores()
    competing = {f"beside {jobs} busy": jobs, f"beside {alike} alike": alike * count}
    fair = {name: max(1.0, (count + more) / cores) for name, more in competing.items() if more}
    return ContentionBench(timings, ours, threads, fair, load)


class _Member:
    """One process of the bench and the link to it."""

    def __init__(self, link: Connection) -> None:
        self._link = link

    def threads(self) -> int:
        """Waits until the process is ready; the threads that it computes with."""
        return self._answer()

    def seconds(self, units: int, seconds: float, competitors: list["_Member"]) -> float:
        """Mean seconds of a piece of work while ``competitors`` compete."""
        for competitor in competitors:
            competitor._link.send(GO)
        self._link.send((units, seconds))
        found = self._answer()
        for competitor in competitors:
            competitor._link.send(STOP)
        for competitor in competitors:  # wait until it has
            competitor._link.send((0, 0.0))
            competitor._answer()
        return found

    def _answer(self) -> Any:
        try:
            if self._link.poll(PATIENCE):
                return self._link.recv()
        except (EOFError, OSError):
            raise UserError("a process of the bench ended by itself (out of memory?)") from None
        raise UserError(
            f"a process of the bench has not answered for {PATIENCE:.0f} s; ask for fewer competitors"
        )


class _Crew:
    """Starts processes and ends them all on the way out."""

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []
        self._context = get_context("spawn")

    def __enter__(self) -> Self:
        return self

    def start(self, environment: Mapping[str, str], work: str) -> _Member:
        here, there = self._context.Pipe()
        process = self._context.Process(target=serve, args=(there, environment, work), daemon=True)
        process.start()
        there.close()
        self._processes.append(process)
        return _Member(here)

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
