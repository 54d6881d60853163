"""Spatial structure of a layer: whether tokens that lie side by side are more alike than distant ones.

LDS, local against distant similarity, of iREPA (Singh et al. 2025, "What matters for representation
alignment: global information or spatial structure?"), near and far as in the public code of it: the
mean cosine of pairs of neighbours on the grid (Manhattan distance 1) less the mean cosine of pairs at
least 6 apart. Features are neither centred nor pooled. The feature of token p is the hidden state at
position p (class at position 0), which has seen tokens 1..p and none after it; an encoder's patches see
the whole image, so numbers of the two compare with care.

Shapes: B or N images, T = grid x grid tokens, D width, L layers.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probes.reading.features import capture_steps, check_store
from star.base.errors import UserError
from star.codes.store import Codes
from star.model.classes import null_label
from star.model.transformer import Transformer, check_layers
from star.training.batches import plain_batches

__all__ = ["FAR", "layer_lds", "lds", "pair_weights"]

FAR = 6  # Manhattan distance in grid cells from which on tokens are distant
FLOATS = 1 << 26  # of hidden states held at once


def pair_weights(grid: int, far: int = FAR) -> np.ndarray:
    """(T, T) weights of the pairs of tokens whose weighted sum of cosines is LDS.

    Raises ``UserError`` if no two tokens of the grid are ``far`` apart.
    """
    if not 2 <= far <= 2 * (grid - 1):
        raise UserError(
            f"distant tokens are {far} cells apart; expected 2 to {2 * (grid - 1)} on a grid of "
            f"{grid} x {grid}"
        )
    cells = np.stack(np.divmod(np.arange(grid**2), grid), axis=1)
    distance_TT = np.abs(cells[:, None] - cells[None]).sum(-1)
    near_TT, far_TT = distance_TT == 1, distance_TT >= far
    return near_TT / near_TT.sum() - far_TT / far_TT.sum()


def lds(hidden_BTD: Tensor, weights_TT: Tensor) -> Tensor:
    """(B,) LDS of each image: -2 to 2, 0 where likeness does not depend on place."""
    unit_BTD = F.normalize(hidden_BTD.float(), dim=-1)
    return ((weights_TT.to(unit_BTD) @ unit_BTD) * unit_BTD).sum((1, 2))


@torch.no_grad()
def layer_lds(
    model: Transformer,
    store: Codes,
    *,
    layers: list[int],
    far: int = FAR,
    precision: torch.dtype = torch.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """LDS (L, N) of every image's test view under the null class, and (L,) between images.

    The second, the baseline, pairs tokens of different images: how far likeness follows from the
    positions alone. Raises ``UserError`` for layers that do not exist, codes that do not fit, hidden
    states that are not finite and a grid too small for ``far``.
    """
    check_layers(model.config, layers)
    check_store(model, store, classes=False)
    config, device = model.config, model.output.weight.device
    null = null_label(config, "a measure without a class")
    weights_TT = torch.from_numpy(pair_weights(config.grid, far)).float().to(device)
    names = [f"layers.{layer}" for layer in layers]
    batch = max(1, FLOATS // (len(layers) * (config.tokens + 1) * config.width))
    sums_LTD = torch.zeros(len(layers), config.tokens, config.width, device=device)
    parts = []
    for tokens_BT, _ in plain_batches(store, batch, device):
        captured = capture_steps(model, tokens_BT, null, names, steps=None, precision=precision)
        of_batch = []
        for place, name in enumerate(names):
            hidden_BTD = captured[name][:, 1:].float()
            if not torch.isfinite(hidden_BTD).all():
                raise UserError(
                    f"features of layer {layers[place]} are not finite; the checkpoint is broken"
                )
            of_batch.append(lds(hidden_BTD, weights_TT))
            sums_LTD[place] += F.normalize(hidden_BTD, dim=-1).sum(0)
        parts.append(torch.stack(of_batch).cpu().numpy())
    values_LN = np.concatenate(parts, axis=1).astype(np.float64)
    count = values_LN.shape[1]
    # The weighted sum over all pairs of images, less each image with itself.
    all_L = ((weights_TT @ sums_LTD) * sums_LTD).sum((1, 2)).cpu().numpy()
    return values_LN, (all_L - values_LN.sum(1)) / (count * (count - 1))
