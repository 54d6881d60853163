"""95 % intervals: Wilson's for shares, Student's t for means, order statistics for medians, jackknife.

A mean of averaged hits (over probe seeds, over steps) has many values 0 and few others; its spread is
then found from too few images, and t is too narrow as well as a bootstrap (below 80 % with two
discordant images of 300). Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of
binomial proportions based on paired data", adds an image of each sign; ``averaged_hits_test`` does.

The jackknife (Tukey 1958) is for numbers that are no mean over images: the number is taken again
without each image, or without each of G equal groups of images. Unlike the bootstrap it never holds an
image twice, which would give images a neighbour at distance 0.
"""

import math
from collections.abc import Sequence

import numpy as np

__all__ = [
    "averaged_hits_test",
    "jackknife_interval",
    "mean_interval",
    "median_interval",
    "neighbours_interval",
    "paired_test",
    "ratio_interval",
    "share_interval",
    "student_p",
    "student_quantile",
    "welch_freedom",
    "wilson_interval",
]

Z = 1.959963984540054  # 97.5 % quantile of the standard normal
FEWEST = 20  # images: with fewer, a mean is not near enough to Student's t for a test


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """(low, high) of a proportion (Wilson 1927); inside [0, 1] also at 0 and at all successes.

    ``successes`` may be fractional: the mean over several probes of the same ``trials`` images.
    """
    assert 0 <= successes <= trials and trials > 0, (successes, trials)
    share, spread = successes / trials, Z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_interval(hits_N: np.ndarray) -> tuple[float, float, float]:
    """(share, low, high) of images where ``hits_N`` is True, by Wilson."""
    hits, images = int(hits_N.sum()), len(hits_N)
    return hits / images, *wilson_interval(hits, images)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) over independent images (t); NaN: the interval of one image, all of none."""
    if len(values) == 0:
        return (math.nan,) * 3
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = student_quantile(len(values) - 1) * error
    return mean, mean - half, mean + half


def neighbours_interval(values_N: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) over images of numbers of pairs: number i is of images i and i + 1, in a ring.

    Each image stands in two pairs, so that the numbers are no independent ones. The jackknife over
    images leaves both pairs out; it counts what a pair alone has twice, so the jackknife over pairs is
    taken off again (Aronow, Samii & Assenova 2015, "Cluster-robust variance estimation for dyadic
    data"). The error is never below that of independent pairs. NaN among the values: no number.
    """
    known_N = np.isfinite(values_N)
    pairs = int(known_N.sum())
    mean, low, high = mean_interval(values_N[known_N])
    if pairs < 3:
        return mean, low, high
    centred_N = np.where(known_N, values_N - mean, 0.0)
    alone = float(np.square(centred_N).sum())
    of_images = float(np.square(centred_N + np.roll(centred_N, 1)).sum())
    square = max(of_images - alone, alone) / (pairs * (pairs - 1))
    half = student_quantile(pairs - 1) * math.sqrt(square)
    return mean, mean - half, mean + half


def paired_test(differences_N: np.ndarray) -> tuple[float, float, float, float]:
    """(mean, low, high, two-sided p) of paired differences over images: the paired t test.

    p is NaN with fewer than ``FEWEST`` images.
    """
    mean, low, high = mean_interval(differences_N)
    images = len(differences_N)
    if images < FEWEST:
        return mean, low, high, math.nan
    error = float(np.std(differences_N, ddof=1)) / math.sqrt(images)
    return mean, low, high, student_p(mean, error, images - 1)


def averaged_hits_test(
    differences_N: np.ndarray, largest: float = 1.0
) -> tuple[float, float, float, float]:
    """(mean, low, high, two-sided p) of differences of averaged hits, each within ± ``largest``.

    An image of ``largest`` and one of its negative are added for the interval and for p, which is NaN
    with fewer than ``FEWEST`` images.
    """
    images = len(differences_N)
    assert images > 0 and np.abs(differences_N).max() <= largest * (1 + 1e-9), differences_N
    more = np.concatenate([differences_N, [largest, -largest]])
    centre, error = float(more.mean()), float(more.std()) / math.sqrt(len(more))
    half = student_quantile(len(more) - 1) * error
    p = student_p(centre, error, len(more) - 1) if images >= FEWEST else math.nan
    return float(np.mean(differences_N)), centre - half, centre + half, p


def median_interval(values_N: np.ndarray) -> tuple[float, float, float, float]:
    """(median, low, high, level) of N >= 1 independent values: order statistics, of any distribution.

    The k-th smallest to the k-th largest, with the largest k that holds the median in 95 % of samples
    or more (a value is below it as often as above: Binomial(N, 1/2)). ``level`` is how often it does;
    with fewer than six values it is below 0.95, although the interval takes in all of them.
    """
    from scipy.special import bdtr

    ordered_N = np.sort(values_N)
    count = len(ordered_N)
    outside_K = 2 * bdtr(np.arange((count + 1) // 2), count, 0.5)  # k = 1, 2, ..: either tail
    place = max(0, int((outside_K <= 0.05).sum()) - 1)
    level = max(0.0, 1 - float(outside_K[place]))
    return float(np.median(ordered_N)), float(ordered_N[place]), float(ordered_N[-1 - place]), level


def student_p(value: float, error: float, freedom: float) -> float:
    """Two-sided p of ``value`` with this standard error, by Student's t; without error, 0 or 1."""
    if error == 0:
        return 1.0 if value == 0 else 0.0
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -abs(value) / error))


def jackknife_interval(value: float, left_out_G: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high) from the values without each of G >= 2 images, or groups of equal size.

    Half-width: Student's t (G - 1 degrees) times sqrt((G - 1) / G sum (left_out - their mean)^2).
    """
    count = len(left_out_G)
    assert count >= 2, left_out_G
    error = math.sqrt((count - 1) / count * float(np.square(left_out_G - left_out_G.mean()).sum()))
    half = student_quantile(count - 1) * error
    return value, value - half, value + half


def ratio_interval(over_N: np.ndarray, under_N: np.ndarray) -> tuple[float, float, float]:
    """(sum / sum, low, high) over images, by the jackknife; NaN where there is nothing to divide by."""
    over, under = float(over_N.sum()), float(under_N.sum())
    if not under > 0:
        return (math.nan,) * 3
    if len(over_N) < 2:
        return over / under, math.nan, math.nan
    return jackknife_interval(over / under, (over - over_N) / (under - under_N))


def student_quantile(freedom: float) -> float:
    """97.5 % quantile of Student's t; 12.71 at one degree of freedom."""
    from scipy.special import stdtrit  # takes half a second, and few commands need it

    return float(stdtrit(freedom, 0.975))


def welch_freedom(variances: Sequence[float], freedoms: Sequence[float]) -> float:
    """Degrees of freedom of a sum of independent variances of means (Welch 1947)."""
    below = sum(each**2 / freedom for each, freedom in zip(variances, freedoms, strict=True))
    return sum(variances) ** 2 / below if below else sum(freedoms)
