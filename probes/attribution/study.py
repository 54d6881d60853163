"""Attributions of one step in one image or several, beside the attention of the same step, as tables.

Two long-form tables: ``places`` (image, method, place, row, column, attribution, attention; place 0 is
the class, 1..T the tokens, 0 where unseen) and ``measures`` (image, method, measure, value, low, high,
n), where image "mean" holds means over images with normal 95 % intervals; relative gap and infidelity
share are ratios of sums there, with jackknife intervals, so that no image with a score close to the
baseline's rules them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.attention.maps import attention_at_steps
from probes.attention.places import place_cells
from probes.attribution.methods import METHODS, Attribution, AttributionConfig, attribute, one_input
from probes.attribution.quality import (
    attention_agreement,
    attribution_infidelity,
    attribution_sensitivity,
)
from probes.attribution.scores import StepScores
from probes.results import Result, checkpoint_facts, provenance
from probes.stats.intervals import mean_interval, ratio_interval
from star.base.errors import UserError
from star.model.config import ModelConfig
from star.model.transformer import check_layers
from star.training.checkpoint import Loaded

__all__ = [
    "MEASURES",
    "AttributionStudy",
    "Explained",
    "attribution_study",
    "check_attention_layers",
]

MEASURES = {
    "score": "score of the input",
    "difference": "score of the input minus score of the baseline",
    "gap": "sum of the contributions minus the difference; its absolute value in the mean",
    "relative_gap": "|gap| / |difference|",
    "rank_correlation": "Spearman, |contribution| and attention over the image tokens seen (of "
    "occlusion: over its patches, sums of both)",
    "infidelity": "mean squared error of a set's contributions against the score's change",
    "infidelity_share": "infidelity / mean squared change: 0 perfect, 1 as bad as nothing",
    "sensitivity": "largest relative change of the attribution under noise on the embeddings",
}
RATIOS = {"relative_gap": ("gap", "difference"), "infidelity_share": ("infidelity", "change")}


@dataclass(frozen=True)
class Explained:
    """One image: ``tokens`` (T,), the ``label`` the model is shown, the ``index`` of its score."""

    name: str
    tokens: Tensor
    label: int
    index: int


@dataclass(frozen=True)
class AttributionStudy:
    """``places`` and ``measures`` as results with one provenance; by image, ``found`` holds every
    method's attribution and ``attention`` (images, 1 + T) the class's weight and the tokens'."""

    places: Result
    measures: Result
    found: list[list[Attribution]] = field(repr=False)
    attention: np.ndarray = field(repr=False)


