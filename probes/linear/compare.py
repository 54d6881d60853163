"""Paired comparison of two checkpoints whose probes were tested on the same images.

At every layer and step: the difference of the two accuracies; its 95 % interval over images,
Newcombe's of two paired shares, or of averaged hits (``probes.stats``) where an image's hits were
averaged over probe seeds, steps or cells first; McNemar's exact test (McNemar 1947, "Note on the
sampling error of the difference between correlated proportions or percentages") on the images that
only one of the two gets right with seed 0: of b + c such images, b would be binomial with probability
1/2 if the models were equally good. The p values of all cells are corrected together by Holm's
step-down procedure (Holm 1979, "A simple sequentially rejective multiple test procedure").

S probe seeds, L layers, K steps, N test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.stats.intervals import averaged_hits_test
from probes.stats.paired import ALPHA, NEITHER, mcnemar, paired_share_interval, paired_table
from star.base.errors import UserError

__all__ = ["COMPARE_COLUMNS", "Comparison", "compare_hits"]

COMPARE_COLUMNS = (
    "layer", "step", "first", "second", "difference", "low", "high",
    "only_first", "only_second", "p", "p_holm", "higher", "n",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``second`` against ``first``, the two ``names``.

    ``table``: columns ``COMPARE_COLUMNS``, one row per layer and step, per layer one row of step 0, the
    mean over its steps, and one of layer 0 and step 0, the mean over all. ``first``, ``second``
    (accuracies), ``difference`` (second minus first), ``low`` and ``high`` are fractions;
    ``only_first`` and ``only_second`` are McNemar's b and c; ``higher`` is the name of the model ahead,
    or "neither", and is blank where nothing was tested (step 0).
    """

    table: pd.DataFrame
    names: tuple[str, str]
    layers: tuple[int, ...]
    steps: tuple[int, ...]

    def sentences(self) -> list[str]:
        """The difference over all cells; then, as a map to explore, where a test finds who ahead.

        Of cells that a test has chosen no average is said: it leans to large differences (a true +3
        points at 360 images looks like +10). Layers with the same pattern over steps share a clause.
        """
        whole = self.table[self.table["layer"].eq(0)].iloc[0]
        cells = self.table[self.table["step"] > 0]
        of_cells = f"mean of all {len(cells)} cells" if len(cells) > 1 else "one cell"
        found = [
            f"{self.names[1]} less {self.names[0]}, {of_cells}: {100 * whole['difference']:+.1f} "
            f"points [{100 * whole['low']:+.1f}, {100 * whole['high']:+.1f}] "
            f"({100 * whole['second']:.1f} less {100 * whole['first']:.1f} %) on these "
            f"{whole['n']} images"
        ]
        ahead_LK = cells["higher"].to_numpy(dtype=object).reshape(len(self.layers), len(self.steps))
        clauses = []
        for name in self.names[::-1]:
            chosen_LK = ahead_LK == name
            if chosen_LK.any():
                where = "; ".join(self._where(*group) for group in _groups(chosen_LK))
                clauses.append(f"{name} ahead at {chosen_LK.sum()} ({where})")
        found.append(
            f"cell by cell, to explore: {', '.join(clauses) or 'neither ahead anywhere'}, of "
            f"{ahead_LK.size} cells (McNemar's exact test, Holm-corrected p < {ALPHA:g})"
        )
        return found

    def _where(self, rows: list[int], columns: list[int]) -> str:
        steps = _runs("step", self.steps, columns) if len(columns) < len(self.steps) else "every step"
        return f"{_runs('layer', self.layers, rows)}, {steps}"


