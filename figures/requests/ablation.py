"""``star ablate``: what a model loses when it may not look."""

from dataclasses import dataclass
from pathlib import Path

from figures.requests.shared import ComparisonRequest, Precision, folder
from star.base.settings import option

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True)
class Request(ComparisonRequest):
    """Cut attention and measure what changes: the causal check of attention maps.

    A cut hides keys from the softmax of all heads in the chosen layers; a
    position always reads itself. Changes are "with the cut minus without", by
    image, with 95 % intervals: NLL (nats a token) and accuracy of a linear probe
    of the class, refit on the cut model and fixed from the intact one.

    The curve says how far the model looks: NLL against d when no layer looks
    farther than d cells (farther tokens still arrive in hops), and, strictly,
    when nothing farther arrives at all. random is the control: a cut as large
    as the neighbourhood, elsewhere.
    """

    cut: str = option(
        "class,neighbourhood,random",
        "Cuts, one by one: class, neighbourhood, row_above, random; class+random cuts both; none.",
    )
    layers: str = option(
        "all", "Layers that are cut together: all or 2,4,6; or each: one after the other."
    )
    random_cuts: int = option(5, "Draws of the random cut; what is said is their mean.")
    at: str | None = option(None, "Steps whose queries are cut, e.g. 12,40,64.", said="all")
    reach: str | None = option(
        None, "Distances d of the curve, e.g. 0,1,2; none.", said="up to 9, 0 to grid - 1"
    )
    strict_steps: int = option(
        8, "Steps of the strict curve, where nothing farther arrives by any route; 0: none."
    )
    images: int = option(500, "Test images for the NLL, drawn by --seed.")
    probe_layer: int | None = option(
        None, "Layer whose probe is measured; 0: none.", said="half the depth"
    )
    probe_images: int = option(2000, "Most images of each split for the probe (ridge).")
    steps: int = option(8, "Number of uniformly spaced steps that are probed.")
    seed: int = option(0, "Draws the images and the random cuts.")
    precision: Precision = option("fp32", "Of the model's forward passes.")
    out: Path | None = folder("RUN/ablate")
