"""The whole chain on one source: tokenise, train plain AR and ST-AR, probe both, look, compare.

Both models see identical sequences from the same seed and keep an EMA teacher; the learning rate of
each is chosen on validation NLL by short pilot runs. A chain that was cut off goes on where it was:
finished runs are kept, unfinished ones resumed.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from figures.compare import Measured, comparison, training_seconds, verdict
from figures.paper import LINEAR_PROBE
from figures.recipes import Material, draw_all
from probes.attention.maps import AttentionMaps, attention_maps
from probes.attention.stats import attention_stats
from probes.linear.atlas import Atlas, AtlasConfig, probe_atlas
from probes.linear.protocols import ProtocolConfig
from probes.linear.splits import probe_splits
from probes.reading.features import scattered_steps, uniform_steps
from probes.results import Result, provenance, write_result
from probes.tokens.augmentations import chosen_views
from probes.tokens.change import token_change
from probes.tokens.images import drawn
from probes.tokens.invariance import measure_invariance
from star.base.errors import UserError
from star.base.files import publish_file, write_json
from star.base.settings import read_settings
from star.codes.open import PreparedData, is_code_folder, keep_tokenizer, prepare_data
from star.codes.store import CodeStore
from star.images.open import ImageSource, open_source
from star.images.views import center_crop
from star.model.sampler import generate
from star.runs.metrics import read_metrics
from star.tokenizer.model import VQModel, decode_tokens, encode_images
from star.training.checkpoint import Loaded, open_model
from star.training.config import TrainConfig, preset
from star.training.likelihood import image_nll
from star.training.trainer import Trainer

__all__ = ["Plan", "Summary", "plan_for", "reproduce"]

Progress = Callable[[str, int, int], None]
Message = Callable[[str], None]
PLAIN, IMPROVED = "AR", "ST-AR"
PLAN_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the chain does: the training configuration, the learning rates tried, what is measured."""

    config: TrainConfig
    learning_rates: tuple[float, ...]
    pilot_steps: int
    probe_steps: int = 8
    attention_images: int = 128
    samples_a_class: int = 8
    cfg_scale: float = 1.5


@dataclass(frozen=True)
class Summary:
    """The comparison table, its verdict in words, and the files written."""

    table: pd.DataFrame
    verdict: list[str]
    notes: list[str]
    out: Path
    figures: list[Path]


def plan_for(
    data: str, *, seed: int = 0, max_steps: int | None = None, batch_size: int | None = None
) -> Plan:
    """The recipe of ``star reproduce SOURCE``: the tiny preset with four layers, for two CPU cores."""
    base = preset("tiny")
    steps = base.max_steps if max_steps is None else max_steps
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, layers=4),
        data=data,
        seed=seed,
        batch_size=base.batch_size if batch_size is None else batch_size,
        max_steps=steps,
        validate_every=steps,
        diagnose_every=0,  # everything is measured at the end
        save_every=100,
    )
    return Plan(config=config, learning_rates=(1e-3, 2e-3, 4e-3), pilot_steps=min(60, steps))


def reproduce(
    plan: Plan,
    out: Path,
    *,
    tokenizer: Path | str | None = None,
    device: torch.device,
    on_progress: Progress = lambda stage, done, total: None,
    on_message: Message = lambda text: None,
) -> Summary:
    """Run the chain into ``out``; see the module's docstring.

    Raises ``UserError``, before anything is written, if ``out`` holds the work of another plan or the
    source cannot give what the figures need.
    """
    _check_plan(out, plan)
    _check_source(plan.config)
    data = prepare_data(
        plan.config.data, tokenizer=tokenizer, on_progress=on_progress, on_message=on_message
    )
    write_json(out / PLAN_FILE, _plain(plan))
    models, probed, loaded = [], {}, {}
    atlas: Atlas | None = None
    for name, config in _configs(plan.config).items():
        rate = _choose_rate(name, config, plan, data, out, device, on_progress, on_message)
        config = dataclasses.replace(config, lr=rate)
        run = out / name.lower()
        _train(config, data.stores, run, device, f"train {name}", on_progress)
        keep_tokenizer(data, run)
        loaded[name] = open_model(run, device=device)
        atlas = _probe(name, loaded[name], plan, data, out, atlas, on_progress)
        models.append(_measure(name, loaded[name], atlas, config, plan, data.stores, run, out))
        probed[name] = atlas.result.table
    figures = _draw(plan, data, loaded, probed, models[0].layer, out, on_progress)
    return _summarise(plan, models, out, figures)


