"""Which measurement and which drawing make each figure of the paper.

Every recipe takes tables and arrays that were measured (``probes``), draws them (``viz``) and writes
PNG and PDF. The names are the paper's: Figure 1(a) attention of the current token, 1(b) probe accuracy
against step, 1(c) token indices of two views, 2 and 5 attention across layers and steps, 4 the probe
curves of several models.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.reproduction.material import Material
from probes.attention.maps import AttentionMaps
from viz.attention.maps import attention_grid, attention_row
from viz.base.panel import heat_scale
from viz.base.style import save
from viz.linear.curves import probe_curves
from viz.linear.maps import probe_heatmap
from viz.overview import overview
from viz.samples import sample_compare
from viz.tokens.change import token_views

__all__ = ["draw_all"]


def draw_all(material: Material, folder: Path) -> list[Path]:
    """Draw every figure; returns the files written."""
    figures = _probe_figures(material) | _attention_figures(material) | _other_figures(material)
    return [path for name, figure in figures.items() for path in save(figure, folder / name)]


def _probe_figures(m: Material) -> dict[str, Figure]:
    plain = next(iter(m.probe_tables))
    own = _own(m)
    title = f"class read from layer {m.layer}"
    figures = {
        "figure1b": probe_curves(
            {plain: own[plain]},
            m.layer,
            total_steps=m.total_steps,
            chance=m.chance,
            controls={plain: m.probe_tables[plain]},
            title=f"Figure 1(b): {title} of {plain}",
        ),
        "figure4": probe_curves(
            own,
            m.layer,
            total_steps=m.total_steps,
            chance=m.chance,
            controls=m.probe_tables,
            title=f"Figure 4: {title}",
        ),
    }
    for name, table in own.items():
        figures[f"probe-heatmap-{name.lower()}"] = probe_heatmap(
            table, title=f"Probe accuracy (%) by layer and step: {name}"
        )
    return figures


def _attention_figures(m: Material) -> dict[str, Figure]:
    plain = next(iter(m.attention))
    last, few = m.attention[plain].layers[-1], _spread(m.attention[plain].steps)
    figures = {
        "figure1a": attention_row(
            m.image,
            _maps(m.attention[plain], last, few),
            layer=last,
            steps=few,
            grid=m.grid,
            class_weights=_class_weights(m.attention[plain], last, few),
            title=f"Figure 1(a): where {plain} looks, layer {last}",
        )
    }
    # One scale for both, so that a colour means the same weight in either.
    scale = heat_scale([found.maps for found in m.attention.values()], None).vmax
    for number, (name, found) in zip(("2", "5"), m.attention.items(), strict=True):
        figures[f"figure{number}"] = attention_grid(
            m.image,
            found.maps,
            layers=found.layers,
            steps=found.steps,
            grid=m.grid,
            class_weights=found.class_weights,
            title=f"Figure {number}: attention of {name} by layer and step (2 and 5 share one scale)",
            scale_max=scale,
        )
    return figures


def _other_figures(m: Material) -> dict[str, Figure]:
    first = next(iter(m.attention.values()))
    last, few = first.layers[-1], _spread(first.steps)
    views, indices = (m.change.image, m.change.view), (m.change.indices, m.change.view_indices)
    labels = ("image", m.change.label)
    share, chance = m.unchanged
    return {
        "figure1c": token_views(*views, *indices, labels=labels, share=share, chance=chance),
        "samples": sample_compare(
            m.samples, reference=m.real, columns=m.columns, title="Samples, one row a class"
        ),
        "overview": overview(
            _own(m),
            layer=m.layer,
            total_steps=m.total_steps,
            chance=m.chance,
            image=m.image,
            maps_by_model={name: _maps(maps, last, few) for name, maps in m.attention.items()},
            class_weights={name: _class_weights(maps, last, few) for name, maps in m.attention.items()},
            attention_layer=last,
            steps=few,
            grid=m.grid,
            views=views,
            indices=indices,
            view_labels=labels,
            share=share,
        ),
    }


def _own(m: Material) -> dict[str, pd.DataFrame]:
    """Accuracies of the probe itself, without its controls."""
    return {name: table[table["control"] == "none"] for name, table in m.probe_tables.items()}


def _spread(steps: list[int], count: int = 4) -> list[int]:
    """Up to ``count`` of the steps, evenly spread, the last among them."""
    places = sorted({round((len(steps) - 1) * (k + 1) / count) for k in range(count)})
    return [steps[place] for place in places]


def _maps(maps: AttentionMaps, layer: int, steps: list[int]) -> np.ndarray:
    return maps.maps[maps.layers.index(layer)][[maps.steps.index(step) for step in steps]]


def _class_weights(maps: AttentionMaps, layer: int, steps: list[int]) -> np.ndarray:
    return maps.class_weights[maps.layers.index(layer)][[maps.steps.index(step) for step in steps]]
