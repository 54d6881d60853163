"""Settings of a classifier's training, and the shape of its network.

This module imports neither torch nor numpy, so that the command line can build its options from the
fields (``metadata["help"]``) and start at once.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from star.base.errors import UserError, require_choice
from star.base.settings import option

__all__ = ["ClassifierConfig", "ClassifierShape"]

STAGES = 3  # that halve the image
SMALLEST, LARGEST = 2**STAGES, 64  # pixels: of any classifier, and of one whose size was not given
PASSES, FEWEST_STEPS = 12, 200  # a run whose length was not given
_VIEWS = ("auto", "crop-flip", "crop", "affine", "plain")
_AT_LEAST_1 = ("batch_size", "log_every", "validate_every", "save_every", "val_images")
_AT_LEAST_0 = ("size", "max_steps", "weight_decay", "seed")
_MOST_WIDTH, _MOST_SIZE, _MOST_CLASSES = 512, 1024, 1_000_000


@dataclass(frozen=True, kw_only=True)
class ClassifierShape:
    """Shape of a classifier: ``star.classifier.model`` says what is built of it."""

    size: int  # side of its images in pixels
    classes: int
    width: int = 16  # channels of the first layer; every stage doubles them

    def __post_init__(self) -> None:
        for name, least, most in (
            ("size", SMALLEST, _MOST_SIZE), ("classes", 2, _MOST_CLASSES), ("width", 1, _MOST_WIDTH)
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UserError(
                    f"classifier {name} is {value!r}; expected a whole number, {least} to {most:,}"
                )

    @property
    def features(self) -> int:
        """F, the number of features: channels of the last stage."""
        return int(self.width * 2**STAGES)


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """One training run of a classifier."""

    data: str = option("digits", "Source of the images.")
    label_column: str = option("", "Column of parquet that holds the labels.", said="found")
    through: str = option(
        "",
        "Tokenizer: half of the training views are of images as it redraws them, as samples are. A "
        "file, cifar10 (the package's own) or digits.",
        said="none",
    )
    name: str = option("", "Name in the classifier's card.", said="SOURCE-SIZE")
    size: int = option(0, "Side of its images in pixels; 0: their own.", said=f"0, at most {LARGEST}")
    width: int = option(16, "Channels of the first layer; there are 8 times as many features.")
    views: Literal["auto", "crop-flip", "crop", "affine", "plain"] = option(
        "auto",
        "Training views: shifts by up to an eighth with or without mirror images, random rotations, "
        "scales and shifts, or the images as they are. auto: affine for digits, else crop-flip.",
    )
    max_steps: int = option(
        0,
        f"Optimiser steps; 0: {PASSES} passes over the images, {FEWEST_STEPS} steps at least.",
        said="0",
    )
    batch_size: int = option(128, "Images a step.")
    lr: float = option(0.1, "Highest learning rate.")
    warmup: float = option(0.15, "Share of the steps in which it rises; then it falls to 0 (cosine).")
    momentum: float = option(0.9, "Nesterov's momentum.")
    weight_decay: float = option(5e-4, "Weight decay, not of biases and norms.")
    label_smoothing: float = option(0.1, "Share of each label spread over all classes.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Of the training; fp16 scales the loss. The classifier is used in float32."
    )
    log_every: int = option(50, "Steps between two rows of metrics.")
    validate_every: int = option(500, "Steps between two validations; they choose nothing.")
    val_images: int = option(2000, "Most images of a validation.")
    save_every: int = option(500, "Steps between two checkpoints.")
    keep: int = option(2, "Newest checkpoints that stay.")
    seed: int = option(0, "Seed of weights, batches and views.")

    def __post_init__(self) -> None:
        for name in _AT_LEAST_1:
            _require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in _AT_LEAST_0:
            _require(name, getattr(self, name), "a number >= 0", 0 <= getattr(self, name) < math.inf)
        _require("lr", self.lr, "a number > 0", 0 < self.lr < math.inf)
        for name in ("warmup", "momentum", "label_smoothing"):
            value = getattr(self, name)
            _require(name, value, "at least 0 and below 1", 0 <= value < 1)
        _require("keep", self.keep, "at least 2", self.keep >= 2)
        require_choice("classifier views", self.views, _VIEWS)
        require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        ClassifierShape(size=self.size or SMALLEST, classes=2, width=self.width)

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        return round(self.warmup * self.max_steps)

    @property
    def schedule(self) -> str:
        """What follows them (``star.runs.schedule``)."""
        return "cosine"

    def completed(self, *, images: int, native_size: int, default_views: str) -> "ClassifierConfig":
        """The settings with a number for each that depends on the source: its training images, their
        side in pixels, and its default views.
        """
        views = self.views
        if views == "auto":
            views = "affine" if default_views == "affine" else "crop-flip"
        steps = self.max_steps or max(FEWEST_STEPS, math.ceil(PASSES * images / self.batch_size))
        size = self.size or max(SMALLEST, min(native_size, LARGEST))
        return replace(self, views=views, max_steps=steps, size=size)

    def shape(self, classes: int) -> ClassifierShape:
        """The network's, of completed settings."""
        return ClassifierShape(size=self.size, classes=classes, width=self.width)


def _require(name: str, value: object, expected: str, fits: bool) -> None:
    if not fits:
        raise UserError(f"classifier {name} is {value}; expected {expected}")
