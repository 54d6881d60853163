"""``star attribute``: what the score of a step owes to the tokens it has seen, beside attention."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from figures.requests.shared import CheckpointRequest, folder
from star.base.settings import option

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True)
class Request(CheckpointRequest):
    """Explain the score of one step by the tokens and the class that it has seen.

    Integrated gradients on the token and class embeddings, gradient x input, and
    occlusion of patches: signed, beside the attention of the same step, with the
    correlation of their ranks. Contributions are relative to a baseline that says
    nothing: the mean token embedding and the null class (the mean class where the
    null class is what the model is shown).

    Printed with them: the completeness gap (sum of contributions minus what there
    is to explain), infidelity and sensitivity (Yeh et al. 2019).
    """

    ckpt: Path | None = option(
        None, "Checkpoint or run folder.", said="the newest run", argument="CKPT"
    )
    image: str | None = option(
        None,
        "Image file, digits/17, china.jpg or flower.jpg.",
        said="the run's first test image",
        argument="IMAGE",
    )
    step: int | None = option(None, "Step t, 2 to T: predicts token t from tokens 1..t-1.", said="3T/4")
    target: Literal["logprob", "logit", "probe"] = option(
        "logprob",
        "Score explained: log-probability or logit of the true next token, or a linear probe's "
        "score of the class, with the model under the null class.",
    )
    layer: int | None = option(None, "Layer the probe reads (--target probe).", said="half the depth")
    label: str | None = option(
        None,
        "Class shown to the model, by name or number; with --target probe the class whose score "
        "is explained.",
        said="the image's own, else the null class",
        flag="--class",
    )
    attention: str = option(
        "all", "Layers whose attention is averaged over heads: 4, 2,4,6, or all up to the score."
    )
    points: int = option(64, "Points on the path of integrated gradients.")
    batch_size: int = option(64, "Inputs in one pass; fewer need less memory.")
    patch: int = option(2, "Side of an occluded patch, in tokens.")
    draws: int = option(
        10, "Draws for sensitivity (10 times as many for infidelity); 0 leaves both out."
    )
    noise: float = option(0.1, "Noise for sensitivity, relative to the embeddings' standard deviation.")
    images: int | None = option(
        None, "Explain N test images of the data, evenly spaced, with means and 95 % intervals."
    )
    probe_images: int | None = option(
        None,
        "Most images the probe is trained, chosen and tested on, each (--target probe).",
        said="2000",
    )
    seed: int = option(0, "Seed of the draws and of the probe's images.")
    codes: Path | None = option(None, "Token indices (.npy, T integers) instead of an image.")
    out: Path | None = folder("RUN/attribute")
