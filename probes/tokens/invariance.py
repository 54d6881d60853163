"""What of an image's tokens survives a change of the image (the paper's property 3), with its controls.

Of every image and every view of it (``probes.tokens.augmentations``):

- ``equal``: share of cells whose index is the same at the same place; ``aligned``: the same after the
  view's cells were moved back, over the cells both show, where the view moves whole cells exactly
  (blank elsewhere). ``chance``: ``equal`` of the view and an unrelated image.
- ``code_distance``: mean 1 - cosine of the old and the new code over the cells whose index changed
  (after moving back where that is exact; blank if none changed). ``code_distance_chance``: of all pairs
  of a cell of the view and a cell of an unrelated image that hold different codes. Cosines are those of
  the L2 normalised codes, as the quantizer compares them.
- ``histogram``: total variation, half the sum of |p - q| over codes, between the counts of the two
  images' codes; ``histogram_chance``: of the view and an unrelated image.
- ``decoded_psnr`` (dB): of the two images that the decoder draws from the two sets of tokens, as 8-bit
  pixels, moved back and cut as above where that is exact, as they are elsewhere. ``input_psnr``: of the
  image and its view themselves, in the same way. ``psnr_gain`` is their difference: where it is 0 or
  more, the change of indices adds nothing to what the picture itself has changed; the names have
  changed, the drawing has not. ``reconstruction_psnr`` is that of the image and what its own tokens
  draw: the yardstick where the view shows exactly the same, moved. PSNR is cut at 60 dB, an error below
  the rounding to 8 bits; equal pictures count as 60.

The unrelated image of an image is the next one in the order given (of the last: the first), so images
are drawn in a random order. Intervals are 95 % (t), over images; where an unrelated image takes part,
every image stands in two pairs, which the interval counts. Images that were stored as JPEG of some
quality hardly change at that quality: a peak of the ``jpeg`` curve there is theirs.

Shapes: N images, B of them in a batch, g grid, T = g * g cells, V codebook size, E code dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.reading.codes import code_vectors
from probes.stats.intervals import mean_interval, neighbours_interval
from probes.tokens.augmentations import View
from probes.tokens.change import check_size
from star.base.errors import UserError
from star.base.randomness import generator
from star.images.open import Split
from star.images.views import center_crop
from star.tokenizer import quality
from star.tokenizer.model import VQModel, decode_tokens, encode_images

__all__ = ["MEASURES", "PSNR_CAP", "Invariance", "measure_invariance", "psnr"]

MOST_PIXELS = 2**20  # tokenised at a time, unless the caller says otherwise
PSNR_CAP = 60.0  # dB: a mean squared error of 0.065; that of rounding to 8 bits is 1/12, 58.9 dB
MEASURES = (
    "equal", "aligned", "chance", "code_distance", "code_distance_chance", "histogram",
    "histogram_chance", "decoded_psnr", "input_psnr", "psnr_gain", "reconstruction_psnr",
)  # fmt: skip
UNRELATED = ("chance", "code_distance_chance", "histogram_chance")


@dataclass(frozen=True, kw_only=True)
class Invariance:
    """Every number of every image: ``values[measure]`` is (views, N), NaN where there is none.

    ``maps[augmentation]`` (g, g) is the share of images and strengths (the identity left out) under
    which the index of a cell changed, at the cell's place in the image; NaN where no view shows the
    cell, and for every cell where the identity is all there is.
    """

    tokenizer: str
    stride: int
    images: int
    views: tuple[View, ...]
    values: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]

    def table(self) -> pd.DataFrame:
        """A row a view: each measure's mean over images, its bounds, and the images it was taken of."""
        rows = []
        for place, view in enumerate(self.views):
            row = {
                "tokenizer": self.tokenizer,
                "augmentation": view.augmentation.name,
                "strength": view.strength,
                "unit": view.augmentation.unit,
                "identity": view.is_identity,
                "images": self.images,
            }
            for measure in MEASURES:
                values_N = self.values[measure][place]
                if measure in UNRELATED:
                    interval = neighbours_interval(values_N)
                else:
                    interval = mean_interval(values_N[np.isfinite(values_N)])
                names = measure, f"{measure}_low", f"{measure}_high"
                row |= dict(zip(names, interval, strict=True))
            row["changed_images"] = int(np.isfinite(self.values["code_distance"][place]).sum())
            rows.append(row)
        return pd.DataFrame(rows)


