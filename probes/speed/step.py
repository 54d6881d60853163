"""How fast is a training step: ST-AR against plain AR, and AR against LlamaGen's way of computing it.

All arms train on the same sequences of random tokens with the same precision, dropout and clipping.
"""

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes.speed.llamagen import LlamaGenStep
from probes.speed.timing import Timings, alternate
from star.base.device import peak_memory_bytes, reset_peak_memory, resident_bytes, resolve_device
from star.codes.store import CodeStore
from star.model.config import ModelConfig
from star.training.batches import TrainLoader
from star.training.config import TrainConfig
from star.training.learner import Learner

__all__ = ["ARMS", "StepBench", "bench_step", "random_store"]

ARMS = ("LlamaGen's way", "AR", "ST-AR")


@dataclass(frozen=True)
class StepBench:
    """``timings`` by arm; ``memory`` of AR and ST-AR: peak bytes, teacher's weights aside."""

    timings: Timings
    memory: dict[str, int]
    sequences: int
    precision: str


def random_store(config: TrainConfig, images: int) -> CodeStore:
    """A store of uniformly random tokens, in memory, with as many views as the objective draws."""
    model, views = config.model, config.objective.views
    rng = np.random.default_rng(config.seed)
    return CodeStore(
        path=Path("random"),
        codes=rng.integers(0, model.vocab_size, (images, views, model.tokens), dtype=np.uint16),
        labels=rng.integers(0, model.num_classes, images),
        manifest={
            "grid": model.grid,
            "tokens": model.tokens,
            "vocab_size": model.vocab_size,
            "views": views,
            "test_view": 0,
            "class_names": [str(label) for label in range(model.num_classes)],
        },
    )


def bench_step(
    config: TrainConfig,
    device: torch.device,
    *,
    rounds: int = 10,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> StepBench:
    """Time ``rounds`` steps of each arm of ``ARMS`` for ``config``, whose objective is ST-AR's."""
    configs = _configs(config)
    loader = TrainLoader(random_store(config, 4 * config.batch_size), config)
    reference = LlamaGenStep(configs["AR"], device)
    learners = {name: Learner(config, device) for name, config in configs.items()}
    batches = [loader.batch(step) for step in range(4)]

    def arm(name: str) -> Callable[[int], object]:
        if name in learners:
            return lambda index: learners[name].update(batches[index % 4], index)
        return lambda index: reference.update(batches[index % 4])

    timings = alternate(
        {name: arm(name) for name in ARMS},
        rounds=rounds,
        warmup=2,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        on_round=on_round,
    )
    memory = {name: _in_fresh_process(config, str(device)) for name, config in configs.items()}
    sequences = config.batch_size * config.objective.views
    precision = str(reference.precision).removeprefix("torch.")
    return StepBench(timings, memory, sequences, precision)


def _configs(config: TrainConfig) -> dict[str, TrainConfig]:
    plain = dataclasses.replace(config, objective=config.objective.baseline())
    return {"AR": plain, "ST-AR": config}


def _in_fresh_process(config: TrainConfig, device: str) -> int:
    """Peak memory in a process of its own: what another arm left with the allocator does not count."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(step_memory, (config, device))


def step_memory(config: TrainConfig, device: str) -> int:
    """Bytes that training steps take at most: everything but the teacher's weights and the libraries.

    Steps of a tiny model come first, so that what torch loads at its first use is there.
    """
    where = resolve_device(device)
    small = ModelConfig(layers=2, heads=2, width=32, vocab_size=16)
    objective = dataclasses.replace(config.objective, contrast_layer=0)
    warm: dict[str, Any] = {"model": small, "objective": objective, "batch_size": 2, "accumulate": 1}
    _two_steps(dataclasses.replace(config, **warm), where)
    gc.collect()
    before = resident_bytes(where)
    reset_peak_memory(where)
    learner = _two_steps(config, where)
    teacher = sum(p.numel() * p.element_size() for p in learner.teacher.model.parameters())
    return peak_memory_bytes(where) - before - teacher


def _two_steps(config: TrainConfig, device: torch.device) -> Learner:
    learner = Learner(config, device)
    loader = TrainLoader(random_store(config, 2 * config.batch_size), config)
    for step in range(2):
        learner.update(loader.batch(step), step)
    return learner
