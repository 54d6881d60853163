"""Two arms of an experiment: does the second recipe give another number than the first?

An arm is a recipe, trained S times with different seeds; its numbers y_si are of run s and image i.
With the same seeds and images in both arms the differences are paired, and their mean D has the
intervals of ``probes.stats.runs``. Where seeds differ in number, or the arms' recipes were tuned apart,
runs are not paired: the errors of both means over runs are added, with Welch's degrees of freedom
(Welch 1947, "The generalization of 'Student's' problem when several different population variances are
involved"); images still are the same ones, and what they add is found from the two arms' image means.

Three words, of one endpoint that was named before:

    differs        the 95 % interval over new runs and new images leaves 0 out
    equivalent     the 90 % interval over new runs lies inside ± a margin that was named before (two
                   one-sided tests: Schuirmann 1987, "A comparison of the two one-sided tests procedure
                   and the power approach for assessing the equivalence of average bioavailability")
    not resolved   neither; always so where an arm has one run, which says nothing about a recipe

S and R runs of the two arms, N images.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.stats.intervals import mean_interval, welch_freedom
from probes.stats.paired import ALPHA, holm, paired_share_interval
from probes.stats.runs import (
    UNKNOWN,
    RunsMean,
    Spread,
    beyond_runs,
    checked_values,
    half_width,
    mean_of_runs,
    rest_variance,
    spread_of,
)
from star.base.errors import UserError

__all__ = [
    "DIFFERS",
    "EQUIVALENT",
    "NOT_RESOLVED",
    "ArmDifference",
    "compare_arms",
    "corrected_together",
]

DIFFERS, EQUIVALENT, NOT_RESOLVED = "differs", "equivalent", "not resolved"
LEAST_P = 1e-100  # below, quantiles of Student's t overflow


@dataclass(frozen=True, kw_only=True)
class ArmDifference(RunsMean):
    """The second arm less the first: a mean of differences, in the units of the arms' values.

    ``first`` and ``second``: the arms' own means; ``runs``: of the arm that has fewer; ``paired``: by
    seed; ``margin``: what was named before as too small to matter, or None; ``p_holm`` and
    ``p_equivalent_holm``: the two p corrected together with other endpoints', or None.
    """

    first: RunsMean
    second: RunsMean
    paired: bool
    margin: float | None = None
    p_holm: float | None = None
    p_equivalent_holm: float | None = None

    @property
    def p(self) -> float:
        """Two-sided: 1 - the level at which ``interval`` reaches 0; NaN where an arm has one run."""
        if self.runs == 1:
            return math.nan
        if self.value == 0:
            return 1.0

        def beyond_zero(log_p: float) -> float:
            return half_width(self.spread, math.exp(log_p)) - abs(self.value)

        least = math.log(LEAST_P)
        if beyond_zero(least) <= 0:
            return 0.0
        from scipy.optimize import brentq

        return math.exp(brentq(beyond_zero, least, 0.0, xtol=1e-10))

    @property
    def p_equivalent(self) -> float:
        """The larger p of the two one-sided tests; NaN without a margin or with one run."""
        if self.margin is None or self.runs == 1:
            return math.nan
        error, inside = self.spread.run_error, self.margin - abs(self.value)
        if error == 0:
            return 0.0 if inside > 0 else 1.0
        from scipy.special import stdtr

        return float(stdtr(self.spread.freedom, -inside / error))

    @property
    def differs(self) -> bool:
        """``interval`` leaves 0 out, by the corrected p where there is one."""
        return (self.p if self.p_holm is None else self.p_holm) < ALPHA

    @property
    def equivalent(self) -> bool:
        """``over_runs(0.9)`` lies inside ± ``margin``, by the corrected p where there is one."""
        corrected = self.p_equivalent_holm
        return (self.p_equivalent if corrected is None else corrected) < ALPHA

    @property
    def word(self) -> str:
        """``DIFFERS`` (be it by less than the margin), ``EQUIVALENT`` or ``NOT_RESOLVED``."""
        if self.differs:
            return DIFFERS
        return EQUIVALENT if self.equivalent else NOT_RESOLVED


def compare_arms(
    first_SN: np.ndarray, second_RN: np.ndarray, *, paired: bool = True, margin: float | None = None
) -> ArmDifference:
    """The second arm less the first, from a number a run and image, float or bool (hits).

    Row s of both is of the same seed if ``paired``; column i of both is of the same image always. Give
    ``paired=False`` where runs differ in number or the recipes were tuned apart. ``margin`` (> 0, in
    the units of the values) is what an equivalence is asked within, named before anything was
    measured. ``UserError`` if these do not fit.
    """
    first, second = checked_values("the first arm", first_SN), checked_values("the second", second_RN)
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"the first arm has {first.shape[1]} images and the second {second.shape[1]}; expected the "
            "same images in the same order"
        )
    if paired and len(first) != len(second):
        raise UserError(
            f"the first arm has {len(first)} runs and the second {len(second)}; runs are paired by "
            "their seeds: give as many of both, or paired=False"
        )
    if margin is not None and not 0 < margin < math.inf:
        raise UserError(f"margin is {margin}; expected a number above 0, in the units of the values")
    if len(first) == len(second) == 1 and first.dtype == second.dtype == bool:
        value, low, high = paired_share_interval(first[0], second[0])
    else:
        value, low, high = mean_interval(_image_means(second) - _image_means(first))
    if paired:
        spread = spread_of(second.astype(np.float64) - first)
    else:
        spread = _unpaired_spread(first, second)
    return ArmDifference(
        value=value,
        runs=min(len(first), len(second)),
        images=first.shape[1],
        spread=spread,
        over_images=(low, high),
        first=mean_of_runs(first),
        second=mean_of_runs(second),
        paired=paired,
        margin=margin,
    )


def corrected_together(endpoints: Sequence[ArmDifference]) -> list[ArmDifference]:
    """The primary endpoints of one claim, with p values that Holm's procedure corrected over all.

    Differences and equivalences are corrected each among themselves. An endpoint without a p (one run,
    no margin) does not count.
    """
    differ = _corrected([each.p for each in endpoints])
    alike = _corrected([each.p_equivalent for each in endpoints])
    return [
        dataclasses.replace(each, p_holm=p, p_equivalent_holm=p_equivalent)
        for each, p, p_equivalent in zip(endpoints, differ, alike, strict=True)
    ]


def _corrected(p: Sequence[float]) -> list[float | None]:
    tested = [k for k, each in enumerate(p) if not math.isnan(each)]
    found: list[float | None] = [None] * len(p)
    for k, corrected in zip(tested, holm(np.array([p[k] for k in tested])), strict=True):
        found[k] = float(corrected)
    return found


def _image_means(values_SN: np.ndarray) -> np.ndarray:
    return values_SN.mean(0, dtype=np.float64)


def _unpaired_spread(first_SN: np.ndarray, second_RN: np.ndarray) -> Spread:
    """Welch's over runs; what images add as in ``probes.stats.runs``, the rest of both taken off."""
    arms = (first_SN, second_RN)
    if min(map(len, arms)) == 1:
        return UNKNOWN
    spreads = [spread_of(arm) for arm in arms]
    squares = [spread.run_error**2 for spread in spreads]
    image_error = math.nan
    if first_SN.shape[1] > 1:
        rest = sum(rest_variance(arm) / len(arm) for arm in arms)
        image_error = beyond_runs(_image_means(second_RN) - _image_means(first_SN), rest)
    return Spread(
        between=math.hypot(spreads[0].between, spreads[1].between),
        run_error=math.sqrt(sum(squares)),
        freedom=welch_freedom(squares, [spread.freedom for spread in spreads]),
        image_error=image_error,
    )
