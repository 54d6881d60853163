"""Train a small VQ tokenizer, and the digits tokenizer that the program makes for itself.

    L = l1 |x - y| + l2 (x - y)^2 + codebook |sg(z) - e|^2 + commitment |z - sg(e)|^2

with z the encoder's vectors and e their nearest codes, both L2-normalised, y the image decoded from e
with the straight-through gradient, all as means over elements (van den Oord et al. 2017; the normalised
codes after ViT-VQGAN). No adversarial or perceptual term: at 32 pixels the plain one is enough. The
codebook starts from the first encodings, and codes that nothing chose for a while are moved onto
encoder outputs that are represented worst.

Shape suffixes: B images, C channels, H W pixels, E code dimension, V codebook size, g grid, N = B g g.
"""

import dataclasses
import functools
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from star.device import autocast, resolve_precision
from star.errors import UserError
from star.randomness import generator, torch_generator
from star.tokenizer import default_tokenizer_path, load_tokenizer, require_cache, save_tokenizer
from star.vq import VQModel
from star.vq_config import VQConfig, vq_preset

__all__ = [
    "TokenizerTrainConfig",
    "digits_recipe",
    "digits_tokenizer",
    "evaluate_tokenizer",
    "reconstruction_psnr",
    "train_tokenizer",
]

Images = torch.Tensor | Callable[[int], torch.Tensor]
Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class TokenizerTrainConfig:
    """One training run of a tokenizer; the defaults are the digits recipe."""

    steps: int = 280  # optimiser steps
    batch_size: int = 32  # images a step (a callable that makes the batches decides itself)
    lr: float = 2e-3  # peak of AdamW, after a linear warm-up, falling to 0 as a cosine
    warmup_steps: int = 20  # steps of linear warm-up
    l1_weight: float = 1.0  # weight of the mean absolute error of the pixels
    l2_weight: float = 1.0  # weight of the mean squared error of the pixels
    codebook_weight: float = 1.0  # weight of the term that moves codes to the encoder's vectors
    commitment_weight: float = 0.25  # weight of the term that moves the vectors to their codes
    revive_every: int = 20  # steps between two revivals of codes not chosen since the last; 0: never
    revive_until: float = 0.75  # share of the run after which codes are left alone
    clip: float = 1.0  # gradient norm above which gradients are scaled down
    seed: int = 0  # seed of weights, batches and revivals

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"tokenizer {name} is {getattr(self, name)}; expected at least 1")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"tokenizer {name} is {getattr(self, name)}; expected a number > 0")
        names = ("warmup_steps", "l1_weight", "l2_weight", "codebook_weight", "commitment_weight")
        for name in (*names, "revive_every", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"tokenizer {name} is {getattr(self, name)}; expected a number >= 0")
        if not 0 <= self.revive_until <= 1:
            raise UserError(f"tokenizer revive_until is {self.revive_until}; expected 0 to 1")


def train_tokenizer(
    images: Images,
    config: TokenizerTrainConfig,
    vq_config: VQConfig,
    *,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: torch.device | str = "cpu",
    on_step: Progress | None = None,
) -> VQModel:
    """Train on images (N, 3, H, W), uint8 or float in [-1, 1], or on ``images(step)`` -> such a batch.

    ``on_step(step, steps, metrics)`` is called after every step (1-based) with the unweighted terms
    and the number of codes the batch used. Returns the model in eval mode without gradient. Raises
    ``UserError`` on unfit images and on a loss that is not finite, naming the step.
    """
    device = torch.device(device)
    model = _new_model(vq_config, config.seed).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
    half = functools.partial(autocast, device, resolve_precision(precision, device))
    chosen_V = torch.zeros(vq_config.codebook_size, dtype=torch.long, device=device)
    for step in range(config.steps):
        images_BCHW = _batch(images, config, step).to(device)
        with half():
            z_BEgg = model.encode_features(images_BCHW)
        z_BEgg = F.normalize(z_BEgg.float(), dim=1)
        if step == 0:
            _revive(model, z_BEgg, torch.ones_like(chosen_V, dtype=torch.bool), config.seed, step)
        terms, indices_Bgg = _losses(model, images_BCHW, z_BEgg, half)
        total = (
            config.l1_weight * terms["l1"]
            + config.l2_weight * terms["l2"]
            + config.codebook_weight * terms["codebook"]
            + config.commitment_weight * terms["commitment"]
        )
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        if not math.isfinite(total.item()) or not math.isfinite(norm.item()):
            raise UserError(
                f"the tokenizer's loss is not finite at step {step + 1}: lower its learning rate "
                f"({config.lr}) or train it in fp32"
            )
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(step, config)
        optimizer.step()
        counts_V = torch.bincount(indices_Bgg.flatten(), minlength=vq_config.codebook_size)
        chosen_V += counts_V
        if _revives_after(step, config):
            _revive(model, z_BEgg.detach(), chosen_V == 0, config.seed, step + 1, optimizer)
            chosen_V.zero_()
        if on_step is not None:
            metrics = {name: value.item() for name, value in terms.items()}
            metrics |= {"loss": total.item(), "codes_used": int((counts_V > 0).sum())}
            on_step(step + 1, config.steps, metrics)
    return model.eval().requires_grad_(False)


