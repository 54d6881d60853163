"""Is a model as often right as it is sure? Calibration of the prediction of the next token.

The confidence of a prediction is the probability of its most likely token (given the image's class); it
is right where that is the image's token. Predictions of all images and steps are put into ``BINS`` bins
of equal count by their confidence: a codebook of thousands leaves all but the lowest of bins of equal
width empty. The **expected calibration error** is the mean over predictions of their bin's
``|share right - mean confidence|`` (Guo et al. 2017, "On Calibration of Modern Neural Networks"; bins
of equal count: Nguyen and O'Connor 2015). It cannot be negative, and is above 0 for a perfect model
too, whose hits are a draw: ``floor`` is what it then is, hits drawn by the confidences.

Shapes: N images, T tokens, B bins.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.reading.features import check_store
from probes.stats.intervals import jackknife_interval, student_quantile
from star.base.device import autocast
from star.base.progress import Progress, nothing
from star.base.randomness import generator
from star.codes.store import Codes
from star.model.transformer import Transformer
from star.training.batches import plain_batches
from star.training.estimate import images_at_once

__all__ = ["BINS", "Calibration", "calibration", "next_token_confidence"]

BINS = 15
DRAWS = 20  # of hits, for the floor
COLUMNS = ("bin", "least", "most", "confidence", "right", "low", "high", "predictions", "n")


@dataclass(frozen=True)
class Calibration:
    """``confidence_NT`` of every prediction, ``right_NT`` its being right; ``seed`` of the floor."""

    confidence_NT: np.ndarray
    right_NT: np.ndarray
    seed: int = 0

    @property
    def bins_NT(self) -> np.ndarray:
        """Bin (from 0) of every prediction: by rank, ties in the order of images and steps."""
        flat = self.confidence_NT.ravel()
        rank = np.empty(flat.size, dtype=np.int64)
        rank[flat.argsort(kind="stable")] = np.arange(flat.size)
        return (rank * min(BINS, flat.size) // flat.size).reshape(self.confidence_NT.shape)

    def _sums(self, right_NT: np.ndarray) -> np.ndarray:
        """(N, B) of each image and bin: hits minus the sum of confidences."""
        count = len(self.right_NT)
        place = (self.bins_NT + BINS * np.arange(count)[:, None]).ravel()
        surplus = (right_NT - self.confidence_NT.astype(np.float64)).ravel()
        return np.bincount(place, surplus, minlength=count * BINS).reshape(count, BINS)

    def error(self) -> tuple[float, float, float]:
        """(expected calibration error, low, high): 95 % by the jackknife over images."""
        surplus_NB, predictions = self._sums(self.right_NT), self.right_NT.size
        value = float(np.abs(surplus_NB.sum(0)).sum() / predictions)
        images = len(surplus_NB)
        if images < 2:
            return value, math.nan, math.nan
        left_NB = surplus_NB.sum(0) - surplus_NB
        left_N = np.abs(left_NB).sum(1) / (predictions - predictions / images)
        return jackknife_interval(value, left_N)

    def floor(self) -> float:
        """The error of a model that is right as often as it is sure: the mean over draws."""
        rng, found = generator(self.seed, "calibration floor"), []
        for _ in range(DRAWS):
            drawn_NT = rng.random(self.confidence_NT.shape) < self.confidence_NT
            found.append(float(np.abs(self._sums(drawn_NT).sum(0)).sum() / drawn_NT.size))
        return float(np.mean(found))

    def table(self) -> pd.DataFrame:
        """The reliability table, columns ``COLUMNS``: a row a bin, least sure first.

        ``low`` to ``high``: 95 % interval of the share right; an image's predictions go together.
        """
        bins_NT, rows = self.bins_NT, []
        for place in range(int(bins_NT.max()) + 1):
            inside = bins_NT == place
            confidence, count = self.confidence_NT[inside], int(inside.sum())
            share = float(self.right_NT[inside].mean())
            low, high = _ratio_interval((self.right_NT & inside).sum(1), inside.sum(1))
            edges = (float(confidence.min()), float(confidence.max()))
            mean = float(confidence.mean(dtype=np.float64))
            rows.append((place + 1, *edges, mean, share, low, high, count, len(bins_NT)))
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _ratio_interval(hits_N: np.ndarray, counts_N: np.ndarray) -> tuple[float, float]:
    """95 % interval of sum hits / sum counts over images (the ratio estimator's, Cochran 1977)."""
    images = len(hits_N)
    if images < 2:
        return math.nan, math.nan
    share = hits_N.sum() / counts_N.sum()
    spread = np.square(hits_N - share * counts_N).sum() * images / (images - 1)
    half = student_quantile(images - 1) * math.sqrt(float(spread)) / counts_N.sum()
    return float(max(0.0, share - half)), float(min(1.0, share + half))


@torch.no_grad()
def next_token_confidence(
    model: Transformer,
    images: Codes,
    *,
    batch_size: int = 128,
    precision: torch.dtype = torch.float32,
    on_progress: Progress = nothing,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, T) float32 probability of the most likely token, and (N, T) bool whether it is the image's.

    Given each image's class, on its test view; ``UserError`` for codes that do not fit.
    """
    check_store(model, images)
    device = model.output.weight.device
    batch_size = images_at_once(model.config, batch_size, with_logits=True)
    confidence, right = [], []
    for tokens_BT, labels_B in plain_batches(images, batch_size, device):
        with autocast(device, precision):
            logits_BTV = model(tokens_BT[:, :-1], labels_B).logits
        logits_BTV = logits_BTV.float()
        most_BT, token_BT = logits_BTV.max(-1)
        confidence.append((most_BT - logits_BTV.logsumexp(-1)).exp().cpu().numpy())
        right.append((token_BT == tokens_BT).cpu().numpy())
        on_progress(sum(map(len, right)), len(images))
    return np.concatenate(confidence), np.concatenate(right)


def calibration(
    model: Transformer,
    images: Codes,
    *,
    seed: int = 0,
    batch_size: int = 128,
    precision: torch.dtype = torch.float32,
    on_progress: Progress = nothing,
) -> Calibration:
    """The calibration of a model on images; ``seed`` draws the floor."""
    found = next_token_confidence(
        model, images, batch_size=batch_size, precision=precision, on_progress=on_progress
    )
    return Calibration(*found, seed)
