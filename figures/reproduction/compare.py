"""Plain AR beside ST-AR over training runs: a table, and sentences that claim what runs allow.

Images say something about two checkpoints, runs with different seeds something about a method. Each
number is taken of every run and test image (``probes.stats.arms``): with several runs an arm intervals
are over new runs and new images, with one run they are over images alone, and it is said what that
leaves open. Three endpoints were named before: the probe's accuracy at the contrast layer over the last
half of the steps, the NLL of test images, and the distance of attention over all steps and layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from figures.said.arms import arm_difference
from probes.stats.arms import ArmDifference, compare_arms, corrected_together
from probes.stats.runs import mean_of_runs

__all__ = ["Endpoint", "Measured", "comparison", "differences", "verdict"]


@dataclass(frozen=True)
class Measured:
    """What is known about one trained model, of every test image.

    ``correct`` (K, N) bool: probe hits at ``layer`` by step; ``nll`` (N,) nats a token; ``distance``
    (cells) and ``class_share`` (N,): of its attention, all steps, layers and heads; ``flops``: of one
    training step.
    """

    name: str
    seed: int
    lr: float
    steps: int
    flops: float
    layer: int
    correct: np.ndarray
    nll: np.ndarray
    distance: np.ndarray
    class_share: np.ndarray

    @property
    def late_accuracy(self) -> np.ndarray:
        """(N,) share of hits of each image over the second half of the steps."""
        return self.correct[self.correct.shape[0] // 2 :].mean(0)


@dataclass(frozen=True)
class Endpoint:
    """A number of every run and image; ``values`` times ``factor`` are in ``unit``."""

    name: str
    unit: str
    factor: float
    digits: int
    primary: bool = True


LATE = Endpoint("probe accuracy, layer {layer}, last {late} steps", "%", 100, 1)
NLL = Endpoint("test NLL", "nats/token", 1, 4)
DISTANCE = Endpoint("mean attention distance", "cells", 1, 2)
LAST = Endpoint("probe accuracy, layer {layer}, last step", "%", 100, 1, primary=False)
EVERY = Endpoint("probe accuracy, layer {layer}, all steps", "%", 100, 1, primary=False)
SHARE = Endpoint("attention on the class token", "%", 100, 1, primary=False)


def _values(endpoint: Endpoint, model: Measured) -> np.ndarray:
    """(N,) of one run."""
    found = {
        LATE: model.late_accuracy,
        LAST: model.correct[-1].astype(float),
        EVERY: model.correct.mean(0),
        NLL: model.nll,
        DISTANCE: model.distance,
        SHARE: model.class_share,
    }
    return found[endpoint]


def _named(endpoint: Endpoint, model: Measured) -> str:
    steps = len(model.correct)
    return endpoint.name.format(layer=model.layer, late=steps - steps // 2)


def comparison(arms: Mapping[str, Sequence[Measured]]) -> pd.DataFrame:
    """Long-form table: columns model, measure, unit, value, low, high, spread, runs, n.

    ``low`` and ``high``: 95 %, over new runs and images, of one run over images. ``spread``: standard
    deviation between runs. ``n``: images.
    """
    rows = []
    for name, runs in arms.items():
        for endpoint in (LATE, LAST, EVERY, NLL, DISTANCE, SHARE):
            found = mean_of_runs(np.stack([_values(endpoint, run) for run in runs]))
            low, high = found.over_images if found.runs == 1 else found.interval()
            numbers = (endpoint.factor * x for x in (found.value, low, high, found.spread.between))
            measure = _named(endpoint, runs[0])
            rows.append((name, measure, endpoint.unit, *numbers, len(runs), found.images))
        nan = float("nan")
        for measure, unit, value in (
            ("FLOPs of a training step", "10^9", runs[0].flops / 1e9),
            ("learning rate", "", runs[0].lr),
            ("training steps", "", runs[0].steps),
        ):
            rows.append((name, measure, unit, value, nan, nan, nan, len(runs), 0))
    columns = ["model", "measure", "unit", "value", "low", "high", "spread", "runs", "n"]
    return pd.DataFrame(rows, columns=columns)


def differences(
    plain: Sequence[Measured], improved: Sequence[Measured]
) -> dict[Endpoint, ArmDifference]:
    """The endpoints named before, second arm less first, Holm-corrected over them.

    Run s of both has the same seed; ``AssertionError`` otherwise.
    """
    assert [run.seed for run in plain] == [run.seed for run in improved]
    named = (LATE, NLL, DISTANCE)
    found = [
        compare_arms(*(np.stack([_values(endpoint, run) for run in arm]) for arm in (plain, improved)))
        for endpoint in named
    ]
    return dict(zip(named, corrected_together(found), strict=True))


def verdict(plain: Sequence[Measured], improved: Sequence[Measured]) -> list[str]:
    """A sentence an endpoint: the difference, its interval and over what, and the word."""
    names = (plain[0].name, improved[0].name)
    sentences = []
    for endpoint, found in differences(plain, improved).items():
        unit = {"%": " points", "nats/token": " nats a token"}.get(endpoint.unit, f" {endpoint.unit}")
        said = arm_difference(found, names, factor=endpoint.factor, digits=endpoint.digits, unit=unit)
        sentences.append(f"{_named(endpoint, plain[0])}: {said}")
    return sentences
