"""``star nll``: how probable a model finds held-out images."""

from dataclasses import dataclass
from pathlib import Path

from figures.requests.shared import ComparisonRequest, Precision, folder
from star.base.settings import option

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True)
class Request(ComparisonRequest):
    """Measure how probable a model finds held-out images, by step, and what it knows of classes.

    NLL in nats a token, and in bits a pixel of the tokenizer's image, given each
    image's class and given none; what an image's most probable class says of it;
    whether the model is as often right about the next token as it is sure; and
    how much more probable it finds training images. Test views, 95 % intervals
    over images. Several checkpoints are compared on the same images. Under
    different tokenizers the numbers cannot be compared.
    """

    images: int = option(2000, "Held-out images, drawn by --seed; as many training images.")
    class_images: int | None = option(
        None,
        "As many images are classified, a pass for each and every class; 0: none.",
        said="10,000 over the classes, at least 20",
    )
    seed: int = option(0, "Draws the images.")
    precision: Precision = option("fp32", "Of the model's forward passes.")
    out: Path | None = folder("RUN/nll")
