"""Are a model's codes distributed as real images' are? Total variation, beside real against real.

Images are put into two halves, pair by pair of equal class (as far as there are such pairs). Of codes,
or of pairs of codes side by side, TV is half the sum of |p - q| over the two histograms. ``rollout``
is TV between the rollouts of one half's images and the real images of the **other** half, averaged
over the two ways; ``real`` is TV between the two real halves: what as many images of the data differ
by through chance alone. Rollouts of a model that is the data's distribution (given class and first
tokens) are in the place of the real half, so that the difference is 0 in expectation, at any number of
images and any size of the codebook; with few images and many codes it hides small ones.

Intervals are 95 %, by the jackknife over groups of pairs. Shapes: N images, P pairs, W places, G
groups, V symbols.
"""

import math
from dataclasses import dataclass

import numpy as np

from probes.stats.intervals import jackknife_interval
from star.base.randomness import generator

__all__ = ["Variation", "adjacent_pairs", "pair_images", "total_variation", "variation"]

GROUPS = 10


@dataclass(frozen=True)
class Variation:
    """TV of ``rollout`` and ``real`` from the other half; ``left_G``: difference without a group."""

    rollout: float
    real: float
    left_G: np.ndarray

    @property
    def difference(self) -> float:
        return self.rollout - self.real

    def interval(self) -> tuple[float, float, float]:
        """(difference, low, high); NaN bounds with fewer than ``GROUPS`` pairs of images."""
        if len(self.left_G) < GROUPS:
            return self.difference, math.nan, math.nan
        return jackknife_interval(self.difference, self.left_G)


def total_variation(one_V: np.ndarray, two_V: np.ndarray) -> float:
    """Half the sum of |p - q| of two counts of symbols, each normalised; 0 to 1."""
    return float(np.abs(one_V / one_V.sum() - two_V / two_V.sum()).sum() / 2)


def pair_images(labels_N: np.ndarray, seed: int) -> np.ndarray:
    """(P, 2) images, a pair a row: neighbours in a random order by class, either first at random.

    Of an odd number, one image is left out.
    """
    rng = generator(seed, "halves of images")
    order = rng.permutation(len(labels_N))
    order = order[np.argsort(labels_N[order], kind="stable")]
    pairs_P2 = order[: len(order) // 2 * 2].reshape(-1, 2)
    return rng.permuted(pairs_P2, axis=1)


def adjacent_pairs(tokens_NT: np.ndarray, grid: int, vocab_size: int) -> np.ndarray:
    """(N, T) int64: each token and its left neighbour as one symbol; -1 in the first column."""
    tokens_NT = tokens_NT.astype(np.int64)
    left_NT = np.roll(tokens_NT, 1, axis=1)
    found = left_NT * vocab_size + tokens_NT
    found[:, ::grid] = -1
    return found


def variation(rollout_NW: np.ndarray, real_NW: np.ndarray, pairs_P2: np.ndarray) -> Variation:
    """TV of rollouts and of real images from the other half's real images.

    Symbols are whole numbers, -1 where there is none, at the same places in both. NaN if every place
    is without one.
    """
    places = real_NW[0] >= 0
    if not places.any() or not len(pairs_P2):
        return Variation(math.nan, math.nan, np.empty(0))
    both_2NW = np.stack([rollout_NW[:, places], real_NW[:, places]])
    symbols, flat = np.unique(both_2NW, return_inverse=True)
    places_2NW = flat.reshape(both_2NW.shape)
    groups, size = min(GROUPS, len(pairs_P2)), len(symbols)
    counts_22GV = np.zeros((2, 2, groups, size), dtype=np.int64)  # rollout or real, half
    for kind in range(2):
        for half in range(2):
            for group in range(groups):
                mine = places_2NW[kind, pairs_P2[group::groups, half]]
                counts_22GV[kind, half, group] = np.bincount(mine.ravel(), minlength=size)
    whole_22V = counts_22GV.sum(2)
    rollout, real = _apart(whole_22V)
    left = []
    if groups > 1:
        for group in range(groups):
            one, other = _apart(whole_22V - counts_22GV[:, :, group])
            left.append(one - other)
    return Variation(rollout, real, np.array(left))


def _apart(counts_22V: np.ndarray) -> tuple[float, float]:
    rollout_2V, real_2V = counts_22V
    ways = [total_variation(rollout_2V[half], real_2V[1 - half]) for half in range(2)]
    return sum(ways) / 2, total_variation(*real_2V)
