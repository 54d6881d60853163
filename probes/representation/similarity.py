"""How alike two sets of features of the same images are: linear CKA, mutual kNN and CKNNA.

CKA (Kornblith et al. 2019) is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of the Gram matrices K = XX',
L = YY'. HSIC is the unbiased estimator of Song et al. (2012, eq. 5) by default: "debiased" CKA is 0 on
average for independent features, where the plain one grows with D / N; ``debiased=False`` gives that.

Mutual kNN (Huh et al. 2024, "The Platonic Representation Hypothesis") is the share of an image's k
nearest other images, by cosine, that two sets of features agree on. CKNNA is defined as in that paper's
released code, which published values come from: ratio as in CKA, HSIC the unbiased one, of matrices of
cosines kept only where j is among the k nearest of i in *both* (for the two norms: in the one) and 0
elsewhere, without making that mask symmetric. k is 10 there.

Both CKA and CKNNA come with the values that leave out images, for ``probes.stats.intervals``.

Shapes: N images, D width, k neighbours.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

__all__ = [
    "NEIGHBOURS",
    "Hsic",
    "Neighbours",
    "cka",
    "cka_left_out",
    "cknna",
    "hsic",
    "is_constant",
    "mutual_knn",
    "nearest",
]

NEIGHBOURS = 10
ROWS = 1024  # rows of a Gram matrix held at once
SAME = 1e-5  # features whose spread is this small a part of their length differ by rounding alone


@dataclass(frozen=True)
class Hsic:
    """Unbiased HSIC of two linear kernels, and (N,) the same without each image."""

    value: float
    left_out_N: np.ndarray


def is_constant(features_ND: np.ndarray) -> bool:
    """Whether all images have the same features up to rounding (step 1 has seen the class alone)."""
    x_ND = features_ND.astype(np.float64)
    spread = np.square(x_ND - x_ND.mean(0)).sum()
    return bool(spread <= SAME**2 * np.square(x_ND).sum())


def cka(first_ND: np.ndarray, second_ND: np.ndarray, *, debiased: bool = True) -> float:
    """Linear CKA of two sets of features of the same N >= 4 images; widths may differ.

    1 for features equal up to rotation, scale and shift; NaN if one side is constant. Plain CKA lies in
    0..1, debiased CKA in -1..1.
    """
    if debiased:
        pairs = ((first_ND, second_ND), (first_ND, first_ND), (second_ND, second_ND))
        return cka_left_out(*(hsic(*pair) for pair in pairs))[0]
    x, y = _scaled(first_ND), _scaled(second_ND)
    cross, own, other = (_products(*pair).sum() for pair in ((x, y), (x, x), (y, y)))
    return float(_ratio(cross, own, other))


def hsic(first_ND: np.ndarray, second_ND: np.ndarray) -> Hsic:
    """Unbiased HSIC of features centred and scaled to a mean squared length of 1; N >= 5.

    No N x N matrix is held: sums over Gram matrices are taken in feature space or in blocks of rows,
    whichever is less work; leaving out an image takes its row and column off those sums.
    """
    assert len(first_ND) == len(second_ND) >= 5, (first_ND.shape, second_ND.shape)
    x_ND, y_ND = _scaled(first_ND), _scaled(second_ND)
    own_N, other_N = np.square(x_ND).sum(1), np.square(y_ND).sum(1)  # the diagonals, left out below
    k_N = x_ND @ x_ND.sum(0) - own_N
    l_N = y_ND @ y_ND.sum(0) - other_N
    kl_N = _products(x_ND, y_ND) - own_N * other_N
    lk_N = y_ND @ (y_ND.T @ k_N) - other_N * k_N  # sums over m != i of L_im k_m
    kk_N = x_ND @ (x_ND.T @ l_N) - own_N * l_N
    traces, lines = kl_N.sum(), (k_N * l_N).sum()
    count = len(x_ND)
    whole = _unbiased(traces, k_N.sum() * l_N.sum(), lines, count)
    left_out_N = _unbiased(
        traces - 2 * kl_N,
        (k_N.sum() - 2 * k_N) * (l_N.sum() - 2 * l_N),
        lines - k_N * l_N - lk_N - kk_N + kl_N,
        count - 1,
    )
    return Hsic(float(whole), left_out_N)


def cka_left_out(cross: Hsic, first: Hsic, second: Hsic) -> tuple[float, np.ndarray]:
    """Debiased CKA and (N,) the same without each image, from three HSICs; NaN for constant sides."""
    value = _ratio(cross.value, first.value, second.value)
    return float(value), _ratio(cross.left_out_N, first.left_out_N, second.left_out_N)


def _ratio(
    cross: np.ndarray | float, first: np.ndarray | float, second: np.ndarray | float
) -> np.ndarray:
    square = np.maximum(first, 0) * np.maximum(second, 0)
    return np.where(square > 0, cross / np.sqrt(np.where(square > 0, square, 1)), np.nan)


def _unbiased(traces: np.ndarray, sums: np.ndarray, lines: np.ndarray, count: int) -> np.ndarray:
    """Song et al.'s equation 5 from tr(KL), 1'K1 1'L1 and 1'KL1, diagonals zero."""
    inside = traces + sums / ((count - 1) * (count - 2)) - 2 * lines / (count - 2)
    return inside / (count * (count - 3))


def _scaled(features_ND: np.ndarray) -> np.ndarray:
    if is_constant(features_ND):
        return np.zeros(features_ND.shape)
    x_ND = features_ND - features_ND.mean(0, dtype=np.float64)
    return x_ND / np.sqrt(np.square(x_ND).sum(1).mean())


def _products(x_ND: np.ndarray, y_NE: np.ndarray) -> np.ndarray:
    """(N,) sums over m of K_im L_im."""
    count, width, other = len(x_ND), x_ND.shape[1], y_NE.shape[1]
    if 2 * width * other <= count * (width + other):
        return ((x_ND @ (x_ND.T @ y_NE)) * y_NE).sum(1)
    blocks = (slice(start, start + ROWS) for start in range(0, count, ROWS))
    return np.concatenate([((x_ND[b] @ x_ND.T) * (y_NE[b] @ y_NE.T)).sum(1) for b in blocks])


@dataclass(frozen=True)
class Neighbours:
    """The k nearest other images of ``images`` (n of N): ``index`` (n, k) and ``cosine`` (n, k).

    Indices and ``images`` count among all N, ``total``.
    """

    images: np.ndarray
    index: np.ndarray
    cosine: np.ndarray
    total: int

    @cached_property
    def keys(self) -> np.ndarray:
        """(n k,) one number for each pair of an image and its neighbour: image x total + neighbour."""
        return (self.images[:, None] * self.total + self.index).ravel()

    @cached_property
    def own_hsic(self) -> float:
        """CKNNA's norm of this side."""
        return _local_hsic(self, self)