def compare_hits(
    first_SLKN: np.ndarray,
    second_SLKN: np.ndarray,
    *,
    layers: Sequence[int],
    steps: Sequence[int],
    names: tuple[str, str],
) -> Comparison:
    """Compare probe hits, bool (S, L, K, N), of two models on the same test images in the same order.

    ``layers`` (L,), ``steps`` (K,), ``names`` (first, second). A model is ``higher`` at a cell if the
    corrected p is below 0.05 and the interval, which sees all probe seeds, lies on the same side.
    ``UserError`` if the shapes differ.
    """
    _check(first_SLKN, second_SLKN, layers, steps, names)
    sides = first_SLKN, second_SLKN
    only_first_LK = (first_SLKN[0] & ~second_SLKN[0]).sum(-1)
    only_second_LK = (second_SLKN[0] & ~first_SLKN[0]).sum(-1)
    p_LK = np.asarray(mcnemar(only_first_LK, only_second_LK))
    rows, means = [], []
    for a, layer in enumerate(layers):
        for k, step in enumerate(steps):
            tested = {
                "only_first": only_first_LK[a, k], "only_second": only_second_LK[a, k], "p": p_LK[a, k],
            }  # fmt: skip
            numbers = _numbers(*(side[:, a, k] for side in sides))
            rows.append({"layer": layer, "step": step, **numbers, **tested})
        means.append({"layer": layer, "step": 0, **_numbers(*(side[:, a] for side in sides))})
    means.append({"layer": 0, "step": 0, **_numbers(*sides)})
    table = paired_table([*rows, *means], COMPARE_COLUMNS, names)
    side = (table["low"] > 0).astype(int) - (table["high"] < 0)
    agree = side == np.sign(table["only_second"] - table["only_first"])
    table.loc[table["p"].notna() & ~agree, "higher"] = NEITHER
    return Comparison(
        table=table, names=(names[0], names[1]), layers=tuple(layers),
        steps=tuple(steps),
    )  # fmt: skip


def _numbers(first: np.ndarray, second: np.ndarray) -> dict:
    """Accuracies, difference and interval of hits (.., N), averaged within an image first."""
    one, two = (hits.reshape(-1, hits.shape[-1]) for hits in (first, second))
    if len(one) == 1:
        difference, low, high = paired_share_interval(one[0], two[0])
    else:
        difference, low, high, _ = averaged_hits_test(two.mean(0) - one.mean(0))
    return {
        "first": one.mean(), "second": two.mean(), "difference": difference, "low": low, "high": high,
        "n": one.shape[1],
    }  # fmt: skip


def _check(
    first: np.ndarray,
    second: np.ndarray,
    layers: Sequence[int],
    steps: Sequence[int],
    names: Sequence[str],
) -> None:
    if len(names) != 2 or names[0] == names[1] or NEITHER in names:
        raise UserError(f"names is {list(names)}; expected two different model names")
    for name, hits in zip(names, (first, second), strict=True):
        if hits.dtype != bool or hits.ndim != 4 or hits.size == 0:
            raise UserError(
                f"the hits of {name} are {hits.dtype} {hits.shape}; "
                "expected bool (seeds, layers, steps, images)"
            )
    if first.shape != second.shape:
        raise UserError(
            f"the hits (seeds, layers, steps, images) are {first.shape} of {names[0]} and "
            f"{second.shape} of {names[1]}; a paired comparison needs the same: "
            "probe both on the same test images"
        )
    if first.shape[1:3] != (len(layers), len(steps)):
        raise UserError(
            f"the hits hold {first.shape[1]} layers x {first.shape[2]} steps; "
            f"{len(layers)} layers and {len(steps)} steps were named"
        )


def _groups(chosen_LK: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Chosen cells as (places of layers, places of steps), layers with the same steps together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, chosen_K in enumerate(chosen_LK):
        if chosen_K.any():
            groups.setdefault(tuple(np.flatnonzero(chosen_K).tolist()), []).append(place)
    return [(rows, list(columns)) for columns, rows in groups.items()]


def _runs(what: str, numbers: Sequence[int], places: list[int]) -> str:
    """Neighbouring places of ``numbers`` merged, e.g. "steps 8 to 24 and 40"."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    words = []
    for run in runs:
        ends = [str(numbers[place]) for place in run]
        words += [f"{ends[0]} to {ends[-1]}"] if len(run) > 2 else ends
    joined = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{what}{'s' if len(places) > 1 else ''} {joined}"
