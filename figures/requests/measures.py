"""``star probe --measure``: label-free numbers of the features that a probe reads."""

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

MEASURES = "Representation measures"


@dataclass(frozen=True, kw_only=True)
class Request(ComparisonRequest):
    """Measure frozen features (null class) without labels, layer by layer and step by step.

    ``probes.representation.measures.MEASURES`` names the measures; ``measure`` None takes all.
    """

    ckpts: list[Path] | None = option(
        None,
        "Checkpoint or run folder; a second one is what the first is set against.",
        said="the newest run",
        argument="CKPT",
    )
    layer: str | None = layers_of_features()
    steps: int = steps_of_features()
    precision: Precision = option("fp32", "Of the frozen model's forward passes.")
    measure: str | None = option(
        None, "Instead of probes: all, or names such as cka,knn,lds.", panel=MEASURES
    )
    split: Literal["test", "val", "train"] = option("test", "Images that are measured.", panel=MEASURES)
    encoder: str | None = option(
        None, "Frozen encoder to align with: resnet50 or timm/NAME.", panel=MEASURES
    )
    encoder_weights: Path | None = option(None, "File of its weights.", panel=MEASURES)
    out: Path | None = folder("RUN/probe")
