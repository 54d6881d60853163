"""Where a step looks: attention maps of one image.

Rows are recomputed from the queries and keys after rotation, whatever kernel the model used. The
*current token* of step t is x_{t-1}, the newest token seen, whose position predicts x_t; at step 1
there is only the class. Heads are averaged unless one is named.

Shapes: B images, H heads, N positions (class first), K steps, L layers asked for, T tokens, g grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.features import check_steps
from star.errors import UserError
from star.transformer import Transformer, check_layers

__all__ = ["AttentionMaps", "attention_at_steps", "attention_maps"]


@dataclass(frozen=True)
class AttentionMaps:
    """``maps`` (L, K, T) on the image tokens (0 where unseen) and ``class_weights`` (L, K)."""

    maps: np.ndarray
    class_weights: np.ndarray
    layers: list[int]
    steps: list[int]


@torch.no_grad()
def attention_at_steps(
    model: Transformer, tokens_BT: Tensor, labels_B: Tensor, *, layers: list[int], steps: list[int]
) -> Tensor:
    """(L, B, H, K, N) softmax rows of the queries at ``steps``; N = max(steps) positions."""
    check_layers(model.config, layers)
    check_steps(model.config.tokens, steps)
    names = [f"layers.{layer}.attention" for layer in layers]
    seen = tokens_BT[:, : max(steps) - 1]
    positions = torch.tensor(steps, device=tokens_BT.device) - 1
    out = model(seen, labels_B, capture=names, capture_at=positions, with_logits=False)
    return torch.stack([out.captured[name] for name in names])


def attention_maps(
    model: Transformer,
    tokens_T: Tensor,
    label: int,
    *,
    layers: list[int],
    steps: list[int],
    head: int | str = "mean",
) -> AttentionMaps:
    """Maps of one image; ``head``: ``mean`` or ``max`` over heads, or a head's number from 1.

    Raises ``UserError`` for a layer, step, head, label or token that does not exist.
    """
    config = model.config
    if tokens_T.shape != (config.tokens,):
        raise UserError(
            f"the image has {tuple(tokens_T.shape)} tokens; the model expects {config.tokens}"
        )
    if int(tokens_T.max()) >= config.vocab_size or int(tokens_T.min()) < 0:
        raise UserError(
            f"token {int(tokens_T.max())} does not exist; the model knows 0 to {config.vocab_size - 1}"
        )
    if not 0 <= label <= config.num_classes:
        raise UserError(
            f"class {label} does not exist; expected 0 to {config.num_classes - 1}, "
            f"or {config.num_classes} for the null class"
        )
    device = model.output.weight.device
    rows_LHKN = attention_at_steps(
        model,
        tokens_T[None].to(device),
        torch.tensor([label], device=device),
        layers=layers,
        steps=steps,
    )[:, 0]
    if head == "mean":
        rows_LKN = rows_LHKN.mean(1)
    elif head == "max":
        rows_LKN = rows_LHKN.amax(1)
    elif isinstance(head, int) and 1 <= head <= config.heads:
        rows_LKN = rows_LHKN[:, head - 1]
    else:
        raise UserError(f"head is {head!r}; expected mean, max or 1 to {config.heads}")
    maps = np.zeros((len(layers), len(steps), config.tokens), dtype=np.float32)
    maps[:, :, : rows_LKN.shape[-1] - 1] = rows_LKN[..., 1:].cpu().numpy()
    return AttentionMaps(maps, rows_LKN[..., 0].cpu().numpy(), list(layers), list(steps))
