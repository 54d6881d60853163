"""A tokenizer whose token sees nothing beyond its cell, so that what must survive a motion does.

A cell's index is the code nearest (by cosine) to its mean colour; decoding paints the cell with it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from star.images.open import Split
from star.tokenizer.model import VQModel
from star.tokenizer.shape import VQConfig


class CellTokenizer(VQModel):
    def __init__(self, *, levels: int = 3, codes: int = 12, seed: int = 0, name: str = "cells") -> None:
        small = {"channels": 32, "encoder_blocks": 1, "decoder_blocks": 1, "z_channels": 32}
        super().__init__(
            VQConfig(**small, multipliers=(1,) * levels, codebook_size=codes, codebook_dim=3)
        )
        self.name = name
        colours = np.random.default_rng(seed).uniform(0.05, 1, (codes, 3))
        self.quantize.embedding.weight.data = torch.from_numpy(colours).float()
        self.eval().requires_grad_(False)

    def encode_features(self, images_BCHW):
        self._check_images(images_BCHW)
        return F.avg_pool2d((images_BCHW + 1) / 2 + 0.02, self.config.stride)

    def decode_codes(self, codes_BEgg):
        stride = self.config.stride
        return 2 * codes_BEgg.repeat_interleave(stride, 2).repeat_interleave(stride, 3) - 1


def pictures(arrays) -> Split:
    """uint8 images (N, S, S, 3) as a split."""
    return Split(
        names=tuple(str(place) for place in range(len(arrays))),
        labels=np.zeros(len(arrays), dtype=np.int64),
        read=lambda name, most: Image.fromarray(arrays[int(name)]),
        content=str,
    )


def random_pictures(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """Blocks of two pixels in random colours: neighbouring cells differ."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, size // 2, size // 2, 3), dtype=np.uint8)
    return blocks.repeat(2, 1).repeat(2, 2)
