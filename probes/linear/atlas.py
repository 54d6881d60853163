"""The probing atlas: every layer at every step of a checkpoint, each number beside its controls.

The controls are the same probe, with the same protocol, images and choice on the validation part, on

- ``random``: the same layers and steps of the model with the weights its run began with; where the
  checkpoint does not say how it began, the mean of five draws of initial weights, whose accuracies
  differ by half a point (standard deviation);
- ``shuffled``: the checkpoint's features with the training labels permuted;
- ``codes``: a bag of visual words, the tokens seen so far counted (layer 0);
- ``pixels``: the pixels of the area seen so far (layer 0).

Work is done arm by arm (one source, both label sets where it has them); arms that are done and heads in
training are kept in a work folder, so that an interrupted atlas goes on where it was.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.linear.cached import cached
from probes.linear.mae import DEPARTURES
from probes.linear.pixels import small_pictures
from probes.linear.predictions import Predictions
from probes.linear.protocols import ProtocolConfig, describe_protocol, run_protocol, varies
from probes.linear.sharing import share_broken
from probes.linear.sources import CodeSource, ModelSource, PixelSource, Source
from probes.linear.splits import ProbeSplits, check_probe
from probes.linear.work import AtlasWork
from probes.reading.features import check_tokenizer
from probes.results import PROBE_COLUMNS, Result, checkpoint_facts, provenance
from probes.stats.intervals import wilson_interval
from star.base.errors import UserError
from star.base.randomness import generator, torch_generator
from star.images.open import ImageSource
from star.model.transformer import build_model
from star.parallel.processes import world_size
from star.tokenizer.model import VQModel
from star.training.checkpoint import Loaded, initial_model

__all__ = ["CONTROLS", "Atlas", "AtlasConfig", "probe_atlas"]

CONTROLS = ("none", "random", "shuffled", "codes", "pixels")
DATA_CONTROLS = ("codes", "pixels")  # the same for every checkpoint
DRAWS = 5  # of random weights, where a checkpoint does not say its own
OWN_WEIGHTS = "those that the run began with"
DRAWN_WEIGHTS = f"the mean of {DRAWS} draws of initial weights"
Stage = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class AtlasConfig:
    """What is probed and how; ``layers`` and ``steps`` count from 1, ``seeds`` are run one by one."""

    layers: tuple[int, ...]
    steps: tuple[int, ...]
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)
    seeds: tuple[int, ...] = (0,)
    precision: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        # The bag of codes grows from step to step, the attentive probe sees the steps before its own.
        if not self.steps or list(self.steps) != sorted(set(self.steps)):
            raise UserError(f"steps are {self.steps}; expected ascending numbers, each once")
        for name, values in (("layers", self.layers), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                raise UserError(f"{name} are {values}; expected at least one, each once")


@dataclass(frozen=True)
class Atlas:
    """The result, and every prediction of the probe itself: (seeds, L, K, N_test), beside the labels.

    ``broken`` names layers at steps whose features are not finite; they have no rows in the table.
    """

    result: Result
    predicted_SLKN: np.ndarray
    labels_N: np.ndarray
    broken: list[str]

    @property
    def hits_SLKN(self) -> np.ndarray:
        """Where a prediction is the image's class."""
        return self.predicted_SLKN == self.labels_N


@dataclass(frozen=True)
class _Plan:
    """An arm to be run: ``source_of(seed, draw)`` gives its source, of which there are ``draws``.

    ``controls`` names what each label set's accuracy is in the table; ``fixed``: seeds change nothing.
    """

    name: str
    source_of: Callable[[int, int], Source]
    controls: tuple[str, ...]
    draws: int = 1
    fixed: bool = True


@dataclass(frozen=True)
class _Arm:
    """What a plan found: predictions of every draw by seed.

    ``broken`` holds the groups that are not finite at any seed.
    """

    name: str
    source: Source
    controls: tuple[str, ...]
    broken: set[int]
    by_seed: dict[int, list[Predictions]]


