"""The arithmetic of evaluation against the formulas, written out as loops on small arrays."""

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from probes.samples.evaluation import Evaluation, Number, compare_evaluations
from probes.samples.infinity import extrapolated
from probes.samples.kernel import kernel_distance
from probes.samples.manifold import Neighbours, density_coverage, precision_recall
from probes.samples.resampling import bootstrap_counts, bootstrapped, normal_interval
from probes.samples.scores import inception_score, softmax
from probes.stats.frechet import FrechetTo, Moments, frechet_distance


def cloud(count, width, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + shift


def moments(features):
    found = Moments()
    found.add(features)
    return found


# ---- Fréchet distance ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [30, 4], ids=["more samples than numbers", "fewer"])
def test_frechet_distance_of_samples_is_the_formula(count):
    samples, reference = cloud(count, 6, 0), cloud(40, 6, 1, shift=0.5)
    one, two = np.cov(samples, rowvar=False), np.cov(reference, rowvar=False)
    apart = np.square(samples.mean(0) - reference.mean(0)).sum()
    expected = apart + np.trace(one + two - 2 * np.real(sqrtm(one @ two)))
    distance = FrechetTo(reference.mean(0), two)
    # The root of a singular product is known to half the digits.
    assert distance.weighted(samples) == pytest.approx(expected, rel=1e-6)
    assert distance.moments(moments(samples)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(moments(reference), moments(samples)) == pytest.approx(expected, rel=1e-6)


def test_a_weight_of_two_is_a_sample_twice():
    samples, distance = cloud(12, 4, 2), FrechetTo(np.zeros(4), np.eye(4))
    weights = np.array([2, 0, 1, 3, 1, 0, 1, 1, 1, 1, 0, 1.0])
    twice = np.repeat(samples, weights.astype(int), axis=0)
    assert distance.weighted(samples, weights) == pytest.approx(distance.weighted(twice), rel=1e-12)


def test_frechet_distance_of_known_normals():
    # Two clouds with diagonal covariances: |m|^2 + sum (s1 - s2)^2.
    distance = FrechetTo(np.array([1.0, 0.0]), np.diag([4.0, 9.0]))
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(3 / 4)  # covariance 1
    assert distance.weighted(corners) == pytest.approx(1 + (2 - 1) ** 2 + (3 - 1) ** 2)


# ---- Inception score ----------------------------------------------------------------------------


def test_inception_score_is_taken_in_consecutive_splits():
    logits = np.random.default_rng(3).normal(size=(7, 5)).astype(np.float32)
    probabilities = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    np.testing.assert_allclose(softmax(logits), probabilities, rtol=1e-12)
    scores = []
    for rows in (range(3), range(3, 6), range(6, 7)):  # the rest is a split too
        marginal = probabilities[rows].mean(0)
        divergence = [
            sum(p * math.log(p / q) for p, q in zip(probabilities[row], marginal, strict=True))
            for row in rows
        ]
        scores.append(math.exp(np.mean(divergence)))
    assert inception_score(probabilities, size=3) == pytest.approx(np.mean(scores), rel=1e-12)
    twice = np.array([2, 1, 0, 1, 1, 1, 1.0])
    repeated = np.repeat(probabilities, twice.astype(int), axis=0)
    assert inception_score(probabilities, twice, size=3) == pytest.approx(
        inception_score(repeated, size=3), rel=1e-12
    )


def test_inception_score_at_its_ends():
    assert inception_score(np.full((6, 4), 0.25)) == pytest.approx(1)
    assert inception_score(np.eye(4)) == pytest.approx(4)  # sure, and every class once: 0 log 0 is 0


# ---- neighbours ---------------------------------------------------------------------------------


def radii(points, k):
    found = []
    for i, point in enumerate(points):
        others = [math.dist(point, other) for j, other in enumerate(points) if j != i]
        found.append(sorted(others)[k - 1])
    return found


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("probes.samples.manifold.BLOCK", 7)  # so that several are crossed


@pytest.mark.usefixtures("small_blocks")
def test_precision_recall_density_coverage_are_their_definitions():
    samples, reference = cloud(23, 3, 4), cloud(19, 3, 5, shift=0.7)
    of_samples, of_reference = Neighbours.of(samples, 3), Neighbours.of(reference, 3)
    inside, recalled = precision_recall(of_samples, of_reference, 3)
    r, s = radii(reference, 3), radii(samples, 3)
    expected = [any(math.dist(x, y) <= r[j] for j, y in enumerate(reference)) for x in samples]
    assert inside.tolist() == expected and 0 < sum(expected) < 23
    expected = [any(math.dist(x, y) <= s[i] for i, x in enumerate(samples)) for y in reference]
    assert recalled.tolist() == expected and 0 < sum(expected) < 19
    density, covered = density_coverage(of_samples, Neighbours.of(reference, 5), 5)
    r = radii(reference, 5)
    balls = [sum(math.dist(x, y) < r[j] for j, y in enumerate(reference)) / 5 for x in samples]
    np.testing.assert_allclose(density, balls)
    expected = [any(math.dist(x, y) < r[j] for x in samples) for j, y in enumerate(reference)]
    assert covered.tolist() == expected


def test_precision_and_recall_are_not_swapped():
    """Samples in one of two clusters: all are real (precision 1), half of what is real is drawn."""
    reference = np.concatenate([cloud(10, 2, 6), cloud(10, 2, 7, shift=1e3)])
    samples = reference[:10]
    inside, recalled = precision_recall(Neighbours.of(samples, 3), Neighbours.of(reference, 3), 3)
    assert inside.all() and recalled.mean() == 0.5


def test_neighbours_far_from_the_origin_are_exact():
    points = cloud(30, 4, 8) * 1e-3 + 1e2  # as a matrix product finds them, distances are noise
    expected = radii(points.astype(np.float32).astype(float), 2)
    np.testing.assert_allclose(Neighbours.of(points, 2).radius(2).numpy(), expected, rtol=1e-4)


# ---- kernel distance ----------------------------------------------------------------------------


def kernel(x, y):
    return (np.dot(x, y) / len(x) + 1) ** 3


def test_kernel_distance_is_the_unbiased_double_sum(monkeypatch):
    monkeypatch.setattr("probes.samples.kernel.BLOCK", 5)
    x, y = cloud(12, 3, 9), cloud(9, 3, 10, shift=0.5)
    own_x = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    own_y = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    cross = np.mean([kernel(a, b) for a in x for b in y])
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(own_x + own_y - 2 * cross, rel=1e-10)
    assert found.interval[0] < found.value < found.interval[1]


def test_the_interval_of_the_kernel_distance_covers():
    """Of 200 pairs of samples of one law, the interval holds the true distance, 0, in about 95 %."""
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(200):
        # Apart enough that the distance is normal: at equal laws its first order vanishes.
        found = kernel_distance(rng.normal(0.5, 1, (300, 2)), rng.normal(0, 1, (300, 2)))
        low, high = found.interval
        inside += low <= TRUE_KERNEL_DISTANCE <= high
    assert 180 <= inside <= 198


def _normal_kernel(one, other):
    """E k(x, y) of x ~ N(m, I), y ~ N(n, I) in two dimensions, by the moments of x . y / 2 + 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / weights.sum()
    x = np.array([[one + a, one + b] for a in nodes for b in nodes])
    y = np.array([[other + a, other + b] for a in nodes for b in nodes])
    w = np.array([a * b for a in weights for b in weights])
    return float(w @ ((x @ y.T / 2 + 1) ** 3) @ w)


TRUE_KERNEL_DISTANCE = _normal_kernel(0.5, 0.5) + _normal_kernel(0, 0) - 2 * _normal_kernel(0.5, 0)


# ---- intervals ----------------------------------------------------------------------------------


def test_bootstrap_draws_within_splits_and_spread_as_the_mean_does(monkeypatch):
    monkeypatch.setattr("probes.samples.scores.SPLIT", 5000)
    rng = np.random.default_rng(12)
    counts = bootstrap_counts(7000, 50, rng)
    assert (counts[:, :5000].sum(1) == 5000).all() and (counts[:, 5000:].sum(1) == 2000).all()
    values = rng.normal(size=400)
    draws = bootstrapped(lambda weights: weights @ values / 400, bootstrap_counts(400, 2000, rng))
    low, high = normal_interval(values.mean(), draws)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert all(math.isnan(bound) for bound in normal_interval(1.0, []))


def test_extrapolation_finds_the_line_s_end():
    value, low, high = extrapolated(lambda weights: 3.0 + 700 / weights.sum(), 500, seed=0)
    assert value == pytest.approx(3.0) and low == pytest.approx(3.0) and high == pytest.approx(3.0)


def test_extrapolation_takes_the_bias_off_a_frechet_distance():
    rng = np.random.default_rng(13)
    distance = FrechetTo(np.zeros(20), np.eye(20))  # samples of the same law: the distance is 0
    samples = rng.normal(size=(600, 20))
    plain = distance.weighted(samples)
    value, low, high = extrapolated(lambda weights: distance.weighted(samples, weights), 600, seed=0)
    assert abs(value) < plain / 2 and low < 0 < high


# ---- pairs --------------------------------------------------------------------------------------


def test_a_comparison_pairs_draws_and_images():
    rng = np.random.default_rng(14)
    common = rng.normal(size=100)
    draws = [common + 5, common + 6 + 0.01 * rng.normal(size=100)]
    hits = [rng.random(50) < 0.5 for _ in range(2)]
    one, two = (
        Evaluation(
            "Inception",
            {
                "FID": Number(5.0 + side, 3.0 + side, 7.0 + side, 10, draws=draws[side]),
                "precision": Number(hits[side].mean(), 0, 1, 50, images=hits[side]),
            },
        )
        for side in (0, 1)
    )
    table = compare_evaluations(one, two, ("a", "b")).set_index("metric")
    fid = table.loc["FID"]
    # What both draws share drops out: without pairs the interval would be 2.8 wide to either side.
    assert fid["difference"] == pytest.approx(1) and fid["high"] - fid["low"] < 0.06
    assert fid["higher"] == "b" and fid["p_holm"] < 1e-6
    assert table.loc["precision", "difference"] == pytest.approx(hits[1].mean() - hits[0].mean())
    lonely = Evaluation("Inception", {"FID": Number(6.0, 4.0, 8.0, 20, draws=draws[1])})
    fid = compare_evaluations(one, lonely, ("a", "b")).set_index("metric").loc["FID"]
    assert fid["high"] - fid["difference"] == pytest.approx(math.hypot(2, 2), rel=1e-6)
