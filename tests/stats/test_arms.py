"""Two arms over several runs: paired and Welch's against references, error rates, and the words."""

import dataclasses
import math

import numpy as np
import pytest

from figures.said.arms import arm_difference
from probes.stats.arms import DIFFERS, EQUIVALENT, NOT_RESOLVED, compare_arms, corrected_together
from probes.stats.intervals import mean_interval
from probes.stats.paired import holm, paired_share_interval
from probes.stats.runs import mean_of_runs
from star.base.errors import UserError

NAMES = ("AR", "ST-AR")
POINTS = {"factor": 100, "digits": 1, "unit": " points"}


def arm(rng, runs, images_N, *, mean=0.0, spread=1.0, rest=10.0):
    """Numbers (S, N): a recipe's mean, its runs' spread, what images have, and the rest."""
    of_runs = rng.normal(mean, spread, (runs, 1))
    return of_runs + images_N + rng.normal(0, rest, (runs, len(images_N)))


def two_arms(seed, runs=3, images=80, *, apart=0.0, spread=1.0, apart_images=5.0, rest=10.0):
    """Two arms of which the second's recipe is ``apart``; images differ between recipes as well."""
    rng = np.random.default_rng(seed)
    images_N = rng.normal(50, 20, images)
    first = arm(rng, runs, images_N, spread=spread, rest=rest)
    images_N = images_N + rng.normal(0, apart_images, images)
    return first, arm(rng, runs, images_N, mean=apart, spread=spread, rest=rest)


def test_paired_by_seed_it_is_the_mean_of_differences():
    first, second = two_arms(0)
    found, alone = compare_arms(first, second), mean_of_runs(second - first)
    assert found.spread == alone.spread
    assert found.interval() == pytest.approx(alone.interval())
    assert found.over_runs(0.9) == pytest.approx(alone.over_runs(0.9))
    assert (found.first, found.second) == (mean_of_runs(first), mean_of_runs(second))
    assert found.value == pytest.approx(second.mean() - first.mean())
    back = compare_arms(second, first)
    assert back.value == -found.value and back.p == pytest.approx(found.p)


def test_hits_of_both_arms():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 3, 40)) < 0.5
    found = compare_arms(first, second)
    as_numbers = compare_arms(first.astype(float), second.astype(float))
    assert found.interval() == as_numbers.interval() and found.value == as_numbers.value
    one = compare_arms(first[:1], second[:1])
    assert (one.value, *one.over_images) == paired_share_interval(first[0], second[0])


def test_p_is_the_level_at_which_the_interval_reaches_zero():
    for seed, apart in enumerate((0.0, 1.0, 3.0, 30.0)):
        found = compare_arms(*two_arms(seed, apart=apart))
        bounds = found.interval(1 - found.p)
        assert min(map(abs, bounds)) == pytest.approx(0, abs=1e-6 * abs(found.value))
        low, high = found.interval()
        assert found.differs == (low > 0 or high < 0) == (found.p < 0.05)


def test_p_at_its_edges():
    rows = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert compare_arms(rows, rows).p == 1.0
    assert compare_arms(rows, rows + 1).p == 0.0
    assert compare_arms(rows, rows, margin=0.1).p_equivalent == 0.0
    assert compare_arms(rows, rows + 1, margin=0.5).p_equivalent == 1.0
    assert math.isnan(compare_arms(rows[:1], rows[1:], margin=1.0).p)
    assert math.isnan(compare_arms(rows[:1], rows[1:], margin=1.0).p_equivalent)


