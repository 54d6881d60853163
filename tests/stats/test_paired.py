"""Paired tests: McNemar's against sums, Holm's by hand, Newcombe's where few images differ."""

import math

import numpy as np
import pytest

from probes.stats.intervals import averaged_hits_test, paired_test
from probes.stats.paired import holm, mcnemar, paired_row, paired_share_interval, paired_table


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (5, 5), (2, 9), (9, 2), (31, 60), (0, 400)])
def test_mcnemar_is_the_sum_of_binomial_terms(b, c):
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    expected = min(1.0, 2 * tail / 2 ** (b + c))
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    both = mcnemar(np.array([[b, c]]), np.array([[c, b]]))
    assert both.shape == (1, 2) and both.tolist() == [[mcnemar(b, c)] * 2]


def test_mcnemar_against_a_published_example():
    # Fay, "Exact McNemar's Test and Matching Confidence Intervals" (exact2x2): b = 2, c = 9
    assert mcnemar(2, 9) == pytest.approx(0.06543, abs=5e-6)


def test_mcnemar_of_many_images_neither_overflows_nor_becomes_certain():
    assert mcnemar(20_000, 20_000) == 1.0
    normal = math.erfc(400 / math.sqrt(40_000) / math.sqrt(2))  # z = (c - b) / sqrt(b + c)
    assert mcnemar(19_800, 20_200) == pytest.approx(normal, rel=0.03)
    assert 0 <= mcnemar(0, 50_000) < 1e-300


def test_holm_against_a_hand_worked_example():
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1 = 0.02 0.03 0.06 0.04; the last may not fall below 0.06.
    found = holm(np.array([[0.01, 0.04], [0.03, 0.005]]))
    np.testing.assert_allclose(found, [[0.03, 0.06], [0.06, 0.02]])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_a_paired_table_corrects_what_was_tested_and_names_who_is_higher():
    rng = np.random.default_rng(0)
    first = rng.normal(size=40)
    clear, small = first + 1 + 0.1 * rng.normal(size=40), first + 0.01 * rng.normal(size=40)
    pairs = {"up": (first, clear), "down": (clear, first), "same": (first, small)}
    rows = [{"key": key, **paired_row(*pair)} for key, pair in pairs.items()]
    rows.append({"key": "few", **paired_row(first[:19], clear[:19])})
    columns = ("key", "higher", "n", "p", "p_holm", "first", "second", "difference", "low", "high")
    table = paired_table(rows, columns, ("AR", "ST-AR")).set_index("key")
    assert tuple(table.columns) == columns[1:]
    assert table["higher"].fillna("").tolist() == ["ST-AR", "AR", "neither", ""]
    assert table["n"].tolist() == [40, 40, 40, 19]
    np.testing.assert_allclose(table["difference"], table["second"] - table["first"])
    np.testing.assert_allclose(table["p_holm"][:3], holm(table["p"][:3].to_numpy()))
    assert table.loc["few", ["p", "p_holm"]].isna().all()
    untested = paired_table(rows[3:], columns, ("AR", "ST-AR"))
    assert untested["higher"].isna().all() and untested["p_holm"].isna().all()
    assert not len(paired_table([], columns, ("AR", "ST-AR")))


def test_a_row_takes_the_test_that_its_numbers_need():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 40)) < 0.5
    row = paired_row(a, b)
    assert (row["difference"], row["low"], row["high"]) == paired_share_interval(a, b)
    assert row["p"] == mcnemar((a & ~b).sum(), (b & ~a).sum())
    assert (row["first"], row["second"], row["n"]) == (a.mean(), b.mean(), 40)
    assert math.isnan(paired_row(a[:19], b[:19])["p"])
    numbers = ("difference", "low", "high", "p")
    x, y = a.astype(float), b.astype(float)
    assert tuple(paired_row(x, y)[key] for key in numbers) == paired_test(y - x)
    averaged = paired_row(x, y, largest=1.0)
    assert tuple(averaged[key] for key in numbers) == averaged_hits_test(y - x)


def test_newcombes_interval_covers_where_few_images_differ_and_t_does_not():
    rng = np.random.default_rng(1)
    images, gained, times = 300, 0.005, 600
    covered = np.zeros(2)
    for _ in range(times):
        first = rng.random(images) < 0.4
        second = first | (rng.random(images) < gained / 0.6)
        for place, bounds in enumerate(
            (paired_row(first, second), paired_row(first * 1.0, second * 1.0))
        ):
            covered[place] += bounds["low"] <= gained <= bounds["high"]
    assert covered[0] / times >= 0.94 and covered[1] / times <= 0.85