def _configs(config: TrainConfig) -> dict[str, TrainConfig]:
    plain = dataclasses.replace(config, objective=config.objective.baseline())
    return {PLAIN: plain, IMPROVED: config}


def _plain(plan: Plan) -> dict:
    """The plan as its file holds it."""
    return json.loads(json.dumps(dataclasses.asdict(plan)))


def _check_plan(out: Path, plan: Plan) -> None:
    """Refuse a folder that holds another plan's work, or whose plan cannot be read."""
    path = out / PLAN_FILE
    if path.exists() and read_settings(path) != _plain(plan):
        raise UserError(f"{out} holds the work of other settings; give another --out or delete it")


def _check_source(config: TrainConfig) -> None:
    """Refuse a source without images, without one of the splits, or too small for a batch."""
    if is_code_folder(config.data):
        raise UserError(f"{config.data} holds codes only; the figures need images")
    source = open_source(config.data)
    for split in ("train", "val", "test"):
        if split not in source.splits:
            raise UserError(
                f"{config.data} has no {split} split; the figures need train, val and test: add a "
                "folder test/, and give every class in train/ two images or more"
            )
    images = len(source.splits["train"])
    if images < config.batch_size:
        raise UserError(
            f"batch_size is {config.batch_size}; {config.data} has only {images} training images: give "
            "a smaller --batch-size"
        )


def _choose_rate(
    name: str,
    config: TrainConfig,
    plan: Plan,
    data: PreparedData,
    out: Path,
    device: torch.device,
    on_progress: Progress,
    on_message: Message,
) -> float:
    """The learning rate with the lowest validation NLL after a short run of its own schedule."""
    stage = f"learning rate of {name}"
    total = len(plan.learning_rates) * plan.pilot_steps
    scores = {}
    for index, rate in enumerate(plan.learning_rates):
        pilot = dataclasses.replace(
            config, lr=rate, max_steps=plan.pilot_steps, validate_every=plan.pilot_steps
        )
        run = out / "pilots" / f"{name.lower()}-{rate:g}"

        def report(_: str, done: int, __: int, before: int = index * plan.pilot_steps) -> None:
            on_progress(stage, before + done, total)

        _train(pilot, data.stores, run, device, stage, report)
        scores[rate] = read_metrics(run)[0][-1]["val_nll"]
    best = min(scores, key=lambda rate: scores[rate])
    tried = ", ".join(f"{rate:g}: {score:.4f}" for rate, score in scores.items())
    on_message(
        f"{name}: learning rate {best:g} (validation NLL after {plan.pilot_steps} steps at {tried})"
    )
    return best


def _train(
    config: TrainConfig,
    stores: dict[str, CodeStore],
    run: Path,
    device: torch.device,
    stage: str,
    on_progress: Progress,
) -> None:
    trainer = Trainer.start_or_resume(config, stores, run, device)
    on_progress(stage, trainer.step, config.max_steps)
    trainer.fit(on_step=lambda step: on_progress(stage, step, config.max_steps))


def _probe(
    name: str,
    loaded: Loaded,
    plan: Plan,
    data: PreparedData,
    out: Path,
    like: Atlas | None,
    on_progress: Progress,
) -> Atlas:
    """Logistic regression at every layer and 8 steps, with its controls; written to results/."""
    model = loaded.model.config
    config = AtlasConfig(
        layers=tuple(range(1, model.layers + 1)),
        steps=tuple(uniform_steps(model.tokens, plan.probe_steps)),
        protocol=ProtocolConfig(name="logreg"),
    )
    atlas = probe_atlas(
        loaded,
        probe_splits(data.stores),
        config,
        images=data.source,
        tokenizer=data.tokenizer,
        like=like,
        on_stage=lambda stage, done, total: on_progress(f"probe {name}: {stage}", done, total),
    )
    write_result(atlas.result, out / "results" / f"probe-{name.lower()}.csv")
    return atlas


def _measure(
    name: str,
    loaded: Loaded,
    atlas: Atlas,
    config: TrainConfig,
    plan: Plan,
    stores: dict[str, CodeStore],
    run: Path,
    out: Path,
) -> Measured:
    model, facts = loaded.model, atlas.result.info
    layers, steps = facts["layers"], facts["steps"]
    stats = attention_stats(
        model, stores["test"], layers=layers, steps=steps, limit=plan.attention_images
    ).table
    info = {key: facts[key] for key in ("checkpoint", "checkpoint_sha256", "weights", "splits")}
    info = provenance(measurement="attention statistics", condition="true class", **info)
    write_result(Result(stats, info), out / "results" / f"attention-{name.lower()}.csv")
    layer = config.objective.resolved_contrast_layer(model.config)
    sequences = config.batch_size * config.objective.views
    return Measured(
        name=name,
        lr=config.lr,
        steps=config.max_steps,
        seconds=training_seconds(run, sequences),
        layer=layer,
        correct=atlas.hits_SLKN[0, layer - 1],
        nll=image_nll(model, stores["val"]),
        attention=stats,
    )


