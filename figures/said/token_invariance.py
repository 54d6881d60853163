"""What ``star token-invariance`` says of what it found."""

from collections.abc import Sequence

import pandas as pd

from figures.work import Rows, Said
from probes.tokens.augmentations import AUGMENTATIONS
from probes.tokens.change import ViewChange
from probes.tokens.invariance import PSNR_CAP, Invariance

__all__ = ["EXPLAINED", "changed", "compared", "slightest"]

EXPLAINED = (
    "same: cells with the same index; moved: after moving the view's cells back; other: of an "
    "unrelated image; 1-cos: old and new code of changed cells; drawn, img: PSNR (dB) of the two "
    f"decoded pictures and of the two images, {PSNR_CAP:g} is equal"
)


def changed(change: ViewChange, what: str) -> str:
    """How many indices differ between an image and its view."""
    number = (change.indices != change.view_indices).sum()
    return (
        f"{what}: {number} of {change.indices.size} indices change "
        f"when {change.label}; {100 * change.share:.1f} % unchanged"
    )


def slightest(found: Invariance, what: str) -> list[Said]:
    """Of each augmentation the row of its slightest change; and how well images are redrawn at all."""
    table = found.table()
    rows = []
    for name, part in table[~table["identity"]].groupby("augmentation", sort=False):
        still = AUGMENTATIONS[name].identity
        still = AUGMENTATIONS[name].most if still is None else still  # JPEG: the best quality
        row = part.loc[(part["strength"] - still).abs().idxmin()]
        codes = [_number(row[measure], 2) for measure in ("code_distance", "code_distance_chance")]
        pictures = [_number(row[measure], 1) for measure in ("decoded_psnr", "input_psnr")]
        shares = [_percent(row, "equal"), _percent(row, "aligned"), _number(100 * row["chance"], 1)]
        rows.append([f"{name} {row.strength:g}", *shares, *codes, *pictures])
    columns = ["slightest", "same %", "moved", "other", "1-cos", "other", "drawn", "img"]
    own = table["reconstruction_psnr"].iloc[0]
    return [
        Rows(f"{found.tokenizer}, {what}", columns, rows),
        f"an image and its own decoded picture: {own:.1f} dB",
    ]


def compared(sentences: Sequence[str], first: str, other: str) -> list[str]:
    """The sentences of a comparison, or that there can be none."""
    return list(sentences) or [f"{other} against {first}: too few images to be tested"]


def _percent(row: pd.Series, measure: str) -> str:
    value, high = 100 * row[measure], 100 * row[f"{measure}_high"]
    return _number(value, 1) if pd.isna(high) else f"{value:.1f}±{high - value:.1f}"


def _number(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"
