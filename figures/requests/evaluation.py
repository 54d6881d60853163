"""``star evaluate``: how good are samples, by whose eyes, and how sure is that?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from figures.requests.shared import compute_device, folder
from star.base.settings import option

__all__ = ["Request"]

ALSO = "Measured besides"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Judge samples against reference images: FID and its kin, with intervals and a fingerprint.

    With --inception FID, sFID, Inception score, precision and recall by the rules
    of ADM's suite; with --dinov2 FD-DINOv2; with --features the Fréchet distance
    on a classifier's features, and conditional accuracy: does it see the class
    that was asked for? Without any of them, the classifier that comes with the
    package. Several sets of samples are compared with the first, on the same
    reference. 95 % intervals over samples say what other samples of the same
    model would give; nothing in them is about other runs of a recipe. All that
    decides a number is printed and written beside it.
    """

    samples: list[Path] | None = option(
        None,
        "Samples: .npz of star sample --count (or ADM's layout), a folder of images, a code store.",
        argument="SAMPLES",
    )
    ref: str | None = option(
        None,
        "Reference: .npz in ADM's layout (with mu and sigma or without), a source, an image folder, or "
        "code stores.",
    )
    split: Literal["train", "val", "test"] | None = option(
        None, "Split of the reference, where it has several.", said="test, else val, else train"
    )
    inception: Path | None = option(
        None, "Weights of FID's network (weights-inception-2015-12-05-6726825d.pth)."
    )
    dinov2: Path | None = option(
        None, "Weights of ViT-L/14 (dinov2_vitl14_pretrain.pth, or timm's); needs timm."
    )
    features: str | None = option(
        None,
        "Classifier of star train-classifier: its file, or cifar10.",
        said="cifar10, where no other network is given",
    )
    kid: bool = option(False, "Kernel distance, unbiased.", flag="--kid", panel=ALSO)
    density: bool = option(False, "Density and coverage.", flag="--density", panel=ALSO)
    infinity: bool = option(
        False, "The distance of infinitely many samples, extrapolated.", flag="--infinity", panel=ALSO
    )
    resamples: int = option(100, "Draws of the bootstrap; 0: no intervals of distances.")
    seed: int = option(0, "Draws the bootstrap.")
    tokenizer: Path | None = option(None, "Decodes code stores.", said="the one beside them")
    keep: bool = option(
        True, "Keep what a network says of the reference in the cache folder, for the next time."
    )
    out: Path | None = folder("evaluation, beside the samples")
    device: str = compute_device()
