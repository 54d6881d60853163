"""Precision, recall, density and coverage: whose samples lie in whose neighbourhoods.

A cloud's manifold is the union of balls about its points, each reaching to the point's k-th nearest
neighbour in the cloud.

- precision: share of samples inside the reference's manifold; recall: share of reference images inside
  the samples' (Kynkaanniemi et al. 2019; k = 3, at most the radius, as in the ADM suite);
- density: in how many of the reference's balls a sample lies, over k; coverage: share of the
  reference's balls with a sample inside (Naeem et al. 2020; k = 5, less than the radius).

Distances are float32 (the ADM suite takes float16 where they are finite in it), found block by block.

Shapes: N samples, M reference images, D features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from star.base.progress import Progress, nothing

__all__ = ["BLOCK", "Neighbours", "density_coverage", "precision_recall"]

BLOCK = 2048  # points a side: 16 MiB of distances


@dataclass(frozen=True)
class Neighbours:
    """A cloud (N, D) float32 and each point's distances to its nearest other points, (N, most)."""

    points_ND: Tensor
    nearest_NK: Tensor

    def radius(self, k: int) -> Tensor:
        """(N,) distance of each point to its k-th nearest other point; more than ``k`` points."""
        assert k <= self.nearest_NK.shape[1], (k, self.nearest_NK.shape)
        return self.nearest_NK[:, k - 1]

    @classmethod
    def of(
        cls, features_ND: np.ndarray, most: int, device: torch.device | str = "cpu",
        on_progress: Progress = nothing,
    ) -> "Neighbours":  # fmt: skip
        """A cloud with the ``most`` nearest of each point, fewer where there are not as many."""
        points_ND = torch.as_tensor(features_ND, dtype=torch.float32, device=device)
        kept, blocks = [], points_ND.split(BLOCK)
        for done, rows in enumerate(blocks):
            nearest = rows.new_empty(len(rows), 0)
            for columns in blocks:
                both = torch.cat([nearest, _distances(rows, columns)], dim=1)
                # The nearest of all is the point itself.
                nearest = both.topk(min(most + 1, both.shape[1]), largest=False, sorted=True).values
            kept.append(nearest[:, 1:])
            on_progress(done + 1, len(blocks))
        return cls(points_ND, torch.cat(kept))


def precision_recall(
    samples: Neighbours, reference: Neighbours, k: int, on_progress: Progress = nothing
) -> tuple[np.ndarray, np.ndarray]:
    """Boolean (N,) samples inside the reference's manifold, and (M,) the other way round."""
    radius_N, radius_M = samples.radius(k), reference.radius(k)
    inside_N = np.zeros(len(samples.points_ND), dtype=bool)
    inside_M = np.zeros(len(reference.points_ND), dtype=bool)
    blocks = _blocks(len(inside_N))
    for done, rows in enumerate(blocks):
        for columns in _blocks(len(inside_M)):
            distances = _distances(samples.points_ND[rows], reference.points_ND[columns])
            inside_N[rows] |= (distances <= radius_M[columns]).any(1).cpu().numpy()
            inside_M[columns] |= (distances <= radius_N[rows, None]).any(0).cpu().numpy()
        on_progress(done + 1, len(blocks))
    return inside_N, inside_M


def density_coverage(
    samples: Neighbours, reference: Neighbours, k: int, on_progress: Progress = nothing
) -> tuple[np.ndarray, np.ndarray]:
    """Density of each sample, (N,) float64, and (M,) boolean: has this reference ball a sample?"""
    points_ND, radius_M = samples.points_ND, reference.radius(k)
    balls_N = np.zeros(len(points_ND))
    covered_M = np.zeros(len(reference.points_ND), dtype=bool)
    blocks = _blocks(len(points_ND))
    for done, rows in enumerate(blocks):
        for columns in _blocks(len(covered_M)):
            distances = _distances(points_ND[rows], reference.points_ND[columns])
            inside = distances < radius_M[columns]
            balls_N[rows] += inside.sum(1).cpu().numpy()
            covered_M[columns] |= inside.any(0).cpu().numpy()
        on_progress(done + 1, len(blocks))
    return balls_N / k, covered_M


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]


def _distances(rows_ND: Tensor, columns_MD: Tensor) -> Tensor:
    # Not through a matrix product, of whose rounding a point's distance to its own copy would be made.
    return torch.cdist(rows_ND, columns_MD, compute_mode="donot_use_mm_for_euclid_dist")
