"""Settings of a tokenizer's training: what it sees, what it is told, how long, and its shape.

This module imports neither torch nor numpy, so that the command line can build its options from the
fields (``metadata["help"]``) and start at once. The presets ``vq8`` and ``vq16`` are LlamaGen's own
recipe (Sun et al. 2024; its vq_train.py); ``small`` is for 32-pixel images on a CPU.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from star.base.errors import UserError, require_choice
from star.base.settings import option
from star.tokenizer.shape import PRESETS, VQConfig, vq_preset

__all__ = ["TokenizerConfig", "tokenizer_preset"]

_AT_LEAST_1 = ("max_steps", "batch_size", "log_every", "validate_every", "save_every", "val_images",
               "disc_channels", "disc_layers")  # fmt: skip
_ABOVE_0 = ("lr", "clip")
_AT_LEAST_0 = ("warmup_steps", "weight_decay", "l1_weight", "l2_weight", "codebook_weight",
               "commitment_weight", "lpips_weight", "disc_weight", "disc_start", "revive_every",
               "draw_every", "seed")  # fmt: skip
_SHARES = ("revive_until", "mosaic")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """One training run of a tokenizer."""

    data: str = option("digits", "Source of the images.")
    name: str = option("", "Name in the tokenizer's card; empty: SOURCE-SIZE.")
    sizes: tuple[int, ...] = ()  # sides of the training views in pixels; (): the source's own size
    views: Literal["auto", "crop-flip", "crop", "affine", "plain"] = option(
        "auto",
        "Training views: ADM random crops with or without mirror images, random rotations, scales and "
        "shifts, or the plain centre crop. auto: affine for digits, else crop-flip.",
    )
    mosaic: float = option(
        0.0, "Share of the views larger than the images that are tiled of several, not enlarged."
    )
    max_steps: int = option(8000, "Optimiser steps.")
    batch_size: int = option(64, "Views a step at the first size; at others as many pixels.")
    lr: float = option(2e-3, "Learning rate after the warm-up.")
    warmup_steps: int = option(100, "Steps of linear warm-up.")
    schedule: Literal["cosine", "constant"] = option("cosine", "After the warm-up: to 0, or constant.")
    weight_decay: float = option(0.0, "AdamW's weight decay, on every weight.")
    clip: float = option(1.0, "Gradient norm above which gradients are scaled down.")
    l1_weight: float = option(1.0, "Weight of the mean absolute error of the pixels.")
    l2_weight: float = option(1.0, "Weight of the mean squared error of the pixels.")
    codebook_weight: float = option(1.0, "Weight of |sg(z) - e|^2, which moves the codes.")
    commitment_weight: float = option(0.25, "Weight of |z - sg(e)|^2, which moves the encoder.")
    lpips_weight: float = option(0.0, "Weight of LPIPS; needs --lpips-vgg.")
    disc_weight: float = option(0.0, "Weight of the hinge loss of a PatchGAN; 0: none.")
    disc_start: int = option(4000, "Step from which the discriminator trains and is listened to.")
    disc_adaptive: bool = option(
        True, "Scale the adversarial loss by the ratio of gradient norms at the last layer (VQGAN)."
    )
    disc_channels: int = option(64, "Width of the discriminator's first layer.")
    disc_layers: int = option(3, "Layers of the discriminator that halve the image.")
    revive_every: int = option(100, "Steps between revivals of codes not chosen since; 0: never.")
    revive_until: float = option(0.75, "Share of the run after which codes are left alone.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Of the networks; codes: float32; fp16 scales the losses."
    )
    log_every: int = option(50, "Steps between two rows of metrics.")
    validate_every: int = option(500, "Steps between two validations on held-out images.")
    val_images: int = option(256, "Held-out images of a validation.")
    draw_every: int = option(1000, "Steps between two pictures of reconstructions; 0: at the end.")
    save_every: int = option(500, "Steps between two checkpoints.")
    keep: int = option(2, "Newest checkpoints that stay.")
    seed: int = option(0, "Seed of weights, batches and revivals.")
    shape: VQConfig = field(default_factory=lambda: PRESETS["small"])

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))  # JSON has lists only
        for name in _AT_LEAST_1:
            _require(name, getattr(self, name), "at least 1", getattr(self, name) >= 1)
        for name in _ABOVE_0:
            _require(name, getattr(self, name), "a number > 0", 0 < getattr(self, name) < math.inf)
        for name in _AT_LEAST_0:
            _require(name, getattr(self, name), "a number >= 0", 0 <= getattr(self, name) < math.inf)
        for name in _SHARES:
            _require(name, getattr(self, name), "0 to 1", 0 <= getattr(self, name) <= 1)
        _require("keep", self.keep, "at least 2", self.keep >= 2)
        for name, choices in (
            ("views", ("auto", "crop-flip", "crop", "affine", "plain")),
            ("schedule", ("cosine", "constant")),
            ("precision", ("auto", "fp32", "bf16", "fp16")),
        ):
            require_choice(f"tokenizer {name}", getattr(self, name), choices)
        stride = self.shape.stride
        for size in self.sizes:
            fits = type(size) is int and size >= stride and size % stride == 0
            _require("sizes", size, f"multiples of the stride, {stride} pixels", fits)

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator is trained at all."""
        return self.disc_weight > 0 and self.disc_start < self.max_steps


def _require(name: str, value: object, expected: str, fits: bool) -> None:
    if not fits:
        raise UserError(f"tokenizer {name} is {value}; expected {expected}")


def tokenizer_preset(name: str) -> TokenizerConfig:
    """The recipe called ``name``: ``small``, or LlamaGen's for ``vq8`` and ``vq16``.

    LlamaGen's has an LPIPS term of weight 1 besides (``lpips_weight``), for those who have its weights;
    its fixed weight of the adversarial loss goes with it.
    """
    shape = vq_preset(name)
    if name == "small":
        return TokenizerConfig(shape=shape)
    return TokenizerConfig(
        shape=shape,
        sizes=(256,),
        max_steps=400_000,  # 40 epochs of ImageNet
        batch_size=128,
        lr=1e-4,
        warmup_steps=0,
        schedule="constant",
        weight_decay=0.05,
        l1_weight=0.0,
        l2_weight=1.0,
        disc_weight=0.5,
        disc_start=20_000,
        disc_adaptive=False,
        revive_every=0,
        log_every=100,
        validate_every=5000,
        save_every=5000,
        draw_every=5000,
    )
