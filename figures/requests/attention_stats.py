"""``star attention-stats``: where models look, in numbers over a data set."""

from dataclasses import dataclass
from pathlib import Path

from figures.requests.shared import ComparisonRequest, Precision, folder
from star.base.settings import option

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True)
class Request(ComparisonRequest):
    """Weight on the class token, the neighbourhood and more, by layer, step and head.

    Every number stands beside that of even attention over what the step sees:
    step 32 cannot look where step 256 can. Intervals are 95 %, over images.
    Two checkpoints are compared on the same images by paired tests. The steps
    lie in different columns of the grid: T/8, 2T/8, .. would all end a row.

    In LlamaGen models the class token's key is zero, so its logit is a constant
    0: class_norm_share weighs each value by its size after the output projection.
    """

    layers: str = option("all", "Layers such as 2,4,6, or all.")
    steps: int | None = option(
        None, "Number of steps, spread over the image and its columns.", said="8"
    )
    at: str | None = option(None, "Exact steps such as 12,40,64 (instead of --steps).")
    images: int = option(1000, "Most test images measured, drawn by --seed.")
    seed: int = option(0, "Draws the images.")
    rollout: bool = option(
        False,
        "Attention rollout through each layer instead of its own attention.",
        flag="--rollout",
    )
    null_class: bool = option(
        False, "Show the null class instead of each image's own.", flag="--null-class"
    )
    precision: Precision = option("fp32", "Of the model's forward passes; rows are always float32.")
    out: Path | None = folder("RUN/attention-stats")
