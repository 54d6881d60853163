"""What looking costs: memory of a few attention rows against whole patterns, and the time of both.

Every memory is measured in a process of its own, as what the forward pass and all it captured take at
most beyond the model; the pass without capture is subtracted.
"""

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from probes.reading.features import capture_steps, uniform_steps
from probes.speed.timing import Timings, alternate
from star.base.device import peak_memory_bytes, reset_peak_memory, resident_bytes, resolve_device
from star.base.randomness import torch_generator
from star.model.config import ModelConfig
from star.model.transformer import Transformer, build_model

__all__ = ["ARMS", "AttentionBench", "bench_attention"]

ARMS = ("no capture", "rows", "whole patterns")


@dataclass(frozen=True)
class AttentionBench:
    """``timings`` by arm; ``memory`` of the last two: peak bytes beyond the pass without capture."""

    timings: Timings
    memory: dict[str, int]

    @property
    def memory_ratio(self) -> float:
        """Memory of the rows over that of the whole patterns."""
        return self.memory[ARMS[1]] / self.memory[ARMS[2]]


def bench_attention(
    config: ModelConfig,
    device: torch.device,
    *,
    images: int = 32,
    steps: int = 8,
    rounds: int = 6,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> AttentionBench:
    """Capture all layers of ``images`` random images: rows at ``steps`` steps, whole patterns."""
    model = build_model(config, torch_generator(0, "bench"), device)
    timings = alternate(
        {arm: functools.partial(_pass, model, arm, images, steps) for arm in ARMS},
        rounds=rounds,
        warmup=1,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        on_round=on_round,
    )
    peaks = {}
    for arm in ARMS:
        with get_context("spawn").Pool(1) as pool:
            peaks[arm] = pool.apply(capture_memory, (config, str(device), arm, images, steps))
    return AttentionBench(timings, {arm: peaks[arm] - peaks[ARMS[0]] for arm in ARMS[1:]})


def capture_memory(config: ModelConfig, device: str, arm: str, images: int, steps: int) -> int:
    """Peak bytes of one pass beyond the model; small passes come first, so that all is loaded."""
    where = resolve_device(device)
    model = build_model(config, torch_generator(0, "bench"), where)
    for _ in range(2):
        _pass(model, arm, 1, steps)
    gc.collect()
    before = resident_bytes(where)
    reset_peak_memory(where)
    kept = _pass(model, arm, images, steps)
    peak = peak_memory_bytes(where) - before
    assert len(kept) == (0 if arm == ARMS[0] else config.layers)
    return peak


@torch.no_grad()
def _pass(
    model: Transformer, arm: str, images: int, steps: int, index: int = 0
) -> dict[str, torch.Tensor]:
    config, device = model.config, model.output.weight.device
    seen = torch.zeros(images, config.tokens - 1, dtype=torch.long, device=device)
    labels_B = torch.zeros(images, dtype=torch.long, device=device)
    names = [] if arm == ARMS[0] else [f"layers.{n + 1}.attention" for n in range(config.layers)]
    at = uniform_steps(config.tokens, steps) if arm == ARMS[1] else None
    return capture_steps(model, seen, labels_B, names, at)
