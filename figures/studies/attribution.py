"""What the score of a step owes to each token and to the class, beside the attention of that step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from figures.opening import open_checkpoint, output_folder, run_data
from figures.requests.attribution import Request
from figures.said.attribution import (
    METHOD_NAMES,
    UNITS,
    measures_said,
    probe_said,
    score_words,
)
from figures.studies.attribution_images import Chosen, chosen_images
from figures.study import Finding, Study
from figures.work import Work
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
from probes.reading.features import check_store, check_tokenizer, parse_layers
from star.base.errors import UserError
from star.codes.open import PreparedData
from star.codes.store import CodeStore
from star.model.classes import null_label, one_class
from star.model.config import ModelConfig
from star.model.transformer import check_layers
from star.training.checkpoint import Loaded
from viz.attribution import attribution_panels

__all__ = ["Request", "run"]

PROBE_IMAGES = 2000
Stores = Mapping[str, CodeStore]


@dataclass(frozen=True)
class Plan:
    """The step explained, the layers whose attention stands beside it, and the layer a probe reads."""

    step: int
    attention_layers: list[int]
    probe_layer: int


class AttributeStudy(Study[Request]):
    """``star attribute``."""

    request = Request

    def check(self, asked: Request) -> None:
        """Refuse options that would have no effect or contradict each other."""
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
                "--layer has an effect only with --target probe; --attention chooses the layers of the "
                "map"
            )
        if asked.probe_images is not None and asked.target != "probe":
            raise UserError("--probe-images has an effect only with --target probe")
        if asked.images is not None and asked.images < 1:
            raise UserError(f"images is {asked.images}; expected at least 1")
        _settings(asked)

    def findings(self, asked: Request, work: Work) -> Iterator[Finding]:
        """Places and measures of all images, one picture, and the score and measures in words."""
        loaded = open_checkpoint(asked.ckpt, asked, work.say)
        plan, settings = _plan(asked, loaded.model.config), _settings(asked)
        label = None
        if asked.target != "probe":
            label = _class(asked, loaded.model.config, loaded.class_names)
        data = _prepared(asked, loaded, work)
        stores = None if data is None else data.stores
        if asked.target == "probe" and stores is not None:  # whose classes are the data's
            label = _class(asked, stores["train"], stores["train"].class_names)
        chosen = chosen_images(asked, loaded, data, label, work)
        probe = _probe(asked, loaded, plan, chosen, stores, work)
        scores = StepScores(loaded.model, plan.step, asked.target, probe)
        study = attribution_study(
            loaded,
            scores,
            _explained(chosen, scores),
            settings,
            attention_layers=plan.attention_layers,
            facts=_facts(chosen, stores),
            on_progress=work.progress("explain"),
        )
        folder = output_folder(loaded, asked.out, "attribute")
        stem = f"attribute-{asked.target}-step-{plan.step}-{chosen.slug}-{asked.weights}"
        image = "mean" if len(chosen.images) > 1 else chosen.images[0][0]
        table = study.measures.table
        yield Finding(
            stem=folder / stem,
            results={"": study.places, "-measures": study.measures},
            figures={"": _figure(study, scores, chosen, loaded, settings)},
            said=[
                *chosen.said,
                *([] if probe is None else [probe_said(probe)]),
                *measures_said(table, scores, chosen.name, image, settings.points),
            ],
        )


run = AttributeStudy().run


def _settings(asked: Request) -> AttributionConfig:
    return AttributionConfig(
        points=asked.points, batch=asked.batch_size, patch=asked.patch, draws=asked.draws,
        noise=asked.noise, seed=asked.seed,
    )  # fmt: skip


def _plan(asked: Request, model: ModelConfig) -> Plan:
    """The step and layers asked of a model; ``UserError`` if it has no such."""
    null_label(model, "attribution")
    step = max(2, 3 * model.tokens // 4) if asked.step is None else asked.step
    check_attribution_step(model.tokens, step)
    probe_layer = max(1, model.layers // 2) if asked.layer is None else asked.layer
    check_layers(model, [probe_layer])
    reached = probe_layer if asked.target == "probe" else model.layers
    layers = parse_layers(asked.attention, reached)
    check_attention_layers(model, layers, reached)
    return Plan(step, layers, probe_layer)


def _class(asked: Request, of: ModelConfig | CodeStore, names: Sequence[str] | None) -> int | None:
    """The class asked for, one of a model's or a store's, or None."""
    return one_class(asked.label, of.num_classes, names)


def _prepared(asked: Request, loaded: Loaded, work: Work) -> PreparedData | None:
    """The data's code stores and their tokenizer, where a probe or several images need them."""
    if asked.target != "probe" and asked.images is None:
        return None
    data = run_data(loaded, asked.data, asked.tokenizer, work)
    for store in data.stores.values():
        check_store(loaded.model, store, classes=asked.target != "probe")
        check_tokenizer(loaded, store)
    return data


def _probe(
    asked: Request, loaded: Loaded, plan: Plan, chosen: Chosen, stores: Stores | None, work: Work
) -> StepProbe | None:
    """The probe whose score is explained; ``UserError`` for an image of a class it does not know."""
    if asked.target != "probe":
        return None
    assert stores is not None  # a probe needs them, so they are there
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
    return fit_step_probe(
        loaded.model,
        probe_splits(stores, asked.seed),
        layer=plan.probe_layer,
        step=plan.step,
        images=PROBE_IMAGES if asked.probe_images is None else asked.probe_images,
        seed=asked.seed,
        on_progress=work.stage,
    )


def _explained(chosen: Chosen, scores: StepScores) -> list[Explained]:
    """A probe's score is of the image's class, under the null class; others are of the true token."""
    if scores.probe is not None:
        return [Explained(name, tokens, scores.null, label) for name, tokens, label in chosen.images]
    return [
        Explained(name, tokens, label, int(tokens[scores.step - 1]))
        for name, tokens, label in chosen.images
    ]


def _facts(chosen: Chosen, stores: Stores | None) -> dict:
    facts: dict[str, object] = {"subject": chosen.name}
    if stores is not None:
        facts["data"] = {name: dict(store.manifest["sha256"]) for name, store in stores.items()}
    return facts


def _figure(
    study: AttributionStudy,
    scores: StepScores,
    chosen: Chosen,
    loaded: Loaded,
    settings: AttributionConfig,
) -> Figure:
    drawn = list(chosen.pictures)
    found = [study.found[place] for place in drawn]
    table = study.measures.table.set_index(["image", "method", "measure"])["value"]
    names = [chosen.images[place][0] for place in drawn]

    def numbers(measure: str) -> np.ndarray:
        return np.array([[table[name, method, measure] for method in METHODS] for name in names])

    score = numbers("score")[:, 0]
    methods = [METHOD_NAMES[method] for method in METHODS]
    methods[-1] += f", {settings.patch} x {settings.patch}"
    return attribution_panels(
        list(chosen.pictures.values()),
        np.array([[np.r_[one.class_value, one.tokens] for one in of_image] for of_image in found]),
        study.attention[drawn],
        step=scores.step,
        grid=loaded.model.config.grid,
        methods=methods,
        names=[chosen.captions[place] for place in drawn],
        scores=np.stack([score, score - numbers("difference")[:, 0]], axis=1),
        gaps=numbers("gap"),
        correlations=numbers("rank_correlation"),
        unit=UNITS[scores.target],
        predicted=scores.probe is None,
        title=f"{loaded.objective_name}, step {scores.step}: what makes the {score_words(scores)}",
    )
