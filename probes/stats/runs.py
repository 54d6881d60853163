"""A mean over training runs and images, and how far it holds: for new runs, and for new images too.

y_si is the number of run s and image i (steps averaged within the image before), d_s its mean over the
images, y_.i its mean over the runs, D the mean of all:

    these images, new runs    D ± t(S-1) s_d / sqrt(S)
    new images too            D ± sqrt(t(S-1)^2 s_d^2 / S + 1.96^2 max(0, s_i^2 / N - s_e^2 / (S N)))

s_d^2 and s_i^2 are the variances of d_s and of y_.i, and s_e^2 = sum (y_si - d_s - y_.i + D)^2 /
((S-1)(N-1)) is what neither run nor image explains. s_d^2 holds s_e^2 / N already, so the second term
is what images add beyond it: the interval of a two-way random-effects mean, with Student's t only for
the runs, of which there are few. It covers 95 to 97 %, with three runs up to 98 % where runs and images
weigh about the same. No bootstrap: of three runs it covers 70 %.

S runs (of one recipe, each with its own seed), N images.
"""

import math
from dataclasses import dataclass

import numpy as np

from probes.stats.intervals import mean_interval, share_interval
from star.base.errors import UserError

__all__ = [
    "UNKNOWN",
    "Interval",
    "RunsMean",
    "Spread",
    "beyond_runs",
    "checked_values",
    "half_width",
    "mean_of_runs",
    "rest_variance",
    "spread_of",
]

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How much a mean varies: over runs ``run_error`` (standard error) with ``freedom`` degrees, and
    ``image_error`` from images beyond that. ``between`` is the standard deviation between runs.

    NaN: of one run all but the last; ``image_error`` where there is one image, that is, one number a
    run.
    """

    between: float
    run_error: float
    freedom: float
    image_error: float


UNKNOWN = Spread(between=math.nan, run_error=math.nan, freedom=math.nan, image_error=math.nan)


@dataclass(frozen=True, kw_only=True)
class RunsMean:
    """The mean of one arm over ``runs`` and ``images``, in the units of its values.

    ``over_images``: 95 % interval of these very runs for other images, the only one that one run has.
    """

    value: float
    runs: int
    images: int
    spread: Spread
    over_images: Interval

    def over_runs(self, level: float = 0.95) -> Interval:
        """(low, high) for new runs on these images; NaN of one run."""
        half = half_width(self.spread, 1 - level, images=False)
        return self.value - half, self.value + half

    def interval(self, level: float = 0.95) -> Interval:
        """(low, high) for new runs and new images; for new runs where each run gave one number."""
        half = half_width(self.spread, 1 - level)
        return self.value - half, self.value + half


def mean_of_runs(values_SN: np.ndarray) -> RunsMean:
    """The mean of one arm's numbers (S, N), float or bool (hits), over its runs and images.

    ``UserError`` if these are no numbers of runs and images.
    """
    values = checked_values("the arm", values_SN)
    runs, images = values.shape
    means_N = values.mean(0, dtype=np.float64)
    hits = values.dtype == bool and runs == 1
    value, low, high = share_interval(values[0]) if hits else mean_interval(means_N)
    return RunsMean(
        value=value, runs=runs, images=images, spread=spread_of(values), over_images=(low, high)
    )


def spread_of(values_SN: np.ndarray) -> Spread:
    """How the mean of numbers (S, N) varies over runs and over images, by the formula above."""
    values = np.asarray(values_SN, dtype=np.float64)
    runs, images = values.shape
    if runs == 1:
        return UNKNOWN
    between = float(values.mean(1).std(ddof=1))
    image_error = math.nan
    if images > 1:
        image_error = beyond_runs(values.mean(0), rest_variance(values) / runs)
    return Spread(
        between=between, run_error=between / math.sqrt(runs), freedom=runs - 1, image_error=image_error
    )


def rest_variance(values_SN: np.ndarray) -> float:
    """s_e^2 above, of numbers (S, N) of two runs and two images at least."""
    values = np.asarray(values_SN, dtype=np.float64)
    runs, images = values.shape
    rest_SN = values - values.mean(1)[:, None] - values.mean(0) + values.mean()
    return float(np.square(rest_SN).sum()) / ((runs - 1) * (images - 1))


def beyond_runs(image_means_N: np.ndarray, rest: float) -> float:
    """What images add to a standard error: their means (N,) vary, by ``rest`` only as runs do."""
    beyond = max(0.0, float(image_means_N.var(ddof=1)) - rest)
    return math.sqrt(beyond / len(image_means_N))


def half_width(spread: Spread, alpha: float, *, images: bool = True) -> float:
    """Half the interval of level 1 - ``alpha``: over runs, and over ``images`` where they are known."""
    from scipy.special import ndtri, stdtrit  # quantiles of the normal law and of Student's t

    half = -float(stdtrit(spread.freedom, alpha / 2)) * spread.run_error
    if not images or math.isnan(spread.image_error):
        return half
    return math.hypot(half, float(ndtri(alpha / 2)) * spread.image_error)


def checked_values(name: str, values_SN: np.ndarray) -> np.ndarray:
    """``values_SN`` as an array; ``UserError`` unless it holds finite numbers of runs and images."""
    values = np.asarray(values_SN)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "bifu":
        raise UserError(
            f"the values of {name} are {values.dtype} {values.shape}; expected a number a run and "
            "image: (runs, images), the steps averaged within the image"
        )
    if not np.isfinite(values).all():
        lost = int((~np.isfinite(values)).any(0).sum())
        raise UserError(
            f"the values of {name} are not finite at {lost} of {values.shape[1]} images; leave these "
            "images out of both arms, or find out why they have no number"
        )
    return values
