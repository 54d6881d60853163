"""Cached autoregressive sampling with classifier-free guidance, as LlamaGen does it.

Each step: guidance ``uncond + s (cond - uncond)``, then temperature, top-k, top-p, then one draw. The
cache belongs to the call (``star.model.decoder``), and the model is left as it was. The randomness of
an image depends on its own seed alone, so an image does not change with the batch it is sampled in.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from star.base.device import require_memory
from star.base.errors import UserError, require_choice
from star.base.progress import Progress, nothing
from star.base.randomness import generator
from star.model.classes import class_numbers, null_label
from star.model.config import ModelConfig
from star.model.decoder import decoder
from star.model.kv_cache import cache_bytes
from star.model.transformer import Transformer

__all__ = ["SCHEDULES", "check_sampling", "filter_logits", "generate", "guide"]

SCHEDULES = ("constant", "linear")  # of guidance over the tokens of an image


@torch.no_grad()
def generate(
    model: Transformer,
    labels_B: Tensor | np.ndarray | Sequence[int],
    *,
    seeds: Sequence[int],
    cfg_scale: float = 2.0,
    cfg_interval: int = -1,
    cfg_schedule: str = "constant",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
    prefix_BK: Tensor | None = None,
    on_step: Progress = nothing,
) -> Tensor:
    """Sample (B, T) tokens, one image a label and a seed.

    cfg_scale: 1 is no guidance. cfg_interval: guidance ends after this many decoded tokens beyond the
    first two, -1 never (LlamaGen's convention). cfg_schedule: a name of ``SCHEDULES``.
    top_k 0 and top_p 1 keep the whole distribution.
    greedy: take the most likely token. prefix_BK: the first K tokens, given instead of drawn; the
    others are drawn with the numbers they would have without it. on_step(done, T) reports progress.

    Raises ``UserError`` for a label outside the classes, a wrong number of seeds, a sampling parameter
    out of range, a prefix that does not fit, or guidance of a model without a null class.
    """
    config, device = model.config, model.output.weight.device
    labels = torch.as_tensor(labels_B, device=device)
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.numel() and not whole:  # an empty list has no type of its own
        raise UserError(f"labels are {labels.dtype}; expected whole numbers".replace("torch.", ""))
    labels = labels.long()
    require_choice("cfg_schedule", cfg_schedule, SCHEDULES)
    _check(labels, seeds, config, cfg_scale, temperature, top_k, top_p)
    count, guided = len(labels), cfg_scale != 1.0
    given_BK = _checked_prefix(prefix_BK, count, config, device)
    if guided:
        unguided = null_label(config, f"guidance (cfg_scale {cfg_scale:g})", "give --cfg-scale 1")
    dtype = model.output.weight.dtype
    cached = cache_bytes(config, (1 + guided) * count, dtype)
    require_memory(f"the cache of {count:,} images", cached, device)
    # Drawn up front, one row an image: inverse-CDF sampling needs one uniform number a token.
    uniform_BT = torch.from_numpy(
        np.stack([generator(int(seed), "sample").random(config.tokens) for seed in seeds])
    ).to(device)
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, unguided)])
    decode = decoder(model, len(labels))
    tokens_BT = torch.empty(count, config.tokens, dtype=torch.long, device=device)
    new_Bn = torch.empty(len(labels), 0, dtype=torch.long, device=device)
    for t in range(config.tokens):
        logits_BV = decode(new_Bn, labels if t == 0 else None)
        if guided:
            strength = _strength(cfg_scale, cfg_schedule, t, config.tokens)
            if 0 <= cfg_interval < t - 1:
                strength = 1.0
            cond_BV, uncond_BV = logits_BV.chunk(2)
            logits_BV = guide(cond_BV, uncond_BV, strength)
        if t < given_BK.shape[1]:
            chosen_B = given_BK[:, t]
        elif greedy:
            chosen_B = logits_BV.argmax(-1)
        else:
            logits_BV = filter_logits(logits_BV / temperature, top_k, top_p)
            chosen_B = _draw(logits_BV, uniform_BT[:, t])
        tokens_BT[:, t] = chosen_B
        new_Bn = (chosen_B.repeat(2) if guided else chosen_B)[:, None]
        on_step(t + 1, config.tokens)
    return tokens_BT


def _strength(scale: float, schedule: str, step: int, steps: int) -> float:
    """Guidance at the 0-based ``step``: linear grows with the share of tokens that are then decided.

    ``1 + (s - 1) (t + 1) / T`` is MAR's rule (Li et al. 2024), with a token a step.
    """
    return scale if schedule == "constant" else 1.0 + (scale - 1.0) * (step + 1) / steps


def guide(cond_BV: Tensor, uncond_BV: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits."""
    return uncond_BV + scale * (cond_BV - uncond_BV)


def filter_logits(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set what top-k, then top-p exclude to -inf.

    Top-k keeps ties with the k-th logit; top-p keeps the smallest set whose probability exceeds
    ``top_p`` (always at least the most likely token).
    """
    if 0 < top_k < logits_BV.shape[-1]:
        threshold = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < threshold, float("-inf"))
    if top_p < 1.0:
        ordered, order = logits_BV.sort(descending=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        drop = (before > top_p).scatter(1, order, before > top_p)
        drop.scatter_(1, order[:, :1], False)
        logits_BV = logits_BV.masked_fill(drop, float("-inf"))
    return logits_BV


def _draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Inverse-CDF draw in float64; never an excluded token."""
    cumulative = logits_BV.double().softmax(-1).cumsum(-1)
    target = uniform_B[:, None] * cumulative[:, -1:]
    # right=True: the first index whose cumulative sum exceeds the target has probability > 0.
    chosen = torch.searchsorted(cumulative, target, right=True)[:, 0]
    last_possible = (cumulative < cumulative[:, -1:]).sum(-1)
    return torch.minimum(chosen, last_possible)


def _checked_prefix(
    prefix_BK: Tensor | None, count: int, config: ModelConfig, device: torch.device
) -> Tensor:
    """(B, K) int64 tokens to begin with, K = 0 where none are given."""
    if prefix_BK is None:
        return torch.empty(count, 0, dtype=torch.long, device=device)
    shape, most = tuple(prefix_BK.shape), config.tokens
    if prefix_BK.ndim != 2 or shape[0] != count or shape[1] > most:
        raise UserError(f"prefix has shape {shape}; expected ({count}, K), K at most {most}")
    if prefix_BK.is_floating_point() or prefix_BK.is_complex() or prefix_BK.dtype == torch.bool:
        kind = str(prefix_BK.dtype).replace("torch.", "")
        raise UserError(f"prefix is {kind}; expected whole numbers")
    tokens_BK = prefix_BK.long()
    outside = tokens_BK[(tokens_BK < 0) | (tokens_BK >= config.vocab_size)]
    if len(outside):
        raise UserError(f"prefix has code {int(outside[0])}; expected 0 to {config.vocab_size - 1}")
    return tokens_BK.to(device)


def _check(
    labels: Tensor,
    seeds: Sequence[int],
    config: ModelConfig,
    cfg_scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    if labels.ndim != 1 or len(labels) == 0:
        raise UserError(f"labels have shape {tuple(labels.shape)}; expected (B,) with B at least 1")
    if len(seeds) != len(labels):
        raise UserError(f"{len(seeds)} seeds were given for {len(labels)} labels; expected one each")
    if min(seeds) < 0:
        raise UserError(f"seed is {min(seeds)}; expected at least 0")
    outside = labels[(labels < 0) | (labels >= config.class_rows)]
    if len(outside):
        numbers = class_numbers(config.num_classes, config.null_class)
        raise UserError(f"label {int(outside[0])} does not exist; expected {numbers}")
    check_sampling(cfg_scale, temperature, top_k, top_p)


def check_sampling(cfg_scale: float, temperature: float, top_k: int, top_p: float) -> None:
    """Raise ``UserError`` for a parameter of ``generate`` that is out of range."""
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature is {temperature}; expected a number > 0 (or greedy decoding)")
    if not 0 <= cfg_scale < math.inf:
        raise UserError(f"cfg_scale is {cfg_scale}; expected a number >= 0 (1 is no guidance)")
    if top_k < 0:
        raise UserError(f"top_k is {top_k}; expected >= 0 (0 keeps all)")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}; expected 0 < top_p <= 1")