def test_without_images_pairing_by_seed_is_the_paired_t_test_and_else_welchs():
    from scipy import stats

    rng = np.random.default_rng(2)
    first, second = rng.normal(0, 1, (6, 1)), rng.normal(0.5, 3, (6, 1))
    expected = stats.ttest_rel(second[:, 0], first[:, 0])
    found = compare_arms(first, second)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval()))
    expected = stats.ttest_ind(second[:4, 0], first[:, 0], equal_var=False)
    found = compare_arms(first, second[:4], paired=False)
    assert found.spread.freedom == pytest.approx(expected.df)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_unpaired_runs_with_images_against_loops():
    rng = np.random.default_rng(3)
    images_N = rng.normal(0, 5, 9)
    first, second = arm(rng, 4, images_N), arm(rng, 3, images_N + rng.normal(0, 50, 9))
    of_runs = images = 0.0
    means_first = [sum(first[:, i]) / 4 for i in range(9)]
    means_second = [sum(second[:, i]) / 3 for i in range(9)]
    apart = [b - a for a, b in zip(means_first, means_second, strict=True)]
    centre = sum(apart) / 9
    images = sum((each - centre) ** 2 for each in apart) / 8 / 9
    for y, means in ((first, means_first), (second, means_second)):
        S = len(y)
        d = [sum(row) / 9 for row in y]
        whole = sum(d) / S
        of_runs += sum((each - whole) ** 2 for each in d) / (S - 1) / S
        left = 0.0
        for s in range(S):
            for i in range(9):
                left += (y[s, i] - d[s] - means[i] + whole) ** 2
        images -= left / ((S - 1) * 8) / (S * 9)
    found = compare_arms(first, second, paired=False)
    assert found.value == pytest.approx(centre)
    assert found.spread.run_error == pytest.approx(math.sqrt(of_runs))
    assert images > 0 and found.spread.image_error == pytest.approx(math.sqrt(images))


def share_that(word, times, **options):
    margin = options.pop("margin", None)
    paired = options.pop("paired", True)
    found = [two_arms(seed, **options) for seed in range(times)]
    return np.mean([compare_arms(*each, paired=paired, margin=margin).word == word for each in found])


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize("paired", [True, False])
def test_two_arms_of_the_same_recipe_seldom_differ(runs, paired):
    """600 draws of a rate of 5 %: standard error 0.9 points."""
    assert share_that(DIFFERS, 600, runs=runs, apart_images=0.0, paired=paired) <= 0.06


def test_recipes_apart_by_the_margin_are_seldom_called_equivalent():
    """TOST at the edge of its null hypothesis; on these very images, so none differ between recipes."""
    options = {"runs": 5, "apart": 2.0, "apart_images": 0.0, "rest": 0.5, "spread": 0.3}
    arms = [two_arms(seed, **options) for seed in range(1000, 1600)]
    called = [compare_arms(*each, margin=2.0).equivalent for each in arms]
    assert 0.02 <= np.mean(called) <= 0.065  # 5 %, standard error 0.9 points
    assert share_that(EQUIVALENT, 100, runs=5, spread=0.3, apart_images=0.0, rest=0.5, margin=2.0) > 0.8


def test_words():
    far = compare_arms(*two_arms(0, apart=30.0), margin=5.0)
    assert far.word == DIFFERS and not far.equivalent
    near = {"spread": 0.05, "rest": 0.1, "apart_images": 0.0}
    assert compare_arms(*two_arms(1, **near), margin=1.0).word == EQUIVALENT
    assert compare_arms(*two_arms(1, **near)).word == NOT_RESOLVED
    small = compare_arms(*two_arms(1, apart=0.5, **near), margin=1.0)
    assert small.word == DIFFERS and small.equivalent
    first, second = two_arms(0, apart=100.0, runs=1)
    one = compare_arms(first, second, margin=200.0)
    assert one.word == NOT_RESOLVED and one.over_images == mean_interval((second - first)[0])[1:]
    unpaired = compare_arms(first, two_arms(0, apart=100.0)[1], paired=False)
    assert unpaired.word == NOT_RESOLVED and unpaired.runs == 1


def test_equivalence_is_the_inner_interval_inside_the_margin():
    for seed in range(40):
        found = compare_arms(*two_arms(seed, runs=4, rest=1.0, apart_images=1.0), margin=2.0)
        low, high = found.over_runs(0.9)
        assert found.equivalent == (low > -2.0 and high < 2.0)