def attribution_study(
    loaded: Loaded,
    scores: StepScores,
    images: Sequence[Explained],
    config: AttributionConfig,
    *,
    attention_layers: Sequence[int],
    facts: dict | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> AttributionStudy:
    """Explain every image by every method; attention is the mean over ``attention_layers`` and heads.

    ``facts`` join the provenance. Raises ``UserError`` for layers the scores do not depend on, and for
    images that ``attribute`` refuses.
    """
    check_attention_layers(loaded.model.config, attention_layers, scores.layers)
    found, attention, rows = [], [], []
    on_progress(0, len(images) * len(METHODS))
    for image in images:
        found.append(attribute(scores, image.tokens, image.label, image.index, config))
        attention.append(_attention(loaded, scores, image, attention_layers))
        for row in _measured(scores, image, found[-1], attention[-1], config):
            rows.append(row)
            on_progress(len(rows), len(images) * len(METHODS))
    info = _info(loaded, scores, images, config, attention_layers, facts or {})
    table = pd.DataFrame(rows)
    return AttributionStudy(
        Result(_places(images, found, attention, scores.model.config.grid), info),
        Result(_measures(table), info),
        found,
        np.stack(attention),
    )


def check_attention_layers(config: ModelConfig, layers: Sequence[int], reached: int) -> None:
    """Raise ``UserError`` for layers that do not exist or that scores of layer ``reached`` ignore."""
    check_layers(config, layers)
    if max(layers) > reached:
        raise UserError(
            f"attention of layer {max(layers)} was asked for; the scores explained depend on layers 1 "
            f"to {reached} alone"
        )


def _attention(
    loaded: Loaded, scores: StepScores, image: Explained, layers: Sequence[int]
) -> np.ndarray:
    """(1 + T,) attention of the step: the class first, 0 where unseen."""
    config = scores.model.config
    seen_1n, label_1 = one_input(scores, image.tokens, image.label)
    rows = attention_at_steps(
        loaded.model, seen_1n, label_1, layers=list(layers), steps=[scores.step]
    )  # (L, 1, H, 1, N)
    weights = np.zeros(1 + config.tokens)
    weights[: scores.step] = rows[:, 0, :, 0].double().mean((0, 1)).cpu().numpy()
    return weights


@torch.no_grad()
def _score(scores: StepScores, image: Explained) -> float:
    return float(scores(*one_input(scores, image.tokens, image.label))[0, image.index])


def _measured(
    scores: StepScores,
    image: Explained,
    found: list[Attribution],
    attention: np.ndarray,
    config: AttributionConfig,
) -> Iterator[dict]:
    """Every measure, method by method; ``change`` is the mean squared change of the score."""
    given = scores, image.tokens, image.label, image.index
    value = _score(scores, image)
    change = attribution_infidelity(*given, None, config) if config.draws else math.nan
    for one in found:
        values = {
            "image": image.name, "method": one.method, "score": value, "difference": one.difference,
            "gap": one.gap, "relative_gap": one.relative_gap,
            "rank_correlation": attention_agreement(one, attention[1:]),
        }  # fmt: skip
        if config.draws:
            error = attribution_infidelity(*given, one, config)
            share = error / change if change else math.nan
            values |= {"infidelity": error, "change": change, "infidelity_share": share}
            values["sensitivity"] = attribution_sensitivity(*given, one.method, config)
        yield values


def _places(
    images: Sequence[Explained],
    found: list[list[Attribution]],
    attention: list[np.ndarray],
    grid: int,
) -> pd.DataFrame:
    """One row an image, method and place."""
    place = np.arange(1 + grid * grid)
    parts = [
        pd.DataFrame(
            {
                "image": image.name, "method": one.method, "place": place,
                **place_cells(place, grid),
                "attribution": np.r_[one.class_value, one.tokens], "attention": weights,
            }
        )
        for image, methods, weights in zip(images, found, attention, strict=True)
        for one in methods
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _measures(table: pd.DataFrame) -> pd.DataFrame:
    """Long form, and below it the means over images."""
    measures = [name for name in MEASURES if name in table]
    rows = [
        (row["image"], row["method"], name, row[name], math.nan, math.nan, 1)
        for _, row in table.iterrows()
        for name in measures
    ]
    if len(table["image"]) > table["method"].nunique():
        for method, group in table.groupby("method", sort=False):
            rows += [("mean", method, name, *_mean(group, name)) for name in measures]
    columns = ["image", "method", "measure", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def _mean(group: pd.DataFrame, name: str) -> tuple[float, float, float, int]:
    """(value, low, high, n) over the images that have a value."""
    if name in RATIOS:
        over, under = (group[part].abs().to_numpy() for part in RATIOS[name])
        return *ratio_interval(over, under), len(group)
    values = group[name].abs() if name == "gap" else group[name]
    known = values.dropna().to_numpy()  # an image of equal contributions has no ranks to correlate
    return *mean_interval(known), len(known)


def _info(
    loaded: Loaded,
    scores: StepScores,
    images: Sequence[Explained],
    config: AttributionConfig,
    attention_layers: Sequence[int],
    facts: dict,
) -> dict:
    baseline_class = "null class" if images[0].label != scores.null else "mean of the class embeddings"
    return provenance(
        measurement="attribution of a step's score to the prefix",
        **checkpoint_facts(loaded), objective=loaded.objective_name,
        tokenizer=loaded.tokenizer, step=scores.step, target=scores.target,
        unit="nats" if scores.target == "logprob" else f"{scores.target} units",
        probe=scores.probe and scores.probe.describe(), settings=asdict(config),
        baseline={"tokens": "mean of the token embeddings", "class": baseline_class},
        attention={"layers": list(attention_layers), "heads": "mean"},
        images=[{"name": image.name, "class_shown": image.label, "score_index": image.index,
                 "tokens": " ".join(map(str, image.tokens.tolist()))} for image in images],
        measures=MEASURES, **facts,
    )  # fmt: skip
