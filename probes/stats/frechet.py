"""Fréchet distance between two clouds of features, each summed up by its mean and covariance.

    d = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))      (Dowson & Landau 1982; FID: Heusel et al. 2017)

The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
symmetric: no root of a general matrix is taken. Covariances have ddof 1, as in the ADM suite.

Shapes: N samples, D features; everything float64.
"""

import functools
from dataclasses import dataclass

import numpy as np

__all__ = ["FrechetTo", "Moments", "frechet_distance"]


@dataclass
class Moments:
    """Running sums of features: ``add(features_ND)`` each batch, then read ``mean`` and ``cov``."""

    count: int = 0
    total_D: np.ndarray | float = 0.0
    products_DD: np.ndarray | float = 0.0
    origin_D: np.ndarray | None = None

    def add(self, features_ND: np.ndarray) -> None:
        """Count a batch of features (N, D)."""
        features_ND = np.asarray(features_ND, dtype=np.float64)
        if self.origin_D is None:  # sums about a point in the cloud lose fewer digits
            self.origin_D = features_ND.mean(axis=0)
        centred_ND = features_ND - self.origin_D
        self.count += len(centred_ND)
        self.total_D = self.total_D + centred_ND.sum(axis=0)
        self.products_DD = self.products_DD + centred_ND.T @ centred_ND

    @property
    def mean(self) -> np.ndarray:
        """(D,) mean."""
        assert self.origin_D is not None
        return self.origin_D + self.total_D / self.count

    @property
    def cov(self) -> np.ndarray:
        """(D, D) covariance with ddof 1; at least two samples."""
        assert self.count >= 2, self.count
        total_D = np.asarray(self.total_D)
        return (self.products_DD - np.outer(total_D, total_D) / self.count) / (self.count - 1)


class FrechetTo:
    """The Fréchet distance to a fixed cloud, given by its mean (D,) and covariance (D, D).

    The cloud's root is taken once, so that a further distance costs one product and one spectrum.
    """

    def __init__(self, mean_D: np.ndarray, cov_DD: np.ndarray) -> None:
        self.mean_D, self.cov_DD = mean_D, cov_DD

    @functools.cached_property
    def root_DD(self) -> np.ndarray:
        """The symmetric root of the covariance."""
        values, vectors = np.linalg.eigh(self.cov_DD)
        root: np.ndarray = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
        return root

    def moments(self, other: Moments) -> float:
        """The distance of another cloud's moments."""
        square_DD = self.root_DD @ other.cov @ self.root_DD
        return self._distance(other.mean, float(np.trace(other.cov)), square_DD)

    def weighted(self, features_ND: np.ndarray, weights_N: np.ndarray | None = None) -> float:
        """The distance of features (N, D), each counted ``weights_N`` times (once); ddof 1."""
        features_ND = np.asarray(features_ND, dtype=np.float64)
        if weights_N is None:
            weights_N = np.ones(len(features_ND))
        features_ND, weights_N = features_ND[weights_N > 0], weights_N[weights_N > 0]
        count = weights_N.sum()
        mean_D = weights_N @ features_ND / count
        centred_ND = (features_ND - mean_D) * np.sqrt(weights_N / (count - 1))[:, None]
        # With C1 = X^T X, C1 C2 has the eigenvalues of X C2 X^T, but for zeros: fewer samples than
        # features need no root.
        if len(centred_ND) < centred_ND.shape[1]:
            square = centred_ND @ self.cov_DD @ centred_ND.T
        else:
            turned_ND = centred_ND @ self.root_DD
            square = turned_ND.T @ turned_ND
        return self._distance(mean_D, float(np.square(centred_ND).sum()), square)

    def _distance(self, mean_D: np.ndarray, trace: float, square: np.ndarray) -> float:
        roots = np.sqrt(np.linalg.eigvalsh(square).clip(min=0)).sum()
        apart = float(np.square(mean_D - self.mean_D).sum())
        return max(0.0, apart + float(np.trace(self.cov_DD)) + trace - 2 * float(roots))


def frechet_distance(one: Moments, other: Moments) -> float:
    """The distance d above; 0 for equal moments, up to rounding never negative."""
    return FrechetTo(one.mean, one.cov).moments(other)