def evaluate_tokenizer(model: VQModel, images_NCHW: torch.Tensor, batch_size: int = 64) -> dict:
    """``psnr`` (dB, mean over images, peak 2 on [-1, 1]), ``codes_used`` and ``perplexity`` of the
    codes (exp of their entropy), on images (N, 3, H, W), uint8 or float in [-1, 1].
    """
    if not len(images_NCHW):
        raise UserError("there are no images to measure the tokenizer on")
    device = model.quant_conv.weight.device
    counts_V = torch.zeros(model.config.codebook_size, dtype=torch.long)
    errors = []
    with torch.no_grad():
        for images_BCHW in images_NCHW.split(batch_size):
            images_BCHW = _scaled(images_BCHW).to(device)
            indices_Bgg = model.encode(images_BCHW)
            drawn_BCHW = model.decode(indices_Bgg).clamp(-1, 1)
            errors.append((drawn_BCHW - images_BCHW).square().flatten(1).mean(dim=1).cpu())
            counts_V += torch.bincount(indices_Bgg.flatten().cpu(), minlength=len(counts_V))
    # a perfect copy would be infinite: the floor is 100 dB
    psnr_N = 10 * torch.log10(4 / torch.cat(errors).double().clamp(min=4e-10))
    share_V = counts_V.double() / counts_V.sum()
    entropy = -torch.special.xlogy(share_V, share_V).sum()
    return {
        "psnr": psnr_N.mean().item(),
        "codes_used": int((counts_V > 0).sum()),
        "perplexity": entropy.exp().item(),
    }


