"""How much a tokenizer's indices change when the image hardly does (the paper's property 3).

Shapes: N images, H W pixels, g grid.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image

from probes.results import Result, provenance
from star.errors import UserError
from star.tokenizer import tokenizer_sha256
from star.views import center_crop, inverse_affine, to_model_range
from star.vq import VQModel

__all__ = ["ViewChange", "change_result", "encode_images", "nudge", "token_change", "unchanged_share"]

MOST_PIXELS = 4096  # of one side; a larger view would take the memory of a whole machine


@dataclass(frozen=True)
class ViewChange:
    """Two views (H, W, 3) uint8, their indices (g, g), and the share of equal indices."""

    image: np.ndarray
    view: np.ndarray
    indices: np.ndarray
    view_indices: np.ndarray
    share: float
    label: str


def nudge(
    image: Image.Image, *, shift: float = 1.0, rotate: float = 0.0, scale: float = 1.0
) -> Image.Image:
    """A slightly different view: shifted right by ``shift`` pixels, rotated (degrees), scaled.

    Bicubic; what comes in from outside repeats the border, so that no edge appears.
    """
    size = image.width
    if not abs(shift) < size:
        raise UserError(f"shift is {shift:g} pixels; expected less than the image's {size}")
    if not abs(rotate) <= 360:
        raise UserError(f"rotate is {rotate:g} degrees; expected -360 to 360")
    if not 0.1 <= scale <= 10:
        raise UserError(f"scale is {scale:g}; expected 0.1 to 10")
    margin = 4 + int(abs(shift)) + size // 4
    padded = Image.fromarray(np.pad(np.asarray(image), ((margin,) * 2, (margin,) * 2, (0, 0)), "edge"))
    coefficients = inverse_affine(padded.width, rotate, scale, shift, 0.0)
    moved = padded.transform(
        padded.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC
    )
    return moved.crop((margin, margin, margin + size, margin + size))


@torch.no_grad()
def encode_images(tokenizer: VQModel, images_NHWC: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """(N, g, g) indices of uint8 images."""
    device = tokenizer.quant_conv.weight.device
    parts = [
        tokenizer.encode(to_model_range(images_NHWC[start : start + batch_size], device)).cpu().numpy()
        for start in range(0, len(images_NHWC), batch_size)
    ]
    return np.concatenate(parts)


def token_change(
    tokenizer: VQModel, image: Image.Image, *, size: int, shift: float, rotate: float, scale: float
) -> ViewChange:
    """Indices of ``image``, centre-cropped to ``size`` pixels, and of a nudged view of it."""
    stride = tokenizer.config.stride
    if not stride <= size <= MOST_PIXELS or size % stride:
        raise UserError(
            f"size is {size}; expected a multiple of the tokenizer's stride {stride}, at most "
            f"{MOST_PIXELS} pixels"
        )
    cropped = center_crop(image, size)
    views = np.stack(
        [np.asarray(cropped), np.asarray(nudge(cropped, shift=shift, rotate=rotate, scale=scale))]
    )
    before, after = encode_images(tokenizer, views)
    parts = [f"shifted by {shift:g} px"] if shift else []
    parts += [f"rotated by {rotate:g} degrees"] if rotate else []
    parts += [f"scaled by {scale:g}"] if scale != 1 else []
    label = ", ".join(parts) or "same image"
    return ViewChange(views[0], views[1], before, after, float((before == after).mean()), label)


def unchanged_share(
    tokenizer: VQModel, images: list[Image.Image], *, shift: float, rotate: float, scale: float
) -> tuple[np.ndarray, float]:
    """((N,) share of unchanged indices of each image, chance: the share between unrelated images)."""
    views = [nudge(image, shift=shift, rotate=rotate, scale=scale) for image in images]
    before = encode_images(tokenizer, np.stack([np.asarray(image) for image in images]))
    after = encode_images(tokenizer, np.stack([np.asarray(view) for view in views]))
    chance = float((before == np.roll(after, 1, axis=0)).mean()) if len(images) > 1 else float("nan")
    return (before == after).mean((1, 2)), chance


def change_result(change: ViewChange, tokenizer: VQModel, image: str, size: int) -> Result:
    """One row a cell: row, column, index, index in the view, whether it changed."""
    grid = change.indices.shape[0]
    rows, columns = np.divmod(np.arange(change.indices.size), grid)
    before, after = change.indices.reshape(-1), change.view_indices.reshape(-1)
    table = pd.DataFrame(
        {
            "row": rows,
            "column": columns,
            "index": before,
            "view_index": after,
            "changed": before != after,
        }
    )
    info = provenance(
        measurement="token invariance",
        image=image,
        size=size,
        view=change.label,
        unchanged_share=change.share,
        tokenizer=tokenizer.name,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
    )
    return Result(table, info)
