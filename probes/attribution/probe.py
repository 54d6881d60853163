"""A linear probe of one layer at one step, kept as the affine function it is.

Ridge regression onto one-hot classes (``probes.linear.ridge``: the strength is chosen on the validation
images) of the hidden state under the null class. The standardisation is folded into the weights, so the
score of a class, about 1 for an image of that class and about 0 for another, is one affine function of
the hidden state: a target that an attribution can explain. Parts are cut to ``images`` each, drawn by
the seed, which keeps a probe for one picture to seconds.

Shapes: G = 1 group, S = 1 label set, P penalties, B images, D width, C classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from probes.linear.logreg import predict
from probes.linear.predictions import Progress, choose, predict_part, streamed
from probes.linear.protocols import PENALTIES
from probes.linear.ridge import Moments, fit_ridge
from probes.linear.sources import ModelSource
from probes.linear.splits import PARTS, ProbeSplits, fewer_images
from probes.reading.features import check_steps, check_store
from probes.stats.intervals import wilson_interval
from star.base.errors import UserError
from star.model.transformer import Transformer, check_layers

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
    check_layers(model.config, [layer])
    check_steps(model.config.tokens, [step])
    check_store(model, splits.stores["train"], classes=False)
    if images < LEAST_IMAGES:
        raise UserError(f"probe-images is {images}; expected at least {LEAST_IMAGES}")
    fewer = fewer_images(splits, images, seed)
    source = ModelSource(model, fewer, layers=[layer], steps=[step])
    moments = Moments(1, fewer.classes)
    labels_SN = torch.from_numpy(fewer.labels("train"))[None].to(source.device)
    for done, chosen, features_GBD in streamed(source, "train", fewer.count("train")):
        moments.add(features_GBD, labels_SN[:, chosen])
        on_progress("probe train", done, fewer.count("train"))
    weight_GDSPC, bias_GSPC = fit_ridge(moments.gather(), PENALTIES)
    of_val, of_test = (
        predict_part(
            source,
            part,
            fewer.count(part),
            lambda features: predict(features, weight_GDSPC, bias_GSPC),
            lambda phase, done, total: on_progress(f"probe {phase}", done, total),
        )
        for part in ("val", "test")
    )
    if source.broken:
        raise UserError(
            f"features of layer {layer} at step {step} are not finite; the checkpoint is broken"
        )
    taken = choose(of_val, of_test, fewer, list(PENALTIES))
    penalty = float(taken.choice[0, 0])
    place = PENALTIES.index(penalty)
    hits = taken.predicted[0, 0] == fewer.labels("test")
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return StepProbe(
        weight=weight_GDSPC[0, :, 0, place], bias=bias_GSPC[0, 0, place], layer=layer, step=step,
        penalty=penalty, accuracy=float(hits.mean()), low=low, high=high, chance=fewer.chance,
        counts={part: fewer.count(part) for part in PARTS},
    )  # fmt: skip
