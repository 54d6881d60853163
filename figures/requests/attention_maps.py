"""``star attn-maps``: where each layer looks at each step, as pictures, as a GIF and as a table."""

from dataclasses import dataclass
from pathlib import Path

from figures.requests.shared import CheckpointRequest
from star.base.settings import option

__all__ = ["Request"]

SAMPLES, MOVING = "The model's own samples", "Animation"


@dataclass(frozen=True, kw_only=True)
class Request(CheckpointRequest):
    """Attention of chosen layers and steps as heat over the image (Figures 1(a), 2, 5).

    Step t looks from its newest token (red); the most attended tokens are yellow,
    what it has not seen is grey; the bar is the weight on the class token. Several
    checkpoints are drawn under each other, all on one colour scale.

    Beside each picture: a .csv (model, image, layer, head, step, place, weight;
    place 0 is the class, 1 to T the image) and a .json of where it comes from;
    beside a GIF an .npz instead of the .csv.
    """

    names: list[str] | None = option(
        None,
        "Checkpoints or run folders, then images (files, digits/17, china.jpg, flower.jpg).",
        said="the newest run, its first test image",
        argument="[CKPT ..] [IMAGE ..]",
    )
    layers: str | None = option(
        None, "Layers such as 2,4,6, or all.", said="all; with --animate first, middle, last"
    )
    steps: int | None = option(None, "Number of steps, spread over the image, up to 16.", said="8")
    at: str | None = option(None, "Exact steps such as 12,40,64 (instead of --steps).")
    head: str = option(
        "mean",
        "mean or max over heads, a head's number from 1, all (heads under each other), or rollout "
        "(through each layer).",
    )
    label: str | None = option(
        None,
        "Class shown to the model, by name or number.",
        said="the image's own, else the null class",
        flag="--class",
    )
    codes: Path | None = option(None, "Token indices (.npy, T integers) instead of an image.")
    sample: int | None = option(
        None, "Instead of images: so many samples of --class, as generated.", panel=SAMPLES
    )
    seed: int | None = option(
        None, "Seed of the first sample; sample i uses seed + i.", said="0", panel=SAMPLES
    )
    cfg_scale: float | None = option(
        None, "Classifier-free guidance; 1 is none.", said="2", panel=SAMPLES
    )
    animate: bool = option(
        False, "A GIF over all steps instead of pictures.", flag="--animate", panel=MOVING
    )
    fps: float | None = option(None, "Frames a second.", said="about 15 s in all", panel=MOVING)
    scale_max: float | None = option(
        None, "Weight of the darkest colour.", said="the median of the maps' largest"
    )
    formats: str | None = option(None, "Of the pictures.", said="png,pdf,svg")
    out: Path | None = option(None, "Folder for what is written.", said="attn-maps in the (first) run")
