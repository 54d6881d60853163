"""The numbers by which one network judges samples against a reference, with intervals, and their pairs.

    FID, FD-..   Fréchet distance of pooled features (``probes.stats.frechet``)
    sFID         the same of Inception's spatial features
    IS           Inception score
    precision, recall, density, coverage, KID, and a distance extrapolated to infinitely many samples

Intervals: distances and IS by the bootstrap over samples, shares by Wilson's over the images they are
shares of, KID by the delta method, the extrapolation by the jackknife. Where two sets of samples are
compared, draws of the bootstrap are the same places of both: paired if samples of a place belong
together (class and seed), and no worse than independent draws if not.

Shapes: N samples, M reference images, R draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from probes.samples.extraction import NEIGHBOURS, NEIGHBOURS_COVERED, Reference
from probes.samples.infinity import FEWEST_EXTRAPOLATED, extrapolated
from probes.samples.kernel import kernel_distance
from probes.samples.manifold import Neighbours, density_coverage, precision_recall
from probes.samples.networks import Features, Network
from probes.samples.resampling import bootstrap_counts, bootstrapped, normal_interval
from probes.samples.scores import inception_score, softmax
from probes.stats.intervals import Z, mean_interval, share_interval, student_p, student_quantile
from probes.stats.paired import mcnemar, paired_share_interval, paired_table
from star.base.progress import StageProgress, nothing
from star.base.randomness import generator

__all__ = ["COMPARE_COLUMNS", "Evaluation", "Extras", "compare_evaluations", "evaluate"]

COMPARE_COLUMNS = (
    "network", "metric", "first", "second", "difference", "low", "high", "p", "p_holm", "higher", "n",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is measured besides, and how many draws intervals rest on."""

    kid: bool = False
    density: bool = False
    infinity: bool = False
    resamples: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Number:
    """One number with its 95 % interval over ``n`` images.

    ``images``: what each of them adds, where it is a mean over them; ``draws``: of the bootstrap.
    """

    value: float
    low: float
    high: float
    n: int
    images: np.ndarray | None = field(default=None, repr=False)
    draws: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one set of samples by one network, by their names."""

    network: str
    numbers: dict[str, Number]
    missing: tuple[str, ...] = ()

    def table(self) -> pd.DataFrame:
        """Columns network, metric, value, low, high, n."""
        rows = [
            {"network": self.network, "metric": name, "value": found.value, "low": found.low,
             "high": found.high, "n": found.n}
            for name, found in self.numbers.items()
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["network", "metric", "value", "low", "high", "n"])


def evaluate(
    network: Network,
    samples: Features,
    reference: Reference,
    extras: Extras,
    *,
    on_progress: StageProgress = nothing,
) -> Evaluation:
    """All numbers that ``network`` and ``reference`` allow; ``missing`` names the others, and why."""
    pool_ND = samples.pool_ND.astype(np.float64)
    count = len(pool_ND)
    counts_RN = bootstrap_counts(count, extras.resamples, generator(extras.seed, "bootstrap samples"))
    numbers: dict[str, Number] = {}

    def drawn(name: str, number: Callable[[np.ndarray], float]) -> None:
        value = number(np.ones(count))
        draws = bootstrapped(
            number, counts_RN, lambda done, of: on_progress(f"{name}: draws", done, of)
        )
        numbers[name] = Number(value, *normal_interval(value, draws), count, draws=draws)

    drawn(network.distance_name, lambda weights: reference.distance.weighted(pool_ND, weights))
    if samples.spatial_NS is not None and reference.spatial is not None:
        places_NS, spatial = samples.spatial_NS.astype(np.float64), reference.spatial
        drawn("sFID", lambda weights: spatial.weighted(places_NS, weights))
    if network.scores_classes and samples.logits_NC is not None:
        probabilities_NC = softmax(samples.logits_NC)
        drawn("IS", lambda weights: inception_score(probabilities_NC, weights))
    missing = []
    if samples.spatial_NS is not None and reference.spatial is None:
        missing.append("sFID: the reference has no mu_s and sigma_s")
    numbers |= _of_neighbours(samples, reference, extras, missing, on_progress)
    if extras.infinity and count < FEWEST_EXTRAPOLATED:
        wanted = f"{count} samples; expected at least {FEWEST_EXTRAPOLATED}"
        missing.append(f"{_at_infinity(network)}: {wanted}")
    elif extras.infinity:
        name = _at_infinity(network)
        numbers[name] = Number(
            *extrapolated(
                lambda weights: reference.distance.weighted(pool_ND, weights),
                count,
                extras.seed,
                lambda done, of: on_progress(name, done, of),
            ),
            count,
        )
    return Evaluation(network.name, numbers, tuple(missing))


def _at_infinity(network: Network) -> str:
    """FID-infinity, or FD-infinity on .. features."""
    head, *rest = network.distance_name.split(" ", 1)
    return " ".join([f"{head}-infinity", *rest])


def _of_neighbours(
    samples: Features,
    reference: Reference,
    extras: Extras,
    missing: list[str],
    on_progress: StageProgress,
) -> dict[str, Number]:
    """What needs the features of single reference images."""
    names = ["precision and recall", *["KID"] * extras.kid, *["density and coverage"] * extras.density]
    if reference.kept_MD is None or reference.neighbours is None:
        missing.append(f"{', '.join(names)}: the reference holds statistics, and no images")
        return {}
    found: dict[str, Number] = {}

    def told(name: str) -> Callable[[int, int], None]:
        return lambda done, of: on_progress(name, done, of)

    fewest = min(len(samples.pool_ND), len(reference.kept_MD))
    of_reference = reference.neighbours
    device = of_reference.points_ND.device
    of_samples = Neighbours.of(samples.pool_ND, NEIGHBOURS, device, told("neighbours of samples"))
    if fewest > NEIGHBOURS:
        inside = precision_recall(of_samples, of_reference, NEIGHBOURS, told("precision and recall"))
        found |= {
            name: Number(*share_interval(hits), len(hits), images=hits)
            for name, hits in zip(("precision", "recall"), inside, strict=True)
        }
    else:
        missing.append(f"precision and recall: {fewest} images; expected more than {NEIGHBOURS}")
    if extras.density and fewest > NEIGHBOURS_COVERED:
        density_N, covered_M = density_coverage(
            of_samples, of_reference, NEIGHBOURS_COVERED, told("density and coverage")
        )
        found["density"] = Number(*mean_interval(density_N), len(density_N), images=density_N)
        found["coverage"] = Number(*share_interval(covered_M), len(covered_M), images=covered_M)
    elif extras.density:
        missing.append(
            f"density and coverage: {fewest} images; expected more than {NEIGHBOURS_COVERED}"
        )
    if extras.kid:
        kid = kernel_distance(samples.pool_ND, reference.kept_MD, told("KID"))
        # What the reference adds is the same for all samples: it drops out of their differences.
        shares_N = 2 * kid.of_samples_N
        found["KID"] = Number(kid.value, *kid.interval, len(shares_N), images=shares_N)
    return found


def compare_evaluations(first: Evaluation, second: Evaluation, names: tuple[str, str]) -> pd.DataFrame:
    """Second minus first, number by number, on the same reference: columns ``COMPARE_COLUMNS``.

    Draws and shares are paired where both sides have as many. ``p`` is by Student's t of the
    difference, McNemar's exact test for shares; ``p_holm`` corrects over the rows and ``higher`` names
    the side that is higher by it: of distances the lower one is better.
    """
    rows = []
    for name, one in first.numbers.items():
        two = second.numbers.get(name)
        if two is not None:
            rows.append({"network": first.network, "metric": name, **_paired(one, two)})
    return paired_table(rows, COMPARE_COLUMNS, names)


def _paired(one: Number, two: Number) -> dict:
    difference = two.value - one.value
    row = {"first": one.value, "second": two.value, "difference": difference, "n": two.n}
    a, b = one.images, two.images
    if a is not None and b is not None and len(a) == len(b) and a.dtype == bool:
        _, low, high = paired_share_interval(a, b)
        p = float(mcnemar(int((a & ~b).sum()), int((b & ~a).sum())))
        return {**row, "low": low, "high": high, "p": p}
    freedom = math.inf
    if one.draws is not None and two.draws is not None and one.n == two.n:
        error, freedom = float(np.std(two.draws - one.draws, ddof=1)), len(one.draws) - 1
    elif a is not None and b is not None and len(a) == len(b):
        error, freedom = float(np.std(b - a, ddof=1)) / len(a) ** 0.5, len(a) - 1
    else:  # apart: half the interval of each is known
        error = float(np.hypot(one.high - one.low, two.high - two.low)) / (2 * Z)
    half, p = student_quantile(freedom) * error, student_p(difference, error, freedom)
    return {**row, "low": difference - half, "high": difference + half, "p": p}
