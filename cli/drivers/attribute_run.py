"""What ``star attribute`` does with its options: open, fit a probe if asked, explain, print, write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli.opening import (
    check_out,
    open_checkpoint,
    output_folder,
    run_data,
    run_images,
    tokenizer_path,
)
from cli.terminal.screen import Stages, note_stand_ins, print_line, print_rows, print_written
from probes.attribution.methods import METHODS, AttributionConfig
from probes.attribution.probe import StepProbe, fit_step_probe
from probes.attribution.scores import StepScores, check_attribution_step
from probes.attribution.study import (
    AttributionStudy,
    Explained,
    attribution_study,
    check_attention_layers,
)
from probes.linear.splits import probe_splits
from probes.reading.example import find_subjects, require_tokenizer
from probes.reading.features import check_store, check_tokenizer, parse_layers
from probes.reading.images import spread_images
from probes.results import write_result
from star.base.errors import UserError
from star.codes.open import PreparedData
from star.codes.store import CodeStore
from star.model.classes import null_label, one_class
from star.model.config import ModelConfig
from star.model.transformer import check_layers
from star.tokenizer.model import decode_tokens
from star.training.checkpoint import Loaded
from viz.attribution import MOST_IMAGES, attribution_panels
from viz.base.names import labels as class_labels
from viz.base.style import save

__all__ = ["AttributeRequest", "run"]

PROBE_IMAGES = 2000
SAID = {
    "integrated_gradients": "integrated gradients",
    "gradient_x_input": "gradient x input",
    "occlusion": "occlusion",
}


@dataclass(frozen=True, kw_only=True)
class AttributeRequest:
    """The command's options, as given."""

    ckpt: Path | None
    image: str | None
    step: int | None
    target: str
    layer: int | None
    label: str | None
    attention: str
    points: int
    batch_size: int
    patch: int
    draws: int
    noise: float
    images: int | None
    probe_images: int | None
    seed: int
    codes: Path | None
    data: str | None
    tokenizer: Path | None
    weights: str
    out: Path | None
    heads: int | None
    grid: int | None
    device: str


@dataclass(frozen=True)
class _Chosen:
    """The images to explain and what they are called; some are drawn, by their place."""

    name: str
    slug: str
    images: list[tuple[str, object, int]]  # name, tokens (T,), the image's own class
    pictures: dict[int, np.ndarray]
    captions: dict[int, str]


