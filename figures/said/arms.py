"""What is said of two arms over several runs: one line with units, no more than runs allow."""

import math

from figures.sentences import OTHER_RUNS
from probes.stats.arms import DIFFERS, EQUIVALENT, ArmDifference
from probes.stats.power import ENOUGH, seeds_needed
from probes.stats.runs import Interval, RunsMean

__all__ = ["arm_difference", "arm_mean", "runs_needed"]


def arm_difference(
    found: ArmDifference,
    names: tuple[str, str],
    *,
    factor: float = 1,
    digits: int = 3,
    unit: str = "",
    known_spread: float | None = None,
) -> str:
    """``names`` (first, second): the second less the first, its interval, over what, and the word.

    Numbers are multiplied by ``factor`` and followed by ``unit`` (" points"). Where an arm has one
    run: what these two checkpoints show on these images, that it says nothing of other runs, and
    beside it ``known_spread``, the standard deviation between runs of the recipe if that is known (in
    the units of the values).
    """
    first, second = names
    by = f"{factor * found.value:+.{digits}f}{unit}"
    if found.runs == 1:
        said = f"these two checkpoints differ by {by} ({second} less {first}) on these {found.images} "
        said += f"images {_bounds(found.over_images, factor, digits)}; {OTHER_RUNS}"
        if known_spread is not None:
            said += f"; known spread between runs {factor * known_spread:.{digits}f}{unit}"
        return said
    over = _over(_runs(found.first.runs, found.second.runs, found.paired), found)
    said = f"{second} less {first}: {by} {_bounds(found.interval(), factor, digits)} over {over}: "
    margin = ""
    if found.margin is not None:
        margin = f"within ±{factor * found.margin:.{digits}f}{unit}"
    inner = f"{margin} (90 % over new runs {_bounds(found.over_runs(0.9), factor, digits)})"
    words = {DIFFERS: "differs", EQUIVALENT: f"equivalent {inner}"}
    said += words.get(found.word, "not resolved")
    if found.word == DIFFERS and found.equivalent:
        said += f", yet equivalent {inner}"
    if found.p_holm is not None:
        said += f"; Holm-corrected p {found.p_holm:.2g}"
        if found.p_equivalent_holm is not None:
            said += f", of the equivalence {found.p_equivalent_holm:.2g}"
    return said


def arm_mean(name: str, found: RunsMean, *, factor: float = 1, digits: int = 3, unit: str = "") -> str:
    """The mean of one arm, its interval over new runs and new images, and the spread of its runs."""
    value = f"{name}: {factor * found.value:.{digits}f}{unit}"
    if found.runs == 1:
        bounds = _bounds(found.over_images, factor, digits, sign="")
        return f"{value} {bounds} on these {found.images} images, one run"
    bounds = _bounds(found.interval(), factor, digits, sign="")
    spread = f"spread between runs {factor * found.spread.between:.{digits}f}{unit}"
    return f"{value} {bounds} over {_over(f'{found.runs} runs', found)}; {spread}"


def runs_needed(difference: float, spread: float, *, digits: int = 1, unit: str = "") -> str:
    """How many seeds an arm find such a difference in most experiments."""
    seeds = seeds_needed(difference, spread)
    return (
        f"a true difference of {difference:+.{digits}f}{unit} at a spread of {spread:.{digits}f}{unit} "
        f"between seeds is found in {100 * ENOUGH:.0f} % of experiments with {seeds} seeds an arm"
    )


def _bounds(interval: Interval, factor: float, digits: int, sign: str = "+") -> str:
    low, high = (factor * bound for bound in interval)
    return f"[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _runs(first: int, second: int, paired: bool) -> str:
    if paired:
        return f"{first} runs"
    return f"{first} and {second} runs, not paired,"


def _over(runs: str, found: RunsMean) -> str:
    return runs.rstrip(",") if math.isnan(found.spread.image_error) else f"{runs} and new images"
