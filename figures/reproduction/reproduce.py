"""The whole chain on one source: tokenise, train plain AR and ST-AR, probe both, look, compare.

Both models see identical sequences from the same seed and keep an EMA teacher; where a plan has several
learning rates, that of each is chosen on validation NLL by short pilot runs. A chain that was cut off
goes on where it was: finished runs are kept, unfinished ones resumed.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from figures.paper import LINEAR_PROBE
from figures.reproduction.compare import Measured, comparison, verdict
from figures.reproduction.material import PARTS, measured_material
from figures.reproduction.plan import (
    IMPROVED,
    PLAIN,
    PLAN_FILE,
    Plan,
    check_plan,
    check_source,
    plan_for,
)
from figures.reproduction.recipes import draw_all
from probes.attention.stats import attention_stats
from probes.linear.atlas import Atlas, AtlasConfig, probe_atlas
from probes.linear.protocols import ProtocolConfig
from probes.linear.splits import probe_splits
from probes.reading.features import uniform_steps
from probes.results import Result, provenance, write_result
from star.base.files import publish_file, write_json
from star.base.progress import Message, StageProgress, nothing
from star.codes.open import PreparedData, keep_tokenizer, prepare_data
from star.runs.metrics import read_metrics
from star.training.checkpoint import Loaded, open_model
from star.training.config import TrainConfig
from star.training.estimate import estimate
from star.training.likelihood import image_nll
from star.training.trainer import Trainer

__all__ = ["Plan", "Summary", "plan_for", "reproduce"]


@dataclass(frozen=True)
class Summary:
    """The comparison table, its verdict in words, and the files written."""

    table: pd.DataFrame
    verdict: list[str]
    notes: list[str]
    out: Path
    figures: list[Path]


@dataclass(frozen=True)
class _Chain:
    """What every stage works on and where, and who hears of it."""

    plan: Plan
    data: PreparedData
    out: Path
    device: torch.device
    on_progress: StageProgress
    on_message: Message

    def write(self, result: Result, name: str) -> None:
        write_result(result, self.out / "results" / f"{name}.csv")


def reproduce(
    plan: Plan,
    out: Path,
    *,
    tokenizer: Path | str | None = None,
    device: torch.device,
    on_progress: StageProgress = nothing,
    on_message: Message = nothing,
) -> Summary:
    """Run the chain into ``out``; see the module's docstring.

    Raises ``UserError``, before anything is written, if ``out`` holds the work of another plan or the
    source cannot give what the figures need.
    """
    check_plan(out, plan)
    check_source(plan.config)
    data = prepare_data(
        plan.config.data, tokenizer=tokenizer, on_progress=on_progress, on_message=on_message
    )
    write_json(out / PLAN_FILE, plan.plain())
    chain = _Chain(plan, data, out, device, on_progress, on_message)
    arms: dict[str, list[Measured]] = {PLAIN: [], IMPROVED: []}
    loaded: dict[str, Loaded] = {}
    probed: dict[str, pd.DataFrame] = {}
    atlas: Atlas | None = None
    for seed in plan.seeds:  # both models of a seed together: what is cut off has pairs
        for name, config in plan.configs(seed).items():
            named = plan.folder(name, seed)
            config = dataclasses.replace(config, lr=_choose_rate(chain, name, config))
            run = out / named
            _train(chain, config, run, f"train {_shown(plan, name, seed)}")
            keep_tokenizer(data, run)
            model = open_model(run, device=device)
            atlas = _probe(chain, named, _shown(plan, name, seed), model, atlas)
            arms[name].append(_measure(chain, name, named, model, atlas, config))
            if seed == plan.seeds[0]:
                loaded[name], probed[name] = model, atlas.result.table
    return _summarise(chain, arms, _draw(chain, loaded, probed, arms[PLAIN][0].layer))


def _shown(plan: Plan, name: str, seed: int) -> str:
    return name if len(plan.seeds) == 1 else f"{name}, seed {seed}"


def _choose_rate(chain: _Chain, name: str, config: TrainConfig) -> float:
    """The learning rate with the lowest validation NLL after a short run of its own schedule."""
    steps, rates = chain.plan.pilot_steps, chain.plan.learning_rates
    if len(rates) == 1:
        return rates[0]
    config = dataclasses.replace(config, seed=chain.plan.seeds[0])  # one rate for all seeds
    stage, scores = f"learning rate of {name}", {}
    for index, rate in enumerate(rates):
        pilot = dataclasses.replace(config, lr=rate, max_steps=steps, validate_every=steps)
        run = chain.out / "pilots" / f"{name.lower()}-{rate:g}"
        _train(chain, pilot, run, stage, before=index * steps, total=len(rates) * steps)
        scores[rate] = read_metrics(run)[0][-1]["val_nll"]
    best = min(scores, key=lambda rate: scores[rate])
    tried = ", ".join(f"{rate:g}: {score:.4f}" for rate, score in scores.items())
    chain.on_message(f"{name}: learning rate {best:g} (validation NLL after {steps} steps at {tried})")
    return best


def _train(
    chain: _Chain,
    config: TrainConfig,
    run: Path,
    stage: str,
    *,
    before: int = 0,
    total: int | None = None,
) -> None:
    """Train in ``run``, or go on; its steps follow ``before`` others of the stage's ``total``."""
    total = config.max_steps if total is None else total
    trainer = Trainer.start_or_resume(config, chain.data.stores, run, chain.device)
    chain.on_progress(stage, before + trainer.step, total)
    trainer.fit(on_step=lambda step: chain.on_progress(stage, before + step, total))


