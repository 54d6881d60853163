"""The output layer and the negative log-likelihood behind it, without holding all logits at a time.

Logits of a codebook of 16,384 are larger than everything else a training step keeps: 512 images of 256
tokens have 8 GiB of them in float32, and the softmax, its gradient and their half-precision copies
come on top. Beyond a bound the positions are taken in parts, each computed again in the backward pass
(one more product with the output layer, a twentieth of a step of B).

Shapes: B batch, N positions, D width, V codebook size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["head_bytes", "next_token_nll"]

# When the backward pass begins, float32 whatever autocast does: the log-softmax, which is kept from the
# forward pass on, its gradient, and the logits' gradient.
BYTES_A_LOGIT = 12
PART_BYTES = 1 << 30


def head_bytes(positions: int, vocab_size: int) -> int:
    """Bytes that the output layer and the loss need at their peak for ``positions`` in all."""
    return BYTES_A_LOGIT * vocab_size * min(positions, _part(vocab_size))


def _part(vocab_size: int) -> int:
    """Positions computed at a time."""
    return max(1, PART_BYTES // (BYTES_A_LOGIT * vocab_size))


def next_token_nll(hidden_BND: Tensor, weight_VD: Tensor, tokens_BN: Tensor) -> Tensor:
    """(B, N) float32: -log softmax(hidden weight^T) at each position's next token, in nats.

    The product follows autocast, the rest is float32.
    """
    rows, targets = hidden_BND.flatten(0, 1), tokens_BN.flatten()
    part = _part(len(weight_VD))
    if len(rows) <= part:
        return _nll(rows, weight_VD, targets).view_as(tokens_BN)
    found = []
    for some, wanted in zip(rows.split(part), targets.split(part), strict=True):
        if torch.is_grad_enabled():
            found.append(
                checkpoint(_nll, some, weight_VD, wanted, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            found.append(_nll(some, weight_VD, wanted))
    return torch.cat(found).view_as(tokens_BN)


def _nll(rows_RD: Tensor, weight_VD: Tensor, targets_R: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(rows_RD, weight_VD).float(), targets_R, reduction="none")
