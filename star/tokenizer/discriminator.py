"""The PatchGAN discriminator of VQGAN's adversarial loss, in hinge form.

    L_D = w/2 mean(relu(1 - D(x)) + relu(1 + D(y))),   L_G = -mean(D(y))

with x images and y their reconstructions (Isola et al. 2017; Esser et al. 2021; LlamaGen's layout:
4 x 4 convolutions, batch norm after all but the first and the last, LeakyReLU 0.2, weights of standard
deviation 0.02). D gives one logit a patch, so it judges texture, not the picture.

Shape suffixes: B images, C channels, H W pixels, h w patches.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["PatchDiscriminator", "adaptive_weight", "hinge_discriminator", "hinge_generator"]

MOST_ADAPTIVE = 1e4  # VQGAN's limit of the adaptive weight


class PatchDiscriminator(nn.Module):
    """Logits (B, 1, h, w) of images (B, 3, H, W); ``layers`` convolutions halve the image."""

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            blocks += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_B1hw: torch.Tensor = self.blocks(images_BCHW)
        return logits_B1hw

    @staticmethod
    def smallest(layers: int) -> int:
        """Side of the smallest image that still has a patch, in pixels."""
        return int(3 * 2**layers)

    def initialise(self, rng: torch.Generator) -> "PatchDiscriminator":
        """Fill every weight from ``rng``; returns itself."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02, generator=rng)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02, generator=rng)
                nn.init.zeros_(module.bias)
        return self


def hinge_discriminator(real_B1hw: torch.Tensor, drawn_B1hw: torch.Tensor) -> torch.Tensor:
    """L_D without its weight: half the sum of the two hinges' means."""
    return 0.5 * (F.relu(1 - real_B1hw).mean() + F.relu(1 + drawn_B1hw).mean())


def hinge_generator(drawn_B1hw: torch.Tensor) -> torch.Tensor:
    """L_G: the negative mean logit of the reconstructions."""
    return -drawn_B1hw.mean()


def adaptive_weight(
    plain: torch.Tensor, adversarial: torch.Tensor, last_layer: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """VQGAN's factor of the adversarial loss (its Eq. 7): the ratio of both gradients' norms there.

    ``plain`` is the reconstruction loss, ``last_layer`` the weight whose gradients are compared. They
    are computed of ``scale`` times the losses, which does not change the ratio but what float16 can
    hold; NaN if one of them is not finite.
    """
    losses = (plain, adversarial)
    gradients = [torch.autograd.grad(scale * loss, last_layer, retain_graph=True)[0] for loss in losses]
    of_plain, of_adversarial = (gradient.norm() / scale for gradient in gradients)
    ratio: torch.Tensor = (of_plain / (of_adversarial + 1e-4)).clamp(0, MOST_ADAPTIVE)
    known = of_plain.isfinite() & of_adversarial.isfinite()
    return ratio.where(known, math.nan).detach()
