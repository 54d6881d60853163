"""The pictures of an atlas, and of several side by side."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from figures.said.probing import protocol_said
from probes.linear.atlas import Atlas
from probes.linear.classes import confusion
from viz.linear.classes import class_accuracy
from viz.linear.confusion import confusion_matrix
from viz.linear.curves import probe_curves
from viz.linear.maps import probe_heatmap, probe_heatmap_difference

__all__ = ["atlas_figures", "compared_figures", "difference_figures"]


def atlas_figures(
    atlas: Atlas, classes: pd.DataFrame, name: str, class_names: tuple[str, ...]
) -> dict[str, Figure]:
    """Heatmap, curves, and of one cell the confusion and the accuracy by class (``classes``)."""
    own, info = _own(atlas), atlas.result.info
    if own.empty:
        return {}
    layers, steps = info["layers"], info["steps"]
    figures = {}
    if len(layers) > 1:
        title = f"Probe accuracy (%) by layer and step: {name} ({protocol_said(info)})"
        figures["-heatmap"] = probe_heatmap(own, title=title)
    layer, step = _shown_cell(own)
    figures[""] = _curves({name: atlas}, layer)
    where = f"{name}, layer {layer}, step {step} ({protocol_said(info)})"
    predicted_SN = atlas.predicted_SLKN[:, layers.index(layer), steps.index(step)]
    counts = confusion(predicted_SN, atlas.labels_N, len(class_names))
    title = f"What the probe takes each class for: {where}"
    figures["-confusion"] = confusion_matrix(counts, class_names, title)
    at = classes.query("layer == @layer and step == @step")
    title = f"By class: {where}"
    chance = info["chance"]
    figures["-by-class"] = class_accuracy({name: at}, class_names, chance=chance, title=title)
    return figures


def difference_figures(
    atlases: Mapping[str, Atlas], tested: pd.DataFrame, first: str, other: str
) -> dict[str, Figure]:
    """Where ``other`` is ahead of ``first``, and whether the test says so."""
    tables = {name: _own(atlases[name]) for name in (other, first)}
    if tables[first]["layer"].nunique() == 1:
        return {}
    names = (other, first)
    return {"-difference": probe_heatmap_difference(tables[other], tables[first], names, tested=tested)}


def compared_figures(atlases: Mapping[str, Atlas]) -> dict[str, Figure]:
    """The curves of all at the layer that the first is best at."""
    layer, _ = _shown_cell(_own(next(iter(atlases.values()))))
    return {f"-compared-layer-{layer}": _curves(atlases, layer)}


def _own(atlas: Atlas) -> pd.DataFrame:
    return atlas.result.table.query("control == 'none'")


def _shown_cell(own: pd.DataFrame) -> tuple[int, int]:
    """Layer and step that single pictures show: best on validation, else the last of both."""
    if own["val_accuracy"].notna().any():
        best = own.groupby(["layer", "step"])["val_accuracy"].mean().idxmax()
        return int(best[0]), int(best[1])
    last = own.sort_values(["layer", "step"]).iloc[-1]
    return int(last["layer"]), int(last["step"])


def _curves(atlases: Mapping[str, Atlas], layer: int) -> Figure:
    info = next(iter(atlases.values())).result.info
    return probe_curves(
        {name: _own(atlas) for name, atlas in atlases.items()},
        layer,
        total_steps=info["total_steps"],
        chance=info["chance"],
        controls={name: atlas.result.table for name, atlas in atlases.items()},
        title=f"What layer {layer} knows of the class, step by step ({protocol_said(info)})",
    )