def nearest(
    features_ND: np.ndarray, k: int = NEIGHBOURS, groups_N: np.ndarray | None = None
) -> list[Neighbours]:
    """The k nearest other images of each by cosine: among all, then without each group of images.

    ``groups_N`` numbers the groups from 0 (None: no groups, one entry). N less the largest group must
    exceed k. Of equal cosines some are taken, the same ones at every call.
    """
    total = len(features_ND)
    x_ND = torch.from_numpy(features_ND.astype(np.float64))
    unit_ND = x_ND / x_ND.norm(dim=1, keepdim=True).clamp_min(1e-12)
    kept = [np.ones(total, dtype=bool)]
    if groups_N is not None:
        kept += [groups_N != group for group in range(int(groups_N.max()) + 1)]
    assert k < min(mask.sum() for mask in kept), (k, total)
    found: list[list] = [[] for _ in kept]
    for start in range(0, total, ROWS):
        cosines = unit_ND[start : start + ROWS] @ unit_ND.T
        cosines[torch.arange(len(cosines)), start + torch.arange(len(cosines))] = -torch.inf
        for place, mask in enumerate(kept):
            mine = mask[start : start + ROWS]
            among = cosines[mine].masked_fill(torch.from_numpy(~mask), -torch.inf)
            found[place].append(among.topk(k, dim=1))
    result = []
    for mask, parts in zip(kept, found, strict=True):
        cosine, index = (torch.cat([part[i] for part in parts]).numpy() for i in (0, 1))
        result.append(Neighbours(np.flatnonzero(mask), index, cosine, total))
    return result


def mutual_knn(first: Neighbours, second: Neighbours) -> np.ndarray:
    """(n,) share of the k neighbours of each image that are in both; k / (n - 1) by chance."""
    shared = np.isin(first.keys, second.keys).reshape(first.index.shape)
    return shared.mean(1)


def cknna(first: Neighbours, second: Neighbours) -> float:
    """CKNNA, 1 for equal cosine matrices; NaN if a side's norm is not positive."""
    return float(_ratio(_local_hsic(first, second), first.own_hsic, second.own_hsic))


def _local_hsic(first: Neighbours, second: Neighbours) -> float:
    """Unbiased HSIC, up to a factor, of cosines kept where an image is a neighbour in both."""
    keys, mine, theirs = np.intersect1d(first.keys, second.keys, return_indices=True)
    k_P, l_P = first.cosine.ravel()[mine], second.cosine.ravel()[theirs]
    rows_P, columns_P = np.divmod(keys, first.total)
    _, here, there = np.intersect1d(keys, columns_P * first.total + rows_P, return_indices=True)
    traces = (k_P[here] * l_P[there]).sum()
    k_N = np.bincount(columns_P, k_P, minlength=first.total)
    l_N = np.bincount(rows_P, l_P, minlength=first.total)
    return float(_unbiased(traces, k_P.sum() * l_P.sum(), (k_N * l_N).sum(), len(first.images)))
