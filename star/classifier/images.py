"""Images in memory, and training batches of a classifier as a function of (seed, step).

Every image is read once, as a centre crop of the classifier's size. A pass goes through all of them in
an order of its own; views are cut from whole batches: shifts by up to an eighth of the side, reflected
at the border, with or without mirror images, or the random rotations, scales and shifts of
``star.images.views``. With a tokenizer half of the views, drawn anew at each step, are of images as it
redraws them.

Shapes: N images, B of a batch, S the side; pixels are uint8 (N, 3, S, S).
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from star.base.device import require_memory
from star.base.errors import UserError
from star.base.progress import Progress, nothing
from star.base.randomness import generator
from star.base.threads import usable_cores
from star.classifier.config import ClassifierConfig
from star.images.source import Split
from star.images.views import MAX_ROTATION, MAX_SHIFT, SCALES, center_crop, scaled
from star.tokenizer.model import VQModel, to_uint8

__all__ = ["ClassifierBatches", "read_images", "redrawn", "require_multiple"]

READ_AT_A_TIME, REDRAWN_AT_A_TIME = 512, 64


def read_images(split: Split, size: int, on_progress: Progress = nothing) -> torch.Tensor:
    """Centre crops (N, 3, S, S) uint8 of all images of a split, read by threads.

    Raises ``BadImageError`` naming the first that cannot be read, ``UserError`` if they would not fit
    into memory.
    """
    count = len(split)
    require_memory(f"{count:,} images of {size} pixels", 3.0 * count * size**2, "cpu")
    pixels_NHWC = np.empty((count, size, size, 3), dtype=np.uint8)

    def read(place: int) -> None:
        pixels_NHWC[place] = np.asarray(center_crop(split.load(place), size))

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        for start in range(0, count, READ_AT_A_TIME):
            stop = min(start + READ_AT_A_TIME, count)
            list(pool.map(read, range(start, stop)))  # raises what a thread raised
            on_progress(stop, count)
    return torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)


def require_multiple(tokenizer: VQModel, size: int) -> None:
    """Raise ``UserError`` unless images of ``size`` pixels are whole tokens."""
    stride = tokenizer.config.stride
    if size % stride:
        raise UserError(
            f"the tokenizer {tokenizer.name} makes a token of {stride} pixels a side, which does not "
            f"divide the classifier's {size}; give --size with a multiple"
        )


@torch.no_grad()
def redrawn(
    tokenizer: VQModel, images_NCHW: torch.Tensor, on_progress: Progress = nothing
) -> torch.Tensor:
    """The images as the tokenizer decodes their own tokens, uint8 (N, 3, S, S): as samples are at best.

    Raises ``UserError`` if its stride does not divide their side.
    """
    require_multiple(tokenizer, images_NCHW.shape[-1])
    device = tokenizer.quant_conv.weight.device
    parts = []
    for start in range(0, len(images_NCHW), REDRAWN_AT_A_TIME):
        images_BCHW = scaled(images_NCHW[start : start + REDRAWN_AT_A_TIME]).to(device)
        drawn_BCHW = tokenizer.decode(tokenizer.encode(images_BCHW))
        parts.append(to_uint8(drawn_BCHW).permute(0, 3, 1, 2).cpu())
        on_progress(min(start + REDRAWN_AT_A_TIME, len(images_NCHW)), len(images_NCHW))
    return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class ClassifierBatches:
    """Serves step n's views and labels (steps from 0); a batch can be had in any order and again.

    ``drawn_NCHW``: the same images as a tokenizer redraws them, or None.
    """

    images_NCHW: torch.Tensor
    labels_N: torch.Tensor
    config: ClassifierConfig
    drawn_NCHW: torch.Tensor | None = None

    @property
    def steps_a_pass(self) -> int:
        """Steps that see every image once, or all but less than a batch."""
        return max(1, len(self.images_NCHW) // self.config.batch_size)

    def stream(self, start: int, end: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Views (B, 3, S, S), numbers in [-1, 1], and labels of the steps ``start`` to ``end`` - 1."""
        known, order_N = -1, np.empty(0, dtype=np.int64)
        for step in range(start, end):
            done, place = divmod(step, self.steps_a_pass)
            if done != known:
                rng = generator(self.config.seed, "classifier-order", done)
                known, order_N = done, rng.permutation(len(self.images_NCHW))
            size = self.config.batch_size
            picks_B = torch.from_numpy(order_N[place * size : (place + 1) * size])
            yield self._views(picks_B, step), self.labels_N[picks_B]

    def _views(self, picks_B: torch.Tensor, step: int) -> torch.Tensor:
        rng = generator(self.config.seed, "classifier-views", step)
        images_BCHW = self.images_NCHW[picks_B]
        through_B = torch.from_numpy(rng.random(len(picks_B)) < 0.5)
        if self.drawn_NCHW is not None:
            images_BCHW[through_B] = self.drawn_NCHW[picks_B[through_B]]
        kind = self.config.views
        if kind == "affine":
            return warped(scaled(images_BCHW), rng.uniform(-1, 1, size=(len(picks_B), 4)))
        if kind != "plain":
            most = self.config.size // 8
            shifts_B2 = rng.integers(-most, most, size=(len(picks_B), 2), endpoint=True)
            mirrored_B = (rng.random(len(picks_B)) < 0.5) & (kind == "crop-flip")
            images_BCHW = shifted(images_BCHW, shifts_B2, mirrored_B)
        return scaled(images_BCHW)


