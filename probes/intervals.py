"""95 % intervals: Wilson's for a proportion, the normal one for a mean over images."""

import math

import numpy as np

__all__ = ["mean_interval", "wilson_interval"]

Z = 1.959963984540054  # 97.5 % quantile of the standard normal


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """(low, high) of a proportion (Wilson 1927); inside [0, 1] also at 0 and at all successes."""
    assert 0 <= successes <= trials and trials > 0, (successes, trials)
    share, spread = successes / trials, Z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) over independent images; one image has no interval (NaN)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half
