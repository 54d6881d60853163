"""Where a model looks, in numbers over many images: layers x steps x heads, beside a uniform row.

``attention_stats`` measures one model (``probes.attention.compare`` sets two beside each other). Tables
are long, one row a number: layer, step, head and measure (``probes.attention.measures``), its mean over
images with a 95 % interval (Student's t), and ``uniform``, the same number of attention spread evenly
over what the step sees. Head 0 is the mean over heads; step 0 the mean over steps, layer 0 over layers
(an image is averaged first, so that the interval is over images).

Shapes: N images, L layers, K steps, H heads, P positions (class first).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.attention.measures import (
    MEASURES,
    NORM_MEASURES,
    row_measures,
    uniform_rows,
    value_norms,
)
from probes.attention.places import place_cells
from probes.attention.rollout import attention_rollout
from probes.reading.features import capture_steps, check_cells, check_store
from probes.stats.intervals import mean_interval, student_quantile
from star.base.device import autocast
from star.base.errors import UserError, require_choice
from star.codes.store import Codes
from star.model.classes import null_label
from star.model.transformer import Transformer
from star.training.batches import plain_batches

__all__ = ["SINK", "STATS_COLUMNS", "AttentionStats", "attention_stats"]

SINK = 0.3  # mean weight above which a place is called an attention sink (Gu et al. 2024)
STATS_COLUMNS = ("layer", "step", "head", "measure", "value", "low", "high", "uniform", "n")


@dataclass(frozen=True)
class AttentionStats:
    """``values[measure]`` (N, L, K, H), ``uniform[measure]`` (L, K, H) and ``received`` (N, L, H, P).

    ``received``: the mean weight that each position gets from the steps that see it; ``seen_by`` (P,)
    is how many of the steps do, ``uniform_received`` (P,) what even attention gives. H is 1 for
    rollout.
    """

    values: dict[str, np.ndarray]
    uniform: dict[str, np.ndarray]
    received: np.ndarray
    uniform_received: np.ndarray
    seen_by: np.ndarray
    layers: list[int]
    steps: list[int]
    grid: int

    @property
    def images(self) -> int:
        """N."""
        return len(self.received)

    @cached_property
    def table(self) -> pd.DataFrame:
        """Columns ``STATS_COLUMNS``; every layer x step x head, and the means over each."""
        rows = []
        for measure, values_NLKH in self.values.items():
            uniform_LKH = self.uniform[measure]
            for layer, step, head, at in self._cells(values_NLKH.shape[3]):
                of_images_N = values_NLKH[:, *at].reshape(self.images, -1).mean(1)
                cell = (layer, step, head, measure, *mean_interval(of_images_N))
                rows.append((*cell, float(uniform_LKH[at].mean()), self.images))
        return pd.DataFrame(rows, columns=list(STATS_COLUMNS))

    def _cells(self, heads: int) -> Iterator[tuple[int, int, int, tuple[int | slice, ...]]]:
        """(layer, step, head, where in (L, K, H)); 0 is the mean over all."""
        every = slice(None)
        layers, steps = list(enumerate(self.layers)), list(enumerate(self.steps))
        for a, layer in layers:
            for k, step in steps:
                if heads > 1:
                    for h in range(heads):
                        yield layer, step, h + 1, (a, k, h)
                yield layer, step, 0, (a, k, every)
            for h in range(heads if heads > 1 else 0):
                yield layer, 0, h + 1, (a, every, h)
            yield layer, 0, 0, (a, every, every)
        for k, step in steps:
            yield 0, step, 0, (every, k, every)
        yield 0, 0, 0, (every, every, every)

    def overall(self, measure: str) -> float:
        """The mean over images, layers, steps and heads."""
        return float(self.values[measure].mean())

    @cached_property
    def places(self) -> pd.DataFrame:
        """Weight received by place, a row for each layer, head and place (0: the class, 1..T: tokens).

        ``row`` and ``column`` count from 1 and are empty for the class. ``sink``: a mean above ``SINK``
        at a place that half of the steps, and two at least, see.
        """
        layers, heads, places = self.received.shape[1:]
        mean = self.received.mean(0)
        spread = self.received.std(0, ddof=1) if self.images > 1 else np.full_like(mean, np.nan)
        half = student_quantile(max(1, self.images - 1)) * spread / np.sqrt(self.images)
        place = np.tile(np.arange(places), layers * heads)
        seen_by = np.tile(self.seen_by, layers * heads)
        return pd.DataFrame(
            {
                "layer": np.repeat(self.layers, heads * places),
                "head": np.tile(np.repeat(np.arange(heads) + 1, places), layers),
                "place": place,
                **place_cells(place, self.grid),
                "value": mean.ravel(),
                "low": (mean - half).ravel(),
                "high": (mean + half).ravel(),
                "uniform": np.tile(self.uniform_received, layers * heads),
                "seen_by": seen_by,
                "sink": (mean.ravel() > SINK) & (seen_by >= max(2, len(self.steps) / 2)),
            }
        )


@torch.no_grad()
def attention_stats(
    model: Transformer,
    store: Codes,
    *,
    layers: list[int],
    steps: list[int],
    names: Sequence[str] | None = None,
    rollout: bool = False,
    null_class: bool = False,
    limit: int | None = None,
    batch_size: int = 32,
    precision: torch.dtype = torch.float32,
    on_progress: Callable[[int, int], None] | None = None,
) -> AttentionStats:
    """The measures ``names`` (default: all) of the test view of the first ``limit`` images (or all).

    Step 1, which sees the class alone, is left out. rollout: of attention rollout through each layer
    instead of the layer's own attention (no ``class_norm_share``). null_class: condition on the null
    class instead of each image's own. on_progress(done, total) counts images.

    Raises ``UserError`` for a layer, step or measure that does not exist, for codes that do not fit the
    model, for steps that hold step 1 alone, and for attention that is not finite.
    """
    check_store(model, store, classes=not null_class)
    check_cells(model.config, layers, steps)
    null = null_label(model.config, "--null-class", "leave it out") if null_class else 0
    names = _names(names, rollout)
    steps = [step for step in steps if step > 1]
    if not steps:
        raise UserError("step 1 sees the class alone; give a step above 1")
    count = len(store) if limit is None else min(len(store), limit)
    device = model.output.weight.device
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    received = []
    even_KN = uniform_rows(steps, device)
    seen_N = (even_KN > 0).sum(0)
    at: dict[str, Any] = {"steps": steps, "grid": model.config.grid}
    # Even attention gives the same of every image, but where it is weighted by the image's values.
    same = [name for name in names if name not in NORM_MEASURES]
    evens: dict[str, list[np.ndarray]] = {name: [] for name in names if name in NORM_MEASURES}
    for tokens_BT, labels_B in plain_batches(store, batch_size, device, range(count)):
        if null_class:
            labels_B = torch.full_like(labels_B, null)
        with autocast(device, precision):
            rows_LBHKN, norms_LBHN = _rows(model, tokens_BT, labels_B, layers, steps, names, rollout)
        _check_finite(rows_LBHKN, layers, steps)
        for found, rows in ((parts, rows_LBHKN), (evens, even_KN.expand_as(rows_LBHKN))):
            measured = row_measures(rows, **at, names=list(found), norms_LBHN=norms_LBHN)
            for name, value_LBHK in measured.items():
                found[name].append(value_LBHK.permute(1, 0, 3, 2).cpu().numpy())
        received.append((rows_LBHKN.sum(3) / seen_N).transpose(0, 1).cpu().numpy())
        if on_progress is not None:
            on_progress(sum(map(len, received)), count)
    heads = received[0].shape[2]
    even_LBHKN = even_KN.expand(len(layers), 1, heads, *even_KN.shape)
    evens |= {
        name: [value_LBHK.permute(1, 0, 3, 2).cpu().numpy()]
        for name, value_LBHK in row_measures(even_LBHKN, **at, names=same).items()
    }
    return AttentionStats(
        values={name: np.concatenate(found) for name, found in parts.items()},
        uniform={name: np.concatenate(found).mean(0) for name, found in evens.items()},
        received=np.concatenate(received),
        uniform_received=(even_KN.sum(0) / seen_N).cpu().numpy(),
        seen_by=seen_N.cpu().numpy(),
        layers=list(layers),
        steps=steps,
        grid=model.config.grid,
    )


def _names(names: Sequence[str] | None, rollout: bool) -> list[str]:
    if names is None:
        return [name for name in MEASURES if not (rollout and name in NORM_MEASURES)]
    for name in names:
        require_choice("measure", name, tuple(MEASURES))
        if rollout and name in NORM_MEASURES:
            raise UserError(f"{name} is not defined for attention rollout; leave it out")
    return list(names)


def _rows(
    model: Transformer,
    tokens_BT: Tensor,
    labels_B: Tensor,
    layers: list[int],
    steps: list[int],
    names: list[str],
    rollout: bool,
) -> tuple[Tensor, Tensor | None]:
    """(L, B, H, K, N) rows, and the norms of the values (L, B, H, N) where a measure needs them."""
    if rollout:
        return attention_rollout(model, tokens_BT, labels_B, layers=layers, steps=steps)[
            :, :, None
        ], None
    sites = ["attention", *(["values"] if set(names) & set(NORM_MEASURES) else [])]
    wanted = [f"layers.{layer}.{site}" for layer in layers for site in sites]
    captured = capture_steps(model, tokens_BT, labels_B, wanted, steps)
    norms = [
        value_norms(model, layer, captured.pop(f"layers.{layer}.values"))
        for layer in (layers if "values" in sites else [])
    ]
    rows = [captured.pop(f"layers.{layer}.attention") for layer in layers]
    return torch.stack(rows), torch.stack(norms) if norms else None


def _check_finite(rows_LBHKN: Tensor, layers: list[int], steps: list[int]) -> None:
    bad_LK = ~rows_LBHKN.isfinite().all(4).all(2).all(1)
    if bad_LK.any():
        layer, step = bad_LK.nonzero()[0].tolist()
        raise UserError(
            f"attention of layer {layers[layer]} at step {steps[step]} is not finite; "
            "the checkpoint is broken"
        )
