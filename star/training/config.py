"""Every setting of a training run: frozen dataclasses, one sentence a field, and the presets.

This module imports neither torch nor numpy, so that the command line can build its options from the
fields (``metadata["help"]``) and start at once. Fields of ``ObjectiveConfig`` are the points the paper
leaves open or prints in two ways; the default is the reading we train with, the alternatives stay
selectable.
"""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from star.base.errors import UserError, require_choice
from star.base.record import Record
from star.base.settings import option
from star.model.config import SIZES, ModelConfig

__all__ = [
    "ObjectiveConfig",
    "TrainConfig",
    "for_cuda",
    "preset",
]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """L = L_AR + alpha L_MIM + beta/2 (L_step + L_view), Eq. 8, with every open point a field."""

    mim_weight: float = option(1.0, "alpha, weight of the masked-feature loss L_MIM (Eq. 8).")
    contrast_weight: float = option(0.5, "beta, weight of (L_step + L_view) / 2 (Eq. 8).")
    views: int = option(2, "M, augmented views of each image in a batch.")
    mask_ratio: float = option(0.25, "r, share of the input image tokens masked in attention.")
    mask_self: bool = option(
        False, "Also hide a masked token from its own position (Eq. 3 read literally)."
    )
    student_pass: Literal["one", "two"] = option(
        "one",
        "One masked pass for all losses, or a second, unmasked one for L_AR and the contrast.",
    )
    mim_distance: Literal["cosine", "l2"] = option("cosine", "D of Eq. 4.")
    teacher_class: Literal["same", "always", "never"] = option(
        "same",
        "Class the teacher sees: the student's (dropped or not), always the true one, or never.",
    )
    ema_decay: float = option(0.9999, "Decay of the EMA teacher.")
    ema_warmup: bool = option(True, "Use min(decay, (1 + n) / (10 + n)) after n updates.")
    contrast_layer: int = option(
        0, "Layer of the contrastive losses; 0: 6 (B), 18 (L, XL), else half the depth."
    )
    contrast_form: Literal["infonce", "ratio"] = option(
        "infonce", "-log softmax over images, or the plain ratio as printed in Eqs. 6 and 7."
    )
    normalize: bool = option(True, "L2-normalise both sides before the dot product.")
    temperature: float = option(0.2, "Temperature of the contrastive softmax (the paper has none: 1).")
    reduction: Literal["mean", "sum"] = option(
        "mean", "Mean over all pairs, or 1/B times the sum over views and pairs as printed."
    )
    negatives: Literal["global", "local"] = option(
        "global", "Other images of the batch of all processes, or of this process alone."
    )
    contrast_steps: int = option(4, "K, steps drawn for the contrastive losses (one set a batch).")
    min_step: int = option(1, "Smallest step that may be drawn; step 1 has seen the class only.")
    projector_layers: int = option(3, "Layers of the projector MLP on the student side.")
    projector_ratio: int = option(4, "Hidden width of the projector in units of the model's width.")

    def __post_init__(self) -> None:
        for name, choices in (
            ("student_pass", ("one", "two")),
            ("mim_distance", ("cosine", "l2")),
            ("teacher_class", ("same", "always", "never")),
            ("contrast_form", ("infonce", "ratio")),
            ("reduction", ("mean", "sum")),
            ("negatives", ("global", "local")),
        ):
            require_choice(name, getattr(self, name), choices)
        if not 0 <= self.mask_ratio < 1:
            raise UserError(f"mask ratio is {self.mask_ratio}; expected 0 <= ratio < 1")
        for name in ("mim_weight", "contrast_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number >= 0")
        if not 0 <= self.ema_decay <= 1:
            raise UserError(f"ema_decay is {self.ema_decay}; expected 0 <= decay <= 1")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; expected a number > 0")
        for name in ("views", "contrast_steps", "min_step", "projector_layers", "projector_ratio"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name, most in (("projector_layers", 100), ("projector_ratio", 1000)):
            if getattr(self, name) > most:
                raise UserError(f"{name} is {getattr(self, name)}; expected 1 to {most}")
        if self.contrast_layer < 0:
            raise UserError(f"contrast_layer is {self.contrast_layer}; expected 0 or a layer number")
        if self.contrast_weight and self.views < 2:
            raise UserError(
                f"views is {self.views}; L_view needs at least 2 views (or --contrast-weight 0)"
            )
        if self.contrast_weight and self.contrast_steps < 2:
            raise UserError(
                f"contrast_steps is {self.contrast_steps}; L_step needs at least 2 steps "
                "(or --contrast-weight 0)"
            )

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss needs a teacher pass (the plain AR baseline does not)."""
        return bool(self.mim_weight or self.contrast_weight)

    def baseline(self) -> "ObjectiveConfig":
        """The plain AR objective on the identical sequences: no mask, no extra loss, same EMA."""
        return dataclasses.replace(self, mim_weight=0.0, contrast_weight=0.0, mask_ratio=0.0)

    def resolved_contrast_layer(self, model: ModelConfig) -> int:
        """The layer whose output is contrasted, checked against the model's depth."""
        layer = self.contrast_layer
        if layer == 0:
            layer = {"B": 6, "L": 18, "XL": 18}.get(model.size_name or "", max(1, model.layers // 2))
        if layer > model.layers:
            raise UserError(f"contrast_layer is {layer}; the model has layers 1 to {model.layers}")
        return layer

    def check_model(self, model: ModelConfig) -> None:
        """Raise ``UserError`` where the objective does not fit the model's depth or grid."""
        self.resolved_contrast_layer(model)
        available = model.tokens - self.min_step + 1
        if self.contrast_weight and self.contrast_steps > available:
            raise UserError(
                f"contrast_steps is {self.contrast_steps}; only {max(available, 0)} steps from "
                f"min_step {self.min_step} to T = {model.tokens} can be drawn"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run; ``config.json`` in the run folder holds exactly this."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: str = option(
        "digits", "Source name (digits, photos), image folder, or folder of code stores."
    )
    seed: int = option(0, "Seed of everything random.")
    batch_size: int = option(
        64, "Images a step, over all processes; a step sees this times views sequences."
    )
    accumulate: int = option(
        1, "Parts a step's batch is computed in, to save memory; not with the contrastive losses."
    )
    max_steps: int = option(400, "Optimiser steps of the whole run.")
    lr: float = option(1e-3, "Peak learning rate of AdamW.")
    schedule: Literal["constant", "cosine"] = option("cosine", "Learning rate after the warm-up.")
    warmup_steps: int = option(20, "Steps of linear warm-up from 0.")
    beta1: float = option(0.9, "First AdamW beta.")
    beta2: float = option(0.95, "Second AdamW beta (LlamaGen's; the paper's 0.05 is a misprint).")
    weight_decay: float = option(0.05, "Weight decay on tensors of two or more dimensions.")
    clip: float = option(1.0, "Gradient norm above which gradients are scaled down; 0 turns it off.")
    dropout: float = option(0.1, "Dropout on token embeddings and on the two residual branches.")
    class_dropout: float = option(0.1, "Chance that a sequence's class becomes the null class.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "Autocast precision; auto takes what is fast here; fp16 scales the loss."
    )
    compile: bool = option(
        False, "Compile the blocks (torch.compile): half a minute at the start, faster steps after."
    )
    checkpoint_activations: bool = option(
        False, "Keep only the blocks' inputs for the backward pass: less memory, a third more work."
    )
    shard: bool = option(
        False, "Cut weights, teacher and optimizer over the processes (FSDP2) instead of copying them."
    )
    deterministic: bool = option(
        False,
        "Only operations that give the same bits every time: a resumed run is then bit-equal on GPUs "
        "too (slower there; CPUs are exact without).",
    )
    log_every: int = option(10, "Steps between two lines of metrics.")
    validate_every: int = option(100, "Steps between two validations; the last step always validates.")
    diagnose_every: int = option(
        0,
        "Steps between two diagnoses (kNN accuracy, attention, rank, gradient cosines); each costs "
        "about four steps of the tiny preset; the last step is always diagnosed; 0 turns them off.",
    )
    sample_every: int = option(
        0,
        "Steps between two pictures of samples of teacher and student (RUN/samples), of the same seeds "
        "and classes every time, as star sample draws them; drawn at the last step too; 0: none.",
    )
    sample_each: int = option(
        10,
        "Samples a class for --sample-every, of teacher and student each; of more than 20 classes, 20 "
        "are drawn by the seed. 10 of 10 classes cost about ten steps of the tiny preset each time.",
    )
    classifier: str = option(
        "",
        "Looks at the samples of --sample-every: in what share does it see the class that was asked "
        "for? A file of star train-classifier, or cifar10 (the package's, for CIFAR-10's classes).",
    )
    save_every: int = option(200, "Steps between two checkpoints; the end always saves.")
    workers: int = option(
        0, "Processes that prepare batches ahead; 0 prepares them in the training loop."
    )
    keep: int = option(2, "Newest checkpoints to keep, at least 2.")

    def __post_init__(self) -> None:
        if not self.model.null_class:
            raise UserError("null_class is False; star train always makes a null class: leave it out")
        require_choice("schedule", self.schedule, ("constant", "cosine"))
        require_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        for name in ("batch_size", "max_steps", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise UserError(
                f"accumulate is {self.accumulate}; expected a divisor of batch_size {self.batch_size}"
            )
        if self.accumulate > 1 and self.objective.contrast_weight:
            raise UserError(
                f"accumulate is {self.accumulate}; the contrastive losses and the projector's batch "
                "norm need the whole batch at once: use more processes, or --contrast-weight 0"
            )
        if self.keep < 2:
            raise UserError(f"keep is {self.keep}; expected at least 2, one to fall back on")
        for name in (
            "seed", "workers", "warmup_steps", "weight_decay", "clip", "diagnose_every", "sample_every",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number >= 0")
        if not 1 <= self.sample_each <= 100:
            raise UserError(f"sample_each is {self.sample_each}; expected 1 to 100 samples a class")
        if self.classifier and not self.sample_every:
            raise UserError(
                f"classifier is {self.classifier}, but nothing is drawn that it could look at: give "
                "--sample-every N too"
            )
        if self.workers > 1000:
            raise UserError(f"workers is {self.workers}; expected at most 1000 processes")
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr is {self.lr}; expected a number > 0")
        for name in ("dropout", "class_dropout", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 <= value < 1")
        if self.objective.contrast_weight and self.batch_size < 2:
            raise UserError(
                f"batch_size is {self.batch_size}; the contrastive losses need the other images of "
                "the batch as negatives: at least 2 (or --contrast-weight 0)"
            )

    def fitted_to(self, *, grid: int, vocab_size: int, num_classes: int) -> "TrainConfig":
        """This configuration with the model's grid, vocabulary and classes set to those of the data."""
        model = dataclasses.replace(
            self.model, grid=grid, vocab_size=vocab_size, num_classes=num_classes
        )
        return dataclasses.replace(self, model=model)


def preset(name: str) -> TrainConfig:
    """A whole configuration by size: ``tiny`` for two CPU cores, the others as LlamaGen and the paper.

    B to 3B: batch 256, constant learning rate 1e-4 per 256 images, EMA 0.9999, 50 ImageNet epochs.
    """
    name = next((size for size in SIZES if size.casefold() == name.casefold()), name)
    require_choice("preset", name, SIZES)
    layers, heads, width = SIZES[name]
    if name == "tiny":
        return TrainConfig(
            model=ModelConfig(layers=layers, heads=heads, width=width),
            objective=ObjectiveConfig(ema_decay=0.99),
            batch_size=32,
            max_steps=500,
            lr=4e-3,
            diagnose_every=100,
        )
    return TrainConfig(
        model=ModelConfig(
            layers=layers, heads=heads, width=width, grid=16, vocab_size=16384, num_classes=1000
        ),
        objective=ObjectiveConfig(),
        batch_size=256,
        max_steps=50 * (1_281_167 // 256),
        lr=1e-4,
        schedule="constant",
        warmup_steps=0,
        log_every=100,
        validate_every=5000,
        diagnose_every=5000,
        save_every=5000,
    )


def for_cuda(config: TrainConfig, chosen: Collection[str]) -> TrainConfig:
    """``config`` as a GPU wants it in what changes speed alone, where the user has not ``chosen``.

    Batches are made ahead by two processes, and the blocks of B and larger are compiled: their work
    element by element is most of a step there, and the wait for the compiler a small part of such runs.
    """
    layers, _, width = SIZES["B"]
    large = config.model.layers * config.model.width**2 >= layers * width**2
    wanted: Record = {"workers": 2, "compile": large}
    return dataclasses.replace(config, **{k: v for k, v in wanted.items() if k not in chosen})
