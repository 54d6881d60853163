"""Where a step looks: attention maps of one image, and two numbers over many.

Rows are recomputed from the queries and keys after rotation, whatever kernel the model used. The
*current token* of step t is x_{t-1}, the newest token seen, whose position predicts x_t; at step 1
there is only the class. Heads are averaged unless one is named.

Shapes: B images, H heads, N positions (class first), K steps, L layers asked for, T tokens, g grid.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.features import check_steps, check_store
from probes.intervals import mean_interval
from star.batches import plain_batches
from star.codes import CodeStore
from star.config import ModelConfig
from star.errors import UserError
from star.transformer import Transformer, check_layers

__all__ = ["AttentionMaps", "attention_at_steps", "attention_maps", "attention_stats", "check_head"]

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
    """Maps of one image; ``head``: ``mean`` or ``max`` over heads, ``all``, or a head's number from 1.

    Layers are captured a few at a time where the rows of all would not fit in ``MOST_ROWS``.
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
    check_head(config, head)
    check_layers(config, layers)
    check_steps(config.tokens, steps)
    device = model.output.weight.device
    tokens_1T, labels_1 = tokens_T[None].to(device), torch.tensor([label], device=device)
    each = max(1, MOST_ROWS // (config.heads * len(steps) * max(steps)))
    parts = []
    for start in range(0, len(layers), each):
        some = layers[start : start + each]
        rows = attention_at_steps(model, tokens_1T, labels_1, layers=some, steps=steps)
        parts.append(_over_heads(rows[:, 0], head).float().cpu().numpy())
    rows = np.concatenate(parts)  # (L, K, N) or (L, H, K, N)
    maps = np.zeros((*rows.shape[:-1], config.tokens), dtype=np.float32)
    maps[..., : rows.shape[-1] - 1] = rows[..., 1:]
    return AttentionMaps(maps, rows[..., 0], list(layers), list(steps))


def check_head(config: ModelConfig, head: int | str) -> None:
    """Raise ``UserError`` unless ``head`` is ``mean``, ``max``, ``all`` or the number of a head."""
    one = isinstance(head, int) and 1 <= head <= config.heads
    if not one and head not in ("mean", "max", "all"):
        raise UserError(f"head is {head!r}; expected mean, max, all or 1 to {config.heads}")


def _over_heads(rows_LHKN: Tensor, head: int | str) -> Tensor:
    """(L, K, N): the mean, the largest or one of the heads; (L, H, K, N) for all."""
    if head == "all":
        return rows_LHKN
    if head == "mean":
        return rows_LHKN.mean(1)
    return rows_LHKN.amax(1) if head == "max" else rows_LHKN[:, head - 1]


def attention_stats(
    model: Transformer,
    store: CodeStore,
    *,
    layers: list[int],
    steps: list[int],
    limit: int | None = None,
    batch_size: int = 128,
) -> pd.DataFrame:
    """Two numbers a layer and step, averaged over heads, over the first ``limit`` images (or all).

    ``class_share``: weight on the class token. ``distance``: Euclidean distance in grid cells from the
    current token to the image tokens, weighted by their attention (class left out, renormalised).
    ``uniform`` is the same number for attention spread evenly over what is visible: the baseline
    without which steps cannot be compared. Columns layer, step, measure, value, low, high, uniform, n;
    a last pair of rows (layer 0, step 0) averages each image over all layers and steps.
    """
    check_store(model, store)
    config, device = model.config, model.output.weight.device
    cells = torch.cartesian_prod(torch.arange(config.grid), torch.arange(config.grid)).float()
    distances_TT = torch.cdist(cells, cells).to(device)
    steps = [step for step in steps if step > 1]  # at step 1 nothing but the class is visible
    count = min(len(store), limit or len(store))
    values: dict[str, list[Tensor]] = {"class_share": [], "distance": []}
    for tokens_BT, labels_B in plain_batches(store, batch_size, device, range(count)):
        rows_LBHKN = attention_at_steps(model, tokens_BT, labels_B, layers=layers, steps=steps)
        image_LBHKn = rows_LBHKN[..., 1:]
        near_Kn = distances_TT[torch.tensor(steps) - 2, : image_LBHKn.shape[-1]]
        weighted_LBHK = (image_LBHKn * near_Kn).sum(-1) / image_LBHKn.sum(-1).clamp_min(1e-12)
        values["class_share"].append(rows_LBHKN[..., 0].mean(2).cpu())
        values["distance"].append(weighted_LBHK.mean(2).cpu())
    uniform = {
        "class_share": [1 / step for step in steps],
        "distance": [float(distances_TT[step - 2, : step - 1].mean()) for step in steps],
    }
    rows = []
    for measure, parts in values.items():
        all_LBK = torch.cat(parts, dim=1).numpy()
        cuts = [(layer, step, all_LBK[i, :, k], uniform[measure][k])
                for i, layer in enumerate(layers) for k, step in enumerate(steps)]  # fmt: skip
        cuts.append((0, 0, all_LBK.mean((0, 2)), float(np.mean(uniform[measure]))))
        for layer, step, of_images, baseline in cuts:
            mean, low, high = mean_interval(of_images)
            rows.append(
                {"layer": layer, "step": step, "measure": measure, "value": mean, "low": low,
                 "high": high, "uniform": baseline, "n": len(of_images)}
            )  # fmt: skip
    return pd.DataFrame(rows)
