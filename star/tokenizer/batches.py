"""Training batches of a tokenizer as a function of (seed, step): which images, sizes and views.

A step draws one side length of ``config.sizes`` and as many images as fill the pixels of ``batch_size``
views of the first. Views larger than the images are enlarged, or (``mosaic``) tiled of several images:
a tokenizer that only ever saw 32 pixels draws larger images badly, since its attention and its group
norms have never seen more cells.

Shapes: batches are uint8 (B, 3, size, size).
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from star.base.errors import UserError
from star.base.randomness import generator
from star.base.threads import usable_cores
from star.images.open import BadImageError, ImageSource, Split
from star.images.views import center_crop, random_crop, view_set
from star.tokenizer.config import TokenizerConfig

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["TokenizerBatches", "held_out_images"]

AHEAD = 2  # steps whose images are being read while one is learnt from
MOST_BAD = 100  # images in a row that cannot be read before --skip-bad gives up


@dataclass(frozen=True, kw_only=True)
class TokenizerBatches:
    """Serves step n's images (steps from 0); a batch can be had in any order and again."""

    source: ImageSource
    config: TokenizerConfig
    skip_bad: bool = False
    skipped: set[str] = field(default_factory=set)  # names passed over so far

    def __post_init__(self) -> None:
        if not len(self.split):
            raise UserError(f"{self.source.name} has no training images")

    @property
    def split(self) -> Split:
        return self.source.split("train")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the views in pixels; without a setting, the images' own, rounded to the stride."""
        return self.config.sizes or (native_size(self.source, self.config.shape.stride),)

    def stream(self, start: int, end: int) -> Iterator[torch.Tensor]:
        """Batches of the steps ``start`` to ``end`` - 1; threads read two steps ahead."""
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:
            ahead: deque[list[Future[np.ndarray]]] = deque()
            for step in range(start, end + AHEAD):
                if step < end:
                    ahead.append(self._submit(pool, step))
                if step < start + AHEAD:
                    continue
                try:
                    views = [future.result() for future in ahead.popleft()]
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                yield torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()

    def _submit(self, pool: ThreadPoolExecutor, step: int) -> list[Future[np.ndarray]]:
        size, picks = self._draw(step)
        return [pool.submit(self._view, step, i, int(pick), size) for i, pick in enumerate(picks)]

    def _draw(self, step: int) -> tuple[int, np.ndarray]:
        """The side of a step's views and its images."""
        rng = generator(self.config.seed, "tokenizer-batch", step)
        sizes = self.sizes
        size = int(sizes[rng.integers(len(sizes))])
        count = max(1, round(self.config.batch_size * (sizes[0] / size) ** 2))
        count = min(count, len(self.split))
        return size, rng.choice(len(self.split), size=count, replace=False)

    def _view(self, step: int, place: int, pick: int, size: int) -> np.ndarray:
        """One view (size, size, 3): of image ``pick``, or a mosaic that begins with it."""
        rng = generator(self.config.seed, "tokenizer-view", step, place)
        native = self.source.native_size
        if size < 2 * native or rng.random() >= self.config.mosaic:
            return self._cut(pick, size, rng)
        # One tile more than fits across, cut anywhere: seams lie anywhere on the grid of tokens.
        across = size // native + 1
        others = rng.integers(len(self.split), size=across**2 - 1)
        tiles = [self._cut(int(image), native, rng) for image in (pick, *others)]
        rows = [np.concatenate(tiles[i : i + across], 1) for i in range(0, across**2, across)]
        whole = np.concatenate(rows)
        top, left = rng.integers(len(whole) - size, size=2, endpoint=True)
        return whole[top : top + size, left : left + size]

    def _cut(self, pick: int, size: int, rng: np.random.Generator) -> np.ndarray:
        image, pick = self._load(pick)
        kind = self.config.views
        if kind == "auto":
            kind = "affine" if self.source.default_views == "affine" else "crop-flip"
        if kind == "plain":
            return np.asarray(center_crop(image, size))
        if kind == "affine":
            seed = int(rng.integers(2**31))
            view: np.ndarray = view_set("affine-2", size, seed=seed)(image, pick)[1]
            return view
        pixels = np.asarray(random_crop(image, size, rng))
        return pixels[:, ::-1] if kind == "crop-flip" and rng.random() < 0.5 else pixels

    def _load(self, pick: int) -> tuple["Image.Image", int]:
        """(image, its place); with ``skip_bad`` the next that can be read."""
        for step in range(MOST_BAD if self.skip_bad else 1):
            place = (pick + step) % len(self.split)
            try:
                return self.split.load(place), place
            except BadImageError:
                if not self.skip_bad:
                    raise
                self.skipped.add(self.split.name(place))
        raise UserError(f"{MOST_BAD} images in a row of {self.source.name} cannot be read")


def native_size(source: ImageSource, stride: int) -> int:
    """The side of the source's images rounded down to a multiple of ``stride``."""
    size = source.native_size // stride * stride
    if not size:
        raise UserError(
            f"{source.name} has images of {source.native_size} pixels, smaller than one token of "
            f"{stride} pixels; give --sizes with multiples of {stride}"
        )
    return size


def held_out_images(
    split: Split, size: int, count: int | None, seed: int, skip_bad: bool = False
) -> torch.Tensor:
    """Centre crops (N, 3, size, size) uint8 of ``count`` images drawn by the seed; None: of all."""
    order = generator(seed, "tokenizer-held-out").permutation(len(split))[:count]
    crops = []
    for index in np.sort(order):
        try:
            crops.append(np.asarray(center_crop(split.load(int(index)), size)))
        except BadImageError:
            if not skip_bad:
                raise
    if not crops:
        raise UserError("no held-out image can be read")
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