def probe_atlas(
    loaded: Loaded,
    splits: ProbeSplits,
    config: AtlasConfig,
    *,
    images: ImageSource | None = None,
    tokenizer: VQModel | None = None,
    work: Path | None = None,
    like: Atlas | None = None,
    on_stage: Stage = lambda stage, done, total: None,
) -> Atlas:
    """Probe ``loaded`` at every layer and step of ``config``, with all controls.

    ``images`` or ``tokenizer`` give the pixels of the pixel control. ``work``: folder for what is done
    so far; delete it when the atlas is written. ``like``: an atlas of another checkpoint with the same
    data and settings, whose controls ``codes`` and ``pixels``, being the same, are taken over. In
    several processes every one calls this and gets the same atlas.

    Raises ``UserError`` for a layer or step that does not exist, and for codes of another vocabulary,
    grid or tokenizer than the model's.
    """
    check_probe(loaded.model, splits, config.layers, config.steps)
    check_tokenizer(loaded, splits.stores["train"])
    if like is None:
        report = functools.partial(on_stage, "pixels")
        pictures, pixel_source = small_pictures(splits, config.steps, images, tokenizer, report)
    else:
        pictures, pixel_source = None, like.result.info["pixels"]
    info = _provenance(loaded, splits, config, pixel_source)
    kept = AtlasWork(work, info)
    arms = [
        _run_arm(plan, splits, config, kept, on_stage)
        for plan in _plans(loaded, splits, config, pictures)
    ]
    return _assemble(arms, splits, config, info, like)


def _plans(
    loaded: Loaded, splits: ProbeSplits, config: AtlasConfig, pictures: dict[str, np.ndarray] | None
) -> Iterator[_Plan]:
    """The arms in their order; those of the data alone need pictures."""
    model, steps = loaded.model, list(config.steps)
    device = model.output.weight.device
    options: dict[str, Any] = {
        "layers": list(config.layers),
        "steps": steps,
        "precision": config.precision,
    }

    def drawn(seed: int, draw: int) -> Source:
        rng = torch_generator(seed, "probe control", draw)
        return ModelSource(build_model(model.config, rng, device), splits, **options)

    yield _always("model", ModelSource(model, splits, **options), ("none", "shuffled"))
    if loaded.config is None:
        yield _Plan("random", drawn, ("random",), DRAWS, fixed=False)
    else:
        first = initial_model(loaded.config, device)
        yield _always("random", ModelSource(first, splits, **options), ("random",))
    if pictures is None:
        return
    yield _always("codes", CodeSource(splits, steps, device), ("codes",))
    yield _always("pixels", PixelSource(splits, steps, pictures, device), ("pixels",))


def _always(name: str, source: Source, controls: tuple[str, ...]) -> _Plan:
    return _Plan(name, lambda seed, draw: source, controls)


def _run_arm(
    plan: _Plan, splits: ProbeSplits, config: AtlasConfig, kept: AtlasWork, on_stage: Stage
) -> _Arm:
    # Where a seed draws nothing, further seeds would find what the first has found.
    same = plan.fixed and "shuffled" not in plan.controls and not varies(config.protocol.name)
    by_seed: dict[int, list[Predictions]] = {}
    source: Source | None = None
    before: Source | None = None
    of_any_seed: set[int] = set()
    for seed, draw in itertools.product(config.seeds, range(plan.draws)):
        if same and by_seed:
            by_seed[seed] = by_seed[config.seeds[0]]
            continue
        uncached = plan.source_of(seed, draw)
        if source is None or uncached is not before:
            limit = config.protocol.cache_gb
            source = cached(uncached, splits.count("train"), world_size(), limit)
        before = uncached
        name = plan.name if plan.draws == 1 else f"{plan.name}-{draw}"
        found = kept.read(name, seed)
        if found is None:
            predictions = run_protocol(
                source,
                splits,
                _label_sets(splits, plan.controls, seed),
                config.protocol,
                seed=seed,
                on_progress=functools.partial(_staged, on_stage, _stage(plan, config, seed, draw)),
                bank_file=kept.bank_file(name, seed),
            )
            broken = share_broken(source.broken, len(source.groups), source.device)
            if config.protocol.name == "attentive":
                broken |= _later(broken, source)
            found = predictions, broken
            kept.write(name, seed, predictions, broken)
        predictions, broken = found
        of_any_seed |= broken
        by_seed.setdefault(seed, []).append(predictions)
    assert source is not None  # there is a seed at least
    return _Arm(plan.name, source, plan.controls, of_any_seed, by_seed)


