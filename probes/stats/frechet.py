"""Fréchet distance between two clouds of features, each summed up by its mean and covariance.

    d = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))      (Dowson & Landau 1982; FID: Heusel et al. 2017)

The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
symmetric: no root of a general matrix is taken. Covariances have ddof 1, as in the ADM suite.

Shapes: N samples, D features; everything float64.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Moments", "frechet_distance"]


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


def frechet_distance(one: Moments, other: Moments) -> float:
    """The distance d above; 0 for equal moments, up to rounding never negative."""
    values, vectors = np.linalg.eigh(one.cov)
    root_DD = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root_DD @ other.cov @ root_DD)
    apart = float(np.square(one.mean - other.mean).sum())
    spread = float(np.trace(one.cov) + np.trace(other.cov))
    return max(0.0, apart + spread - 2 * float(np.sqrt(eigenvalues.clip(min=0)).sum()))
