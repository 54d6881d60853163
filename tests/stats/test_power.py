"""Seeds needed: against the audit's table, and against drawing experiments."""

import numpy as np
import pytest

from figures.said.arms import runs_needed
from probes.stats.arms import compare_arms
from probes.stats.power import POWER_COLUMNS, power, power_table, seeds_needed
from star.base.errors import UserError


def test_seeds_for_three_points():
    spreads = (0.9, 2.0, 3.0, 3.7)
    assert [seeds_needed(3, spread) for spread in spreads] == [3, 6, 10, 14]
    table = power_table([3.0, -6.0], spreads)
    assert tuple(table.columns) == POWER_COLUMNS and len(table) == 8
    assert table["seeds"].tolist()[:4] == [3, 6, 10, 14]
    assert (table["power"] >= 0.8).all()
    for row in table.itertuples():
        assert row.seeds == 2 or power(row.difference, row.spread, row.seeds - 1) < 0.8
    assert seeds_needed(3, 2.0, enough=0.95) > 6


@pytest.mark.parametrize(("difference", "spread", "seeds"), [(3.0, 2.0, 6), (1.0, 1.0, 4)])
def test_power_is_the_share_of_experiments_that_find_it(difference, spread, seeds):
    rng = np.random.default_rng(0)
    draws = rng.normal(difference, spread, (1000, seeds, 1))
    found = [compare_arms(np.zeros_like(draw), draw).differs for draw in draws]
    # 1,000 draws: standard error at most 1.6 points
    assert np.mean(found) == pytest.approx(power(difference, spread, seeds), abs=0.04)


def test_in_words_and_refusals():
    assert runs_needed(3, 2, unit=" points") == (
        "a true difference of +3.0 points at a spread of 2.0 points between seeds is found in 80 % of "
        "experiments with 6 seeds an arm"
    )
    for difference, spread in ((0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(UserError, match="expected a difference other than 0"):
            seeds_needed(difference, spread)
    with pytest.raises(UserError, match="more than 1000 seeds"):
        seeds_needed(0.001, 10)
