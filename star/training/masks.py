"""The random token mask of Eq. 3 and the other draws of a training batch's structure."""

import numpy as np

__all__ = ["draw_steps", "draw_token_masks"]


def draw_token_masks(sequences: int, tokens: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(sequences, tokens - 1) bool: exactly round(ratio * (tokens - 1)) masked in each sequence.

    The T - 1 input image tokens are masked independently for each sequence; the class is not among
    them. The same mask serves all heads and layers.
    """
    count = round(ratio * (tokens - 1))
    masked = np.zeros((sequences, tokens - 1), dtype=bool)
    if count:
        # The ranks of independent uniform numbers are a uniform permutation of each row.
        chosen = rng.random((sequences, tokens - 1)).argpartition(count - 1, axis=1)[:, :count]
        np.put_along_axis(masked, chosen, True, axis=1)
    return masked


def draw_steps(tokens: int, count: int, min_step: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` distinct steps between ``min_step`` and T (1-based), sorted; one set a batch."""
    assert min_step >= 1 and count <= tokens - min_step + 1, (tokens, count, min_step)
    return np.sort(rng.choice(np.arange(min_step, tokens + 1), size=count, replace=False))
