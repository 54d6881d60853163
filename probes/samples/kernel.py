"""KID: the squared maximum mean discrepancy of two clouds under a cubic kernel.

    k(x, y) = (x . y / D + 1)^3      (Binkowski et al. 2018)

Published numbers average 100 random subsets of 1,000; their expectation is the unbiased estimate over
all images, which is taken here: no subset to draw, and less noise. Its interval is the delta method's
for a U-statistic: each image's share in the sums.

Shapes: N samples, M reference images, D features; float64.
"""

import math

import numpy as np

from probes.stats.intervals import student_quantile, welch_freedom
from star.base.progress import Progress, nothing

__all__ = ["KernelDistance", "kernel_distance"]

BLOCK = 2000


class KernelDistance:
    """KID, with what each image contributes: ``value``, ``interval``, ``of_samples_N``."""

    def __init__(self, value: float, of_samples_N: np.ndarray, of_reference_M: np.ndarray) -> None:
        self.value = value
        self.of_samples_N = of_samples_N
        self.of_reference_M = of_reference_M

    @property
    def interval(self) -> tuple[float, float]:
        """95 % over images of both sides."""
        clouds = (self.of_samples_N, self.of_reference_M)
        squares = [4 * float(cloud.var(ddof=1)) / len(cloud) for cloud in clouds]
        freedom = welch_freedom(squares, [len(cloud) - 1 for cloud in clouds])
        half = student_quantile(freedom) * math.sqrt(sum(squares))
        return self.value - half, self.value + half


def kernel_distance(
    samples_ND: np.ndarray, reference_MD: np.ndarray, on_progress: Progress = nothing
) -> KernelDistance:
    """KID of samples (N, D) and reference images (M, D), two of each at least."""
    samples, reference = (np.asarray(cloud, np.float64) for cloud in (samples_ND, reference_MD))
    total = len(samples) + len(reference)
    own_N, cross_N = _means(samples, samples, own=True), np.empty(0)
    on_progress(len(samples), 2 * total)
    cross_N = _means(samples, reference)
    on_progress(total, 2 * total)
    own_M, cross_M = _means(reference, reference, own=True), _means(reference, samples)
    on_progress(2 * total, 2 * total)
    value = own_N.mean() + own_M.mean() - 2 * cross_N.mean()
    return KernelDistance(float(value), own_N - cross_N, own_M - cross_M)


def _means(rows_ND: np.ndarray, others_MD: np.ndarray, own: bool = False) -> np.ndarray:
    """Each row's mean kernel with the others; ``own``: they are the same cloud, itself left out."""
    means = []
    for start in range(0, len(rows_ND), BLOCK):
        rows = rows_ND[start : start + BLOCK]
        sums = np.zeros(len(rows))
        for first in range(0, len(others_MD), BLOCK):
            sums += _kernel(rows @ others_MD[first : first + BLOCK].T, rows.shape[1]).sum(axis=1)
        if own:
            sums -= _kernel(np.square(rows).sum(axis=1), rows.shape[1])
        means.append(sums / (len(others_MD) - own))
    return np.concatenate(means)


def _kernel(product: np.ndarray, width: int) -> np.ndarray:
    base = product / width + 1
    return base * base * base
