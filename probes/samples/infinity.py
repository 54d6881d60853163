"""A Fréchet distance as it would be with infinitely many samples (Chong & Forsyth 2020).

A Fréchet distance of N samples is too large by about a constant over N. It is taken of random subsets
of several sizes and laid on a line in 1 / N; the line's value at 0 is the estimate. Its interval is the
jackknife's over groups of samples, each subset of which is drawn anew.
"""

from collections.abc import Callable

import numpy as np

from probes.stats.intervals import jackknife_interval
from star.base.progress import Progress, nothing
from star.base.randomness import generator

__all__ = ["FEWEST_EXTRAPOLATED", "GROUPS", "SIZES", "extrapolated"]

SIZES = 15  # of subsets, as published, from a tenth of the samples to all
GROUPS = 10
FEWEST_EXTRAPOLATED = 200  # samples; a tenth of them is the smallest subset


def extrapolated(
    distance: Callable[[np.ndarray], float], count: int, seed: int, on_progress: Progress = nothing
) -> tuple[float, float, float]:
    """(value, low, high) at 1 / N = 0 of ``distance(weights (count,))``.

    ``count``: samples there are, ``FEWEST_EXTRAPOLATED`` or more.
    """
    groups = np.array_split(generator(seed, "groups of samples").permutation(count), GROUPS)
    total = (1 + GROUPS) * SIZES
    done = 0

    def at_infinity(rows: np.ndarray, number: int) -> float:
        nonlocal done
        order = generator(seed, "subsets of samples", number).permutation(rows)
        sizes = np.linspace(len(rows) // 10, len(rows), SIZES).round().astype(int)
        found = []
        for size in sizes:
            weights = np.zeros(count)
            weights[order[:size]] = 1
            found.append(distance(weights))
            done += 1
            on_progress(done, total)
        return float(np.polyfit(1 / sizes, found, 1)[1])

    value = at_infinity(np.arange(count), 0)
    left_out = [
        at_infinity(np.sort(np.concatenate(groups[:place] + groups[place + 1 :])), 1 + place)
        for place in range(GROUPS)
    ]
    return jackknife_interval(value, np.array(left_out))
