"""How much one pass for all heads saves: the atlas against one layer, and against one head at a time.

Every arm trains heads by MAE's protocol for one epoch on the same random codes, the model's forward
passes streamed (no cache): all layers at K steps in one pass; one layer at K steps in one pass; the K
heads of that layer one after the other, each with a pass of its own (up to its own step). One by one,
the whole grid would take that last time for every layer; no arm leaves the model early.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from probes.linear.mae import HeadBank, MaeConfig, train_heads
from probes.linear.sources import ModelSource
from probes.linear.splits import ProbeSplits, probe_splits
from probes.reading.features import uniform_steps
from probes.speed.step import random_store
from probes.speed.timing import Timings, alternate
from star.base.device import resolve_precision
from star.base.randomness import torch_generator
from star.model.transformer import build_model, check_layers
from star.training.config import TrainConfig

__all__ = ["ARMS", "ProbeBench", "bench_probe"]

ARMS = ("all layers", "one layer", "heads of one layer, one by one")


@dataclass(frozen=True)
class ProbeBench:
    """``timings`` by arm; ``heads`` of the whole grid; ``layers`` of the model."""

    timings: Timings
    heads: int
    layers: int
    precision: str


def bench_probe(
    config: TrainConfig,
    device: torch.device,
    *,
    layer: int,
    steps: int,
    images: int,
    rounds: int,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> ProbeBench:
    """Time one epoch of each arm on ``images`` random images of ``config.model``'s grid and classes.

    Raises ``UserError`` for a layer that does not exist or a number of steps that does not fit.
    """
    shape = config.model
    check_layers(shape, [layer])
    at = uniform_steps(shape.tokens, steps)
    model = build_model(shape, torch_generator(0, "bench"), device)
    splits = probe_splits({name: random_store(config, images) for name in ("train", "val", "test")})
    precision = resolve_precision(config.precision, device)
    every = list(range(1, shape.layers + 1))

    def epoch(layers: list[int], chosen: list[int]) -> None:
        source = ModelSource(model, splits, layers=layers, steps=chosen, precision=precision)
        _train(source, splits)

    def each_step() -> None:
        for step in at:
            epoch([layer], [step])

    timings = alternate(
        {
            ARMS[0]: lambda _: epoch(every, at),
            ARMS[1]: lambda _: epoch([layer], at),
            ARMS[2]: lambda _: each_step(),
        },
        rounds=rounds,
        synchronize=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        on_round=on_round,
    )
    return ProbeBench(timings, shape.layers * steps, shape.layers, str(precision).split(".")[-1])


def _train(source: ModelSource, splits: ProbeSplits) -> None:
    labels_SN: np.ndarray = splits.labels("train")[None]
    bank = HeadBank(source, 1, 1, splits.classes, seed=0)
    train_heads(bank, source, labels_SN, MaeConfig(epochs=1, warmup_epochs=0), seed=0)
