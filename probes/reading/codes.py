"""The codes of a tokenizer as vectors, by which images' tokens are compared."""

import torch.nn.functional as F
from torch import Tensor

from star.tokenizer.model import VQModel

__all__ = ["code_vectors"]


def code_vectors(tokenizer: VQModel) -> Tensor:
    """(V, E) float64 codes of L2 norm 1, as the quantizer compares them: dot products are cosines."""
    return F.normalize(tokenizer.quantize.embedding.weight.detach().double(), dim=-1)
