"""Which measurement and which drawing make each figure of the paper.

Every recipe takes tables and arrays that were measured (``probes``), draws them (``viz``) and writes
PNG and PDF. The names are the paper's: Figure 1(a) attention of the current token, 1(b) probe accuracy
against step, 1(c) token indices of two views, 2 and 5 attention across layers and steps, 4 the probe
curves of several models.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from probes.attention import AttentionMaps
from probes.tokens import ViewChange
from viz.attention import attention_grid, attention_row
from viz.overview import overview
from viz.probe import probe_curves, probe_heatmap
from viz.samples import sample_compare
from viz.style import save
from viz.tokens import token_views

__all__ = ["draw_all"]


def draw_all(
    folder: Path,
    *,
    probe_tables: dict[str, pd.DataFrame],
    layer: int,
    total_steps: int,
    chance: float,
    image: np.ndarray,
    attention: dict[str, AttentionMaps],
    grid: int,
    change: ViewChange,
    unchanged: tuple[float, float],
    samples: dict[str, np.ndarray],
    real: np.ndarray,
    columns: int,
) -> list[Path]:
    """Draw every figure for two models, plain AR first; returns the files written.

    ``image`` (H, W, 3) uint8 is the one the attention maps belong to; ``unchanged`` holds the mean
    share of unchanged indices over many images and its chance level; ``samples`` and ``real`` are
    (N, H, W, 3), drawn in rows of ``columns``.
    """
    plain, improved = list(attention)
    last = attention[plain].layers[-1]
    few = _spread(attention[plain].steps)
    figures = {
        "figure1a": attention_row(
            image,
            _maps(attention[plain], last, few),
            layer=last,
            steps=few,
            grid=grid,
            class_weights=_class_weights(attention[plain], last, few),
            title=f"Figure 1(a): where {plain} looks, layer {last}",
        ),
        "figure1b": probe_curves(
            {plain: probe_tables[plain]},
            layer,
            total_steps=total_steps,
            chance=chance,
            title=f"Figure 1(b): class read from layer {layer} of {plain}",
        ),
        "figure1c": token_views(
            change.image,
            change.view,
            change.indices,
            change.view_indices,
            labels=("image", change.label),
            share=unchanged[0],
            chance=unchanged[1],
        ),
        "figure4": probe_curves(
            probe_tables,
            layer,
            total_steps=total_steps,
            chance=chance,
            title=f"Figure 4: class read from layer {layer}",
        ),
        "samples": sample_compare(
            samples, reference=real, columns=columns, title="Samples, one row a class"
        ),
        "overview": overview(
            probe_tables,
            layer=layer,
            total_steps=total_steps,
            chance=chance,
            image=image,
            maps_by_model={name: _maps(maps, last, few) for name, maps in attention.items()},
            class_weights={name: _class_weights(maps, last, few) for name, maps in attention.items()},
            attention_layer=last,
            steps=few,
            grid=grid,
            views=(change.image, change.view),
            indices=(change.indices, change.view_indices),
            view_labels=("image", change.label),
            share=unchanged[0],
        ),
    }
    for number, name in (("2", plain), ("5", improved)):
        figures[f"figure{number}"] = attention_grid(
            image,
            attention[name].maps,
            layers=attention[name].layers,
            steps=attention[name].steps,
            grid=grid,
            class_weights=attention[name].class_weights,
            title=f"Figure {number}: attention of {name} by layer and step",
        )
    for name, table in probe_tables.items():
        figures[f"probe-heatmap-{name.lower()}"] = probe_heatmap(
            table, title=f"Probe accuracy (%) by layer and step: {name}"
        )
    return [path for name, figure in figures.items() for path in save(figure, folder / name)]


def _spread(steps: list[int], count: int = 4) -> list[int]:
    """Up to ``count`` of the steps, evenly spread, the last among them."""
    places = sorted({round((len(steps) - 1) * (k + 1) / count) for k in range(count)})
    return [steps[place] for place in places]


def _maps(maps: AttentionMaps, layer: int, steps: list[int]) -> np.ndarray:
    return maps.maps[maps.layers.index(layer)][[maps.steps.index(step) for step in steps]]


def _class_weights(maps: AttentionMaps, layer: int, steps: list[int]) -> np.ndarray:
    return maps.class_weights[maps.layers.index(layer)][[maps.steps.index(step) for step in steps]]
