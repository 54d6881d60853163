"""Compare the speed of several ways of doing one thing: alternate them in one run, report ratios.

Machines drift and share their cores, so a time alone says little. Every round times each arm once, in
alternating order, and a comparison is the median of the rounds' ratios. Its interval is between two of
these ratios (``probes.stats.intervals.median_interval``), which takes six rounds for 95 %: a bootstrap
covers 49 % of two rounds and 75 % of three.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.stats.intervals import median_interval

__all__ = ["Ratio", "Timings", "alternate"]


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of time a / time b; ``low`` to ``high`` holds it with probability ``level``.

    ``level`` is 0.95 or more with six rounds, 0.75 with three.
    """

    median: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class Timings:
    """Seconds of each arm, one value a round; values of one round belong together."""

    seconds: Mapping[str, np.ndarray]

    def median(self, arm: str) -> float:
        """Median seconds of an arm."""
        return float(np.median(self.seconds[arm]))

    def quartiles(self, arm: str) -> tuple[float, float]:
        """First and third quartile of an arm's seconds."""
        low, high = np.quantile(self.seconds[arm], (0.25, 0.75))
        return float(low), float(high)

    def ratio(self, arm: str, base: str) -> Ratio:
        """How many times as long as ``base`` the ``arm`` takes, from the rounds' own ratios."""
        return Ratio(*median_interval(self.seconds[arm] / self.seconds[base]))


def alternate(
    arms: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    warmup: int = 1,
    most_seconds: float = math.inf,
    synchronize: Callable[[], object] = lambda: None,
    measured: Callable[[float, Any], float] = lambda seconds, result: seconds,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> Timings:
    """Call every arm once a round, forwards in even rounds and backwards in odd ones.

    ``arms`` get the round's number. ``warmup`` rounds (caches, allocators, compilers) are not counted.
    ``synchronize`` waits for a device before each look at the clock. ``measured`` makes the number that
    counts of the seconds a call took and of what it returned. After ``most_seconds`` no further round
    begins, once two are counted. ``on_round`` gets progress.
    """
    assert rounds >= 1, rounds
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    began = time.perf_counter()
    for index in range(warmup + rounds):
        if index >= warmup + 2 and time.perf_counter() - began > most_seconds:
            break
        for name in arms if index % 2 == 0 else reversed(list(arms)):
            synchronize()
            start = time.perf_counter()
            result = arms[name](index)
            synchronize()
            if index >= warmup:
                seconds[name].append(measured(time.perf_counter() - start, result))
        on_round(index + 1, warmup + rounds)
    return Timings({name: np.array(values) for name, values in seconds.items()})
