"""The EMA teacher: same architecture, no gradient, no mask, no dropout, updated after the step.

theta' <- d theta' + (1 - d) theta with d = min(decay, (1 + n) / (10 + n)) after n updates, so that a
short run's teacher is not its initialisation. The teacher is also the model that is evaluated.
"""

import copy

import torch
from torch import Tensor

from star.model.transformer import Transformer
from star.parallel.sharding import local

__all__ = ["Teacher"]


class Teacher:
    """Exponential moving average of a model's weights, and its features."""

    def __init__(self, model: Transformer, *, decay: float, warmup: bool, updates: int = 0):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.warmup = warmup
        self.updates = updates

    def next_decay(self) -> float:
        """Decay of the update to come, after ``self.updates`` updates."""
        warm = (1 + self.updates) / (10 + self.updates)
        return min(self.decay, warm) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: Transformer) -> None:
        """Move towards ``model`` by one step."""
        mine = [local(parameter) for parameter in self.model.parameters()]
        theirs = [local(parameter).detach() for parameter in model.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - self.next_decay())
        self.updates += 1

    @torch.no_grad()
    def features(self, tokens_Sn: Tensor, labels_S: Tensor, layers: set[int]) -> dict[int, Tensor]:
        """Outputs (S, N, D) of the named blocks; no logits are computed."""
        names = {layer: f"layers.{layer}" for layer in layers}
        out = self.model(tokens_Sn, labels_S, capture=names.values(), with_logits=False)
        return {layer: out.captured[name] for layer, name in names.items()}
