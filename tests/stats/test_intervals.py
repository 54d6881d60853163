"""Intervals against published values, scipy's tests and drawing: each covers what it claims."""

import numpy as np
import pytest

from probes.stats.intervals import (
    averaged_hits_test,
    mean_interval,
    median_interval,
    neighbours_interval,
    paired_test,
    ratio_interval,
    share_interval,
    student_p,
    student_quantile,
    welch_freedom,
    wilson_interval,
)


def test_wilson_interval_against_published_values():
    # Newcombe (1998), table I: 81 of 263 and 15 of 148 and 0 of 20
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
    ):
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-5)
    assert wilson_interval(20, 20)[1] == 1.0
    assert share_interval(np.arange(20) < 15) == (0.75, *wilson_interval(15, 20))


def test_mean_interval():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    mean, low, high = mean_interval(values)
    half = 3.182446 * np.std(values, ddof=1) / 2  # t of 3 degrees
    assert (mean, low, high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert np.isnan(mean_interval(np.array([1.0]))[1:]).all()
    assert np.isnan(mean_interval(np.array([]))).all() and len(mean_interval(np.array([]))) == 3


def test_students_interval_of_few_images_covers_and_the_normal_one_did_not():
    values = np.random.default_rng(0).normal(size=(4000, 4))
    bounds = np.array([mean_interval(of_draw)[1:] for of_draw in values])
    assert ((bounds[:, 0] <= 0) & (bounds[:, 1] >= 0)).mean() == pytest.approx(0.95, abs=0.015)
    normal = 1.96 * values.std(1, ddof=1) / 2
    assert (abs(values.mean(1)) <= normal).mean() < 0.88


def test_the_paired_test_is_scipys():
    from scipy import stats

    differences = np.random.default_rng(1).normal(0.3, 1, 25)
    expected = stats.ttest_1samp(differences, 0)
    mean, low, high, p = paired_test(differences)
    assert (mean, p) == pytest.approx((differences.mean(), expected.pvalue))
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval()))
    assert paired_test(np.zeros(30))[3] == 1.0 and paired_test(np.ones(30))[3] == 0.0
    assert np.isnan(paired_test(differences[:19])[3])


def test_quantiles_and_p_from_tables():
    for freedom, quantile in ((1, 12.706205), (2, 4.302653), (9, 2.262157), (30, 2.042272)):
        assert student_quantile(freedom) == pytest.approx(quantile, abs=1e-6)
        assert student_p(-quantile, 1.0, freedom) == pytest.approx(0.05, abs=1e-7)
    assert student_quantile(np.inf) == pytest.approx(1.959964, abs=1e-6)
    assert student_p(1.959964, 1.0, np.inf) == pytest.approx(0.05, abs=1e-6)


def test_degrees_of_freedom_are_welchs():
    from scipy import stats

    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, 8), rng.normal(0, 4, 5)
    found = welch_freedom([a.var(ddof=1) / 8, b.var(ddof=1) / 5], [7, 4])
    assert found == pytest.approx(stats.ttest_ind(a, b, equal_var=False).df)
    assert welch_freedom([0.0, 0.0], [7, 4]) == 11


def test_averaged_hits_against_a_list_with_two_images_more():
    values = np.random.default_rng(3).choice([-1, -0.5, 0, 0.5, 1], 40)
    more = [*values, 1.0, -1.0]
    centre = sum(more) / 42
    error = (sum((each - centre) ** 2 for each in more) / 42 / 42) ** 0.5
    mean, low, high, p = averaged_hits_test(values)
    assert mean == pytest.approx(values.mean())
    half = student_quantile(41) * error
    assert (low, high) == pytest.approx((centre - half, centre + half))
    assert p == pytest.approx(student_p(centre, error, 41))
    wide, narrow = averaged_hits_test(values, 2.0), averaged_hits_test(values)
    assert wide[2] - wide[1] > narrow[2] - narrow[1]
    assert np.isnan(averaged_hits_test(values[:19])[3])


