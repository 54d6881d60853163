"""How well a tokenizer redraws held-out images: PSNR, SSIM, code usage and Fréchet distances.

rFID is the Fréchet distance between the Inception features of images and of their reconstructions, and
needs Inception's weights as a local file. ``patch_fd`` is the same distance between all patches of
8 x 8 pixels (192 numbers in [-1, 1], patches side by side): it needs no weights, sees blur and colour
shifts as differences of covariance and mean, and must not be compared with any FID.

Shape suffixes: N images, B of a batch, C channels, H W pixels, V codebook size, P patches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.stats.frechet import Moments, frechet_distance
from probes.stats.intervals import mean_interval
from star.images.views import scaled
from star.tokenizer.model import VQModel, to_uint8
from star.tokenizer.quality import Quality, joined, redraw

__all__ = ["PATCH", "Reconstruction", "patches", "reconstruction_report"]

PATCH = 8  # pixels


@dataclass(frozen=True)
class Reconstruction:
    """``quality`` image by image, ``patch_fd``, and ``rfid`` (None without Inception's weights)."""

    quality: Quality
    patch_fd: float
    rfid: float | None

    def numbers(self) -> dict:
        """Plain numbers: means, code usage, distances."""
        found = {**self.quality.numbers(), "patch_fd": self.patch_fd}
        return found if self.rfid is None else {**found, "rfid": self.rfid}

    def table(self) -> pd.DataFrame:
        """A row a measure: measure, value, low, high (95 % over images; empty where there is none)."""
        rows = []
        for name, value in self.numbers().items():
            low = high = float("nan")
            if name in ("psnr", "ssim"):
                _, low, high = mean_interval(getattr(self.quality, f"{name}_N").numpy())
            rows.append({"measure": name, "value": value, "low": low, "high": high})
        return pd.DataFrame(rows)


def reconstruction_report(
    model: VQModel,
    images_NCHW: torch.Tensor,
    *,
    inception: Callable[[torch.Tensor], np.ndarray] | None = None,
    batch_size: int = 64,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reconstruction:
    """Measure ``model`` on uint8 images (N, 3, H, W); ``inception``: its pooled features.

    Reconstructions are compared as the uint8 images that a user would save, except for PSNR and SSIM,
    which take them before rounding.
    """
    parts = []
    clouds = {name: (Moments(), Moments()) for name in ("patches", "inception")}
    for start in range(0, len(images_NCHW), batch_size):
        images_BCHW = images_NCHW[start : start + batch_size]
        redrawn_BCHW, quality = redraw(model, images_BCHW)
        parts.append(quality)
        drawn_BCHW = to_uint8(redrawn_BCHW).permute(0, 3, 1, 2).cpu()
        for place, batch in enumerate((images_BCHW, drawn_BCHW)):
            clouds["patches"][place].add(patches(batch))
            if inception is not None:
                clouds["inception"][place].add(inception(batch))
        on_progress(min(start + batch_size, len(images_NCHW)), len(images_NCHW))
    rfid = None if inception is None else frechet_distance(*clouds["inception"])
    return Reconstruction(joined(parts), frechet_distance(*clouds["patches"]), rfid)


def patches(images_NCHW: torch.Tensor) -> np.ndarray:
    """(P, 192) float64 in [-1, 1]: the patches of uint8 images side by side; a rest is left out."""
    values = scaled(images_NCHW).double()
    tiles = values.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (N, 3, rows, columns, 8, 8)
    return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH**2).numpy()
