"""What is said of an attribution: the probe, the score and what there is to explain, its measures."""

import numpy as np
import pandas as pd

from figures.work import Rows, Said
from probes.attribution.methods import METHODS
from probes.attribution.probe import StepProbe
from probes.attribution.scores import StepScores

__all__ = ["METHOD_NAMES", "UNITS", "measures_said", "probe_said", "score_words"]

METHOD_NAMES = {
    "integrated_gradients": "integrated gradients",
    "gradient_x_input": "gradient x input",
    "occlusion": "occlusion",
}
UNITS = {"logprob": "nats", "logit": "logit units", "probe": "probe units"}  # of a target's score
ROWS = (  # what a row says of one image, and of several, the measure, its digits
    ("completeness gap", "mean |completeness gap|", "gap", "{:.3g}"),
    ("|gap| / |difference|", None, "relative_gap", "{:.2g}"),
    ("rank correlation with attention", None, "rank_correlation", "{:+.2f}"),
    ("infidelity", None, "infidelity", "{:.3g}"),
    ("infidelity / mean squared change", None, "infidelity_share", "{:.2f}"),
    ("sensitivity", None, "sensitivity", "{:.2f}"),
)


def probe_said(probe: StepProbe) -> str:
    """How good the probe is whose score is explained."""
    return (
        f"probe of layer {probe.layer} at step {probe.step} (ridge, penalty {probe.penalty:g}, "
        f"{probe.counts['train']} training images): accuracy {100 * probe.accuracy:.1f} % "
        f"[{100 * probe.low:.1f}, {100 * probe.high:.1f}] of {probe.counts['test']} test images, "
        f"chance {100 * probe.chance:.1f} %"
    )


def score_words(scores: StepScores) -> str:
    """What the score is."""
    if scores.probe is not None:
        return f"class score of the probe of layer {scores.probe.layer}"
    kind = "log-probability" if scores.target == "logprob" else "logit"
    return f"{kind} of the true token {scores.step}"


def measures_said(
    table: pd.DataFrame, scores: StepScores, name: str, image: str, points: int
) -> list[Said]:
    """The score and every method's measures: of ``image``, or "mean" for the means of several.

    ``table``: measures (``probes.attribution.study``); ``name``: what the images are called.
    """
    several = image == "mean"
    cells = table[table["image"] == image].set_index(["method", "measure"])
    first, unit = METHODS[0], UNITS[scores.target]
    score, more = (cells.loc[(first, measure), "value"] for measure in ("score", "difference"))
    of_score = (
        f"step {scores.step}, {score_words(scores)}: {'mean ' if several else ''}score {score:+.4g} "
        f"{unit}, baseline {score - more:+.4g}, to explain {more:+.4g}; {points} path points"
    )
    rows = [
        [
            (of_several or said) if several else said,
            *(_cell(cells.loc[(method, measure)], form) for method in METHODS),
        ]
        for said, of_several, measure, form in ROWS
        if (first, measure) in cells.index
    ]
    title = f"{name}, in {unit}" + (" [95 % intervals over images]" if several else "")
    return [of_score, Rows(title, ["", *(METHOD_NAMES[method] for method in METHODS)], rows)]


def _cell(row: pd.Series, form: str) -> str:
    if np.isnan(row["value"]):
        return "undefined"
    text = form.format(row["value"])
    if np.isnan(row["low"]):
        return text
    return f"{text} [{form.format(row['low'])}, {form.format(row['high'])}]"
