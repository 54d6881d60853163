"""Numbers about a cloud of features that need no labels: its rank, its spread, two models' agreement.

``effective_rank`` is RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values
of the features as they are. Features collapse in two ways, and each number sees one of them: onto a
point, where all images look alike (``image_cosine`` 1; the rank of the noise that is left may be high),
or onto a line (``effective_rank`` 1; vectors that point both ways along it have a mean cosine of 0).

Shapes: N images, D width.
"""

import numpy as np

__all__ = ["MAX_COSINE", "MIN_RANK", "effective_rank", "image_cosine", "is_collapsed", "row_cosine"]

# Healthy runs come near in their first 40 steps, when one direction that all images share outgrows the
# rest: AR and ST-AR on the digits, 4 to 12 layers, learning rates 1e-3 to 8e-3, went down to rank 1.85
# and up to cosine 0.9997. Runs made to collapse (--mim-weight 1000, or --lr 0.1) went to 1.1 and
# 0.9999; a line blurred by bfloat16 has rank 1.2 to 1.4.
MIN_RANK = 1.5  # features with a smaller effective rank lie on a line
MAX_COSINE = 0.9999  # at a larger mean cosine images differ by 1.4 % of their features' length


def effective_rank(features_ND: np.ndarray) -> float:
    """exp(-sum p log p), p the singular values over their sum: 1 to min(N, D), 0 if all are zero."""
    values = np.linalg.svd(features_ND.astype(np.float64), compute_uv=False)
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def image_cosine(features_ND: np.ndarray) -> float:
    """Mean cosine over all pairs of different images; N >= 2."""
    assert len(features_ND) >= 2, features_ND.shape
    unit_ND = _unit(features_ND)
    # The squared length of the sum holds every pair twice and each vector with itself once.
    pairs = np.square(unit_ND.sum(0)).sum() - np.square(unit_ND).sum()
    return float(pairs / (len(unit_ND) * (len(unit_ND) - 1)))


def row_cosine(first_ND: np.ndarray, second_ND: np.ndarray) -> float:
    """Mean over images of the cosine between an image's two features (teacher's and student's)."""
    return float((_unit(first_ND) * _unit(second_ND)).sum(1).mean())


def is_collapsed(rank: float, cosine: float) -> bool:
    """Whether features of this effective rank and image cosine tell (almost) nothing apart."""
    return rank < MIN_RANK or cosine > MAX_COSINE


def _unit(features_ND: np.ndarray) -> np.ndarray:
    x_ND = features_ND.astype(np.float64)
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
