"""How much attention a cut takes away: the weight that the intact model puts where the cut hides keys.

Cuts of different sizes cannot be compared by what is lost alone: a cut of much weight loses more. Loss
per unit of weight removed can: one unit is a whole row of attention in each of the layers that are cut.

Shapes: N images, T steps, H heads.
"""

from collections.abc import Sequence

import numpy as np
import torch

from probes.ablation.cuts import Cut
from probes.reading.features import capture_steps
from star.base.progress import Progress, nothing
from star.codes.store import Codes
from star.model.transformer import Transformer
from star.training.batches import plain_batches

__all__ = ["removed_weight"]

MOST_BYTES = 1 << 28  # attention patterns of a batch


@torch.no_grad()
def removed_weight(
    model: Transformer,
    store: Codes,
    cuts: Sequence[Cut],
    *,
    precision: torch.dtype = torch.float32,
    on_progress: Progress = nothing,
) -> np.ndarray:
    """(cuts, N, T) weight on hidden keys at every step, given each image's class.

    The mean over heads, over the layers that a cut is made in and over its draws; 0 at steps that are
    not cut. on_progress(done, total) counts images.
    """
    config, device = model.config, model.output.weight.device
    layers = sorted({layer for cut in cuts for layer in cut.layers})
    sites = [f"layers.{layer}.attention" for layer in layers]
    each = 4 * len(layers) * config.heads * config.tokens**2
    hidden = [_shares(cut, model).to(device) for cut in cuts]  # (T, T) a cut
    found = np.zeros((len(cuts), len(store), config.tokens))
    done = 0
    steps = range(1, config.tokens + 1)
    for tokens_BT, labels_B in plain_batches(store, max(1, MOST_BYTES // each), device):
        captured = capture_steps(model, tokens_BT, labels_B, sites, steps, precision=precision)
        rows = {layer: captured.pop(site).float() for layer, site in zip(layers, sites, strict=True)}
        for place, (cut, share_TT) in enumerate(zip(cuts, hidden, strict=True)):
            of_layers = [torch.einsum("bhtn,tn->bt", rows[layer], share_TT) for layer in cut.layers]
            weight_BT = torch.stack(of_layers).mean(0) / config.heads
            found[place, done : done + len(tokens_BT)] = weight_BT.cpu().numpy()
        done += len(tokens_BT)
        on_progress(done, len(store))
    return found


def _shares(cut: Cut, model: Transformer) -> torch.Tensor:
    """(T, T) share of the cut's draws in which a query's key is hidden."""
    tokens = model.config.tokens
    drawn = [pattern[cut.layers[0]][:tokens, :tokens] for pattern in cut.all_patterns(model.config)]
    return torch.stack(drawn).float().mean(0)
