"""Two models' attention on the same images: paired differences, tested, and said in words.

At every layer and step, heads averaged: the mean over images of the second model's number minus the
first's, its 95 % interval and the two-sided p of the same paired t test. The p of all cells of all
measures are corrected together by Holm's procedure (``probes.stats.paired``).

Shapes: N images, L layers, K steps, H heads.
"""

import math

import pandas as pd

from probes.attention.stats import AttentionStats
from probes.stats.intervals import FEWEST
from probes.stats.paired import paired_row, paired_table
from star.base.errors import UserError

__all__ = ["DIFFERENCE_COLUMNS", "attention_sentences", "compare_attention"]

DIFFERENCE_COLUMNS = (
    "measure", "layer", "step", "first", "second", "difference", "low", "high", "uniform",
    "p", "p_holm", "higher", "n",
)  # fmt: skip


def compare_attention(
    first: AttentionStats, second: AttentionStats, names: tuple[str, str]
) -> pd.DataFrame:
    """Second minus first, columns ``DIFFERENCE_COLUMNS``, one row a measure, layer and step.

    ``higher`` names the model whose number is higher by the corrected test, or "neither"; in the rows
    of step 0 (the mean over steps; layer 0: over layers too), which are not tested, it is blank.
    Raises ``UserError`` if the two were not taken at the same layers and steps, or of fewer than 20
    images.
    """
    if (first.layers, first.steps) != (second.layers, second.steps) or first.images != second.images:
        raise UserError(
            f"{names[0]} and {names[1]} were not measured at the same layers and steps of the same "
            "images; a paired comparison needs that"
        )
    if first.images < FEWEST:
        raise UserError(f"a comparison needs at least {FEWEST} images; {first.images} were measured")
    rows = []
    every = slice(None)
    cells = [
        (layer, step, (a, k))
        for a, layer in enumerate(first.layers)
        for k, step in enumerate(first.steps)
    ]
    means = [(layer, 0, (a, every)) for a, layer in enumerate(first.layers)] + [(0, 0, (every, every))]
    for measure in first.values:
        if measure not in second.values:
            continue
        sides = [side.values[measure].mean(3).astype(float) for side in (first, second)]
        uniform_LK = first.uniform[measure].mean(2)
        for layer, step, at in cells + means:
            one_N, two_N = (side[:, *at].reshape(first.images, -1).mean(1) for side in sides)
            row = {"measure": measure, "layer": layer, "step": step, **paired_row(one_N, two_N)}
            rows.append(row | {"uniform": uniform_LK[at].mean()} | ({} if step else {"p": math.nan}))
    return paired_table(rows, DIFFERENCE_COLUMNS, names)


def attention_sentences(table: pd.DataFrame, names: tuple[str, str]) -> list[str]:
    """One sentence a measure: the mean difference, and at how many cells which model is higher."""
    found = []
    for measure, rows in table.groupby("measure", sort=False):
        total = rows[(rows["layer"] == 0) & (rows["step"] == 0)].iloc[0]
        cells = rows[rows["step"] > 0]
        counts = [int((cells["higher"] == name).sum()) for name in names[::-1]]
        found.append(
            f"{measure}: {names[1]} {total.second:.3g}, {names[0]} {total['first']:.3g} "
            f"({total.difference:+.3g} [{total.low:+.3g}, {total.high:+.3g}]); {names[1]} higher at "
            f"{counts[0]} and {names[0]} at {counts[1]} of {len(cells)} cells"
        )
    return found
