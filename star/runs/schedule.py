"""The learning rate of a training step, of models and of tokenizers."""

import math
from typing import Protocol

__all__ = ["learning_rate"]


class Schedule(Protocol):
    """The settings that say it: a peak, and steps."""

    @property
    def lr(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def max_steps(self) -> int: ...


def learning_rate(config: Schedule, step: int) -> float:
    """Learning rate of step n (from 0): linear warm-up, then constant or a half cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
