"""Two sides of a comparison on the same images: one table of paired tests, corrected together.

Beside it McNemar's exact test, an interval for the difference of two paired proportions, and Holm's
correction of many p values at once.

Sources: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or
percentages"; Newcombe 1998, "Improved confidence intervals for the difference between binomial
proportions based on paired data" (method 10); Holm 1979, "A simple sequentially rejective multiple test
procedure".
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from probes.stats.intervals import FEWEST, averaged_hits_test, paired_test, wilson_interval

__all__ = [
    "ALPHA",
    "NEITHER",
    "holm",
    "mcnemar",
    "paired_row",
    "paired_share_interval",
    "paired_table",
]

ALPHA = 0.05
NEITHER = "neither"


def mcnemar(only_first: np.ndarray | int, only_second: np.ndarray | int) -> np.ndarray | float:
    """Exact two-sided p of McNemar's test: twice the smaller tail of Binomial(b + c, 1/2).

    ``scipy.stats.binomtest`` gives the same, a number at a time; 1 where b + c is 0.
    """
    from scipy.stats import binom  # takes half a second, and few commands need it

    tail = binom.cdf(np.minimum(only_first, only_second), np.add(only_first, only_second), 0.5)
    return np.minimum(1.0, 2 * tail)


def paired_share_interval(first_N: np.ndarray, second_N: np.ndarray) -> tuple[float, float, float]:
    """(difference, low, high) of two shares on the same images, second minus first (Newcombe 1998).

    Wilson's intervals of the two are put together with the correlation phi of the hits, which is
    lowered towards 0 by a continuity correction where it is positive. Holds where few images, or none,
    are discordant, and stays inside [-1, 1].
    """
    images = len(first_N)
    both, neither = int((first_N & second_N).sum()), int((~first_N & ~second_N).sum())
    only_first, only_second = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    one, two = (both + only_first) / images, (both + only_second) / images
    low_one, high_one = wilson_interval(both + only_first, images)
    low_two, high_two = wilson_interval(both + only_second, images)
    margins = (both + only_first) * (neither + only_second) * (both + only_second)
    margins *= neither + only_first
    product = both * neither - only_first * only_second
    corrected = max(0.0, product - images / 2) if product > 0 else product
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def apart(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 - 2 * phi * a * b + b**2))

    difference = two - one
    low = difference - apart(two - low_two, high_one - one)
    return difference, low, difference + apart(high_two - two, one - low_one)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values in the shape of ``p``; those below alpha are rejected at alpha."""
    flat = np.ravel(p)
    order = np.argsort(flat)
    stepped = np.minimum(1, flat[order] * np.arange(len(flat), 0, -1))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted.reshape(np.shape(p))


def paired_row(
    first_N: np.ndarray, second_N: np.ndarray, *, largest: float | None = None
) -> dict[str, float]:
    """What ``paired_table`` takes of two sides' numbers (N,) of the same images, in the same order.

    ``first`` and ``second`` (means), ``difference`` (second minus first) with its 95 % interval ``low``
    to ``high`` and ``p`` (NaN below ``FEWEST`` images), ``n``. Hits (bool) have Newcombe's interval and
    McNemar's exact p; averages of hits, whose differences lie within ± ``largest``,
    ``probes.stats.intervals.averaged_hits_test``; other numbers the paired t test.
    """
    if first_N.dtype == second_N.dtype == bool:
        difference, low, high, p = _hits_test(first_N, second_N)
    elif largest is not None:
        difference, low, high, p = averaged_hits_test(second_N - first_N, largest)
    else:
        difference, low, high, p = paired_test(second_N - first_N)
    return {
        "first": first_N.mean(), "second": second_N.mean(), "difference": difference, "low": low,
        "high": high, "p": p, "n": len(first_N),
    }  # fmt: skip


def _hits_test(first_N: np.ndarray, second_N: np.ndarray) -> tuple[float, float, float, float]:
    p = math.nan
    if len(first_N) >= FEWEST:
        p = float(mcnemar((first_N & ~second_N).sum(), (second_N & ~first_N).sum()))
    return *paired_share_interval(first_N, second_N), p


def paired_table(rows: Sequence[dict], columns: Sequence[str], names: tuple[str, str]) -> pd.DataFrame:
    """``rows`` as a table of ``columns``, among them ``p_holm`` and ``higher``, which are found here.

    ``p_holm``: Holm's correction of the p of all rows that were tested (p is not NaN). ``higher``: the
    one of ``names`` (first, second) whose number is higher by the corrected test, or "neither"; blank
    where nothing was tested.
    """
    table = pd.DataFrame(rows, columns=[name for name in columns if name not in ("p_holm", "higher")])
    tested = table["p"].notna()
    table["p_holm"] = np.nan
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy(dtype=float))
    ahead = np.where(table["difference"] > 0, names[1], names[0])
    ahead = np.where(table["p_holm"] < ALPHA, ahead, NEITHER).astype(object)
    table["higher"] = np.where(tested, ahead, np.array(None, dtype=object))
    return table[list(columns)]
