"""95 % intervals: Wilson's for a proportion, normal and bootstrap for a mean over images, jackknife.

The jackknife (Tukey 1958) is for numbers that are no mean over images: the number is taken again
without each image, or without each of G equal groups of images. Unlike the bootstrap it never holds an
image twice, which would give images a neighbour at distance 0.
"""

import math

import numpy as np

__all__ = [
    "bootstrap_interval",
    "jackknife_interval",
    "mean_interval",
    "normal_p",
    "paired_test",
    "share_interval",
    "student_quantile",
    "wilson_interval",
]

Z = 1.959963984540054  # 97.5 % quantile of the standard normal
FEWEST = 20  # images: with fewer, a mean is not near enough to normal for a test


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
    """(mean, low, high) over independent images; NaN: the interval of one image, all of none."""
    if len(values) == 0:
        return (math.nan,) * 3
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = Z * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def paired_test(differences_N: np.ndarray) -> tuple[float, float, float, float]:
    """(mean, low, high, two-sided p) of paired differences over images, all by the normal law.

    p is NaN with fewer than ``FEWEST`` images.
    """
    mean, low, high = mean_interval(differences_N)
    if len(differences_N) < FEWEST:
        return mean, low, high, math.nan
    return mean, low, high, normal_p(mean, (high - low) / (2 * Z))


def normal_p(value: float, error: float) -> float:
    """Two-sided p of ``value`` with this standard error, by the normal law; without error, 0 or 1."""
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return math.erfc(abs(value) / error / math.sqrt(2))


def bootstrap_interval(
    values_N: np.ndarray, rng: np.random.Generator, resamples: int = 10_000
) -> tuple[float, float]:
    """(low, high) of the mean over images: the percentile bootstrap (Efron 1979).

    A mean needs only how often each distinct value is drawn, and these counts are multinomial: drawing
    them is the same as drawing N images with replacement, at the cost of the few distinct values.
    """
    distinct_V, counts_V = np.unique(values_N, return_counts=True)
    drawn_RV = rng.multinomial(len(values_N), counts_V / len(values_N), size=resamples)
    low, high = np.percentile(drawn_RV @ distinct_V / len(values_N), [2.5, 97.5])
    return float(low), float(high)


def jackknife_interval(value: float, left_out_G: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high) from the values without each of G >= 2 images, or groups of equal size.

    Half-width: Student's t (G - 1 degrees) times sqrt((G - 1) / G sum (left_out - their mean)^2).
    """
    count = len(left_out_G)
    assert count >= 2, left_out_G
    error = math.sqrt((count - 1) / count * float(np.square(left_out_G - left_out_G.mean()).sum()))
    half = student_quantile(count - 1) * error
    return value, value - half, value + half


def student_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t; 12.71 at one degree of freedom."""
    from scipy.stats import t  # takes half a second, and few commands need it

    return float(t.ppf(0.975, freedom))