def _probe(chain: _Chain, named: str, shown: str, loaded: Loaded, like: Atlas | None) -> Atlas:
    """Logistic regression at every layer and 8 steps, with its controls; written to results/."""
    model = loaded.model.config
    config = AtlasConfig(
        layers=tuple(range(1, model.layers + 1)),
        steps=tuple(uniform_steps(model.tokens, chain.plan.probe_steps)),
        protocol=ProtocolConfig(name="logreg"),
    )
    atlas = probe_atlas(
        loaded,
        probe_splits(chain.data.stores),
        config,
        images=chain.data.source,
        tokenizer=chain.data.tokenizer,
        like=like,
        on_stage=lambda stage, done, total: chain.on_progress(f"probe {shown}: {stage}", done, total),
    )
    chain.write(atlas.result, f"probe-{named}")
    return atlas


def _measure(
    chain: _Chain, name: str, named: str, loaded: Loaded, atlas: Atlas, config: TrainConfig
) -> Measured:
    """Attention, likelihood and probe of a model; its attention is written to results/.

    Attention is of all steps: which of them a claim is about would decide it otherwise.
    """
    model, store, facts = loaded.model, chain.data.stores["test"], atlas.result.info
    every = list(range(1, model.config.tokens + 1))
    found = attention_stats(model, store, layers=facts["layers"], steps=every)
    info = {key: facts[key] for key in ("checkpoint", "checkpoint_sha256", "weights", "splits")}
    info = provenance(measurement="attention statistics", condition="true class", **info)
    chain.write(Result(found.table, info), f"attention-{named}")
    layer = config.objective.resolved_contrast_layer(model.config)
    return Measured(
        name=name,
        seed=config.seed,
        lr=config.lr,
        steps=config.max_steps,
        flops=estimate(config, 1, half=False).flops,
        layer=layer,
        correct=atlas.hits_SLKN[0, layer - 1],
        nll=image_nll(model, store),
        distance=found.values["distance"].mean((1, 2, 3)),
        class_share=found.values["class_share"].mean((1, 2, 3)),
    )


def _draw(
    chain: _Chain, loaded: dict[str, Loaded], probed: dict[str, pd.DataFrame], layer: int
) -> list[Path]:
    """Measure what the figures need beside the probes, and draw them; returns their files."""

    def report(done: int) -> None:
        chain.on_progress("figures", done, PARTS + 1)

    report(0)
    material = measured_material(chain.plan, chain.data, loaded, probed, layer=layer, on_part=report)
    paths = draw_all(material, chain.out / "figures")
    report(PARTS + 1)
    return paths


def _summarise(chain: _Chain, arms: dict[str, list[Measured]], figures: list[Path]) -> Summary:
    """The comparison, written as table and as text."""
    plan = chain.plan
    plain, improved = arms[PLAIN], arms[IMPROVED]
    table = comparison(arms)
    said = verdict(plain, improved)
    epochs, without, with_ = LINEAR_PROBE[0]
    cost = f"{improved[0].flops / plain[0].flops:.2f} times the FLOPs of one of {PLAIN}"
    seeds = f"Seeds {', '.join(map(str, plan.seeds))}: intervals are 95 % over new runs and new images."
    if len(plan.seeds) == 1:
        seeds = f"One training seed ({plan.seeds[0]}): intervals are 95 % over test images alone."
    notes = [
        f"{seeds} The figures are of seed {plan.seeds[0]}.",
        f"A step of {IMPROVED} takes {cost} on as many sequences.",
        f"The paper (LlamaGen-B, ImageNet, {epochs} epochs): {without} -> {with_} % probe accuracy.",
    ]
    info = provenance(
        measurement="comparison", plan=dataclasses.asdict(plan), verdict=said, notes=notes
    )
    chain.write(Result(table, info), "comparison")
    text = table.to_string(index=False) + "\n\n" + "\n".join([*said, *notes]) + "\n"
    with publish_file(chain.out / "summary.txt") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Summary(table, said, notes, chain.out, figures)
