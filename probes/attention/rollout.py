"""Attention rollout: attention composed over layers, with the residual stream's share in each.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers": with A_l the mean over heads of
layer l's pattern, the rollout through layer l is R_l = (A_l + I) / 2 R_{l-1}, R_0 = I. Rows sum to one
and stay causal. It assumes that heads count alike and that the residual stream carries one half.

Shapes: B images, N positions (class first), K steps, L layers asked for.
"""

import torch
from torch import Tensor

from probes.reading.features import capture_steps, check_cells
from star.model.transformer import Transformer

__all__ = ["attention_rollout", "rollout"]


def rollout(patterns_LBNN: Tensor) -> Tensor:
    """(L, B, N, N) rollout through each layer, from the head-averaged patterns of layers 1 to L."""
    eye_NN = torch.eye(patterns_LBNN.shape[-1], device=patterns_LBNN.device)
    through, found = eye_NN.expand(patterns_LBNN.shape[1:]), []
    with torch.autocast(patterns_LBNN.device.type, enabled=False):  # halves would not sum to one
        for pattern_BNN in patterns_LBNN:
            through = (pattern_BNN + eye_NN) / 2 @ through
            found.append(through)
    return torch.stack(found)


@torch.no_grad()
def attention_rollout(
    model: Transformer, tokens_BT: Tensor, labels_B: Tensor, *, layers: list[int], steps: list[int]
) -> Tensor:
    """(L, B, K, N) rollout rows of the queries at ``steps`` through each of ``layers``.

    It needs the whole patterns of all layers up to the last: keep B small. Raises ``UserError`` for a
    layer or step that does not exist.
    """
    check_cells(model.config, layers, steps)
    names = [f"layers.{layer}.attention" for layer in range(1, max(layers) + 1)]
    seen = tokens_BT[:, : max(steps) - 1]
    captured = capture_steps(model, seen, labels_B, names, steps=None)
    through = rollout(torch.stack([captured.pop(name).mean(1) for name in names]))
    positions = torch.tensor(steps, device=tokens_BT.device) - 1
    return through[torch.tensor(layers, device=tokens_BT.device) - 1][:, :, positions]
