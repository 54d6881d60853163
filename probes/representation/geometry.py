"""Numbers about a cloud of features that need no labels: its rank, its spread, what agrees in it.

``effective_rank`` is RankMe (Garrido et al. 2023): exp of the entropy of the normalised singular values
of the features as they are. Features collapse in two ways, and each number sees one of them: onto a
point, where all images look alike (``image_cosine`` 1; the rank of the noise that is left may be high),
or onto a line (``effective_rank`` 1; vectors that point both ways along it have a mean cosine of 0).

Consistency is the paper's properties 2 and 3: the cosine of two features of one image (two steps, or
one step under two views) beside the cosine of the same two kinds of features of different images.
``alignment`` and ``uniformity`` are Wang and Isola's (2020), with u = features of length 1:
E |u - u'|^2 over two views of an image, and log E exp(-2 |u - u'|^2) over pairs of images.

Shapes: N images, D width, K steps, P pairs of steps, G groups of images.
"""

import itertools
import math

import numpy as np
from scipy.special import hyp0f1

__all__ = [
    "MAX_COSINE",
    "MIN_RANK",
    "alignment",
    "effective_rank",
    "even_uniformity",
    "image_cosine",
    "is_collapsed",
    "pair_consistency",
    "rank_left_out",
    "row_cosine",
    "step_consistency",
    "uniformity",
]

# Healthy runs come near in their first 40 steps, when one direction that all images share outgrows the
# rest: AR and ST-AR on the digits, 4 to 12 layers, learning rates 1e-3 to 8e-3, went down to rank 1.85
# and up to cosine 0.9997. Runs made to collapse (--mim-weight 1000, or --lr 0.1) went to 1.1 and
# 0.9999; a line blurred by bfloat16 has rank 1.2 to 1.4.
MIN_RANK = 1.5  # features with a smaller effective rank lie on a line
MAX_COSINE = 0.9999  # at a larger mean cosine images differ by 1.4 % of their features' length


def effective_rank(features_ND: np.ndarray) -> float:
    """exp(-sum p log p), p the singular values over their sum: 1 to min(N, D), 0 if all are zero."""
    x_ND = features_ND.astype(np.float64)
    # R of X = QR has the singular values of X and fewer rows: several times faster.
    r_MD = np.linalg.qr(x_ND if len(x_ND) >= x_ND.shape[1] else x_ND.T, mode="r")
    return _exp_entropy(np.linalg.svd(r_MD, compute_uv=False))


def rank_left_out(features_ND: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """(G,) effective ranks without each group of images; ``groups_N`` numbers the groups from 0.

    From the eigenvalues of X'X less the group's share: singular values below 1e-8 of the largest are
    rounding, which moves the rank by less than 0.001 at any width in use.
    """
    x_ND = features_ND.astype(np.float64)
    wide = x_ND.shape[1] > len(x_ND)
    whole = x_ND @ x_ND.T if wide else x_ND.T @ x_ND
    ranks = []
    for group in range(int(groups_N.max()) + 1):
        mine = groups_N == group
        rest = whole[~mine][:, ~mine] if wide else whole - x_ND[mine].T @ x_ND[mine]
        ranks.append(_exp_entropy(np.sqrt(np.linalg.eigvalsh(rest).clip(0))))
    return np.array(ranks)


def _exp_entropy(values: np.ndarray) -> float:
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


def pair_consistency(first_ND: np.ndarray, second_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (N,) of an image's two features, and (N,) their mean with the other images' features.

    The second, the baseline, compares the same two kinds of features: the mean over other images j of
    cos(first_i, second_j) and cos(second_i, first_j). N >= 2.
    """
    assert first_ND.shape == second_ND.shape and len(first_ND) >= 2, (first_ND.shape, second_ND.shape)
    return _consistency(_unit(first_ND), _unit(second_ND))


def step_consistency(features_KND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``pair_consistency`` of every pair of steps: cosines (P, N) within and between images.

    The P = K (K - 1) / 2 pairs are in the order of ``itertools.combinations``. K >= 2, N >= 2.
    """
    units = [_unit(features_ND) for features_ND in features_KND]
    found = [_consistency(first, second) for first, second in itertools.combinations(units, 2)]
    within_PN, between_PN = (np.stack(values) for values in zip(*found, strict=True))
    return within_PN, between_PN


def _consistency(first_ND: np.ndarray, second_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    within_N = (first_ND * second_ND).sum(1)
    sums_N = first_ND @ second_ND.sum(0) + second_ND @ first_ND.sum(0)
    return within_N, (sums_N / 2 - within_N) / (len(within_N) - 1)


def alignment(first_ND: np.ndarray, second_ND: np.ndarray) -> np.ndarray:
    """(N,) squared distances, 0 to 4, of an image's two features on the unit sphere; mean them."""
    return np.square(_unit(first_ND) - _unit(second_ND)).sum(1)


def uniformity(features_ND: np.ndarray, rows: int = 1024) -> tuple[float, np.ndarray]:
    """log of the mean of exp(-2 |u_i - u_j|^2) over pairs i != j, and (N,) the same without image i.

    0 where all features are equal, lower the more evenly they cover the sphere. N >= 3; ``rows`` bounds
    the memory (rows x N numbers).
    """
    unit_ND = _unit(features_ND)
    count = len(unit_ND)
    assert count >= 3, features_ND.shape
    parts = []
    for start in range(0, count, rows):
        cosines = unit_ND[start : start + rows] @ unit_ND.T
        potentials = np.exp(-4 * (1 - cosines.clip(-1, 1)))  # |u - v|^2 = 2 - 2 cos
        parts.append(
            potentials.sum(1) - potentials[np.arange(len(cosines)), start + np.arange(len(cosines))]
        )
    sums_N = np.concatenate(parts)
    total = sums_N.sum()
    left_out_N = (total - 2 * sums_N) / ((count - 1) * (count - 2))
    return float(np.log(total / (count * (count - 1)))), np.log(left_out_N)


def even_uniformity(width: int) -> float:
    """Uniformity of features spread evenly over the sphere in ``width`` dimensions, the least possible.

    E exp(4 u.v) of independent even u, v is the series sum_j 4^j / (j! (D/2)(D/2 + 1)..(D/2 + j - 1)),
    the hypergeometric 0F1 of D/2 at 4.
    """
    return math.log(hyp0f1(width / 2, 4)) - 4


def is_collapsed(rank: float, cosine: float) -> bool:
    """Whether features of this effective rank and image cosine tell (almost) nothing apart."""
    return rank < MIN_RANK or cosine > MAX_COSINE


def _unit(features_ND: np.ndarray) -> np.ndarray:
    x_ND = features_ND.astype(np.float64)
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
