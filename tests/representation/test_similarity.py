"""CKA, mutual kNN, CKNNA and the one-cloud measures against loops, known answers and invariances.

Both sides work in float64, so the tolerance is that of sums in another order, unless said otherwise.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from probes.representation.geometry import (
    alignment,
    effective_rank,
    even_uniformity,
    pair_consistency,
    rank_left_out,
    step_consistency,
    uniformity,
)
from probes.representation.similarity import (
    cka,
    cka_left_out,
    cknna,
    hsic,
    is_constant,
    mutual_knn,
    nearest,
)
from probes.representation.spatial import lds, pair_weights
from probes.stats.intervals import jackknife_interval, student_quantile
from star.base.errors import UserError

CLOSE = 1e-10


def clouds(images=24, width=6, other=9, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(images, width)) + 0.5
    return x, np.tanh(x @ rng.normal(size=(width, other)))


def cosine(a, b):
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def hsic_by_loops(k, l):  # noqa: E741
    """Song et al. (2012): the mean over quadruples of different images that defines the estimator."""
    n, total, count = len(k), 0.0, 0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
        count += 1
    return total / count


def test_hsic_is_the_mean_over_quadruples():
    x, y = clouds(images=9)
    scaled = [v - v.mean(0) for v in (x, y)]
    scaled = [v / np.sqrt(np.square(v).sum(1).mean()) for v in scaled]
    k, l = (v @ v.T for v in scaled)  # noqa: E741
    assert hsic(x, y).value == pytest.approx(hsic_by_loops(k, l), abs=CLOSE)


@pytest.mark.parametrize(("width", "other"), [(3, 4), (40, 50)], ids=["features", "gram"])
def test_plain_cka_against_its_definition_and_left_out_images_against_leaving_them_out(width, other):
    x, y = clouds(images=20, width=width, other=other)
    centre = np.eye(20) - 1 / 20
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre  # noqa: E741
    expected = np.trace(k @ l) / math.sqrt(np.trace(k @ k) * np.trace(l @ l))
    assert cka(x, y, debiased=False) == pytest.approx(expected, abs=CLOSE)
    value, left_out = cka_left_out(hsic(x, y), hsic(x, x), hsic(y, y))
    assert value == pytest.approx(cka(x, y), abs=CLOSE)
    for i in (0, 7, 19):
        assert left_out[i] == pytest.approx(cka(np.delete(x, i, 0), np.delete(y, i, 0)), abs=CLOSE)


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_knows_features_again_after_rotation_scale_and_shift(debiased):
    x, y = clouds(images=40)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert cka(x, x, debiased=debiased) == pytest.approx(1, abs=CLOSE)
    assert cka(x, 3 * x @ turn + 7, debiased=debiased) == pytest.approx(1, abs=CLOSE)
    same = cka(x, y, debiased=debiased)
    assert cka(0.2 * x @ turn - 1, y, debiased=debiased) == pytest.approx(same, abs=CLOSE)
    assert cka(y, x, debiased=debiased) == pytest.approx(same, abs=CLOSE)
    assert cka(x * np.array([9, 1, 1, 1, 1, 1]), y, debiased=debiased) != pytest.approx(same, abs=1e-3)


def test_only_plain_cka_takes_independent_features_for_alike():
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(100, 200)), rng.normal(size=(100, 200))) for _ in range(10)]
    # one draw has a standard deviation of about 0.007
    assert abs(np.mean([cka(*draw) for draw in draws])) < 0.01
    assert np.mean([cka(*draw, debiased=False) for draw in draws]) > 0.5


def test_constant_features_have_no_cka():
    x, _ = clouds()
    same = np.ones((24, 5), dtype=np.float32) * np.float32(0.1)
    # the same state computed in batches of different sizes differs by float32 rounding
    rounded = same * (1 + 1e-7 * np.random.default_rng(0).normal(size=same.shape))
    assert is_constant(same) and is_constant(rounded) and not is_constant(x)
    assert math.isnan(cka(x, same)) and math.isnan(cka(rounded, x, debiased=False))


def neighbours_by_loops(x, k):
    found = []
    for i in range(len(x)):
        order = sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosine(x[i], x[j]))
        found.append(order[:k])
    return found


def test_mutual_knn_against_loops():
    x, y = clouds()
    for k in (1, 5, 23):
        mine, theirs = neighbours_by_loops(x, k), neighbours_by_loops(y, k)
        expected = [len(set(a) & set(b)) / k for a, b in zip(mine, theirs, strict=True)]
        found = mutual_knn(nearest(x, k)[0], nearest(y, k)[0])
        np.testing.assert_allclose(found, expected)
    assert mutual_knn(nearest(x, 4)[0], nearest(3 * x, 4)[0]).tolist() == [1.0] * 24


def cknna_by_loops(x, y, k):
    """The released code's definition, one entry at a time: mask, then the unbiased HSIC."""
    n = len(x)
    near = [neighbours_by_loops(v, k) for v in (x, y)]
    grams = [[[cosine(a, b) for b in v] for a in v] for v in (x, y)]

    def masked(a, b, side):
        result = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if j in near[a][i] and j in near[b][i]:
                    result[i, j] = grams[side][i][j]
        return result

    def local(a, b):
        p, q = masked(a, b, a), masked(a, b, b)
        trace = sum(p[i, j] * q[j, i] for i in range(n) for j in range(n))
        chain = sum(p[i, j] * q[j, m] for i in range(n) for j in range(n) for m in range(n))
        return trace + p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)

    return local(0, 1) / math.sqrt(local(0, 0) * local(1, 1))


