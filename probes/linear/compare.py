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

    ``table``: columns ``COMPARE_COLUMNS``, one row per layer and step, and per layer one row of step 0,
    the mean over its steps. ``first``, ``second`` (accuracies), ``difference`` (second minus first),
    ``low`` and ``high`` are fractions; ``only_first`` and ``only_second`` are McNemar's b and c;
    ``higher`` is the name of the model ahead, or "neither", and is blank where nothing was tested
    (step 0). ``gains_LKN``: hits of the second minus hits of the first, summed over ``seeds`` seeds.
    """

    table: pd.DataFrame
    names: tuple[str, str]
    layers: tuple[int, ...]
    steps: tuple[int, ...]
    seeds: int
    gains_LKN: np.ndarray

    def sentences(self) -> list[str]:
        """Where the models differ, in words: at most one sentence for each model and one for neither.

        A model is called better only at cells whose corrected test says so; layers with the same
        pattern over the steps share a clause. The averages are over cells that the test chose, so they
        lean to large differences; the rows of step 0 in ``table`` do not choose.
        """
        cells = self.table[self.table["step"] > 0]
        shape = (len(self.layers), len(self.steps))
        better_LK = cells["higher"].to_numpy(dtype=object).reshape(shape)
        found = []
        for winner, loser in (self.names[::-1], self.names):
            groups = _groups(better_LK == winner)
            if groups:
                clauses = [self._where(*group) + self._gain(winner, *group) for group in groups]
                count, each = int((better_LK == winner).sum()), "there"
                if count > 1:
                    each = f"at each of these {count} of {better_LK.size} cells"
                found.append(
                    f"{winner} reads the class better than {loser} at {'; '.join(clauses)}; "
                    f"Holm-corrected McNemar p < {ALPHA:g} {each}, "
                    "95 % intervals over images in brackets."
                )
        undecided = better_LK == NEITHER
        if undecided.any():
            where = "; ".join(self._where(*group) for group in _groups(undecided))
            where = "any layer and step" if undecided.all() else where
            rest = cells[undecided.ravel()]
            found.append(
                f"No difference between {self.names[0]} and {self.names[1]} was found at {where} (95 % "
                f"intervals of {self.names[1]} minus {self.names[0]} there lie within "
                f"{100 * rest['low'].min():+.1f} to {100 * rest['high'].max():+.1f} points)."
            )
        return found

    def _gain(self, winner: str, rows: list[int], columns: list[int]) -> str:
        """The winner's lead over the cells rows x columns, with its interval."""
        sign = 1 if winner == self.names[1] else -1
        mean_N = sign * self.gains_LKN[np.ix_(rows, columns)].mean((0, 1)) / self.seeds
        _, low, high, _ = averaged_hits_test(mean_N)
        average = " on average" if len(rows) * len(columns) > 1 else ""
        return f" ({100 * mean_N.mean():+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]{average})"

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
    seeds, _, _, images = first_SLKN.shape
    first_LKN, second_LKN = (hits.sum(0, dtype=np.int16) for hits in (first_SLKN, second_SLKN))
    gains_LKN = second_LKN - first_LKN
    only_first_LK = (first_SLKN[0] & ~second_SLKN[0]).sum(-1)
    only_second_LK = (second_SLKN[0] & ~first_SLKN[0]).sum(-1)
    p_LK = np.asarray(mcnemar(only_first_LK, only_second_LK))
    rows, means = [], []
    for a, layer in enumerate(layers):
        for k, step in enumerate(steps):
            b, c = only_first_LK[a, k], only_second_LK[a, k]
            if seeds == 1:
                _, low, high = paired_share_interval(first_SLKN[0, a, k], second_SLKN[0, a, k])
            else:
                _, low, high, _ = averaged_hits_test(gains_LKN[a, k] / seeds)
            rows.append({
                "layer": layer, "step": step, "low": low, "high": high, "only_first": b,
                "only_second": c, "p": p_LK[a, k],
                "first": first_LKN[a, k].mean() / seeds, "second": second_LKN[a, k].mean() / seeds,
            })  # fmt: skip
        _, low, high, _ = averaged_hits_test(gains_LKN[a].mean(0) / seeds)
        means.append({
            "layer": layer, "step": 0, "low": low, "high": high,
            "first": first_LKN[a].mean() / seeds, "second": second_LKN[a].mean() / seeds,
        })  # fmt: skip
    rows = [row | {"difference": row["second"] - row["first"], "n": images} for row in rows + means]
    table = paired_table(rows, COMPARE_COLUMNS, names)
    side = (table["low"] > 0).astype(int) - (table["high"] < 0)
    agree = side == np.sign(table["only_second"] - table["only_first"])
    table.loc[table["p"].notna() & ~agree, "higher"] = NEITHER
    return Comparison(
        table=table, names=(names[0], names[1]), layers=tuple(layers),
        steps=tuple(steps), seeds=seeds, gains_LKN=gains_LKN,
    )  # fmt: skip


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
