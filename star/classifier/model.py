"""The classifier's network: a small residual network with batch norm, fit for short training.

    stem:   3x3 convolution, W channels
    stage:  3x3 convolution of stride 2 to twice the channels, then x + f(f(x)), three times
    head:   mean over the pixels (the features, 8 W of them), a linear layer (the logits)

where every convolution is followed by batch norm and ReLU, that of a residual branch too. It is ResNet
(He et al. 2015) in the form that trains in few passes (Page 2018, "How to train your ResNet").

Shape suffixes: N images, B of a batch, C channels or classes, H W pixels, F features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from star.base.device import exact_float32
from star.base.meta import give_memory
from star.base.randomness import torch_generator
from star.base.record import Record
from star.classifier.config import STAGES, ClassifierShape
from star.images.views import scaled

__all__ = ["Classifier", "new_classifier"]


class Classifier(nn.Module):
    """Images to features and logits; what a file says of it is in ``class_names``, ``facts``, ``name``.

    ``facts`` of a loaded one: ``accuracy`` on ``n`` held-out images (``measured_on``) with its 95 %
    interval ``low`` to ``high``, ``source`` and ``source_sha256`` of the training images, ``sha256`` of
    the weights, and how it was trained.
    """

    def __init__(self, config: ClassifierShape) -> None:
        super().__init__()
        self.config = config
        self.class_names: list[str] | None = None
        self.facts: Record = {}
        self.name = ""
        layers: list[nn.Module] = [_ConvNormAct(3, config.width)]
        for stage in range(STAGES):
            narrow = config.width * 2**stage
            layers += [_ConvNormAct(narrow, 2 * narrow, stride=2), _Residual(2 * narrow)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(config.features, config.classes)

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, F) and logits (B, C) of images in [-1, 1] of its own size."""
        assert images_BCHW.shape[1:] == (3, self.config.size, self.config.size), images_BCHW.shape
        features_BF = self.body(images_BCHW).mean(dim=(2, 3))
        return features_BF, self.head(features_BF)

    @torch.no_grad()
    @exact_float32()
    def features_and_logits(self, images_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, F) and logits (N, C), float32 on its device, of uint8 RGB images (N, 3, H, W).

        Images of another size than its own are cut to their middle square and resized with antialiased
        bicubic interpolation (values clamped to 0..255, not rounded). It must be in eval mode; then an
        image's numbers do not depend on the others, but for the last bits of sums.
        """
        assert images_NCHW.dtype == torch.uint8 and images_NCHW.shape[1] == 3, images_NCHW.shape
        assert not self.training, "call eval() first"
        images_NCHW = self._fitted(images_NCHW.to(self.head.weight.device))
        images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)
        found: tuple[torch.Tensor, torch.Tensor] = self(images_NCHW)
        return found

    def _fitted(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """uint8 images of any size as numbers in [-1, 1], of the classifier's size."""
        size, (height, width) = self.config.size, images_NCHW.shape[2:]
        if (height, width) == (size, size):
            return scaled(images_NCHW)
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square_NCHW = images_NCHW[:, :, top : top + side, left : left + side].float()
        if side != size:
            square_NCHW = F.interpolate(
                square_NCHW, size=(size, size), mode="bicubic", align_corners=False, antialias=True
            )
        return square_NCHW.clamp(0, 255) / 127.5 - 1


class _ConvNormAct(nn.Sequential):
    def __init__(self, narrow: int, wide: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()
        )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_ConvNormAct(width, width), _ConvNormAct(width, width))

    def forward(self, x_BCHW: torch.Tensor) -> Any:
        return x_BCHW + self.branch(x_BCHW)


def new_classifier(shape: ClassifierShape, seed: int) -> Classifier:
    """A classifier to be trained: He's normal distribution, drawn from our own generator."""
    with torch.device("meta"):  # so that the constructors draw nothing from the global one
        model = Classifier(shape)
    give_memory(model, "cpu")
    rng = torch_generator(seed, "classifier-weights")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=rng)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    nn.init.zeros_(model.head.weight)  # the first loss is that of even odds
    nn.init.zeros_(model.head.bias)
    return model.to(memory_format=torch.channels_last)
