"""Dynamic loss scale for float16, whose small gradients would round to zero.

The schedule is that of ``torch.amp.GradScaler`` (2^16 at first, halved on overflow, doubled after 2000
good steps). The decision is the caller's, from the gradient norm over all processes and shards, so
every process scales alike.
"""

import torch
from torch import Tensor

from star.base.record import Record

__all__ = ["LossScale"]

FIRST, GROWTH_STEPS = 2.0**16, 2000
# Below this the float16 gradients did not overflow by their scale: the run has diverged.
SMALLEST = 1.0
_OF_NO_SCALE = {"value": 1.0, "good_steps": 0}  # where the loss is not scaled


class LossScale:
    """``value`` multiplies the loss (1 if not ``enabled``)."""

    def __init__(self, *, enabled: bool):
        self.enabled = enabled
        self.value = FIRST if enabled else 1.0
        self.good_steps = 0

    @property
    def can_fall(self) -> bool:
        """Whether gradients that are not finite may be the scale's fault: a lower one is left."""
        return self.enabled and self.value > SMALLEST

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide the gradients by the scale, in place."""
        if self.enabled:
            torch._foreach_mul_(gradients, 1 / self.value)

    def update(self, finite: bool) -> None:
        """After a step whose gradients were all finite, or not."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good_steps == GROWTH_STEPS:
            self.value, self.good_steps = 2 * self.value, 0

    def state_dict(self) -> Record:
        """What a resume needs."""
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: Record | None) -> None:
        """Take over ``state``, if it is of a run in float16: others hold none, or a scale of 1."""
        if self.enabled and state is not None and state != _OF_NO_SCALE:
            self.value, self.good_steps = state["value"], state["good_steps"]
