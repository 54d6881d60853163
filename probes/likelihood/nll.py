"""How probable a model finds held-out images: nats a token, bits a pixel, step by step.

The NLL of an image is that of its tokens, ``-log p(x | c) = -sum_t log p(x_t | x_<t, c)``, on its test
view; a token's is in nats. Bits a pixel are those of the tokenizer's image, ``NLL T / (ln 2 H W)``:
what the tokens cost, not the pixels that the tokenizer does not keep. Without the class, the model is
given the null class. Numbers under different tokenizers cannot be compared: another codebook is another
question.

**Class-conditional classification** gives an image the class under which it is most probable,
``argmax_c p(x | c)``: Bayes' rule with equal priors. One pass over the images a class.

Shapes: N images, T tokens, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from probes.reading.features import check_store
from probes.reading.images import ImageSample, draw_rows
from probes.stats.intervals import mean_interval, share_interval, student_quantile, welch_freedom
from probes.stats.paired import paired_row, paired_table
from star.base.errors import UserError
from star.base.progress import Progress, nothing
from star.codes.store import Codes
from star.model.transformer import Transformer
from star.training.likelihood import token_nll

__all__ = ["Likelihood", "class_nll", "compare_likelihoods", "likelihood", "train_gap"]

COLUMNS = ("measure", "split", "class", "step", "value", "low", "high", "control", "n")
COMPARED_COLUMNS = (
    "measure", "class", "step", "first", "second", "difference", "low", "high", "p", "n", "p_holm",
    "higher",
)  # fmt: skip
OWN, NONE = "own", "none"  # the class that the model is given


@dataclass(frozen=True)
class Likelihood:
    """The NLL of every token of N held-out images, and what else was measured beside it.

    ``own_NT`` given each image's class, ``none_NT`` given none (None: the model has no null class);
    ``train_NT`` of training images, given their classes (None: there are none). ``labels`` (N,), and
    ``classes_nll`` (M, C) the mean NLL under each class of the images in rows ``classified`` (M,).
    ``pixels``: H * W of the tokenizer's image (None: not known).
    """

    own_NT: np.ndarray
    none_NT: np.ndarray | None
    train_NT: np.ndarray | None
    labels: np.ndarray
    classified: np.ndarray
    classes_nll: np.ndarray
    pixels: int | None

    @property
    def hits(self) -> np.ndarray:
        """(M,) whether an image's own class is the one under which it is most probable."""
        return np.asarray(self.classes_nll.argmin(1) == self.labels[self.classified])

    @property
    def by_class(self) -> dict[str, np.ndarray]:
        """(N, T) by the class that the model is given."""
        return {OWN: self.own_NT} | ({} if self.none_NT is None else {NONE: self.none_NT})

    @property
    def bits(self) -> float | None:
        """Bits a pixel for one nat a token."""
        return None if self.pixels is None else self.own_NT.shape[1] / (math.log(2) * self.pixels)

    def table(self) -> pd.DataFrame:
        """Columns ``COLUMNS``; step 0 is the mean over steps. Intervals are 95 %, over images.

        ``nll`` and ``bits_a_pixel``; ``class_gain``: NLL without the class minus with it, by image;
        ``class_accuracy``, whose control is always naming the most frequent class; ``train_gap``: NLL
        of held-out images minus that of training images.
        """
        rows: list[tuple] = []
        for name, nll_NT in self.by_class.items():
            rows += [("nll", "held out", name, *cells) for cells in _steps(nll_NT)]
            if self.bits is not None:
                bits = mean_interval(self.bits * nll_NT.mean(1))
                rows.append(("bits_a_pixel", "held out", name, 0, *bits, math.nan, len(nll_NT)))
        if self.none_NT is not None:
            gain_NT = self.none_NT - self.own_NT
            rows += [("class_gain", "held out", OWN, *cells) for cells in _steps(gain_NT)]
        if len(self.classified):
            shown = self.labels[self.classified]
            control = np.bincount(shown).max() / len(shown)
            accuracy = share_interval(self.hits)
            rows.append(("class_accuracy", "held out", "each", 0, *accuracy, control, len(shown)))
        if self.train_NT is not None:
            rows += [("nll", "train", OWN, *cells) for cells in _steps(self.train_NT)]
            gap = train_gap(self.own_NT.mean(1), self.train_NT.mean(1))
            rows.append(("train_gap", "held out", OWN, 0, *gap, math.nan, len(self.own_NT)))
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _steps(values_NT: np.ndarray) -> list[tuple]:
    """(step, mean, low, high, control, n): the mean over steps first, as step 0."""
    values_NT = values_NT.astype(np.float64)
    of_steps = [values_NT.mean(1), *values_NT.T]
    return [(k, *mean_interval(each), math.nan, len(each)) for k, each in enumerate(of_steps)]


