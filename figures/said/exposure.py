"""What ``star exposure`` says: excess right after real tokens and at the end, and the comparison."""

import math

import pandas as pd

from figures.sentences import OTHER_RUNS, difference
from figures.work import Rows, Said
from probes.likelihood.exposure import Exposure

__all__ = ["compared_said", "exposure_said"]


def exposure_said(name: str, table: pd.DataFrame, found: Exposure, split: str) -> list[Said]:
    """A row a start of NLL and entropy, one of codes, and what was left out."""
    likely, codes = [], []
    for start, rows in table.groupby("start"):
        at_one = rows[rows["span"].eq("step") & rows["begin"].eq(1)].set_index("measure")
        windows = rows[rows["span"].eq("window")]
        last = windows[windows["begin"].eq(windows["begin"].max())].set_index("measure")
        whole = rows[rows["span"].eq("all")].set_index("measure")
        cells = [at_one.loc["nll"], last.loc["nll"], last.loc["nll_growth"], whole.loc["entropy"]]
        likely.append([f"{start}", *map(_cell, cells)])
        distance = ["", ""]
        if "code_distance" in last.index:
            row = last.loc["code_distance"]
            distance = [f"{row.rollout:.3f}", f"{row.real:.3f}"]
        used = [_cell(whole.loc[each]) if each in whole.index else "" for each in _HISTOGRAMS]
        codes.append([f"{start}", *distance, *used])
    count = len(found.labels)
    said: list[Said] = [
        Rows(
            f"{name}: {count} {split} images; rollout minus real, nats a token [95 %]",
            ["real tokens", "NLL at distance 1", "NLL at the end", "its growth", "entropy, mean"],
            likely,
        ),
        Rows(
            f"{name}: distance of codes at the end, and TV of histograms, rollout minus real [95 %]",
            ["real tokens", "to its image", "of another of its class", "codes", "pairs of codes"],
            codes,
        ),
    ]
    if found.distance_NKT is None:
        said.append(f"{name}: the distance of codes is left out: no tokenizer is there (--tokenizer)")
    elif found.other_NT is not None and (alone := int(pd.isna(found.other_NT[:, 0]).sum())):
        said.append(
            f"{name}: {alone} images are alone in their class: no distance of another image to them"
        )
    return said


_HISTOGRAMS = ("code_histogram", "pair_histogram")


def _cell(row: pd.Series) -> str:
    bounds = "" if math.isnan(row.low) else f" [{row.low:+.3f}, {row.high:+.3f}]"
    return f"{row.difference:+.3f}{bounds}"


def compared_said(table: pd.DataFrame, names: tuple[str, str]) -> list[Said]:
    """The differences of the means from the first start; what one run an arm can not say."""
    words = {
        "nll": "excess NLL of rollouts (nats a token)",
        "entropy": "entropy, rollout minus real (nats a token)",
        "code_distance": "distance of codes to the image",
    }
    whole = table[table["span"].eq("all") & table["start"].eq(table["start"].min())]
    said: list[Said] = []
    for row in whole.itertuples():
        said.append(f"{words[row.measure]} from {row.start} real tokens: {difference(row, names)}")
    return [*said, OTHER_RUNS]
