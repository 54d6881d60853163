"""Paired tests: McNemar's exact test, and Holm's correction of many p values at once.

Sources: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
percentages"; Holm 1979, "A simple sequentially rejective multiple test procedure".
"""

import numpy as np

__all__ = ["ALPHA", "NEITHER", "holm", "mcnemar"]

ALPHA = 0.05
NEITHER = "neither"


def mcnemar(only_first: np.ndarray | int, only_second: np.ndarray | int) -> np.ndarray | float:
    """Exact two-sided p of McNemar's test: twice the smaller tail of Binomial(b + c, 1/2).

    ``scipy.stats.binomtest`` gives the same, a number at a time; 1 where b + c is 0.
    """
    from scipy.stats import binom  # takes half a second, and few commands need it

    tail = binom.cdf(np.minimum(only_first, only_second), np.add(only_first, only_second), 0.5)
    return np.minimum(1.0, 2 * tail)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values in the shape of ``p``; those below alpha are rejected at alpha."""
    flat = np.ravel(p)
    order = np.argsort(flat)
    stepped = np.minimum(1, flat[order] * np.arange(len(flat), 0, -1))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted.reshape(np.shape(p))