def shifted(images_BCHW: torch.Tensor, shifts_B2: np.ndarray, mirrored_B: np.ndarray) -> torch.Tensor:
    """Images moved by (down, right) pixels, reflected at the border, then mirrored where it says so."""
    size = images_BCHW.shape[-1]
    places_BS = np.arange(size) - shifts_B2[:, :, None]  # (B, 2, S): where each row and column is from
    places_BS = np.abs(places_BS)
    places_BS = size - 1 - np.abs(size - 1 - places_BS)
    rows_BS, columns_BS = places_BS[:, 0], places_BS[:, 1]
    columns_BS = np.where(mirrored_B[:, None], columns_BS[:, ::-1], columns_BS)
    rows, columns = torch.from_numpy(rows_BS), torch.from_numpy(columns_BS.copy())
    batch = torch.arange(len(images_BCHW))
    pixels_BHWC = images_BCHW.permute(0, 2, 3, 1)
    moved_BHWC = pixels_BHWC[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)


def warped(images_BCHW: torch.Tensor, draws_B4: np.ndarray) -> torch.Tensor:
    """Images rotated, scaled and shifted about their centre, by four numbers in [-1, 1] each.

    The ranges are those of the affine views of code stores; bilinear, the border goes on outside.
    """
    rotation, scale, right, down = (torch.from_numpy(draws_B4[:, i]).float() for i in range(4))
    angle = math.radians(MAX_ROTATION) * rotation
    factor = (SCALES[0] + SCALES[1]) / 2 + (SCALES[1] - SCALES[0]) / 2 * scale
    cos, sin = angle.cos() / factor, angle.sin() / factor
    # torch wants where each output pixel is from, in units of half the side.
    x, y = 2 * MAX_SHIFT * right, 2 * MAX_SHIFT * down
    theta_B23 = torch.stack(
        [
            torch.stack([cos, sin, -(cos * x + sin * y)], dim=1),
            torch.stack([-sin, cos, -(cos * y - sin * x)], dim=1),
        ],
        dim=1,
    )
    grid_BHW2 = F.affine_grid(theta_B23, list(images_BCHW.shape), align_corners=False)
    return F.grid_sample(images_BCHW, grid_BHW2, padding_mode="border", align_corners=False)
