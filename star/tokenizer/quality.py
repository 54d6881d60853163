"""How well a tokenizer redraws images, and how evenly it uses its codes.

PSNR with peak 2 on [-1, 1], at most 100 dB. SSIM of Wang et al. (2004): Gaussian window of 11 pixels
and standard deviation 1.5, K1 = 0.01, K2 = 0.03, over the three channels, where the window fits
(smaller images take the largest odd window that fits). Perplexity is exp of the entropy of the codes
chosen.

Shape suffixes: N images, B of a batch, C channels, H W pixels, g grid, V codebook size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from star.base.errors import UserError
from star.base.record import Record
from star.images.views import scaled
from star.tokenizer.model import VQModel

__all__ = [
    "Quality",
    "evaluate_tokenizer",
    "image_psnr",
    "image_ssim",
    "joined",
    "psnr",
    "redraw",
    "tokenizer_quality",
]

Values = TypeVar("Values", torch.Tensor, np.ndarray)

MOST_DB = 100.0  # a perfect copy would be infinite
WINDOW, SIGMA, K1, K2, PEAK = 11, 1.5, 0.01, 0.03, 2.0


@dataclass(frozen=True)
class Quality:
    """Per image ``psnr_N`` (dB) and ``ssim_N``; how often each code was chosen, ``counts_V``."""

    psnr_N: torch.Tensor
    ssim_N: torch.Tensor
    counts_V: torch.Tensor

    def numbers(self) -> Record:
        """Means over images, and the codes' usage: plain numbers for a card or a row of metrics."""
        share_V = self.counts_V.double() / self.counts_V.sum()
        entropy = -torch.special.xlogy(share_V, share_V).sum()
        return {
            "psnr": self.psnr_N.mean().item(),
            "ssim": self.ssim_N.mean().item(),
            "codes_used": int((self.counts_V > 0).sum()),
            "perplexity": entropy.exp().item(),
        }


def tokenizer_quality(model: VQModel, images_NCHW: torch.Tensor, batch_size: int = 64) -> Quality:
    """Redraw images (N, 3, H, W), uint8 or float in [-1, 1], and compare. ``UserError`` without any."""
    if not len(images_NCHW):
        raise UserError("there are no images to measure the tokenizer on")
    return joined([redraw(model, images)[1] for images in images_NCHW.split(batch_size)])


@torch.no_grad()
def redraw(model: VQModel, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, Quality]:
    """(reconstructions in [-1, 1] on the model's device, their quality) of one batch."""
    images_BCHW = scaled(images_BCHW).to(model.quant_conv.weight.device)
    indices_Bgg = model.encode(images_BCHW)
    drawn_BCHW = model.decode(indices_Bgg).clamp(-1, 1)
    counts_V = torch.bincount(indices_Bgg.flatten(), minlength=model.config.codebook_size)
    psnr_B, ssim_B = image_psnr(images_BCHW, drawn_BCHW), image_ssim(images_BCHW, drawn_BCHW)
    return drawn_BCHW, Quality(psnr_B.cpu(), ssim_B.cpu(), counts_V.cpu())


def joined(parts: Sequence[Quality]) -> Quality:
    """The quality of all images of several batches."""
    return Quality(
        torch.cat([part.psnr_N for part in parts]),
        torch.cat([part.ssim_N for part in parts]),
        torch.stack([part.counts_V for part in parts]).sum(dim=0),
    )


def evaluate_tokenizer(model: VQModel, images_NCHW: torch.Tensor, batch_size: int = 64) -> Record:
    """``psnr`` (dB), ``ssim``, ``codes_used`` and ``perplexity``; see ``tokenizer_quality``."""
    return tokenizer_quality(model, images_NCHW, batch_size).numbers()


def image_psnr(images_BCHW: torch.Tensor, others_BCHW: torch.Tensor) -> torch.Tensor:
    """PSNR (B,) in dB, float64, of images in [-1, 1]; at most 100."""
    errors_B = (images_BCHW - others_BCHW).square().flatten(1).mean(dim=1)
    return psnr(errors_B.double(), peak=PEAK, most=MOST_DB)


def psnr(errors: Values, *, peak: float, most: float) -> Values:
    """Peak signal-to-noise ratio in dB, at most ``most``, of mean squared errors: of each one."""
    ratio = peak**2 / errors.clip(min=peak**2 / 10 ** (most / 10))
    return 10 * (torch.log10(ratio) if isinstance(ratio, torch.Tensor) else np.log10(ratio))


def image_ssim(images_BCHW: torch.Tensor, others_BCHW: torch.Tensor) -> torch.Tensor:
    """Structural similarity (B,), float64, of images in [-1, 1]."""
    x, y = images_BCHW.double(), others_BCHW.double()
    channels = x.shape[1]
    window = min(WINDOW, *(side - 1 + side % 2 for side in x.shape[2:]))
    offsets = torch.arange(window, dtype=torch.float64, device=x.device) - window // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights /= weights.sum()
    across = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)

    def blurred(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(values, across, groups=channels), down, groups=channels)

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    shared = blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    same = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
    return (same / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(dim=1)
