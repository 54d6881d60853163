"""What a tokenizer's codes are used for: usage, entropy, and which codes lie next to which.

Codes are compared as the quantizer compares them, by the cosine of their vectors. A decoder draws a
code differently in every neighbourhood, so a code's picture is the mean of the cells that were decoded
where it occurs.

Shapes: N images, T tokens, V codebook size, E code dimension, s pixels a cell (the stride).
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.reading.codes import code_vectors
from probes.reading.features import check_decoder
from probes.reading.images import spread_images
from probes.stats.intervals import jackknife_interval
from star.codes.store import CodeStore
from star.tokenizer.model import VQModel, decode_tokens

__all__ = ["Codebook", "code_pictures", "codebook_report", "entropy", "nearest_codes"]

GROUPS = 10  # of images, for the jackknife
_CHUNK = 4096  # images or codes at a time


@dataclass(frozen=True)
class Codebook:
    """``counts`` (V,), ``neighbours`` (V,) and ``cosines`` (V,): the nearest other code of each.

    ``entropy`` and ``perplexity`` are (value, low, high), nats and codes; 95 % by the jackknife over
    ten groups of images (NaN bounds with fewer than ten images).
    """

    counts: np.ndarray
    neighbours: np.ndarray
    cosines: np.ndarray
    entropy: tuple[float, float, float]
    perplexity: tuple[float, float, float]
    images: int

    @property
    def used(self) -> int:
        """Codes that occur at all."""
        return int((self.counts > 0).sum())

    @property
    def ranked(self) -> np.ndarray:
        """Codes from the most to the least used; of equals the lower number first."""
        return np.argsort(-self.counts, kind="stable")

    def table(self) -> pd.DataFrame:
        """A row a code: code, count, share, rank (from 1), nearest, cosine."""
        rank = np.empty(len(self.counts), dtype=int)
        rank[self.ranked] = np.arange(1, len(self.counts) + 1)
        return pd.DataFrame(
            {
                "code": np.arange(len(self.counts)),
                "count": self.counts,
                "share": self.counts / self.counts.sum(),
                "rank": rank,
                "nearest": self.neighbours,
                "cosine": self.cosines,
            }
        )


def codebook_report(tokenizer: VQModel, store: CodeStore) -> Codebook:
    """How often each code occurs in the test view of the store's images, and its nearest other code.

    Raises ``UserError`` if the codes are not the tokenizer's.
    """
    check_decoder(tokenizer, store)
    size = tokenizer.config.codebook_size
    groups = min(GROUPS, len(store))
    counts_GV = np.zeros((groups, size), dtype=np.int64)
    # Every tenth image together: stores are often sorted by class.
    for start in range(0, len(store), _CHUNK):
        codes_BT = np.asarray(store.codes[start : start + _CHUNK, store.test_view], dtype=np.int64)
        for group in range(groups):
            mine = codes_BT[(group - start) % groups :: groups]
            counts_GV[group] += np.bincount(mine.ravel(), minlength=size)
    counts_V = counts_GV.sum(0)
    whole = entropy(counts_V)
    interval = perplexity = (whole, math.nan, math.nan)
    perplexity = (math.exp(whole), math.nan, math.nan)
    if groups == GROUPS:
        left_out = np.array([entropy(counts_V - of_group) for of_group in counts_GV])
        interval = jackknife_interval(whole, left_out)
        perplexity = jackknife_interval(math.exp(whole), np.exp(left_out))
    neighbours, cosines = nearest_codes(tokenizer)
    return Codebook(counts_V, neighbours, cosines, interval, perplexity, len(store))


def entropy(counts_V: np.ndarray) -> float:
    """Entropy in nats of the shares (the plug-in estimate, too low where images are few)."""
    share = counts_V[counts_V > 0] / counts_V.sum()
    return float(-(share * np.log(share)).sum())


def nearest_codes(tokenizer: VQModel) -> tuple[np.ndarray, np.ndarray]:
    """(V,) the other code with the largest cosine to each code, and (V,) that cosine."""
    codes_VE = code_vectors(tokenizer).float()
    neighbours, cosines = [], []
    for start in range(0, len(codes_VE), _CHUNK):
        some = codes_VE[start : start + _CHUNK] @ codes_VE.T
        some[torch.arange(len(some)), torch.arange(start, start + len(some))] = -torch.inf
        best = some.max(dim=1)
        neighbours.append(best.indices.cpu().numpy())
        cosines.append(best.values.cpu().numpy())
    return np.concatenate(neighbours), np.concatenate(cosines)


def code_pictures(tokenizer: VQModel, store: CodeStore, images: int = 1000) -> np.ndarray:
    """(V, s, s, 3) uint8: the mean decoded cell of each code, over up to ``images`` images.

    Images are evenly spaced over the store. A code that occurs in none of them is drawn as the centre
    cell of a 3 x 3 grid of nothing but this code.
    """
    check_decoder(tokenizer, store)
    size, stride, grid = tokenizer.config.codebook_size, tokenizer.config.stride, store.grid
    codes_NT = spread_images(store, min(images, len(store)))[1]
    sums_Vss3 = np.zeros((size, stride, stride, 3))
    counts_V = np.zeros(size)
    for codes_BT in codes_NT.split(64):
        drawn = decode_tokens(tokenizer, codes_BT, grid)
        cells = drawn.reshape(-1, grid, stride, grid, stride, 3).swapaxes(2, 3)
        codes = codes_BT.numpy().ravel()
        np.add.at(sums_Vss3, codes, cells.reshape(-1, stride, stride, 3))
        counts_V += np.bincount(codes, minlength=size)
    pictures = sums_Vss3 / np.maximum(counts_V, 1)[:, None, None, None]
    unseen = np.flatnonzero(counts_V == 0)
    for some in np.array_split(unseen, -(-len(unseen) // 64)) if len(unseen) else ():
        alone = decode_tokens(tokenizer, torch.from_numpy(some)[:, None].expand(-1, 9), 3)
        pictures[some] = alone[:, stride : 2 * stride, stride : 2 * stride]
    return pictures.round().astype(np.uint8)
