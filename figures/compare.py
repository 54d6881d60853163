"""The table that sets plain AR beside ST-AR, and the sentence that says which one won.

Every figure has a 95 % interval over held-out images. They do not cover another training seed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from probes.stats.intervals import mean_interval
from star.runs.metrics import read_metrics

__all__ = ["Measured", "comparison", "training_seconds", "verdict"]


@dataclass(frozen=True)
class Measured:
    """What is known about one trained model.

    ``correct`` (K, N) bool: probe hits at ``layer`` by step and test image; ``nll`` (N_val,) nats a
    token; ``attention``: the table of ``probes.attention.stats``.
    """

    name: str
    lr: float
    steps: int
    seconds: float
    layer: int
    correct: np.ndarray
    nll: np.ndarray
    attention: pd.DataFrame

    @property
    def late_accuracy(self) -> np.ndarray:
        """(N,) share of hits of each image over the second half of the steps."""
        return self.correct[self.correct.shape[0] // 2 :].mean(0)


def training_seconds(run: Path, sequences: int) -> float:
    """Seconds spent in training steps (validation left out), from a run's ``metrics.jsonl``."""
    seconds, before = 0.0, 0
    for row in read_metrics(run)[0]:
        seconds += (row["step"] - before) * sequences / row["sequences_per_second"]
        before = row["step"]
    return seconds


def comparison(models: list[Measured]) -> pd.DataFrame:
    """Long-form table: columns model, measure, unit, value, low, high, n."""
    rows = []
    for model in models:
        late = len(model.correct) // 2
        accuracies = {
            f"probe accuracy, layer {model.layer}, last {len(model.correct) - late} steps": (
                100 * model.late_accuracy
            ),
            f"probe accuracy, layer {model.layer}, last step": 100.0 * model.correct[-1],
            f"probe accuracy, layer {model.layer}, all steps": 100 * model.correct.mean(0),
        }
        for measure, values in accuracies.items():
            rows.append((model.name, measure, "%", *mean_interval(values), len(values)))
        rows.append(
            (model.name, "validation NLL", "nats/token", *mean_interval(model.nll), len(model.nll))
        )
        for name, measure, unit, factor in (
            ("distance", "mean attention distance", "cells", 1),
            ("class_share", "attention on the class token", "%", 100),
        ):
            of_all = model.attention[["layer", "step"]].eq(0).all(axis=1)
            row = model.attention[of_all & model.attention["measure"].eq(name)].iloc[0]
            values = (factor * row[key] for key in ("value", "low", "high"))
            rows.append((model.name, measure, unit, *values, row["n"]))
        nan = float("nan")
        rows.append((model.name, "training time", "s", model.seconds, nan, nan, 1))
        rows.append((model.name, "learning rate", "", model.lr, nan, nan, 1))
        rows.append((model.name, "training steps", "", model.steps, nan, nan, 1))
    return pd.DataFrame(rows, columns=["model", "measure", "unit", "value", "low", "high", "n"])


def verdict(plain: Measured, improved: Measured) -> list[str]:
    """Sentences that say who won, from paired differences on the same images."""
    sentences = []
    gain = mean_interval(100 * (improved.late_accuracy - plain.late_accuracy))
    sentences.append(
        _sentence(
            improved.name, plain.name, "reads the class", "points of probe accuracy", gain, "higher"
        )
    )
    saved = mean_interval(plain.nll - improved.nll)
    sentences.append(
        _sentence(improved.name, plain.name, "predicts tokens", "nats a token", saved, "lower", 4)
    )
    return sentences


def _sentence(
    better: str,
    other: str,
    does: str,
    unit: str,
    gain: tuple[float, float, float],
    way: str,
    digits: int = 1,
) -> str:
    mean, low, high = gain
    numbers = f"{abs(mean):.{digits}f} {unit}"
    interval = f"95 % interval of the gain over images [{low:+.{digits}f}, {high:+.{digits}f}]"
    if low > 0:
        return f"{better} {does} better than {other}: {numbers} {way} ({interval})."
    if high < 0:
        return f"{better} does NOT win here: it {does} worse than {other} by {numbers} ({interval})."
    return f"{better} does NOT win here: it {does} neither better nor worse than {other} ({interval})."
