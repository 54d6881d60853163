"""What a tokenizer is told: pixels, codes, and optionally perception and a discriminator's opinion.

    L = l1 |x - y| + l2 (x - y)^2 + codebook |sg(z) - e|^2 + commitment |z - sg(e)|^2
        + lpips LPIPS(x, y) + disc w L_G(y)

with z the encoder's vectors and e their nearest codes, both L2-normalised, y the image decoded from e
with the straight-through gradient, all as means over elements (van den Oord et al. 2017; the normalised
codes after ViT-VQGAN). LPIPS and the adversarial term are ``star.tokenizer.perceptual`` and
``star.tokenizer.discriminator``; w is 1 or VQGAN's adaptive weight.

Shape suffixes: B images, C channels, H W pixels, E code dimension, g grid.
"""

import functools
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F

from star.tokenizer.config import TokenizerConfig
from star.tokenizer.model import VQModel

__all__ = ["CODE_TERMS", "PIXEL_TERMS", "code_terms", "reconstruct", "weighted"]

PIXEL_TERMS = {"l1": "l1_weight", "l2": "l2_weight", "lpips": "lpips_weight"}
CODE_TERMS = {"codebook": "codebook_weight", "commitment": "commitment_weight"}


def reconstruct(
    model: VQModel, z_BEgg: torch.Tensor, autocast: Callable[[], AbstractContextManager[object]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(images drawn, codes, indices) of normalised vectors, with the straight-through gradient.

    ``autocast()`` is the context in which the decoder runs.
    """
    codes_BEgg, indices_Bgg = model.quantize(z_BEgg)
    # straight through: the decoder's gradient passes to z as if the code were z itself
    through_BEgg = z_BEgg + (codes_BEgg - z_BEgg).detach()
    with autocast():
        drawn_BCHW = model.decode_codes(through_BEgg)
    return drawn_BCHW.float(), codes_BEgg, indices_Bgg


def code_terms(z_BEgg: torch.Tensor, codes_BEgg: torch.Tensor) -> dict[str, torch.Tensor]:
    """``codebook`` and ``commitment``: the same number, with the gradient to one side each."""
    return {
        "codebook": F.mse_loss(codes_BEgg, z_BEgg.detach()),
        "commitment": F.mse_loss(z_BEgg, codes_BEgg.detach()),
    }


def weighted(
    terms: dict[str, torch.Tensor], config: TokenizerConfig, names: dict[str, str]
) -> torch.Tensor:
    """Sum of the terms called ``names`` (a term's name to its weight's) that are there."""
    there: list[torch.Tensor] = [
        getattr(config, weight) * terms[name] for name, weight in names.items() if name in terms
    ]
    return functools.reduce(operator.add, there)
