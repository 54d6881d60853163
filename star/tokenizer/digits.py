"""The tokenizer of the handwritten digits, which the program trains for itself and keeps.

32 x 32 pixels become 8 x 8 tokens of 256. It is trained on the training split only, in about a minute
on two CPU cores, and measured on the held-out one.
"""

import hashlib
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from star.base.progress import Progress, nothing
from star.base.randomness import generator
from star.images.views import scaled
from star.tokenizer.config import TokenizerConfig, tokenizer_preset
from star.tokenizer.file import cache_folder, load_tokenizer, require_cache, save_tokenizer
from star.tokenizer.learner import TokenizerLearner
from star.tokenizer.model import VQModel
from star.tokenizer.quality import evaluate_tokenizer

__all__ = ["digits_tokenizer", "digits_tokenizer_path"]

RECIPE = replace(
    tokenizer_preset("small"), max_steps=280, batch_size=32, warmup_steps=20, revive_every=20
)
VIEWS = "affine-8"  # the warps that the code stores of the digits are made with
# What of the settings does not reach the tokenizer, and so is no part of its name: the images, which
# are made here, the losses that are off, and what a run's folder holds. Any other setting is.
_IDLE = {
    "data", "name", "sizes", "views", "mosaic", "precision",
    "lpips_weight", "disc_weight", "disc_start", "disc_adaptive", "disc_channels", "disc_layers",
    "log_every", "validate_every", "val_images", "draw_every", "save_every", "keep",
}  # fmt: skip


def digits_tokenizer_path() -> Path:
    """Where the tokenizer of the present recipe is kept, whether or not it exists yet."""
    settings = {name: value for name, value in asdict(RECIPE).items() if name not in _IDLE}
    recipe = {"views": VIEWS, **settings}
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    return cache_folder() / f"digits-{name}.safetensors"


def digits_tokenizer(
    on_step: Progress = nothing, *, device: torch.device | str = "cpu"
) -> tuple[VQModel, Path]:
    """The tokenizer and its file in the cache folder, trained there if it is not there yet.

    ``on_step(step, steps)`` is called after every step. Raises ``UserError`` if the cache folder
    cannot be written to.
    """
    path = digits_tokenizer_path()
    if path.exists():
        return load_tokenizer(path, device), path
    require_cache()
    start = time.monotonic()
    train_NCHW, held_out_NCHW = _digits("train", VIEWS), _digits("val", "plain")
    learner = TokenizerLearner(RECIPE, device)
    for step in range(RECIPE.max_steps):
        learner.update(scaled(train_NCHW[_picks(RECIPE, step, len(train_NCHW))]), step)
        on_step(step + 1, RECIPE.max_steps)
    card = {
        "name": "digits",
        "data": f"scikit-learn digits, train split, {len(train_NCHW)} views ({VIEWS})",
        "steps": RECIPE.max_steps,
        "batch_size": RECIPE.batch_size,
        "seed": RECIPE.seed,
        "precision": str(learner.precision).removeprefix("torch."),
        "measured_on": f"val split, {len(held_out_NCHW)} images",
        **evaluate_tokenizer(learner.model, held_out_NCHW),
        "seconds": round(time.monotonic() - start, 1),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    save_tokenizer(learner.model, path, card)
    return load_tokenizer(path, device), path


def _picks(config: TokenizerConfig, step: int, images: int) -> torch.Tensor:
    rng = generator(config.seed, "tokenizer-batch", step)
    return torch.from_numpy(rng.choice(images, size=min(config.batch_size, images), replace=False))


def _digits(split: str, views: str) -> torch.Tensor:
    """All views of one split as uint8 (N, 3, 32, 32)."""
    # imported here: the cached tokenizer needs neither
    from star.images.open import open_source
    from star.images.views import view_set

    source = open_source("digits")
    images, cut = source.splits[split], view_set(views, source.native_size)
    pixels_NHWC = np.concatenate([cut(images.load(i), i) for i in range(len(images))])
    return torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).contiguous()
