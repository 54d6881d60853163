"""The protocols of a probe: from a source of features to predicted classes of the test images.

Every protocol trains on the training part, chooses (a rate, a strength) on the validation part, and
predicts the test part. ``mae`` and ``attentive`` see a random stored view of each training image in
every epoch, the others its test view.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probes.linear.attentive import RATES, AttentiveBank, train_attentive
from probes.linear.cached import GB
from probes.linear.knn import knn_predict, voters
from probes.linear.logreg import fit_logreg, log_losses
from probes.linear.logreg import predict as predict_logreg
from probes.linear.mae import HeadBank, MaeConfig, train_heads
from probes.linear.predictions import (
    Predictions,
    Progress,
    best_setting,
    collect,
    pieces,
    predict_held_out,
    streamed,
)
from probes.linear.ridge import Moments, fit_ridge
from probes.linear.saving import BankFile
from probes.linear.sources import Source
from probes.linear.splits import ProbeSplits
from star.base.errors import require_choice

__all__ = [
    "PENALTIES",
    "PROTOCOLS",
    "ProtocolConfig",
    "describe_protocol",
    "ridge_heads",
    "run_protocol",
    "varies",
]

STRENGTHS = tuple(10.0**power for power in range(-4, 6))  # inverse strength C of logreg
SAME_LOSS = 1e-4  # nats: log-losses that a fit in float32 does not tell apart
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of ridge, in units of a feature's variance


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """Which protocol and its settings; ``cache_gb`` bounds what features may take in memory."""

    name: str = "logreg"
    mae: MaeConfig = field(default_factory=MaeConfig)
    cache_gb: float = 4.0

    def __post_init__(self) -> None:
        require_choice("protocol", self.name, tuple(PROTOCOLS))


@dataclass(frozen=True)
class Task:
    """One source, the labels of its training images by label set, and what reports and resumes."""

    source: Source
    splits: ProbeSplits
    labels_SN: np.ndarray
    config: ProtocolConfig
    seed: int
    on_progress: Progress
    bank_file: Path | None

    @property
    def counts(self) -> tuple[int, int, int]:
        """Images of train, val and test."""
        return self.splits.count("train"), self.splits.count("val"), self.splits.count("test")

    def on_batch(self, done: int, total: int) -> None:
        """Images trained on, over all epochs."""
        self.on_progress("train", done, total)

    def labels(self) -> torch.Tensor:
        """(S, N) on the source's device."""
        return torch.from_numpy(self.labels_SN).to(self.source.device)


def run_protocol(
    source: Source,
    splits: ProbeSplits,
    labels_SN: np.ndarray,
    config: ProtocolConfig,
    *,
    seed: int,
    on_progress: Progress = lambda phase, done, total: None,
    bank_file: Path | None = None,
) -> Predictions:
    """Probe every group of ``source``; ``labels_SN`` holds the training labels of each label set.

    ``bank_file``: where heads in training are kept (``mae``), to go on from after an interruption.
    """
    task = Task(source, splits, labels_SN, config, seed, on_progress, bank_file)
    return PROTOCOLS[config.name].run(task)


def varies(name: str) -> bool:
    """Whether the same features and labels give another probe with another seed."""
    return PROTOCOLS[name].varies


def describe_protocol(name: str, train_images: int) -> dict:
    """A protocol in words, with the neighbours that vote or the C to choose from: provenance."""
    said, k = PROTOCOLS[name].said, voters(train_images)
    facts: dict[str, Any] = {"protocol": name, "protocol_said": said.replace("{k}", str(k))}
    of_protocol: dict[str, dict[str, Any]] = {
        "knn": {"neighbours": k},
        "logreg": {"strengths": list(STRENGTHS), "chosen_by": "validation log-loss"},
    }
    return facts | of_protocol.get(name, {})


def _mae(task: Task) -> Predictions:
    config, source = task.config.mae, task.source
    sets, rates = len(task.labels_SN), len(config.base_lrs)
    bank = HeadBank(source, sets, rates, task.splits.classes, task.seed)
    file = BankFile(task.bank_file, config.epochs)
    first = file.load(bank)
    train_heads(
        bank,
        source,
        task.labels_SN,
        config,
        seed=task.seed,
        first_epoch=first,
        on_batch=task.on_batch,
        on_epoch=lambda done: file.save(bank, done),
    )
    return predict_held_out(source, task.splits, bank.predict, config.base_lrs, task.on_progress)


def _attentive(task: Task) -> Predictions:
    source = task.source
    steps = len({step for _, step in source.groups})
    bank = AttentiveBank(source, steps, len(task.labels_SN), task.splits.classes, task.seed)
    train_attentive(bank, source, task.labels_SN, seed=task.seed, on_batch=task.on_batch)
    return predict_held_out(source, task.splits, bank.predict, RATES, task.on_progress)


