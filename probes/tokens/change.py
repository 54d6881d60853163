"""Token indices of images, and of two slightly different views of one: the paper's Figure 1(c).

Shapes: N images, H W pixels, g grid.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from probes.results import Result, provenance
from probes.tokens.augmentations import nudge
from star.base.errors import UserError
from star.images.views import center_crop
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.model import VQModel, encode_images

__all__ = ["ViewChange", "change_result", "check_size", "default_size", "token_change"]

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


def check_size(tokenizer: VQModel, size: int) -> None:
    """Raise ``UserError`` unless images of ``size`` pixels a side can be tokenised."""
    stride = tokenizer.config.stride
    if not stride <= size <= MOST_PIXELS or size % stride:
        raise UserError(
            f"size is {size}; expected a multiple of the tokenizer's stride {stride}, at most "
            f"{MOST_PIXELS} pixels"
        )


def default_size(tokenizer: VQModel) -> int:
    """Side in pixels: 8 tokens for small tokenizers, 256 pixels for VQ-8 and VQ-16."""
    stride = tokenizer.config.stride
    return 8 * stride if stride < 8 else 256


def token_change(
    tokenizer: VQModel, image: Image.Image, *, size: int, shift: float, rotate: float, scale: float
) -> ViewChange:
    """Indices of ``image``, centre-cropped to ``size`` pixels, and of a nudged view of it."""
    check_size(tokenizer, size)
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
