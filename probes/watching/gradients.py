"""Do the loss terms pull the same way? Cosines between their gradients, of the transformer's weights.

A cosine does not depend on a term's weight in Eq. 8 as long as that is positive. The projector is left
out: only the contrastive terms reach it.
"""

import functools
import operator
from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement

import torch
from torch import Tensor

from star.base.device import autocast
from star.parallel.sharding import is_sharded
from star.training.batches import TrainBatch
from star.training.config import ObjectiveConfig
from star.training.objective import compute_losses
from star.training.student import Student
from star.training.teacher import Teacher

__all__ = ["gradient_cosines"]

# Bytes of gradients, of all terms together, that are held at a time: those of a model of 250 million
# weights. The weights of a larger one take turns, each turn with backward passes of its own.
MOST_BYTES = 2**32


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
    ``.grad`` is touched. Memory: 4 GiB of gradients on the weights' device, and nothing elsewhere.
    """
    if not config.uses_teacher or is_sharded(student):
        return {}
    if precision is torch.float16:  # small gradients would vanish without a loss scale
        precision = torch.float32
    parameters = list(student.model.parameters())
    with torch.enable_grad(), autocast(batch.tokens_BMT.device, precision):
        _, terms = compute_losses(student, teacher, batch, config)
    of_pieces = (_products(list(terms.values()), some) for some in _pieces(parameters, len(terms)))
    products = functools.reduce(operator.add, of_pieces).cpu()
    lengths = dict(zip(terms, products.diagonal().sqrt().tolist(), strict=True))
    places = {name: place for place, name in enumerate(terms)}
    return {
        (a, b): float(products[places[a], places[b]]) / (lengths[a] * lengths[b])
        for a, b in combinations(terms, 2)
        if lengths[a] * lengths[b] > 0
    }


def _pieces(parameters: Sequence[Tensor], terms: int) -> Iterator[list[Tensor]]:
    """Parameters whose gradients of all terms are held together, at least one at a time."""
    piece: list[Tensor] = []
    held = 0
    for parameter in parameters:
        size = terms * parameter.nbytes
        if piece and held + size > MOST_BYTES:
            yield piece
            piece, held = [], 0
        piece.append(parameter)
        held += size
    yield piece


def _products(terms: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Dot products of the terms' gradients of ``parameters``: the upper half of a float64 matrix."""
    gradients = [
        torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True) for term in terms
    ]
    found = torch.zeros(len(terms), len(terms), dtype=torch.float64, device=parameters[0].device)
    for of_parameter in zip(*gradients, strict=True):
        for a, b in combinations_with_replacement(range(len(terms)), 2):
            one, other = of_parameter[a], of_parameter[b]
            if one is not None and other is not None:  # None: the term does not reach it
                # Summed in float64, so that the result does not depend on how weights are divided.
                found[a, b] += (one * other).sum(dtype=torch.float64)
    return found