def ridge_heads(
    source: Source,
    splits: ProbeSplits,
    labels_SN: torch.Tensor,
    on_batch: Callable[[int, int], None],
    some: slice = slice(None),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ridge regression of some groups by one pass over the training part, at all ``PENALTIES``.

    Weights (G, D, S, P, C) and biases (G, S, P, C), what ``probes.linear.logreg.predict`` takes.
    """
    moments, images = Moments(len(labels_SN), splits.classes), splits.count("train")
    for done, chosen, features_GBD in streamed(source, "train", images):
        moments.add(features_GBD[some], labels_SN[:, chosen])
        on_batch(done, images)
    return fit_ridge(moments.gather(), PENALTIES)


def _ridge(task: Task) -> Predictions:
    source, labels = task.source, task.labels()
    width, outputs = source.width, len(labels) * task.splits.classes
    each = 8 * 4 * width**2 + 8 * 2 * width * outputs * len(PENALTIES)
    parts = []
    todo = pieces(len(source.groups), each, task.config.cache_gb * GB)
    for index, some in enumerate(todo):
        report = functools.partial(task.on_progress, "moments")
        heads = ridge_heads(source, task.splits, labels, report, some)

        predict = functools.partial(_of_groups, some, *heads)
        parts.append(predict_held_out(source, task.splits, predict, PENALTIES, task.on_progress))
        task.on_progress("fit", index + 1, len(todo))
    return _joined(parts)


def _of_groups(some: slice, weight_GDSPC: Tensor, bias_GSPC: Tensor, features_GBD: Tensor) -> Tensor:
    return predict_logreg(features_GBD[some], weight_GDSPC, bias_GSPC)


def _collected(task: Task, extra_bytes: float, fit: Callable) -> Predictions:
    """Fit groups whose features fit in memory together, piece by piece; ``fit`` gets the three parts.

    Processes share the forward passes; then each fits the same heads.
    """
    each = 4 * task.source.width * sum(task.counts) * 3 + extra_bytes
    todo = pieces(len(task.source.groups), each, task.config.cache_gb * GB)
    done = []
    for index, some in enumerate(todo):
        parts = [
            collect(task.source, part, images, some, task.on_progress)
            for part, images in zip(("train", "val", "test"), task.counts, strict=True)
        ]
        done.append(fit(*parts))
        task.on_progress("fit", index + 1, len(todo))
    return _joined(done)


def _logreg(task: Task) -> Predictions:
    heads = len(task.labels_SN) * task.splits.classes  # of a group; strengths are fitted in turn
    of_val_N = torch.from_numpy(task.splits.labels("val")).to(task.source.device)

    def fit(train_GND: Tensor, val_GND: Tensor, test_GND: Tensor) -> Predictions:
        # A feature that never changes (the class position at step 1) stays 0 instead of becoming NaN.
        mean, spread = train_GND.mean(1, keepdim=True), train_GND.std(1, keepdim=True).clamp_min(1e-6)
        train_GND, val_GND, test_GND = ((x - mean) / spread for x in (train_GND, val_GND, test_GND))
        weight, bias = fit_logreg(train_GND, task.labels(), task.splits.classes, STRENGTHS)
        losses_GSC = log_losses(val_GND, of_val_N, weight, bias).double().cpu().numpy()
        best_GS, at_edge_GS = best_setting(-losses_GSC, SAME_LOSS)
        taken = torch.from_numpy(best_GS).to(weight.device)
        weight = weight.take_along_dim(taken[:, None, :, None, None], 3)
        bias = bias.take_along_dim(taken[:, :, None, None], 2)
        val_GSN, test_GSN = (predict_logreg(x, weight, bias)[:, :, 0] for x in (val_GND, test_GND))
        return Predictions(
            predicted=test_GSN.transpose(0, 1).cpu().numpy(),
            val_accuracy=(val_GSN == of_val_N).double().mean(-1).T.cpu().numpy(),
            choice=np.asarray(STRENGTHS)[best_GS].T,
            at_edge=at_edge_GS.T,
        )

    return _collected(task, 4 * 4 * heads * task.counts[0], fit)


def _knn(task: Task) -> Predictions:
    def fit(train_GND: Tensor, val_GND: Tensor, test_GND: Tensor) -> Predictions:
        predicted = np.stack(
            [
                [_neighbours(train_ND, labels_N, test_ND, task) for labels_N in task.labels_SN]
                for train_ND, test_ND in zip(train_GND, test_GND, strict=True)
            ]
        )
        nothing = np.full(predicted.shape[1::-1], np.nan)
        return Predictions(predicted.swapaxes(0, 1), nothing, nothing, np.isfinite(nothing))

    return _collected(task, 0, fit)


def _neighbours(train_ND: Tensor, labels_N: np.ndarray, test_ND: Tensor, task: Task) -> np.ndarray:
    k = voters(len(labels_N))
    return knn_predict(
        train_ND.cpu().numpy(), labels_N, test_ND.cpu().numpy(), k=k, device=task.source.device
    )


def _joined(parts: list[Predictions]) -> Predictions:
    return Predictions(
        predicted=np.concatenate([part.predicted for part in parts], axis=1),
        val_accuracy=np.concatenate([part.val_accuracy for part in parts], axis=1),
        choice=np.concatenate([part.choice for part in parts], axis=1),
        at_edge=np.concatenate([part.at_edge for part in parts], axis=1),
    )


@dataclass(frozen=True)
class _Protocol:
    """``varies``: a seed draws something, be it initial weights or the order of the images."""

    run: Callable[[Task], Predictions]
    said: str
    varies: bool = False


PROTOCOLS = {
    "mae": _Protocol(_mae, "MAE's linear probing: BatchNorm without affine, linear layer, LARS", True),
    "logreg": _Protocol(_logreg, "logistic regression by L-BFGS on standardised features"),
    "ridge": _Protocol(_ridge, "ridge regression onto one-hot classes, closed form"),
    "knn": _Protocol(_knn, "{k} nearest neighbours by cosine, weights exp(s / 0.07) (DINO)"),
    "attentive": _Protocol(
        _attentive, "one learned query over the steps seen so far (non-linear)", True
    ),
}
