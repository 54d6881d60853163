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

from probes.attention.rollout import attention_rollout
from probes.reading.features import capture_steps, check_cells, check_prefix
from star.base.errors import UserError
from star.model.config import ModelConfig
from star.model.transformer import Transformer

__all__ = ["AttentionMaps", "attention_at_steps", "attention_maps", "check_head"]

MOST_ROWS = 2**26  # numbers of captured rows at a time: 256 MB of float32


@dataclass(frozen=True)
class AttentionMaps:
    """``maps`` (L, K, T) on the image tokens (0 where unseen) and ``class_weights`` (L, K).

    Of all heads: (L, H, K, T) and (L, H, K).
    """

    maps: np.ndarray
    class_weights: np.ndarray
    layers: list[int]
    steps: list[int]


@torch.no_grad()
def attention_at_steps(
    model: Transformer, tokens_BT: Tensor, labels_B: Tensor, *, layers: list[int], steps: list[int]
) -> Tensor:
    """(L, B, H, K, N) softmax rows of the queries at ``steps``; N = max(steps) positions."""
    check_cells(model.config, layers, steps)
    names = [f"layers.{layer}.attention" for layer in layers]
    captured = capture_steps(model, tokens_BT, labels_B, names, steps)
    return torch.stack([captured[name] for name in names])


def attention_maps(
    model: Transformer,
    tokens_T: Tensor,
    label: int,
    *,
    layers: list[int],
    steps: list[int],
    head: int | str = "mean",
) -> AttentionMaps:
    """Maps of one image; ``head``: ``mean`` or ``max`` over heads, ``all``, or a head's number from 1.

    ``rollout`` instead shows attention rollout through each layer (``probes.attention.rollout``).
    Layers are captured a few at a time where the rows of all would not fit in ``MOST_ROWS``.
    Raises ``UserError`` for a layer, step, head, label or token that does not exist.
    """
    config = model.config
    check_prefix(config, tokens_T, label)
    check_head(config, head)
    check_cells(config, layers, steps)
    device = model.output.weight.device
    tokens_1T, labels_1 = tokens_T[None].to(device), torch.tensor([label], device=device)
    if head == "rollout":
        rows = attention_rollout(model, tokens_1T, labels_1, layers=layers, steps=steps)
        return _as_maps(rows[:, 0].cpu().numpy(), config.tokens, layers, steps)
    each = max(1, MOST_ROWS // (config.heads * len(steps) * max(steps)))
    parts = []
    for start in range(0, len(layers), each):
        some = layers[start : start + each]
        rows = attention_at_steps(model, tokens_1T, labels_1, layers=some, steps=steps)
        parts.append(_over_heads(rows[:, 0], head).float().cpu().numpy())
    return _as_maps(np.concatenate(parts), config.tokens, layers, steps)


def _as_maps(rows: np.ndarray, tokens: int, layers: list[int], steps: list[int]) -> AttentionMaps:
    """Rows (L, K, N) or (L, H, K, N) as maps over all tokens and weights of the class."""
    maps = np.zeros((*rows.shape[:-1], tokens), dtype=np.float32)
    maps[..., : rows.shape[-1] - 1] = rows[..., 1:]
    return AttentionMaps(maps, rows[..., 0], list(layers), list(steps))


def check_head(config: ModelConfig, head: int | str) -> None:
    """Raise ``UserError`` unless ``head`` is mean, max, all, rollout or the number of a head."""
    one = isinstance(head, int) and 1 <= head <= config.heads
    if not one and head not in ("mean", "max", "all", "rollout"):
        raise UserError(f"head is {head!r}; expected mean, max, all, rollout or 1 to {config.heads}")


def _over_heads(rows_LHKN: Tensor, head: int | str) -> Tensor:
    """(L, K, N): the mean, the largest or one of the heads; (L, H, K, N) for all."""
    if head == "all":
        return rows_LHKN
    if head == "mean":
        return rows_LHKN.mean(1)
    return rows_LHKN[:, head - 1] if isinstance(head, int) else rows_LHKN.amax(1)