def _draw(
    plan: Plan,
    data: PreparedData,
    loaded: dict[str, Loaded],
    probed: dict[str, pd.DataFrame],
    layer: int,
    out: Path,
    on_progress: Progress,
) -> list[Path]:
    source, tokenizer = data.source, data.tokenizer
    assert source is not None and tokenizer is not None  # _check_source wants images, not codes
    stage, total = "figures", 4
    on_progress(stage, 0, total)
    size = data.stores["test"].grid * tokenizer.config.stride
    test = source.splits["test"]
    image = center_crop(test.load(0), size)
    attention = {
        name: _attention(item, tokenizer, np.asarray(image), int(test.labels[0]), plan.probe_steps)
        for name, item in loaded.items()
    }
    on_progress(stage, 1, total)
    change = token_change(tokenizer, test.load(0), size=size, shift=1.0, rotate=0.0, scale=1.0)
    nudged = chosen_views("shift:1", size=size, stride=tokenizer.config.stride)
    many = drawn(test, plan.attention_images, plan.config.seed)
    unchanged = measure_invariance(tokenizer, many, nudged, size=size).values
    on_progress(stage, 2, total)
    samples = {name: _sampled(item, tokenizer, plan) for name, item in loaded.items()}
    on_progress(stage, 3, total)
    model = loaded[PLAIN].model.config
    material = Material(
        probe_tables=probed,
        layer=layer,
        total_steps=model.tokens,
        chance=float(np.bincount(data.stores["test"].labels).max() / len(data.stores["test"])),
        image=np.asarray(image),
        attention=attention,
        grid=model.grid,
        change=change,
        unchanged=(float(unchanged["equal"].mean()), float(unchanged["chance"].mean())),
        samples=samples,
        real=_real(source, size, plan.samples_a_class),
        columns=plan.samples_a_class,
    )
    paths = draw_all(material, out / "figures")
    on_progress(stage, total, total)
    return paths


def _attention(
    loaded: Loaded, tokenizer: VQModel, image: np.ndarray, label: int, steps: int
) -> AttentionMaps:
    config = loaded.model.config
    tokens = torch.from_numpy(encode_images(tokenizer, image[None])[0].reshape(-1))
    layers = list(range(1, config.layers + 1))
    return attention_maps(
        loaded.model, tokens, label, layers=layers, steps=scattered_steps(config.tokens, steps)
    )


def _sampled(loaded: Loaded, tokenizer: VQModel, plan: Plan) -> np.ndarray:
    """(classes * n, H, W, 3) samples, n of each class in order."""
    classes, each = loaded.model.config.num_classes, plan.samples_a_class
    labels = np.repeat(np.arange(classes), each)
    tokens_BT = generate(loaded.model, labels, seeds=range(len(labels)), cfg_scale=plan.cfg_scale)
    return decode_tokens(tokenizer, tokens_BT, loaded.model.config.grid)


def _real(source: ImageSource, size: int, each: int) -> np.ndarray:
    test = source.splits["test"]
    chosen = [
        i for c in range(len(source.class_names)) for i in np.flatnonzero(test.labels == c)[:each]
    ]
    return np.stack([np.asarray(center_crop(test.load(int(i)), size)) for i in chosen])


def _summarise(plan: Plan, models: list[Measured], out: Path, figures: list[Path]) -> Summary:
    table = comparison(models)
    said = verdict(*models)
    epochs, without, with_ = LINEAR_PROBE[0]
    ratio = models[1].seconds / models[0].seconds
    notes = [
        f"One training seed ({plan.config.seed}); intervals are 95 % over held-out images.",
        f"Training {IMPROVED} took {ratio:.2f} times as long as {PLAIN} at the same sequences.",
        f"The paper (LlamaGen-B, ImageNet, {epochs} epochs): {without} -> {with_} % probe accuracy.",
    ]
    info = provenance(
        measurement="comparison", plan=dataclasses.asdict(plan), verdict=said, notes=notes
    )
    write_result(Result(table, info), out / "results" / "comparison.csv")
    text = table.to_string(index=False) + "\n\n" + "\n".join([*said, *notes]) + "\n"
    with publish_file(out / "summary.txt") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Summary(table, said, notes, out, figures)