@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.005), (0.005, 0.005), (0.01, 0.03), (0.15, 0.2)])
def test_averaged_hits_cover_where_few_images_differ(lost, gained):
    """Hits of eight steps, of which many go together; t alone covers 77 % at (0, 0.005)."""
    rng, images, steps, times = np.random.default_rng(4), 300, 8, 500
    covered = 0
    for _ in range(times):
        together = rng.random((steps, images)) < 0.8
        place = np.where(together, rng.random(images), rng.random((steps, images)))
        gains = np.where(place < lost, -1, np.where(place > 1 - gained, 1, 0)).mean(0)
        _, low, high, _ = averaged_hits_test(gains)
        covered += low <= gained - lost <= high
    assert covered / times >= 0.93


@pytest.mark.parametrize(
    ("count", "place", "level"), [(1, 1, 0.0), (3, 1, 0.75), (6, 1, 0.96875), (10, 2, 0.9785156)]
)
def test_the_interval_of_a_median_is_between_order_statistics(count, place, level):
    """Places and levels as tables of the sign test have them."""
    values = np.random.default_rng(5).normal(size=count)
    ordered = sorted(values.tolist())
    expected = (np.median(values), ordered[place - 1], ordered[-place], level)
    assert median_interval(values) == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 3, 6, 9, 30])
def test_the_interval_of_a_median_holds_it_as_often_as_it_says(count):
    """The fault that this mends: a bootstrap held the median of two rounds in 49 % and said 95 %."""
    samples = np.exp(np.random.default_rng(count).normal(size=(2000, count)))  # median 1, skewed
    found = np.array([median_interval(values) for values in samples])
    covered = ((found[:, 1] <= 1) & (found[:, 2] >= 1)).mean()
    assert covered == pytest.approx(found[0, 3], abs=0.035)
    assert (found[0, 3] >= 0.95) == (count >= 6)


def test_the_interval_of_neighbours_against_loops():
    values = np.random.default_rng(6).normal(size=9)
    mean = sum(values) / 9
    square = 0.0  # over pairs that share an image: each with itself, and with both neighbours
    for i in range(9):
        for j in range(9):
            if j in (i, (i + 1) % 9, (i - 1) % 9):
                square += (values[i] - mean) * (values[j] - mean) / (9 * 8)
    square = max(square, sum((values - mean) ** 2) / (9 * 8))
    half = student_quantile(8) * square**0.5
    assert neighbours_interval(values) == pytest.approx((mean, mean - half, mean + half))
    some = np.array([1.0, np.nan, 3.0, 2.0, np.nan, 6.0])  # no pair is a neighbour of a missing one
    assert neighbours_interval(some)[0] == 3
    assert neighbours_interval(values[:2]) == mean_interval(values[:2])
    assert np.isnan(neighbours_interval(np.full(4, np.nan))).all()


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_the_interval_of_neighbours_covers_where_images_are_shared(shared):
    """The fault that this mends: pairs that share an image are no independent numbers."""
    rng, images, times = np.random.default_rng(7), 60, 2000
    of_image = rng.normal(size=(times, images))
    values = shared * (of_image + np.roll(of_image, -1, axis=1)) + rng.normal(size=of_image.shape)
    covered = np.zeros(2)
    for of_draw in values:
        for place, interval in enumerate((neighbours_interval, mean_interval)):
            _, low, high = interval(of_draw)
            covered[place] += low <= 0 <= high
    assert 0.93 <= covered[0] / times <= 0.98
    assert (covered[1] / times < 0.9) == (shared > 0)


def test_a_ratio_of_sums_leaves_each_image_out():
    rng = np.random.default_rng(8)
    over, under = rng.normal(2, 1, 30), rng.random(30) + 0.5
    left = [sum(np.delete(over, i)) / sum(np.delete(under, i)) for i in range(30)]
    error = (29 / 30 * sum((each - np.mean(left)) ** 2 for each in left)) ** 0.5
    value, low, high = ratio_interval(over, under)
    assert value == pytest.approx(over.sum() / under.sum())
    half = student_quantile(29) * error
    assert (low, high) == pytest.approx((value - half, value + half))
    assert np.isnan(ratio_interval(over, np.zeros(30))).all()
    assert np.isnan(ratio_interval(over[:1], under[:1])[1:]).all()
