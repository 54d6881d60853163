"""How many runs an arm needs, before any is trained.

A paired comparison of S seeds is a t test of S differences with the standard deviation ``spread``
between seeds: a true ``difference`` gives Student's noncentral t with S - 1 degrees and the
noncentrality sqrt(S) difference / spread. More images make the spread smaller, never 0.
"""

import itertools
import math
from collections.abc import Sequence

import pandas as pd

from probes.stats.paired import ALPHA
from star.base.errors import UserError

__all__ = ["POWER_COLUMNS", "power", "power_table", "seeds_needed"]

POWER_COLUMNS = ("difference", "spread", "seeds", "power")
ENOUGH = 0.8
MOST_SEEDS = 1000
FAR = 8.0


def power(difference: float, spread: float, seeds: int) -> float:
    """How probably ``seeds`` (>= 2) paired runs show a true ``difference``, two-sided at 5 %."""
    from scipy.special import nctdtr, stdtrit

    assert seeds >= 2 and spread > 0, (seeds, spread)
    edge = float(stdtrit(seeds - 1, 1 - ALPHA / 2))
    shift = math.sqrt(seeds) * abs(difference) / spread
    found = 1 - float(nctdtr(seeds - 1, shift, edge))
    if shift < FAR:  # beyond, the other tail is below 1e-15, and scipy's series for it may end in NaN
        found += float(nctdtr(seeds - 1, shift, -edge))
    return found


def seeds_needed(difference: float, spread: float, *, enough: float = ENOUGH) -> int:
    """The fewest seeds an arm with which a true ``difference`` is found with probability ``enough``.

    ``difference`` and ``spread`` (between paired differences of seeds) are in the same units.
    ``UserError`` if either is 0 or a thousand seeds are too few.
    """
    if not (math.isfinite(difference) and difference != 0 and 0 < spread < math.inf):
        raise UserError(
            f"a true difference of {difference} at a spread of {spread}; expected a difference other "
            "than 0 and a spread above 0"
        )
    for seeds in range(2, MOST_SEEDS + 1):
        if power(difference, spread, seeds) >= enough:
            return seeds
    raise UserError(
        f"a true difference of {difference:g} at a spread of {spread:g} needs more than {MOST_SEEDS} "
        "seeds: ask about a larger difference"
    )


def power_table(
    differences: Sequence[float], spreads: Sequence[float], *, enough: float = ENOUGH
) -> pd.DataFrame:
    """Columns ``POWER_COLUMNS``: for every pair the seeds needed and the power that they then have."""
    rows = []
    for difference, spread in itertools.product(differences, spreads):
        seeds = seeds_needed(difference, spread, enough=enough)
        rows.append((difference, spread, seeds, power(difference, spread, seeds)))
    return pd.DataFrame(rows, columns=list(POWER_COLUMNS))
