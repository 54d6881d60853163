"""Do the loss terms pull the same way? Cosines between their gradients, of the transformer's weights.

A cosine does not depend on a term's weight in Eq. 8 as long as that is positive. The projector is left
out: only the contrastive terms reach it.
"""

from itertools import combinations

import torch
from torch import Tensor

from star.config import ObjectiveConfig
from star.device import autocast
from star.objective import TrainBatch, compute_losses
from star.sharding import is_sharded
from star.student import Student
from star.teacher import Teacher

__all__ = ["gradient_cosines"]


def gradient_cosines(
    student: Student,
    teacher: Teacher,
    batch: TrainBatch,
    config: ObjectiveConfig,
    precision: torch.dtype = torch.float32,
) -> dict[tuple[str, str], float]:
    """Cosine of every pair of terms on ``batch``, without dropout; none for plain AR.

    None under sharding either: FSDP2 gives a gradient to ``backward`` alone, not to those who ask.
    A pair with a gradient of length 0 (an untrained model's) has no cosine and is left out. No
    ``.grad`` is touched. Memory: one copy of the weights a term, on the CPU.
    """
    if not config.uses_teacher or is_sharded(student):
        return {}
    if precision is torch.float16:  # small gradients would vanish without a loss scale
        precision = torch.float32
    parameters = list(student.model.parameters())
    with torch.enable_grad(), autocast(batch.tokens_BMT.device, precision):
        _, terms = compute_losses(student, teacher, batch, config)
    gradients = {name: _flat(term, parameters) for name, term in terms.items()}
    lengths = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    return {
        (a, b): float(gradients[a] @ gradients[b]) / (lengths[a] * lengths[b])
        for a, b in combinations(gradients, 2)
        if lengths[a] * lengths[b] > 0
    }


def _flat(term: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """All parameters' gradients of ``term`` as one vector; zeros where it does not reach."""
    parts = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten().float().cpu() for part in parts])