def test_cknna_against_loops():
    x, y = clouds(images=16)
    for k in (2, 5, 15):
        found = cknna(nearest(x, k)[0], nearest(y, k)[0])
        assert found == pytest.approx(cknna_by_loops(x, y, k), abs=CLOSE)
    assert cknna(nearest(x, 5)[0], nearest(2 * x, 5)[0]) == pytest.approx(1, abs=CLOSE)


def test_neighbours_without_a_group_are_those_of_the_rest():
    x, y = clouds(images=30)
    groups = np.random.default_rng(0).permutation(30) % 5
    found = nearest(x, 4, groups), nearest(y, 4, groups)
    for group in range(5):
        rest = groups != group
        first, second = (sides[1 + group] for sides in found)
        expected = nearest(x[rest], 4)[0], nearest(y[rest], 4)[0]
        np.testing.assert_array_equal(first.index, np.flatnonzero(rest)[expected[0].index])
        assert cknna(first, second) == pytest.approx(cknna(*expected), abs=CLOSE)


def test_blocks_of_rows_change_nothing(monkeypatch):
    x, y = clouds(images=25, width=40, other=50)
    whole = cka(x, y), nearest(x, 3)[0].index, uniformity(x)[0]
    monkeypatch.setattr("probes.representation.similarity.ROWS", 7)
    assert cka(x, y) == pytest.approx(whole[0], abs=CLOSE)
    np.testing.assert_array_equal(nearest(x, 3)[0].index, whole[1])
    assert uniformity(x, rows=7)[0] == pytest.approx(whole[2], abs=CLOSE)


def test_consistency_against_loops():
    x, y = clouds(other=6)
    within, between = pair_consistency(x, y)
    for i in (0, 11, 23):
        assert within[i] == pytest.approx(cosine(x[i], y[i]), abs=CLOSE)
        others = [(cosine(x[i], y[j]) + cosine(y[i], x[j])) / 2 for j in range(24) if j != i]
        assert between[i] == pytest.approx(np.mean(others), abs=CLOSE)
    steps = np.stack([x, y, x + y])
    within, between = step_consistency(steps)
    for place, (a, b) in enumerate(((0, 1), (0, 2), (1, 2))):
        expected = pair_consistency(steps[a], steps[b])
        np.testing.assert_allclose(within[place], expected[0])
        np.testing.assert_allclose(between[place], expected[1])


def test_alignment_and_uniformity_against_loops():
    x, y = clouds(images=12, other=6)
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    expected = [sum((a - b) ** 2 for a, b in zip(u[i], v[i], strict=True)) for i in range(12)]
    np.testing.assert_allclose(alignment(x, y), expected)

    def by_loops(keep):
        pairs = itertools.permutations(keep, 2)
        return math.log(np.mean([math.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i, j in pairs]))

    value, left_out = uniformity(x)
    assert value == pytest.approx(by_loops(range(12)), abs=CLOSE)
    for i in (0, 5):
        assert left_out[i] == pytest.approx(by_loops([j for j in range(12) if j != i]), abs=CLOSE)
    assert uniformity(np.ones((5, 3)))[0] == pytest.approx(0, abs=CLOSE)


def test_uniformity_of_even_features():
    for width in (2, 16):
        x = np.random.default_rng(0).normal(size=(3000, width))
        # three standard errors of 3000 draws
        assert uniformity(x)[0] == pytest.approx(even_uniformity(width), abs=0.01)


