"""Inception score: how sure a classifier is of each sample, and how many classes it sees among them.

    IS = exp(mean over samples of KL(p(y | x) || p(y)))      (Salimans et al. 2016)

taken in consecutive splits of 5,000 samples as they lie, and averaged, as the ADM suite does; the last
split holds the rest. Nothing is shuffled: samples in the order of their classes give a lower score.

Shapes: N samples, C classes.
"""

import numpy as np
import torch

__all__ = ["SPLIT", "inception_score", "softmax", "split_ranges"]

SPLIT = 5000


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    """Float64 probabilities (N, C)."""
    probabilities_NC: np.ndarray = torch.from_numpy(logits_NC).double().softmax(dim=1).numpy()
    return probabilities_NC


def split_ranges(count: int, size: int = SPLIT) -> list[range]:
    """The consecutive splits of ``count`` samples."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def inception_score(
    probabilities_NC: np.ndarray, weights_N: np.ndarray | None = None, size: int = SPLIT
) -> float:
    """IS of probabilities (N, C), each sample counted ``weights_N`` times (once)."""
    if weights_N is None:
        weights_N = np.ones(len(probabilities_NC))
    tiny = np.finfo(np.float64).tiny  # 0 log 0 is 0
    scores = []
    for rows in split_ranges(len(probabilities_NC), size):
        of_split = slice(rows.start, rows.stop)
        p_NC, weights = probabilities_NC[of_split], weights_N[of_split] / weights_N[of_split].sum()
        entropy_N = -(p_NC * np.log(np.maximum(p_NC, tiny))).sum(axis=1)
        marginal_C = weights @ p_NC
        of_marginal = -(marginal_C * np.log(np.maximum(marginal_C, tiny))).sum()
        scores.append(np.exp(of_marginal - weights @ entropy_N))
    return float(np.mean(scores))