def reconstruction_psnr(model: VQModel, images_NCHW: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of the reconstructions; see ``evaluate_tokenizer``."""
    return evaluate_tokenizer(model, images_NCHW)["psnr"]


# ---- the digits tokenizer ----------------------------------------------------------------------

DIGITS_TRAIN = TokenizerTrainConfig()
DIGITS_VIEWS = "affine-8"  # the warps that the code stores of the digits are made with


def digits_recipe() -> str:
    """Short hash of everything that decides the digits tokenizer; it is part of its file name."""
    recipe = {
        "train": dataclasses.asdict(DIGITS_TRAIN),
        "shape": dataclasses.asdict(vq_preset("small")),
        "views": DIGITS_VIEWS,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]


def digits_tokenizer(
    cache: Path | str | None = None,
    on_step: Progress | None = None,
    *,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    device: torch.device | str = "cpu",
) -> tuple[VQModel, Path]:
    """The tokenizer of the handwritten digits (32 x 32 -> 8 x 8 tokens of 256), and its file.

    Loaded from ``cache`` (the default folder if None) or, the first time, trained there: about a
    minute on two CPU cores. It is trained on the training split only and measured on the held-out one.
    """
    path = default_tokenizer_path()
    if cache is not None:
        path = Path(cache) / path.name
    if path.exists():
        return load_tokenizer(path, device), path
    if cache is None:
        require_cache()
    config = DIGITS_TRAIN
    start = time.monotonic()
    train_NCHW, held_out_NCHW = _digits("train", DIGITS_VIEWS), _digits("val", "plain")
    model = train_tokenizer(
        train_NCHW, config, vq_preset("small"), precision=precision, device=device, on_step=on_step
    )
    half = resolve_precision(precision, torch.device(device)) is torch.bfloat16
    card = {
        "name": "digits",
        "data": f"scikit-learn digits, train split, {len(train_NCHW)} views ({DIGITS_VIEWS})",
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "recipe": digits_recipe(),
        "precision": "bf16" if half else "fp32",
        "measured_on": f"val split, {len(held_out_NCHW)} images",
        **evaluate_tokenizer(model, held_out_NCHW),
        "seconds": round(time.monotonic() - start, 1),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    save_tokenizer(model, path, card)
    return load_tokenizer(path, device), path


def _digits(split: str, views: str) -> torch.Tensor:
    """All views of one split as uint8 (N, 3, 32, 32)."""
    # imported here: training on other images needs neither
    from star.images import open_source
    from star.views import view_set

    source = open_source("digits")
    images, cut = source.splits[split], view_set(views, source.native_size)
    pixels_NHWC = np.concatenate([cut(images.load(i), i) for i in range(len(images))])
    return torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).contiguous()


# ---- pieces of the training loop ---------------------------------------------------------------


def _losses(
    model: VQModel, images_BCHW: torch.Tensor, z_BEgg: torch.Tensor, half: Callable
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    codes_BEgg, indices_Bgg = model.quantize(z_BEgg)
    # straight through: the decoder's gradient passes to z as if the code were z itself
    through_BEgg = z_BEgg + (codes_BEgg - z_BEgg).detach()
    with half():
        drawn_BCHW = model.decode_codes(through_BEgg)
    drawn_BCHW = drawn_BCHW.float()
    terms = {
        "l1": F.l1_loss(drawn_BCHW, images_BCHW),
        "l2": F.mse_loss(drawn_BCHW, images_BCHW),
        "codebook": F.mse_loss(codes_BEgg, z_BEgg.detach()),
        "commitment": F.mse_loss(z_BEgg, codes_BEgg.detach()),
    }
    return terms, indices_Bgg


@torch.no_grad()
def _revive(
    model: VQModel,
    z_BEgg: torch.Tensor,
    dead_V: torch.Tensor,
    seed: int,
    step: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Move dead codes onto encoder outputs, drawn by how badly the codes in use represent them."""
    dead = int(dead_V.sum())
    if not dead:
        return
    z_NE = z_BEgg.permute(0, 2, 3, 1).reshape(-1, z_BEgg.shape[1])
    weight = model.quantize.embedding.weight
    if dead < len(weight):
        alive_VE = F.normalize(weight[~dead_V], dim=-1)
        weights_N = 1 - (z_NE @ alive_VE.T).amax(dim=1)
    else:  # the first codes: the rarer a direction, the likelier
        weights_N = 1 - z_NE @ F.normalize(z_NE.mean(dim=0), dim=0)
    # never zero, so that there are always enough vectors to draw; NaN is reported by the loss
    weights = weights_N.double().nan_to_num().clamp(min=0).cpu().numpy() + 1e-6
    rng = generator(seed, "tokenizer-revive", step)
    picks = rng.choice(len(z_NE), size=dead, replace=dead > len(z_NE), p=weights / weights.sum())
    weight[dead_V] = z_NE[torch.from_numpy(picks).to(z_NE.device)].to(weight.dtype)
    if optimizer is not None:
        for name in ("exp_avg", "exp_avg_sq"):  # moments of the code that was there before
            optimizer.state[weight][name][dead_V] = 0


def _revives_after(step: int, config: TokenizerTrainConfig) -> bool:
    due = config.revive_every and (step + 1) % config.revive_every == 0
    return bool(due) and step + 1 <= config.revive_until * config.steps


def _schedule(step: int, config: TokenizerTrainConfig) -> float:
    """Factor of the learning rate: linear warm-up, then a half cosine to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    left = max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / left))


def _batch(images: Images, config: TokenizerTrainConfig, step: int) -> torch.Tensor:
    if callable(images):
        return _scaled(images(step))
    if not len(images):
        raise UserError("there are no images to train the tokenizer on")
    rng = generator(config.seed, "tokenizer-batch", step)
    count = min(config.batch_size, len(images))
    picks = rng.choice(len(images), size=count, replace=False)
    return _scaled(images[torch.from_numpy(picks)])


def _scaled(images: torch.Tensor) -> torch.Tensor:
    """uint8 as float in [-1, 1]; anything else as it is (the model checks it)."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def _new_model(vq_config: VQConfig, seed: int) -> VQModel:
    """Model with torch's usual initial distributions, drawn from our own generator."""
    with torch.device("meta"):  # so that the constructors draw nothing from the global one
        model = VQModel(vq_config)
    model = model.to_empty(device="cpu")
    rng = torch_generator(seed, "tokenizer-weights")
    model.quantize.codebook_used.zero_()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=rng)
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.bias, -bound, bound, generator=rng)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=rng)
    return model
