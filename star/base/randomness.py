"""Randomness as a pure function of (seed, purpose, counters): nothing to save, nothing to restore.

Training draws everything random of step n from ``generator(seed, "purpose", n)``, for the global
batch; a resumed run or another number of processes therefore sees the same draws. Two purposes never
share a stream. Library code uses these and never touches a global random state.
"""

import zlib

import numpy as np
import torch

__all__ = ["generator", "seed_sequence", "torch_generator"]


def seed_sequence(seed: int, purpose: str, counters: tuple[int, ...]) -> np.random.SeedSequence:
    """Seed material of one purpose and its counters."""
    assert seed >= 0 and all(counter >= 0 for counter in counters), (seed, counters)
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *counters])


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """NumPy generator for one purpose, e.g. ``generator(seed, "mask", step)``."""
    return np.random.Generator(np.random.PCG64(seed_sequence(seed, purpose, counters)))


def torch_generator(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Torch generator on ``device`` for one purpose (weight initialisation, dropout)."""
    state = seed_sequence(seed, purpose, counters).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state) & (2**63 - 1))
