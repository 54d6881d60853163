"""What ``star evaluate`` says: numbers, classes, fingerprints, differences, and their limits."""

import pandas as pd

from figures.sentences import OTHER_RUNS
from figures.work import Rows, Said
from probes.samples.evaluation import Evaluation
from probes.samples.fingerprint import identity
from probes.samples.networks import Network

__all__ = ["classes_said", "compared_said", "explained", "fingerprint_said", "numbers_said"]

SHARES = ("precision", "recall", "coverage")


def numbers_said(name: str, network: Network, found: Evaluation) -> Rows:
    """All numbers of one set of samples."""
    rows = [
        [
            row.metric,
            *_number(row.metric, row.value, row.low, row.high),
            f"{row.n:,}",
            better(row.metric),
        ]
        for row in found.table().itertuples()
    ]
    columns = ["number", "value", "95 %", "images", "better"]
    return Rows(f"{name}, judged by {network.name}", columns, rows)


def better(metric: str) -> str:
    """Which way is up."""
    return "higher" if metric in (*SHARES, "IS", "density") else "lower"


def _number(metric: str, value: float, low: float, high: float) -> tuple[str, str]:
    digits = 3 if metric in SHARES or metric == "density" else 5 if metric == "KID" else 2
    bounds = "none" if low != low else f"[{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}", bounds


def classes_said(
    name: str,
    network: Network,
    classes: pd.DataFrame | None,
    real: pd.DataFrame | None,
    why_not: str | None,
) -> list[Said]:
    """Conditional accuracy beside that of real images, and the class that is seen least."""
    if why_not is not None:
        return [f"{name}: no conditional accuracy: {why_not}"]
    if classes is None:
        return []
    row = classes.iloc[0]
    beside = "the reference has no classes"
    if real is not None:
        beside = f"of reference images in {_percent(real.iloc[0])}"
    said = (
        f"{name}: the {network.name} sees the class that was asked for in {_percent(row)} of "
        f"{row['n']:,} samples ({beside}; answers unrelated to the classes would: "
        f"{100 * row['by_chance']:.1f} %)"
    )
    if len(classes) > 2:
        worst = classes.iloc[1:].sort_values("accuracy").iloc[0]
        said += (
            f"; least of class {worst['class']}, {_percent(worst)}, where it sees most often "
            f"{worst['seen_most']} ({100 * worst['seen_most_share']:.0f} %)"
        )
    return [said]


def _percent(row: pd.Series) -> str:
    return f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def fingerprint_said(name: str, facts: dict) -> Rows:
    """What decided the numbers, in short; the json beside them holds all of it."""
    samples, reference, network = (facts[key] for key in ("samples", "reference", "network"))
    sampling = (samples["plan"] or {}).get("sampling", {})
    guidance = "unknown (no .json of star sample beside them)"
    if sampling:
        guidance = ", ".join(
            f"{key.replace('_', ' ')} {sampling[key]}"
            for key in (
                "cfg_scale",
                "cfg_interval",
                "cfg_schedule",
                "temperature",
                "top_k",
                "top_p",
                "seed",
            )
            if key in sampling
        )
    balance = samples["images_a_class"]
    rows = [
        ["samples", f"{samples['path']} ({samples['sha256'][:12]})"],
        ["", f"{samples['images']:,} of {samples['size'][1]} x {samples['size'][0]} pixels, "
             + ("classes unknown" if balance is None else
                f"{samples['classes']} classes of {balance[0]} to {balance[1]}")],
        ["sampling", guidance],
        ["reference", f"{reference['path']} ({reference['sha256'][:12]})"],
        ["", f"mean and covariance {reference['statistics']}"],
        ["network", f"{network['name']} ({network['sha256'][:12]})"],
        ["resizing", facts["resizing"]],
    ]  # fmt: skip
    return Rows(f"{name}: fingerprint {identity(facts)}", ["what", "value"], rows)


def explained(network: Network) -> list[Said]:
    """What intervals are of, and that a distance on other features is no FID."""
    said: list[Said] = [
        "intervals of distances and of IS: the number and two standard deviations of bootstrap draws "
        "of the samples, the reference standing still; of shares: Wilson's over their images"
    ]
    if network.distance_name.startswith("FD on"):
        said.append(
            f"{network.distance_name} is no FID: it can be compared on these features and this "
            "reference alone"
        )
    return said


def compared_said(
    table: pd.DataFrame,
    classes: pd.DataFrame | None,
    names: tuple[str, str],
    counts: tuple[int, int],
) -> list[Said]:
    """Differences with intervals of sets of ``counts`` samples; what two files cannot say."""
    first, other = names
    unequal = ""
    if counts[0] != counts[1]:
        unequal = (
            f"NOT comparable as they are: {counts[0]:,} samples of {first}, {counts[1]:,} of {other}; "
            "distances, recall and coverage depend on the count. "
        )
    rows = []
    for row in table.itertuples():
        values = (_number(row.metric, value, 0, 0)[0] for value in (row.first, row.second))
        difference, bounds = _number(row.metric, row.difference, row.low, row.high)
        sign = "+" if row.difference > 0 else ""
        rows.append([row.metric, *values, sign + difference, bounds, f"{row.p_holm:.2g}"])
    if classes is not None:
        row = classes.iloc[0]
        hundred = [f"{100 * row[key]:.1f} %" for key in ("first", "second")]
        bounds = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        rows.append(
            [
                "conditional accuracy",
                *hundred,
                f"{100 * row['difference']:+.1f}",
                bounds,
                f"{row['p']:.2g}",
            ]
        )
    columns = ["number", first, other, "difference", "95 %", "p (Holm)"]
    return [
        Rows(f"{other} less {first}, on the same reference", columns, rows),
        f"{unequal}{OTHER_RUNS}: intervals are over samples of these two models",
    ]
