"""Two tokenizers' invariance on the same images: paired differences, tested, and said in words.

Of every augmentation and strength that both were measured at: the mean over images of the second
tokenizer's number minus the first's, its 95 % interval, and the two-sided p of the paired t test. The
p of all rows are corrected together by Holm's procedure. ``cells`` are each tokenizer's own:
with strides 4 and 16 the same strength moves the picture by 4 and by 16 pixels.
"""

import numpy as np
import pandas as pd

from probes.stats.paired import paired_row, paired_table
from probes.tokens.invariance import Invariance
from star.base.errors import UserError

__all__ = ["COMPARED", "compare_invariance", "invariance_sentences"]

COMPARED = ("equal", "aligned", "code_distance", "histogram", "decoded_psnr")
_COLUMNS = (
    "augmentation", "strength", "unit", "measure", "first", "second", "difference", "low", "high", "n",
    "p", "p_holm", "higher",
)  # fmt: skip


def compare_invariance(first: Invariance, second: Invariance) -> pd.DataFrame:
    """Second minus first, a row an augmentation, strength and measure; ``n`` images have both.

    ``higher`` names the tokenizer whose number is higher by the corrected test, or "neither"; below 20
    images, and at the identity, it is blank. Raises ``UserError`` if the images were not as many.
    """
    if first.images != second.images:
        raise UserError(
            f"{first.tokenizer} was measured on {first.images} images and {second.tokenizer} on "
            f"{second.images}; a paired comparison needs the same"
        )
    places = {(view.augmentation.name, view.strength): at for at, view in enumerate(second.views)}
    rows = []
    for at, view in enumerate(first.views):
        name = view.augmentation.name
        there = places.get((name, view.strength))
        if there is None or view.is_identity:
            continue
        for measure in COMPARED:
            one_N, two_N = first.values[measure][at], second.values[measure][there]
            both = np.isfinite(one_N) & np.isfinite(two_N)
            if not both.any():
                continue
            key = (name, view.strength, view.augmentation.unit, measure)
            row = dict(zip(_COLUMNS, key, strict=False))
            rows.append(row | paired_row(one_N[both], two_N[both]))
    return paired_table(rows, _COLUMNS, (first.tokenizer, second.tokenizer))


def invariance_sentences(table: pd.DataFrame, names: tuple[str, str]) -> list[str]:
    """One sentence a measure: at how many strengths which tokenizer is higher."""
    found = []
    for measure, rows in table[table["p"].notna()].groupby("measure", sort=False):
        counts = [int((rows["higher"] == name).sum()) for name in names[::-1]]
        found.append(
            f"{measure}: {names[1]} higher at {counts[0]}, {names[0]} at {counts[1]} of {len(rows)} "
            f"strengths; mean difference {rows['difference'].mean():+.3g}"
        )
    return found