def measure_invariance(
    tokenizer: VQModel,
    images: Split,
    views: Sequence[View],
    *,
    size: int,
    name: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Invariance:
    """Measure all ``views`` of ``images``, centre-cropped to ``size`` pixels.

    The noise of an image is a function of ``seed`` and the image's name. ``batch_size`` is 64 by
    default, less for large images; images are read twice, so that no more than a batch of pixels is
    held. ``on_progress(done, total)`` counts views of images. Raises ``UserError`` for a size that does
    not fit the tokenizer, before anything is read.
    """
    check_size(tokenizer, size)
    if batch_size is None:  # so that the activations of a VQ-16 stay below a few GB
        batch_size = max(1, min(64, MOST_PIXELS // size**2))
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected at least 1")
    report = on_progress or (lambda done, total: None)
    total, count = len(images) * (1 + len(views)), len(images)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    parts = []
    for batch in batches:
        parts.append(encode_images(tokenizer, _load(images, batch, size), batch_size).astype(np.int32))
        report(batch.stop, total)
    indices_Ngg = np.concatenate(parts)
    studied = _Study(tokenizer, views, count, indices_Ngg.shape[1])
    for batch in batches:
        pixels = _load(images, batch, size)
        randoms = [(seed, f"noise of {images.name(place)}") for place in batch]
        other = indices_Ngg[[(place + 1) % count for place in batch]] if count > 1 else None
        studied.start(batch, pixels, indices_Ngg[batch.start : batch.stop], other)
        for place, view in enumerate(views):
            pairs = zip(pixels, randoms, strict=True)
            changed = np.stack([view(image, generator(*key)) for image, key in pairs])
            studied.add(place, view, changed)
            report(count + batch.start * len(views) + (place + 1) * len(batch), total)
    return Invariance(
        tokenizer=name or tokenizer.name,
        stride=tokenizer.config.stride,
        images=count,
        views=tuple(views),
        values=studied.values,
        maps=studied.maps(),
    )


def psnr(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(B,) dB between 8-bit images (B, ..), at most ``PSNR_CAP``."""
    axes = tuple(range(1, one.ndim))
    error = np.square(one.astype(np.float32) - two).mean(axes, dtype=np.float64)
    return quality.psnr(error, peak=255, most=PSNR_CAP)


class _Study:
    """Adds one view of one batch after the other to the numbers of all."""

    def __init__(self, tokenizer: VQModel, views: Sequence[View], count: int, grid: int) -> None:
        self.tokenizer, self.grid = tokenizer, grid
        self.values = {measure: np.full((len(views), count), np.nan) for measure in MEASURES}
        self.codes_VE = code_vectors(tokenizer).cpu().numpy()
        names = dict.fromkeys(view.augmentation.name for view in views)
        self._changed = {name: np.zeros(grid**2) for name in names}
        self._seen = {name: np.zeros(grid**2) for name in names}

    def maps(self) -> dict[str, np.ndarray]:
        """Share of changes of each cell; see ``Invariance``."""
        found = {}
        for name, seen in self._seen.items():
            share = np.divide(
                self._changed[name], seen, out=np.full(seen.shape, np.nan), where=seen > 0
            )
            found[name] = share.reshape(self.grid, self.grid)
        return found

    def start(
        self, batch: range, pixels: np.ndarray, before: np.ndarray, other: np.ndarray | None
    ) -> None:
        """The images that ``add`` compares views with, and unrelated ones (None: there are none)."""
        self.rows = slice(batch.start, batch.stop)
        self.pixels, self.before, self.other = pixels, before, other
        self.drawn = self._draw(before)
        self.own_psnr = psnr(pixels, self.drawn)
        self.counts_BV = self._histogram(before)
        if other is not None:
            self.other_counts_BV = self._histogram(other)
            self.other_sum_BE = self.codes_VE[other.reshape(len(other), -1)].sum(1)

    def add(self, place: int, view: View, pixels: np.ndarray) -> None:
        """Compare the views (B, S, S, 3) with their images."""
        after = self.before if view.is_identity else encode_images(self.tokenizer, pixels, len(pixels))
        drawn = self.drawn if view.is_identity else self._draw(after)
        self._note(place, "equal", (self.before == after).mean((1, 2)))
        was, now = view.undo(self.before, after)
        changed = was != now
        if view.is_aligned:
            self._note(place, "aligned", 1 - changed.mean((1, 2)))
        if not view.is_identity:
            places = np.arange(self.grid**2).reshape(1, self.grid, self.grid)
            there = view.undo(places, places)[0].ravel()
            self._changed[view.augmentation.name][there] += changed.sum(0).ravel()
            self._seen[view.augmentation.name][there] += len(changed)
        distance = 1 - (self.codes_VE[was] * self.codes_VE[now]).sum(-1)
        number = changed.sum((1, 2))
        self._note(place, "code_distance", _ratio((distance * changed).sum((1, 2)), number))
        counts_BV = self._histogram(after)
        self._note(place, "histogram", self._variation(counts_BV, self.counts_BV))
        stride = view.stride
        decoded = psnr(*view.undo(self.drawn, drawn, stride))
        given = psnr(*view.undo(self.pixels, pixels, stride))
        self._note(place, "decoded_psnr", decoded)
        self._note(place, "input_psnr", given)
        self._note(place, "psnr_gain", decoded - given)
        self._note(place, "reconstruction_psnr", self.own_psnr)
        if self.other is not None:
            self._add_chance(place, after, counts_BV)

    def _add_chance(self, place: int, after: np.ndarray, counts_BV: np.ndarray) -> None:
        assert self.other is not None
        self._note(place, "chance", np.equal(self.other, after).mean((1, 2)))
        self._note(place, "histogram_chance", self._variation(counts_BV, self.other_counts_BV))
        # Over all T x T pairs the cosines sum to the product of sums; equal pairs are at distance 0.
        sum_BE = self.codes_VE[after.reshape(len(after), -1)].sum(1)
        cosines = (sum_BE * self.other_sum_BE).sum(1)
        equal = (counts_BV * self.other_counts_BV).sum(1)
        pairs = self.grid**4
        self._note(place, "code_distance_chance", _ratio(pairs - cosines, pairs - equal))

    def _note(self, place: int, measure: str, values_B: np.ndarray) -> None:
        self.values[measure][place, self.rows] = values_B

    def _draw(self, indices: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(indices.reshape(len(indices), -1).astype(np.int64))
        return decode_tokens(self.tokenizer, tokens, self.grid)

    def _histogram(self, indices: np.ndarray) -> np.ndarray:
        """(B, V) how often each code occurs."""
        size = len(self.codes_VE)
        flat = indices.reshape(len(indices), -1) + size * np.arange(len(indices))[:, None]
        return np.bincount(flat.ravel(), minlength=size * len(indices)).reshape(-1, size)

    def _variation(self, one_BV: np.ndarray, two_BV: np.ndarray) -> np.ndarray:
        return np.abs(one_BV - two_BV).sum(1) / (2 * self.grid**2)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotients, NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def _load(images: Split, batch: range, size: int) -> np.ndarray:
    return np.stack([np.asarray(center_crop(images.load(place), size)) for place in batch])
