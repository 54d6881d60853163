"""DINOv2's ViT-L/14 for FD-DINOv2 (Stein et al. 2023), built by timm, with weights from a local file.

The weights are the published ``dinov2_vitl14_pretrain.pth`` or timm's ``vit_large_patch14_dinov2``.
As published for FD-DINOv2: images are resized to 224 x 224 bicubically by Pillow, which rounds to
uint8, normalised by the ImageNet moments, and judged by the normalised class token (1024). The position
table of 37 x 37 is resized to 16 x 16 as DINOv2's code does it, with its offset of 0.1.

Shapes: N images of H x W pixels.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from probes.reading.foreign import IMAGENET_MEAN, IMAGENET_STD, import_timm, read_weights
from probes.samples.networks import Features, Network
from star.base.device import exact_float32
from star.base.files import sha256_file
from star.base.weights import check_weights

__all__ = ["load_dinov2", "resized_positions"]

MODEL, SIDE, PATCH = "vit_large_patch14_dinov2", 224, 14
OFFSET = 0.1  # against rounding down of the scale, in DINOv2's code
MOMENTS = (IMAGENET_MEAN, IMAGENET_STD)


def load_dinov2(path: Path | str, device: torch.device | str = "cpu") -> Network:
    """The network of FD-DINOv2; ``UserError`` without timm, and for files of anything else."""
    timm, path = import_timm("FD-DINOv2"), Path(path)
    weights = {key: value for key, value in read_weights(path).items() if key != "mask_token"}
    # Building a network draws its random weights from the global state: put that back.
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(MODEL, pretrained=False, num_classes=0, img_size=SIDE)
    positions = weights.get("pos_embed")
    if isinstance(positions, Tensor) and positions.ndim == 3:
        weights["pos_embed"] = resized_positions(positions, SIDE // PATCH)
    check_weights(network, weights, path)
    network.load_state_dict(weights, strict=True)
    network = network.eval().requires_grad_(False).to(device)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in MOMENTS)

    @torch.no_grad()
    @exact_float32()
    def extract(images_NCHW: Tensor) -> Features:
        resized = [_resized(image) for image in images_NCHW.permute(0, 2, 3, 1).cpu().numpy()]
        pixels = torch.from_numpy(np.stack(resized)).to(device).permute(0, 3, 1, 2).float() / 255
        return Features(network((pixels - mean) / std).float().cpu().numpy())

    resizing = "to 224 x 224, bicubic with antialiasing (Pillow), rounded to uint8"
    return Network("DINOv2", sha256_file(path), resizing, extract)


def _resized(image_HWC: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image_HWC).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def resized_positions(table_1PD: Tensor, side: int) -> Tensor:
    """A position table (1, 1 + n n, D), the class token's first, for ``side`` x ``side`` patches."""
    own, grid = table_1PD[:, :1].float(), table_1PD[:, 1:].float()
    old = round(grid.shape[1] ** 0.5)
    if old == side or old * old != grid.shape[1]:  # what does not fit is refused with all weights
        return table_1PD
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / old
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([own, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
