"""Means over runs and images: the formula against loops, and coverage of what each interval claims."""

import math

import numpy as np
import pytest

from figures.said.arms import arm_mean
from probes.stats.intervals import mean_interval, wilson_interval
from probes.stats.runs import mean_of_runs
from star.base.errors import UserError

T_975 = {1: 12.706205, 2: 4.302653, 4: 2.776445, 9: 2.262157}  # of Student's t, from tables


def by_loops(y):
    """(mean, half over runs, half over runs and images): the formulas, one number at a time."""
    S, N = len(y), len(y[0])
    of_runs = [sum(row) / N for row in y]
    of_images = [sum(y[s][i] for s in range(S)) / S for i in range(N)]
    mean = sum(of_runs) / S
    s_d = sum((d - mean) ** 2 for d in of_runs) / (S - 1)
    s_i = sum((m - mean) ** 2 for m in of_images) / (N - 1)
    s_e = 0.0
    for s in range(S):
        for i in range(N):
            s_e += (y[s][i] - of_runs[s] - of_images[i] + mean) ** 2
    s_e /= (S - 1) * (N - 1)
    runs = T_975[S - 1] ** 2 * s_d / S
    images = 1.959964**2 * max(0.0, s_i / N - s_e / (S * N))
    return mean, math.sqrt(runs), math.sqrt(runs + images)


def simulated(times, runs, images, spreads, seed=0):
    """(times, S, N) numbers about 0 and the (times, N) part of the images, by normal draws."""
    of_run, of_image, rest = spreads
    rng = np.random.default_rng(seed)
    images_TN = rng.normal(0, of_image, (times, images))
    values = rng.normal(0, of_run, (times, runs, 1)) + images_TN[:, None]
    return values + rng.normal(0, rest, (times, runs, images)), images_TN


@pytest.mark.parametrize(("runs", "images"), [(2, 2), (3, 40), (5, 7), (10, 12)])
def test_both_intervals_against_loops(runs, images):
    values = simulated(1, runs, images, (1.0, 2.0, 3.0))[0][0] + 5
    found = mean_of_runs(values)
    mean, over_runs, over_both = by_loops(values.tolist())
    assert found.value == pytest.approx(mean)
    assert found.over_runs() == pytest.approx((mean - over_runs, mean + over_runs), rel=1e-5)
    assert found.interval() == pytest.approx((mean - over_both, mean + over_both), rel=1e-5)
    assert found.spread.between == pytest.approx(np.std(values.mean(1), ddof=1))
    assert (found.runs, found.images, found.spread.freedom) == (runs, images, runs - 1)
    assert found.over_images == mean_interval(values.mean(0))[1:]


def test_hits_are_numbers_too():
    hits = np.random.default_rng(0).random((4, 30)) < 0.4
    found, same = mean_of_runs(hits), mean_of_runs(hits.astype(float))
    assert found == same
    one = mean_of_runs(hits[:1])
    assert one.over_images == wilson_interval(int(hits[0].sum()), 30)


def test_images_add_nothing_where_they_vary_by_the_rest_alone():
    rest = np.array([[1.0, -1.0], [-1.0, 1.0]])  # image means 0 and 0
    found = mean_of_runs(rest + np.array([[0.0], [1.0]]))
    assert found.spread.image_error == 0 and found.interval() == found.over_runs()


def test_one_run_has_an_interval_over_images_alone():
    values = np.random.default_rng(1).normal(3, 1, (1, 50))
    found = mean_of_runs(values)
    mean, low, high = mean_interval(values[0])
    assert (found.value, *found.over_images) == (mean, low, high)
    assert np.isnan([*found.over_runs(), *found.interval(), found.spread.between]).all()
    assert arm_mean("AR", found, digits=2) == (
        f"AR: {mean:.2f} [{low:.2f}, {high:.2f}] on these 50 images, one run"
    )


def test_one_number_a_run_has_an_interval_over_runs_alone():
    found = mean_of_runs(np.array([[1.0], [2.0], [3.0]]))
    half = T_975[2] / math.sqrt(3)
    assert found.interval() == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert np.isnan(found.over_images).all()
    said = arm_mean("AR", found, digits=1, unit=" points")
    assert said == "AR: 2.0 points [-0.5, 4.5] over 3 runs; spread between runs 1.0 points"


def coverage(runs, images, spreads, times=1500):
    """Shares of draws whose interval over runs, and whose headline, holds what it claims."""
    values, images_TN = simulated(times, runs, images, spreads, seed=runs)
    of_these = of_new = 0
    for of_draw, of_images_N in zip(values, images_TN, strict=True):
        found = mean_of_runs(of_draw)
        low, high = found.over_runs()
        of_these += low <= of_images_N.mean() <= high  # the recipe's mean on these images
        low, high = found.interval()
        of_new += low <= 0 <= high
    return of_these / times, of_new / times


@pytest.mark.parametrize("runs", [3, 5, 10])
@pytest.mark.parametrize("spreads", [(6.7, 25.0, 40.0), (0.085, 0.3, 0.1)], ids=["accuracy", "NLL"])
def test_each_interval_covers_what_it_claims(runs, spreads):
    for covered in coverage(runs, 200, spreads):
        assert 0.94 <= covered <= 0.97  # 1,500 draws: standard error 0.6 points


def test_where_runs_and_images_weigh_the_same_the_headline_of_three_is_on_the_safe_side():
    assert 0.96 <= coverage(3, 60, (1.0, 10.0, 10.0))[1] <= 0.985


def test_an_interval_over_images_is_none_over_runs():
    """The fault that this mends: where runs differ, intervals over images miss the recipe's mean."""
    times, runs, images = 500, 3, 400
    values, _ = simulated(times, runs, images, (2.0, 5.0, 5.0))
    bounds = np.array([mean_of_runs(of_draw).over_images for of_draw in values])
    assert ((bounds[:, 0] <= 0) & (bounds[:, 1] >= 0)).mean() < 0.5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(5), r"float64 \(5,\); expected a number a run and image"),
        (np.zeros((0, 5)), "expected a number a run and image"),
        (np.array([["a", "b"]]), "expected a number a run and image"),
        (np.array([[1.0, np.nan, 2.0], [np.inf, np.nan, 1.0]]), "not finite at 2 of 3 images"),
    ],
)
def test_what_is_no_number_a_run_and_image_is_refused(values, said):
    with pytest.raises(UserError, match=said):
        mean_of_runs(values)
