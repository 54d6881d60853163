"""A linear probe of one layer at one step, kept as the affine function it is.

Ridge regression onto one-hot classes (``probes.linear.ridge``: the strength is chosen on the validation
images) of the hidden state under the null class. The standardisation is folded into the weights, so the
score of a class, about 1 for an image of that class and about 0 for another, is one affine function of
the hidden state: a target that an attribution can explain. Parts are cut to ``images`` each, drawn by
the seed, which keeps a probe for one picture to seconds.

Shapes: G = 1 group, S = 1 label set, P penalties, B images, D width, C classes.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.linear.logreg import predict
from probes.linear.predictions import Progress, predict_held_out
from probes.linear.protocols import PENALTIES, ridge_heads
from probes.linear.sources import ModelSource
from probes.linear.splits import PARTS, ProbeSplits, check_probe, fewer_images
from probes.stats.intervals import share_interval
from star.base.errors import UserError
from star.model.transformer import Transformer

__all__ = ["StepProbe", "fit_step_probe"]

LEAST_IMAGES = 20


@dataclass(frozen=True, kw_only=True)
class StepProbe:
    """``weight`` (D, C) and ``bias`` (C,) of hidden states as they are; accuracy on test images."""

    weight: Tensor
    bias: Tensor
    layer: int
    step: int
    penalty: float
    accuracy: float
    low: float
    high: float
    chance: float
    counts: dict[str, int]

    def scores(self, hidden_BD: Tensor) -> Tensor:
        """(B, C) class scores."""
        return hidden_BD @ self.weight + self.bias

    def describe(self) -> dict:
        """For provenance: everything but the weights."""
        return {
            "protocol": "ridge", "condition": "null class", "layer": self.layer, "step": self.step,
            "penalty": self.penalty, "accuracy": self.accuracy, "low": self.low, "high": self.high,
            "chance": self.chance, "images": self.counts,
        }  # fmt: skip


def fit_step_probe(
    model: Transformer,
    splits: ProbeSplits,
    *,
    layer: int,
    step: int,
    images: int,
    seed: int = 0,
    on_progress: Progress = lambda phase, done, total: None,
) -> StepProbe:
    """Fit and test the probe on at most ``images`` of each part.

    Raises ``UserError`` for a layer or step that does not exist, codes that do not fit the model, too
    few images, or features that are not finite.
    """
    check_probe(model, splits, [layer], [step])
    if images < LEAST_IMAGES:
        raise UserError(f"probe-images is {images}; expected at least {LEAST_IMAGES}")
    fewer = fewer_images(splits, images, seed)
    source = ModelSource(model, fewer, layers=[layer], steps=[step])
    labels_SN = torch.from_numpy(fewer.labels("train"))[None].to(source.device)
    report = functools.partial(on_progress, "probe train")
    weight_GDSPC, bias_GSPC = ridge_heads(source, fewer, labels_SN, report)
    taken = predict_held_out(
        source,
        fewer,
        lambda features: predict(features, weight_GDSPC, bias_GSPC),
        PENALTIES,
        lambda phase, done, total: on_progress(f"probe {phase}", done, total),
    )
    if source.broken:
        raise UserError(
            f"features of layer {layer} at step {step} are not finite; the checkpoint is broken"
        )
    penalty = float(taken.choice[0, 0])
    place = PENALTIES.index(penalty)
    accuracy, low, high = share_interval(taken.predicted[0, 0] == fewer.labels("test"))
    return StepProbe(
        weight=weight_GDSPC[0, :, 0, place], bias=bias_GSPC[0, 0, place], layer=layer, step=step,
        penalty=penalty, accuracy=accuracy, low=low, high=high, chance=fewer.chance,
        counts={part: fewer.count(part) for part in PARTS},
    )  # fmt: skip
