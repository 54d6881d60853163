"""``star probe``: what layers know of the class, step by step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from figures.requests.shared import (
    ComparisonRequest,
    Precision,
    folder,
    layers_of_features,
    steps_of_features,
)
from star.base.settings import option

__all__ = ["Request"]

MAE = "Protocol mae"


@dataclass(frozen=True, kw_only=True)
class Request(ComparisonRequest):
    """Probe frozen features for the class; every number beside its controls.

    Step t has seen the class position (null class) and tokens 1 to t-1.
    Choices are made on the validation split, accuracies are of the test split.
    An interrupted probe goes on when it is started again.

    logreg: logistic regression (L-BFGS). mae: MAE's linear probing (BatchNorm,
    LARS), made for large data. ridge: closed form. knn: up to 20 neighbours.
    attentive: a learned query over the steps seen so far.
    """

    ckpts: list[Path] | None = option(
        None,
        "Checkpoints or run folders; two or more are compared.",
        said="the newest run",
        argument="CKPT",
    )
    layer: str | None = layers_of_features()
    steps: int = steps_of_features()
    protocol: Literal["logreg", "mae", "ridge", "knn", "attentive"] = option(
        "logreg", "How a probe is fitted, see above."
    )
    lr: str | None = option(
        None,
        "Base rates per 256 images, e.g. 0.1,1,10; the best on validation is taken.",
        said="0.1",
        panel=MAE,
    )
    epochs: int | None = option(None, "Epochs, a ninth of them warm-up.", said="90", panel=MAE)
    batch_size: int | None = option(None, "Images a batch.", said="min(16384, N)", panel=MAE)
    seeds: int = option(1, "Probe with seeds 0, 1, ..: means; of mae and attentive their spread.")
    cache_gb: float = option(4.0, "Memory for features a process; beyond, they stream.")
    precision: Precision = option("fp32", "Of the frozen model's forward passes.")
    images: str | None = option(
        None, "Image folder that code stores were made from, for the pixel control."
    )
    out: Path | None = folder("RUN/probe")