def test_effective_rank_without_groups_and_of_known_shapes():
    x, _ = clouds(images=30)
    values = np.linalg.svd(x, compute_uv=False)
    shares = values / values.sum()
    assert effective_rank(x) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), abs=CLOSE)
    assert effective_rank(x.T) == pytest.approx(effective_rank(x), abs=CLOSE)
    assert effective_rank(np.eye(7)) == pytest.approx(7, abs=CLOSE)
    assert effective_rank(np.ones((7, 3))) == pytest.approx(1, abs=1e-6)
    groups = np.arange(30) % 5
    for wide in (x, np.random.default_rng(1).normal(size=(30, 50))):
        found = rank_left_out(wide, groups)
        for group in range(5):
            # through eigenvalues, so singular values are good to 1e-8
            expected = effective_rank(wide[groups != group])
            assert found[group] == pytest.approx(expected, abs=1e-6)


def test_lds_against_loops_and_on_hand_built_maps():
    rng = np.random.default_rng(0)
    grid = 5
    hidden = rng.normal(size=(3, grid * grid, 4))
    found = lds(torch.from_numpy(hidden), torch.from_numpy(pair_weights(grid, 6)).float())
    for image in range(3):
        near, far = [], []
        for p, q in itertools.combinations(range(grid * grid), 2):
            apart = abs(p // grid - q // grid) + abs(p % grid - q % grid)
            if apart == 1:
                near.append(cosine(hidden[image, p], hidden[image, q]))
            elif apart >= 6:
                far.append(cosine(hidden[image, p], hidden[image, q]))
        # float32
        assert float(found[image]) == pytest.approx(np.mean(near) - np.mean(far), abs=1e-6)
    rows, columns = np.divmod(np.arange(64), 8)
    smooth = np.stack([np.cos(rows / 5), np.sin(rows / 5), np.cos(columns / 5), np.sin(columns / 5)], 1)
    noise = rng.normal(size=(200, 64, 32))
    weights = torch.from_numpy(pair_weights(8)).float()
    assert float(lds(torch.from_numpy(smooth)[None], weights)) > 0.3
    assert abs(float(lds(torch.from_numpy(noise), weights).mean())) < 0.005
    assert float(lds(torch.ones(1, 64, 3), weights)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match="distant tokens are 6 cells apart; expected 2 to 4 on a grid"):
        pair_weights(3)


def test_the_jackknife_of_a_mean_is_students_interval_and_covers():
    values = np.random.default_rng(0).normal(size=10)
    left_out = (values.sum() - values) / 9
    mean, low, high = jackknife_interval(float(values.mean()), left_out)
    half = 2.262157 * values.std(ddof=1) / math.sqrt(10)  # Student's t, 9 degrees of freedom
    assert (mean, low, high) == pytest.approx((values.mean(), mean - half, mean + half), abs=1e-6)
    # tables of Student's t, two-sided 95 %
    assert student_quantile(1) == pytest.approx(12.706205, abs=1e-6)
    assert student_quantile(2) == pytest.approx(4.302653, abs=1e-6)
    assert student_quantile(9) == pytest.approx(2.262157, abs=1e-6)
    assert student_quantile(30) == pytest.approx(2.042272, abs=1e-6)
    assert student_quantile(10**6) == pytest.approx(1.959966, abs=1e-6)


def test_the_jackknife_of_two_has_one_degree_of_freedom():
    value, low, high = jackknife_interval(1.0, np.array([0.0, 2.0]))  # error sqrt(1 / 2 * 2) = 1
    assert (value, high - value, value - low) == pytest.approx((1, 12.706205, 12.706205), abs=1e-6)


def test_intervals_of_cka_hold_the_value_of_many_images():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 6))
    big = rng.normal(size=(20000, 4))

    def sides(x):
        return x, np.tanh(x @ mixing)

    truth = cka(*sides(big))
    held = 0
    for start in range(0, 20000, 200):
        x, y = sides(big[start : start + 200])
        _, low, high = jackknife_interval(*cka_left_out(hsic(x, y), hsic(x, x), hsic(y, y)))
        held += low <= truth <= high
    # 100 intervals of 95 %: fewer than 88 has a chance of 1 in 500
    assert held >= 88


def test_intervals_of_mutual_knn_are_wide_enough():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 9))
    found = []
    for _ in range(40):
        x = rng.normal(size=(200, 6)) + 0.5
        y = np.tanh(x @ mixing)
        groups = rng.permutation(200) % 10
        pairs = zip(nearest(x, 10, groups), nearest(y, 10, groups), strict=True)
        value, *left_out = (float(mutual_knn(*pair).mean()) for pair in pairs)
        found.append(jackknife_interval(value, np.array(left_out)))
    values, low, high = np.array(found).T
    # the mean of 40 values stands for the truth; fewer than 34 of 40 has a chance of 1 in 100
    assert ((low <= values.mean()) & (values.mean() <= high)).sum() >= 34