def test_primary_endpoints_are_corrected_together():
    ends = [compare_arms(*two_arms(seed, apart=3.0, rest=2.0)) for seed in (0, 1, 2)]
    ends[2] = dataclasses.replace(ends[2], margin=20.0)
    alone = compare_arms(*two_arms(3, runs=1))
    *found, last = corrected_together([*ends, alone])
    expected = holm(np.array([each.p for each in ends]))
    assert [each.p_holm for each in found] == pytest.approx(expected.tolist())
    assert last == alone
    assert found[0].p_equivalent_holm is None
    assert found[2].p_equivalent_holm == pytest.approx(ends[2].p_equivalent)
    raised = dataclasses.replace(ends[0], p_holm=0.2)
    assert not raised.differs and raised.interval() == ends[0].interval()


def test_sentences():
    y = np.array([[0.02, 0.04], [0.01, 0.03], [0.0, 0.02]])
    found = compare_arms(np.zeros((3, 2)), y)  # d 0.03, 0.02, 0.01; images 0.01 and 0.03; no rest
    half = math.hypot(4.302653 / math.sqrt(3), 1.959964)  # in points
    low, high = 2 - half, 2 + half
    said = arm_difference(found, NAMES, **POINTS)
    assert said == (
        f"ST-AR less AR: +2.0 points [{low:+.1f}, {high:+.1f}] over 3 runs and new images: not resolved"
    )
    inner = 2.919986 / math.sqrt(3)
    said = arm_difference(dataclasses.replace(found, margin=0.05), NAMES, **POINTS)
    assert said.endswith(
        f": equivalent within ±5.0 points (90 % over new runs [{2 - inner:+.1f}, {2 + inner:+.1f}])"
    )
    ahead = compare_arms(np.zeros((3, 2)), y + 1, margin=2.0)
    assert ": differs, yet equivalent within ±200.0 points (90 %" in arm_difference(
        ahead, NAMES, **POINTS
    )
    both = corrected_together([ahead, compare_arms(np.zeros((3, 2)), y + 1)])
    assert "points]" not in arm_difference(both[1], NAMES, **POINTS)
    assert "; Holm-corrected p 6.4e-05" in arm_difference(both[1], NAMES, **POINTS)
    assert ", of the equivalence " in arm_difference(both[0], NAMES, **POINTS)
    unpaired = arm_difference(compare_arms(np.zeros((3, 2)), y[:2], paired=False), NAMES, **POINTS)
    assert " over 3 and 2 runs, not paired, and new images: " in unpaired
    single = arm_difference(compare_arms(np.zeros((3, 1)), y[:2, :1], paired=False), NAMES)
    assert " over 3 and 2 runs, not paired: " in single


def test_one_run_an_arm_is_said_to_be_two_checkpoints():
    hits = np.arange(40) < 10, np.arange(40) < 20
    found = compare_arms(hits[0][None], hits[1][None])
    _, low, high = paired_share_interval(*hits)
    said = arm_difference(found, NAMES, **POINTS, known_spread=0.037)
    assert said == (
        "these two checkpoints differ by +25.0 points (ST-AR less AR) on these 40 images "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]; nothing here says whether other runs of the two "
        "recipes would differ so; known spread between runs 3.7 points"
    )


@pytest.mark.parametrize(
    ("first", "second", "options", "said"),
    [
        ((3, 4), (3, 5), {}, "4 images and the second 5; expected the same images"),
        ((3, 4), (2, 4), {}, "3 runs and the second 2; runs are paired by their seeds.*paired=False"),
        ((3, 4), (3, 4), {"margin": 0.0}, "margin is 0.0; expected a number above 0"),
        ((3, 4), (3, 4), {"margin": math.nan}, "margin is nan"),
        ((3,), (3, 4), {}, "the values of the first arm"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(first, second, options, said):
    with pytest.raises(UserError, match=said):
        compare_arms(np.zeros(first), np.zeros(second), **options)
