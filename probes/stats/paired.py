"""Paired tests: McNemar's exact test, and Holm's correction of many p values at once.

Sources: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
percentages"; Holm 1979, "A simple sequentially rejective multiple test procedure".
"""

import math

import numpy as np

__all__ = ["ALPHA", "NEITHER", "holm", "mcnemar"]

ALPHA = 0.05
NEITHER = "neither"


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: twice the smaller tail of Binomial(b + c, 1/2)."""
    trials = only_first + only_second
    k = np.arange(min(only_first, only_second) + 1)
    # log of trials! / (k! (trials - k)!) for every k, from running sums of logarithms
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    log_terms = log_factorial[trials] - log_factorial[k] - log_factorial[trials - k]
    log_terms -= trials * math.log(2)
    peak = log_terms.max()
    log_tail = peak + math.log(np.exp(log_terms - peak).sum())
    return min(1.0, 2 * math.exp(log_tail))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values in the shape of ``p``; those below alpha are rejected at alpha."""
    flat = np.ravel(p)
    order = np.argsort(flat)
    stepped = np.minimum(1, flat[order] * np.arange(len(flat), 0, -1))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted.reshape(np.shape(p))
