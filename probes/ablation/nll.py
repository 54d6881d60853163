"""The causal check of attention: how much worse a model predicts when it may not look.

Attention weights say where a model looks, not what it uses; here paths are cut
(``probes.ablation.cuts``) and the change of the negative log-likelihood is measured, image by image.

Shapes: N images, T tokens, R reaches, K steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from probes.ablation.cuts import Cut, strict_window
from probes.ablation.weights import removed_weight
from probes.reading.features import check_steps, check_store
from probes.stats.intervals import ratio_interval
from probes.stats.paired import paired_row, paired_table
from star.base.device import autocast
from star.base.errors import UserError
from star.codes.store import Codes
from star.model.transformer import Transformer
from star.training.batches import plain_batches
from star.training.estimate import images_at_once
from star.training.likelihood import token_nll

__all__ = ["STRICT", "Ablation", "Row", "ablate_nll", "compare_ablations", "cut_name", "strict_nll"]

ABLATION_COLUMNS = (
    "cut", "reach", "layers", "steps", "measure", "intact", "value", "difference", "low", "high",
    "p", "n", "weight", "per_weight", "per_weight_low", "per_weight_high",
)  # fmt: skip
KEY = ABLATION_COLUMNS[:5]
COMPARED_COLUMNS = (
    *KEY, "first", "second", "difference", "low", "high", "p", "n", "p_holm", "higher",
)  # fmt: skip
STRICT = "strict window"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """One cut, one measure; ``intact`` and ``changed`` (N,), paired by image.

    ``weight`` (N,): the attention that the cut removes at the steps of the measure
    (``probes.ablation.weights``), or None.
    """

    cut: str
    reach: int | None
    layers: str
    steps: str
    measure: str
    intact: np.ndarray
    changed: np.ndarray
    weight: np.ndarray | None = None

    @property
    def key(self) -> tuple:
        """What tells rows apart."""
        return (self.cut, self.reach, self.layers, self.steps, self.measure)

    @property
    def difference(self) -> np.ndarray:
        """(N,) with the cut minus without."""
        return self.changed.astype(np.float64) - self.intact

    @property
    def largest(self) -> float | None:
        """How far a difference can be from 0, if the numbers are hits or averages of hits."""
        return 1.0 if self.measure.startswith("accuracy") else None

    def cells(self) -> tuple:
        """The row of the table."""
        sides = self.intact, self.changed
        if not self.intact.dtype == self.changed.dtype == bool:  # else hits, image by image
            sides = self.intact.astype(np.float64), self.changed.astype(np.float64)
        row = paired_row(*sides, largest=self.largest)
        numbers = ("first", "second", "difference", "low", "high", "p", "n")
        removed = (math.nan,) * 4
        if self.weight is not None:
            removed = (float(self.weight.mean()), *ratio_interval(self.difference, self.weight))
        return (*self.key, *(row[number] for number in numbers), *removed)


@dataclass(frozen=True)
class Ablation:
    """One ``Row`` a cut and measure.

    ``measure``: ``nll`` (nats a token), ``nll_cut_steps`` (at the steps that were cut), or an accuracy
    (``probes.ablation.accuracy``).
    """

    rows: list[Row]

    def table(self) -> pd.DataFrame:
        """Columns ``ABLATION_COLUMNS``: means, the paired difference, its 95 % interval and p.

        ``weight``: mean attention that the cut removes; ``per_weight``: difference per unit of it, with
        its interval (both of NLL under cuts of attention rows alone).
        """
        table = pd.DataFrame([row.cells() for row in self.rows], columns=list(ABLATION_COLUMNS))
        return table.astype({"reach": "Int64"})


def ablate_nll(
    model: Transformer,
    store: Codes,
    cuts: Sequence[Cut],
    *,
    batch_size: int = 128,
    precision: torch.dtype = torch.float32,
    on_progress: Progress = lambda done, total: None,
) -> Ablation:
    """Mean NLL a token of each image (its test view, given its class) with each cut, beside without.

    A cut of chosen steps has a second row, ``nll_cut_steps``: the NLL at those steps alone. A cut that
    is drawn at random changes the mean over its draws. on_progress(done, total) counts passes over the
    images. Raises ``UserError`` for codes that do not
    fit and cuts that do not exist in this model.
    """
    check_store(model, store)
    options: dict[str, Any] = {"batch_size": batch_size, "precision": precision}
    patterns = [cut.all_patterns(model.config) for cut in cuts]
    total, done = sum(map(len, patterns)) + 2, 0

    def measured(pattern: dict[int, Tensor] | None = None) -> np.ndarray:
        nonlocal done
        nll_NT = token_nll(model, store, cut=pattern, **options)
        done += 1
        on_progress(done, total)
        return nll_NT

    intact_NT = measured()
    _check_finite(intact_NT)
    weights = removed_weight(model, store, cuts, precision=precision)
    on_progress(done := done + 1, total)
    rows = []
    for cut, drawn, weight_NT in zip(cuts, patterns, weights, strict=True):
        changed_NT = np.mean([measured(pattern) for pattern in drawn], axis=0)
        named = cut_name(cut, model.config.layers)
        whole = (intact_NT.mean(1), changed_NT.mean(1), weight_NT.mean(1))
        rows.append(Row(*named, "nll", *whole))
        if cut.steps is not None:
            at = np.asarray(cut.steps) - 1
            some = (each_NT[:, at].mean(1) for each_NT in (intact_NT, changed_NT, weight_NT))
            rows.append(Row(*named, "nll_cut_steps", *some))
    return Ablation(rows)


def cut_name(cut: Cut, layers: int) -> tuple[str, int | None, str, str]:
    """What the cut is called in a table: cut, reach, layers, steps."""
    which = "all" if len(cut.layers) == layers else ",".join(map(str, cut.layers))
    steps = "all" if cut.steps is None else ",".join(map(str, cut.steps))
    return cut.what, cut.reach, which, steps


def _check_finite(nll_NT: np.ndarray) -> None:
    if not np.isfinite(nll_NT).all():
        raise UserError("the model's predictions are not finite; the checkpoint is broken")


@torch.no_grad()
def strict_nll(
    model: Transformer,
    store: Codes,
    *,
    steps: Sequence[int],
    reaches: Sequence[int],
    batch_size: int = 128,
    precision: torch.dtype = torch.float32,
    on_progress: Progress = lambda done, total: None,
) -> Ablation:
    """NLL at ``steps`` when nothing farther than each reach can get there by any route.

    One pass a step and reach (``probes.ablation.cuts.strict_window``): choose few steps. With the
    largest reach g - 1 everything is seen.
    """
    check_store(model, store)
    check_steps(model.config.tokens, steps)
    found_RNK = np.empty((len(reaches), len(store), len(steps)), dtype=np.float32)
    total = len(reaches) * len(steps)
    intact_NT = token_nll(model, store, batch_size=batch_size, precision=precision)
    _check_finite(intact_NT)
    for k, step in enumerate(steps):
        for r, reach in enumerate(reaches):
            window = strict_window(model.config, step, reach)
            found_RNK[r, :, k] = _nll_at(model, store, step, window, batch_size, precision)
            on_progress(k * len(reaches) + r + 1, total)
    intact_N = intact_NT[:, np.asarray(steps) - 1].mean(1)
    named = ",".join(map(str, steps))
    return Ablation(
        [
            Row(STRICT, reach, "all", named, "nll", intact_N, found_RNK[r].mean(1))
            for r, reach in enumerate(reaches)
        ]
    )


def _nll_at(
    model: Transformer,
    store: Codes,
    step: int,
    cut: dict[int, Tensor],
    batch_size: int,
    precision: torch.dtype,
) -> np.ndarray:
    """(N,) NLL of token ``step`` of every image."""
    device, parts = model.output.weight.device, []
    batch_size = images_at_once(model.config, batch_size, with_logits=True)
    for tokens_BT, labels_B in plain_batches(store, batch_size, device):
        with autocast(device, precision):
            logits_BV = model(tokens_BT[:, : step - 1], labels_B, cut=cut).logits[:, -1]
        nll_B = F.cross_entropy(logits_BV.float(), tokens_BT[:, step - 1], reduction="none")
        parts.append(nll_B.cpu().numpy())
    return np.concatenate(parts)


def compare_ablations(first: Ablation, second: Ablation, names: tuple[str, str]) -> pd.DataFrame:
    """Whose number changes more: the second's change minus the first's, paired by image.

    Columns ``COMPARED_COLUMNS``: ``first`` and ``second`` are mean changes, ``higher`` the model whose
    change is (``probes.stats.paired.paired_table``). Only rows that both have.
    """
    of_second = {row.key: row for row in second.rows}
    rows = []
    for row in first.rows:
        other = of_second.get(row.key)
        if other is None or len(other.intact) != len(row.intact):
            continue
        key = dict(zip(KEY, row.key, strict=True))
        largest = None if row.largest is None else 2 * row.largest
        rows.append(key | paired_row(row.difference, other.difference, largest=largest))
    return paired_table(rows, COMPARED_COLUMNS, names).astype({"reach": "Int64"})