def _stage(plan: _Plan, config: AtlasConfig, seed: int, draw: int) -> str:
    draws = f", draw {draw + 1} of {plan.draws}" if plan.draws > 1 else ""
    return plan.name + (f", seed {seed}" if len(config.seeds) > 1 else "") + draws


def _staged(on_stage: Stage, stage: str, phase: str, done: int, total: int) -> None:
    on_stage(f"{stage}: {phase}", done, total)


def _later(broken: set[int], source: Source) -> set[int]:
    """Groups that look at a broken one: the later steps of its layer."""
    return {
        group
        for group, (layer, step) in enumerate(source.groups)
        if any(layer == source.groups[bad][0] and step > source.groups[bad][1] for bad in broken)
    }


def _label_sets(splits: ProbeSplits, controls: tuple[str, ...], seed: int) -> np.ndarray:
    labels_N = splits.labels("train")
    shuffled_N = generator(seed, "probe shuffled labels").permutation(labels_N)
    return np.stack([shuffled_N if control == "shuffled" else labels_N for control in controls])


def _provenance(loaded: Loaded, splits: ProbeSplits, config: AtlasConfig, pixel_source: str) -> dict:
    protocol = config.protocol
    mae = protocol.mae
    settings = {**dataclasses.asdict(mae), "base_lrs": list(mae.base_lrs)}
    return provenance(
        measurement="probe atlas",
        **describe_protocol(protocol.name, splits.count("train")),
        departures=list(DEPARTURES) if protocol.name == "mae" else [],
        settings=settings if protocol.name == "mae" else {},
        condition="null class",
        **checkpoint_facts(loaded),
        splits=splits.describe(),
        layers=list(config.layers),
        steps=list(config.steps),
        seeds=list(config.seeds),
        total_steps=loaded.model.config.tokens,
        chance=splits.chance,
        precision=str(config.precision).removeprefix("torch."),
        pixels=pixel_source,
        random_weights=OWN_WEIGHTS if loaded.config is not None else DRAWN_WEIGHTS,
        processes=world_size(),
    )


def _assemble(
    arms: list[_Arm], splits: ProbeSplits, config: AtlasConfig, info: dict, like: Atlas | None
) -> Atlas:
    labels_N = splits.labels("test")
    rows, broken = [], []
    for arm in arms:
        for group in sorted(arm.broken):
            layer, step = arm.source.groups[group]
            whose = "" if arm.name == "model" else f" of the {arm.name} control"
            broken.append(f"layer {layer} at step {step}{whose}")
        for seed, draws in arm.by_seed.items():
            rows += _rows(arm, seed, draws, labels_N, config.protocol.name)
    of_model = arms[0]
    shape = (len(config.layers), len(config.steps), len(labels_N))
    predicted = np.stack(
        [of_model.by_seed[seed][0].predicted[0].reshape(shape) for seed in config.seeds]
    )
    table = pd.DataFrame(rows)
    if like is not None:
        assert (
            like.result.info["splits"] == info["splits"] and like.result.info["steps"] == info["steps"]
        )
        shared = like.result.table
        table = pd.concat([table, shared[shared["control"].isin(DATA_CONTROLS)]], ignore_index=True)
    info = {**info, "complete": not broken, "broken": broken}
    return Atlas(Result(table, info), predicted, labels_N, broken)


def _rows(
    arm: _Arm, seed: int, draws: list[Predictions], labels_N: np.ndarray, protocol: str
) -> list[dict]:
    """The rows of a seed; of several draws their mean, as accuracies of the same images."""
    rows = []
    for place, control in enumerate(arm.controls):
        for group, (layer, step) in enumerate(arm.source.groups):
            if group in arm.broken:
                continue
            cell, images = (place, group), len(labels_N)
            hits = float(np.mean([(each.predicted[cell] == labels_N).sum() for each in draws]))
            interval = (hits / images, *wilson_interval(hits, images))
            values = (layer, step, protocol, control, seed, "test", *interval, images)
            row = dict(zip(PROBE_COLUMNS, values, strict=True))
            row["val_accuracy"] = np.mean([each.val_accuracy[cell] for each in draws])
            row["choice"] = draws[0].choice[cell] if len(draws) == 1 else math.nan
            row["at_edge"] = any(bool(each.at_edge[cell]) for each in draws)
            rows.append(row)
    return rows
