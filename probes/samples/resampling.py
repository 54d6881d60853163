"""Intervals of Fréchet distances and Inception scores: the bootstrap over samples, and over pairs.

Samples are drawn with replacement, within each of the consecutive splits of the Inception score, and
the number is taken again. A drawn set holds fewer different images, so its Fréchet distance is higher
than the one it stands for; the percentiles of the draws would miss the number itself. So an interval is
the number and two standard deviations of the draws to either side (Efron 1979; exactly Student's t of
R - 1 degrees). The reference stands still: the interval says what other samples of the same model would
give at this count, against these images.

Shapes: N samples, R draws.
"""

from collections.abc import Callable, Sequence

import numpy as np

from probes.samples.scores import split_ranges
from probes.stats.intervals import student_quantile
from star.base.progress import Progress, nothing

__all__ = ["bootstrap_counts", "bootstrapped", "normal_interval"]


def bootstrap_counts(count: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, count): how often each sample is drawn."""
    counts = np.empty((resamples, count))
    for rows in split_ranges(count):
        size = len(rows)
        counts[:, rows.start : rows.stop] = rng.multinomial(size, np.full(size, 1 / size), resamples)
    return counts


def bootstrapped(
    number: Callable[[np.ndarray], float], counts_RN: np.ndarray, on_progress: Progress = nothing
) -> np.ndarray:
    """(R,) ``number`` of every row of ``bootstrap_counts``."""
    drawn = []
    for done, counts_N in enumerate(counts_RN):
        drawn.append(number(counts_N))
        on_progress(done + 1, len(counts_RN))
    return np.array(drawn)


def normal_interval(value: float, drawn: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 %: the value and t(R-1) standard deviations of the R draws; NaN of fewer than two."""
    if len(drawn) < 2:
        return float("nan"), float("nan")
    half = student_quantile(len(drawn) - 1) * float(np.std(drawn, ddof=1))
    return value - half, value + half