def train_gap(held_out_N: np.ndarray, train_M: np.ndarray) -> tuple[float, float, float]:
    """(difference of means, low, high) of two separate samples of images, variances apart (Welch)."""
    difference = float(held_out_N.mean() - train_M.mean())
    if min(len(held_out_N), len(train_M)) < 2:
        return difference, math.nan, math.nan
    squares = [float(each.var(ddof=1)) / len(each) for each in (held_out_N, train_M)]
    freedom = welch_freedom(squares, [len(held_out_N) - 1, len(train_M) - 1])
    half = student_quantile(freedom) * math.sqrt(sum(squares))
    return difference, difference - half, difference + half


def likelihood(
    model: Transformer,
    images: ImageSample,
    *,
    train: Codes | None = None,
    class_images: int = 0,
    seed: int = 0,
    pixels: int | None = None,
    batch_size: int = 128,
    precision: torch.dtype = torch.float32,
    on_progress: Progress = nothing,
) -> Likelihood:
    """Measure a model on ``images``, and on ``train`` for the gap.

    class_images: as many of the images, drawn by ``seed``, are classified (0: none).
    on_progress(done, total) counts passes over images. Raises ``UserError`` for codes that do not fit
    and for predictions that are not finite.
    """
    check_store(model, images)
    config = model.config
    rows = draw_rows(np.arange(len(images)), class_images, seed, "classified images")
    total = 1 + config.null_class + (train is not None) + config.num_classes * bool(len(rows))

    def measured(store: Codes, done: int, label: int | None = None) -> np.ndarray:
        nll_NT: np.ndarray = token_nll(
            model, store, label=label, batch_size=batch_size, precision=precision
        )
        if not np.isfinite(nll_NT).all():
            raise UserError("the model's predictions are not finite; the checkpoint is broken")
        on_progress(done, total)
        return nll_NT

    own_NT = measured(images, 1)
    none_NT = measured(images, 2, config.num_classes) if config.null_class else None
    done = 1 + config.null_class
    train_NT = None
    if train is not None:
        check_store(model, train)
        done += 1
        train_NT = measured(train, done)
    some = replace(images, codes=images.codes[rows], labels=images.labels[rows])
    classes_nll = class_nll(
        model, some, batch_size=batch_size, precision=precision,
        on_class=lambda label: on_progress(done + label + 1, total),
    )  # fmt: skip
    return Likelihood(own_NT, none_NT, train_NT, images.labels, rows, classes_nll, pixels)


def class_nll(
    model: Transformer,
    images: Codes,
    *,
    batch_size: int = 128,
    precision: torch.dtype = torch.float32,
    on_class: Callable[[int], None] = lambda label: None,
) -> np.ndarray:
    """(N, C) mean NLL a token of the images under every class of the model."""
    found = []
    for label in range(model.config.num_classes if len(images) else 0):
        nll_NT = token_nll(model, images, label=label, batch_size=batch_size, precision=precision)
        found.append(nll_NT.mean(1, dtype=np.float64))
        on_class(label)
    if not found:
        return np.empty((0, model.config.num_classes))
    return np.stack(found, axis=1)


def compare_likelihoods(first: Likelihood, second: Likelihood, names: tuple[str, str]) -> pd.DataFrame:
    """The second minus the first on the same images, paired; columns ``COMPARED_COLUMNS``.

    Tested and corrected together: the means over steps (paired t) and the accuracy (McNemar). Steps
    have intervals alone: 64 tests of one question would hide its answer. ``UserError`` if the models
    were not shown the same images.
    """
    if not np.array_equal(first.labels, second.labels):
        raise UserError("the checkpoints were measured on different images; they cannot be compared")
    rows: list[dict] = []
    for name in (name for name in first.by_class if name in second.by_class):
        pair = [each.by_class[name].astype(np.float64) for each in (first, second)]
        rows.append(_row("nll", name, 0, pair[0].mean(1), pair[1].mean(1)))
        for step, (a, b) in enumerate(zip(pair[0].T, pair[1].T, strict=True), start=1):
            rows.append(_row("nll", name, step, a, b) | {"p": math.nan})
    if first.none_NT is not None and second.none_NT is not None:
        gains = first.none_NT - first.own_NT, second.none_NT - second.own_NT
        rows.append(_row("class_gain", OWN, 0, gains[0].mean(1), gains[1].mean(1)))
    if len(first.classified) and np.array_equal(first.classified, second.classified):
        rows.append(_row("class_accuracy", "each", 0, first.hits, second.hits))
    return paired_table(rows, COMPARED_COLUMNS, names)


def _row(measure: str, given: str, step: int, first_N: np.ndarray, second_N: np.ndarray) -> dict:
    return {"measure": measure, "class": given, "step": step} | paired_row(first_N, second_N)