def run(asked: AttributeRequest) -> None:
    """Do what the options ask for."""
    config = _settings(asked)
    loaded = open_checkpoint(asked.ckpt, asked.weights, asked.device, asked.heads, asked.grid)
    model = loaded.model.config
    null_label(model, "attribution")
    step = max(2, 3 * model.tokens // 4) if asked.step is None else asked.step
    check_attribution_step(model.tokens, step)
    layers, probe_layer = _layers(asked, model)
    label = None if asked.target == "probe" else _class(asked, model, loaded.class_names)
    with Stages() as stages:
        data = _prepare(asked, loaded, stages)
        stores = None if data is None else data.stores
        if asked.target == "probe":  # whose classes are the data's
            label = _class(asked, stores["train"], stores["train"].class_names)
        chosen = _choose(asked, loaded, data, label, stages)
        probe = None
        if asked.target == "probe":
            _check_classes(asked, chosen, stores)
            probe = fit_step_probe(
                loaded.model, probe_splits(stores, asked.seed), layer=probe_layer, step=step,
                images=PROBE_IMAGES if asked.probe_images is None else asked.probe_images,
                seed=asked.seed, on_progress=stages.report,
            )  # fmt: skip
        scores = StepScores(loaded.model, step, asked.target, probe)
        study = attribution_study(
            loaded, scores, _explained(asked, chosen, scores), config, attention_layers=layers,
            facts=_facts(chosen, stores),
            on_progress=lambda done, total: stages.report("explain", done, total),
        )  # fmt: skip
    _print(study, scores, probe, chosen, config)
    folder = output_folder(loaded, asked.out, "attribute")
    stem = f"attribute-{asked.target}-step-{step}-{chosen.slug}-{asked.weights}"
    written = write_result(study.places, folder / f"{stem}.csv")
    written += write_result(study.measures, folder / f"{stem}-measures.csv")
    written += save(_figure(study, scores, chosen, loaded, config), folder / stem)
    print_written(written)


def _settings(asked: AttributeRequest) -> AttributionConfig:
    """The settings, and a refusal of options that would have no effect or contradict each other."""
    if asked.images is not None and (asked.image is not None or asked.codes is not None):
        raise UserError(
            "--images takes test images of the data; leave it out to explain the one you name"
        )
    if asked.image is not None and asked.codes is not None:
        raise UserError(
            f"{asked.image} and --codes {asked.codes} both name the image; give one of them"
        )
    if asked.layer is not None and asked.target != "probe":
        raise UserError(
            "--layer has an effect only with --target probe; --attention chooses the layers of the map"
        )
    if asked.probe_images is not None and asked.target != "probe":
        raise UserError("--probe-images has an effect only with --target probe")
    if asked.images is not None and asked.images < 1:
        raise UserError(f"images is {asked.images}; expected at least 1")
    check_out(asked.out)
    return AttributionConfig(
        points=asked.points, batch=asked.batch_size, patch=asked.patch, draws=asked.draws,
        noise=asked.noise, seed=asked.seed,
    )  # fmt: skip


def _layers(asked: AttributeRequest, model: ModelConfig) -> tuple[list[int], int]:
    """Layers of the attention, and the layer that the probe reads."""
    probe_layer = max(1, model.layers // 2) if asked.layer is None else asked.layer
    check_layers(model, [probe_layer])
    reached = probe_layer if asked.target == "probe" else model.layers
    layers = parse_layers(asked.attention, reached)
    check_attention_layers(model, layers, reached)
    return layers, probe_layer


def _prepare(asked: AttributeRequest, loaded: Loaded, stages: Stages) -> PreparedData | None:
    """The data's code stores and their tokenizer, where a probe or several images need them."""
    if asked.target != "probe" and asked.images is None:
        return None
    data = run_data(loaded, asked.data, asked.tokenizer, stages)
    for store in data.stores.values():
        check_store(loaded.model, store, classes=asked.target != "probe")
        check_tokenizer(loaded, store)
    return data


def _class(asked: AttributeRequest, of: ModelConfig | CodeStore, names: Sequence[str] | None):
    """The class asked for, one of a model's or a store's, or None."""
    return one_class(asked.label, of.num_classes, names)


def _choose(
    asked: AttributeRequest,
    loaded: Loaded,
    data: PreparedData | None,
    label: int | None,
    stages: Stages,
) -> _Chosen:
    tokenizer = tokenizer_path(loaded.path.parent, asked.tokenizer)
    if asked.images is None:
        (subject,) = find_subjects(
            loaded, images=[asked.image] if asked.image else [], codes=asked.codes, label=label,
            data=_images(asked, loaded, data, stages), tokenizer=tokenizer,
        )  # fmt: skip
        said = subject.description
        if asked.target == "probe":
            said = said.split("; the model is shown")[0] + "; the model is shown the null class"
        print_line(said)
        return _Chosen(
            subject.name,
            subject.slug,
            [(subject.name, subject.tokens, subject.label)],
            {0: subject.image},
            {0: "/".join(Path(subject.name).parts[-2:])},
        )
    stores = data.stores
    store = stores.get("test") or stores.get("val") or stores["train"]
    rows, tokens_NT, labels = spread_images(store, asked.images)
    decoder = data.tokenizer or require_tokenizer(loaded, tokenizer)
    few = min(len(rows), MOST_IMAGES)
    drawn = [place * len(rows) // few for place in range(few)]
    decoded = decode_tokens(decoder, tokens_NT[drawn], loaded.model.config.grid)
    names = [f"image {row} ({store.class_names[own]})" for row, own in zip(rows, labels, strict=True)]
    said = class_labels(store.class_names)
    captions = {place: f"image {rows[place]} ({said[labels[place]]})" for place in drawn}
    note_stand_ins(store.class_names, [labels[place] for place in drawn])
    print_line(f"{len(rows)} evenly spaced images of {store.path}, decoded from the codes")
    own = [int(of_image) if label is None else label for of_image in labels]
    return _Chosen(
        f"{len(rows)} test images", f"{len(rows)}-images",
        list(zip(names, tokens_NT, own, strict=True)), dict(zip(drawn, decoded, strict=True)), captions,
    )  # fmt: skip


def _images(asked: AttributeRequest, loaded: Loaded, data: PreparedData | None, stages: Stages):
    """Where the image comes from if none is named: a source or code stores, or None."""
    if asked.image is not None or asked.codes is not None:
        return None
    if data is not None:
        return data.source or data.stores
    if asked.data is None and loaded.config is None:
        return None
    return run_images(loaded, asked.data, asked.tokenizer, stages)


def _check_classes(asked: AttributeRequest, chosen: _Chosen, stores: dict) -> None:
    """Raise ``UserError`` unless every image has a class that the probe knows."""
    classes = stores["train"].num_classes
    for name, _, label in chosen.images:
        if not 0 <= label < classes:
            raise UserError(
                f"the probe scores the classes 0 to {classes - 1}; "
                + (
                    f"{name} comes without one: give --class"
                    if asked.label is None
                    else f"--class {asked.label} was given"
                )
            )


def _explained(asked: AttributeRequest, chosen: _Chosen, scores: StepScores) -> list[Explained]:
    if asked.target == "probe":
        return [Explained(name, tokens, scores.null, label) for name, tokens, label in chosen.images]
    return [
        Explained(name, tokens, label, int(tokens[scores.step - 1]))
        for name, tokens, label in chosen.images
    ]


def _facts(chosen: _Chosen, stores: dict | None) -> dict:
    facts = {"subject": chosen.name}
    if stores is not None:
        facts["data"] = {name: dict(store.manifest["sha256"]) for name, store in stores.items()}
    return facts


def _print(
    study: AttributionStudy, scores: StepScores, probe: StepProbe | None, chosen: _Chosen, config
) -> None:
    if probe is not None:
        print_line(
            f"probe of layer {probe.layer} at step {probe.step} (ridge, penalty {probe.penalty:g}, "
            f"{probe.counts['train']} training images): accuracy {100 * probe.accuracy:.1f} % "
            f"[{100 * probe.low:.1f}, {100 * probe.high:.1f}] of {probe.counts['test']} test images, "
            f"chance {100 * probe.chance:.1f} %"
        )
    table = study.measures.table
    several = len(chosen.images) > 1
    shown = table[table["image"] == ("mean" if several else chosen.images[0][0])]
    cells = shown.set_index(["method", "measure"])
    unit = _unit(scores)
    first = METHODS[0]
    score, more = (cells.loc[(first, name), "value"] for name in ("score", "difference"))
    print_line(
        f"step {scores.step}, {_score_said(scores)}: {'mean ' if several else ''}score {score:+.4g} "
        f"{unit}, baseline {score - more:+.4g}, to explain {more:+.4g}; {config.points} path points"
    )
    rows = [
        ["completeness gap" if not several else "mean |completeness gap|", "gap", "{:.3g}"],
        ["|gap| / |difference|", "relative_gap", "{:.2g}"],
        ["rank correlation with attention", "rank_correlation", "{:+.2f}"],
        ["infidelity", "infidelity", "{:.3g}"],
        ["infidelity / mean squared change", "infidelity_share", "{:.2f}"],
        ["sensitivity", "sensitivity", "{:.2f}"],
    ]
    body = [
        [said, *(_cell(cells.loc[(method, name)], form) for method in METHODS)]
        for said, name, form in rows
        if (first, name) in cells.index
    ]
    title = f"{chosen.name}, in {unit}" + (" [95 % intervals over images]" if several else "")
    print_rows(title, ["", *(SAID[method] for method in METHODS)], body)


def _cell(row, form: str) -> str:
    if np.isnan(row["value"]):
        return "undefined"
    text = form.format(row["value"])
    if np.isnan(row["low"]):
        return text
    return f"{text} [{form.format(row['low'])}, {form.format(row['high'])}]"


def _unit(scores: StepScores) -> str:
    return {"logprob": "nats", "logit": "logit units", "probe": "probe units"}[scores.target]


def _score_said(scores: StepScores) -> str:
    if scores.probe is not None:
        return f"class score of the probe of layer {scores.probe.layer}"
    kind = "log-probability" if scores.target == "logprob" else "logit"
    return f"{kind} of the true token {scores.step}"


def _figure(study: AttributionStudy, scores: StepScores, chosen: _Chosen, loaded: Loaded, config):
    drawn = list(chosen.pictures)
    found = [study.found[place] for place in drawn]
    table = study.measures.table.set_index(["image", "method", "measure"])["value"]
    names = [chosen.images[place][0] for place in drawn]

    def numbers(measure: str) -> np.ndarray:
        return np.array([[table[name, method, measure] for method in METHODS] for name in names])

    score = numbers("score")[:, 0]
    methods = [SAID[method] for method in METHODS]
    methods[-1] += f", {config.patch} x {config.patch}"
    return attribution_panels(
        list(chosen.pictures.values()),
        np.array([[np.r_[one.class_value, one.tokens] for one in methods] for methods in found]),
        study.attention[drawn],
        step=scores.step,
        grid=loaded.model.config.grid,
        methods=methods,
        names=[chosen.captions[place] for place in drawn],
        scores=np.stack([score, score - numbers("difference")[:, 0]], axis=1),
        gaps=numbers("gap"),
        correlations=numbers("rank_correlation"),
        unit=_unit(scores),
        predicted=scores.probe is None,
        title=f"{loaded.objective_name}, step {scores.step}: what makes the {_score_said(scores)}",
    )
