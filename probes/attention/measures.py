"""Numbers that say where attention rows look, each with what a uniform row would give.

Step t sees t positions, so that what a row *can* look at differs from step to step: a number means
something only beside the same number of attention spread evenly over what is visible.

Shapes: L layers, B images, H heads, K steps, N positions (class first), C channels of a head, D width.
"""

import torch
from torch import Tensor

from probes.attention.places import euclidean_distance, place_patterns
from star.model.transformer import Block, Transformer

__all__ = ["MEASURES", "NORM_MEASURES", "SHARES", "row_measures", "uniform_rows", "value_norms"]

MEASURES = {
    "class_share": "weight on the class token",
    "class_norm_share": "the class token's share of the norms of weight x value x output projection "
    "(Kobayashi et al. 2020)",
    "self_share": "weight on the current token, the newest seen",
    "neighbourhood_share": "weight on the current token and its neighbours before it (causal 3 x 3)",
    "row_above_share": "weight on the row of the grid above the current token's",
    "first_share": "weight on the image's first token",
    "largest_share": "largest weight on a single image token",
    "distance": "mean distance in cells from the current token, weighted by attention, class left out",
    "entropy": "entropy of the row in nats",
}
NORM_MEASURES = ("class_norm_share",)  # these need the values too
# measure: the pattern (``probes.attention.places``) that weight is summed over
SHARES = {
    "class_share": "class",
    "self_share": "self",
    "neighbourhood_share": "neighbourhood",
    "row_above_share": "row_above",
    "first_share": "first",
}


def value_norms(model: Transformer, layer: int, values_BHNC: Tensor) -> Tensor:
    """(B, H, N) Euclidean norm of each position's value after the head's part of the output projection.

    With LlamaGen's class token weight alone misleads: its key is zero, so its logit is a constant 0 and
    its weight says how large the other logits are, not what is read.
    """
    heads, channels = values_BHNC.shape[1], values_BHNC.shape[3]
    block = model.layers[layer - 1]
    assert isinstance(block, Block)
    wo_DHC = block.attention.wo.weight.float().unflatten(1, (heads, channels))
    values = values_BHNC.float()
    with torch.autocast(values.device.type, enabled=False):  # squares overflow in half precision
        gram_HCC = torch.einsum("dhc,dhe->hce", wo_DHC, wo_DHC)
        squared_BHN = torch.einsum("bhnc,hce,bhne->bhn", values, gram_HCC, values)
    return squared_BHN.clamp_min(0).sqrt()


def uniform_rows(steps: list[int], device: torch.device | str = "cpu") -> Tensor:
    """(K, N) rows that spread their weight evenly over what each step sees; N = max(steps)."""
    steps_K1 = torch.tensor(steps, device=device)[:, None]
    return (torch.arange(max(steps), device=device) < steps_K1) / steps_K1


def row_measures(
    rows_LBHKN: Tensor,
    *,
    steps: list[int],
    grid: int,
    names: list[str],
    norms_LBHN: Tensor | None = None,
) -> dict[str, Tensor]:
    """(L, B, H, K) of each measure of softmax rows of the queries at ``steps``, all of them above 1.

    ``norms_LBHN`` (``value_norms``) is needed by ``class_norm_share`` alone.
    """
    assert min(steps) > 1, "step 1 sees the class alone"
    positions = torch.tensor(steps) - 1
    found = {}
    patterns = place_patterns(grid)
    for name in names:
        if name in SHARES:
            pattern_KN = patterns[SHARES[name]][positions, : rows_LBHKN.shape[-1]]
            found[name] = (rows_LBHKN * pattern_KN.to(rows_LBHKN.device)).sum(-1)
        elif name == "largest_share":
            found[name] = rows_LBHKN[..., 1:].amax(-1)
        elif name == "distance":
            far_KN = euclidean_distance(grid)[positions, 1 : rows_LBHKN.shape[-1]]
            image = rows_LBHKN[..., 1:]
            weighted = (image * far_KN.to(image.device)).sum(-1)
            found[name] = weighted / image.sum(-1).clamp_min(1e-12)
        elif name == "entropy":
            found[name] = torch.special.entr(rows_LBHKN).sum(-1)
        else:
            assert name == "class_norm_share" and norms_LBHN is not None, name
            weighted = rows_LBHKN * norms_LBHN[:, :, :, None]
            found[name] = weighted[..., 0] / weighted.sum(-1).clamp_min(1e-12)
    return found
