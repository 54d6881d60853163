"""What ``star probe`` prints and writes of an atlas and of a comparison."""

from pathlib import Path

import numpy as np
import pandas as pd

from cli.terminal.screen import console, print_rows
from probes.linear.atlas import Atlas
from probes.linear.classes import confusion, per_class_accuracy
from probes.linear.compare import Comparison, compare_hits
from probes.results import Result, write_result
from star.base.errors import UserError
from star.base.files import publish_file
from star.base.names import slug
from viz.base.style import save
from viz.linear.classes import class_accuracy
from viz.linear.confusion import confusion_matrix
from viz.linear.curves import probe_curves
from viz.linear.maps import probe_heatmap, probe_heatmap_difference

__all__ = ["compare_atlases", "print_atlas", "write_atlas"]

SHORT = {"random": "random", "shuffled": "shuffled", "codes": "tokens", "pixels": "pixels"}


def print_atlas(atlas: Atlas, name: str) -> None:
    """Every accuracy with its interval and its controls, percent; then three summaries a layer."""
    table, info = atlas.result.table, atlas.result.info
    mean = table.groupby(["control", "layer", "step"])["accuracy"].mean()
    several = len(info["seeds"]) > 1
    rows = []
    for (layer, step), own in table[table["control"] == "none"].groupby(["layer", "step"]):
        accuracies = 100 * own["accuracy"]
        row = [str(layer), str(step), f"{accuracies.mean():.1f}"]
        row.append(f"{100 * own['low'].mean():.1f} to {100 * own['high'].mean():.1f}")
        if several:
            row.append(f"{accuracies.std(ddof=1):.2f}")
        for control in SHORT:
            at = layer if control in ("random", "shuffled") else 0
            value = mean.get((control, at, step))
            row.append("-" if value is None else f"{100 * value:.1f}")
        rows.append(row)
    columns = ["layer", "step", "accuracy", "95 % interval", *(["spread"] if several else [])]
    tested = f"{info['splits']['images']['test']} test images"
    print_rows(f"{name}: {_protocol(info)}, {tested}, %", [*columns, *SHORT.values()], rows)
    if several:
        console.print(
            f"Means over {len(info['seeds'])} seeds of the probe; spread: their standard deviation; "
            "intervals are of one seed, over images."
        )
    for layer, own in table[table["control"] == "none"].groupby("layer"):
        console.print(f"layer {layer}: {_summary(own)}", highlight=False)
    pixels = "the images" if info["pixels"] == "source" else "the seen tokens, decoded"
    console.print(
        "Controls: random = same layer of randomly initialised weights; shuffled = training labels "
        f"permuted; tokens = bag of the tokens seen; pixels of the area seen, of {pixels}. Chance "
        f"{100 * info['chance']:.1f} %.",
        highlight=False,
    )


def _protocol(info: dict) -> str:
    """The protocol's name, with the neighbours that voted."""
    return info["protocol"] + (f", k = {info['neighbours']}" if "neighbours" in info else "")


def _summary(own: pd.DataFrame) -> str:
    """Last step, best step (chosen by validation accuracy) and mean: the paper does not say which."""
    by_step = own.groupby("step")[["accuracy", "val_accuracy"]].mean()
    text = f"last step {100 * by_step['accuracy'].iloc[-1]:.1f} %"
    if by_step["val_accuracy"].notna().any():
        best = by_step["val_accuracy"].idxmax()
        text += f", best on validation (step {best}) {100 * by_step['accuracy'][best]:.1f} %"
    return f"{text}, mean over steps {100 * by_step['accuracy'].mean():.1f} %"


def write_atlas(
    atlas: Atlas, name: str, folder: Path, stem: str, class_names: tuple[str, ...]
) -> list[Path]:
    """Table, predictions, accuracy by class and pictures; returns the files."""
    info = atlas.result.info
    layers, steps = info["layers"], info["steps"]
    written = write_result(atlas.result, folder / f"{stem}.csv")
    predictions = folder / f"{stem}-predictions.npz"
    with publish_file(predictions) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, predicted=atlas.predicted_SLKN, labels=atlas.labels_N, layers=layers, steps=steps
        )
    written.append(predictions)
    classes = per_class_accuracy(
        atlas.predicted_SLKN, atlas.labels_N, len(class_names), layers=layers, steps=steps
    )
    classes["class_name"] = [class_names[number] for number in classes["class"]]
    written += write_result(Result(classes, info), folder / f"{stem}-classes.csv")
    own = atlas.result.table.query("control == 'none'")
    if own.empty:
        return written
    if len(layers) > 1:
        title = f"Probe accuracy (%) by layer and step: {name} ({_protocol(info)})"
        written += save(probe_heatmap(own, title=title), folder / f"{stem}-heatmap")
    layer, step = shown_cell(own)
    figure = _curves({name: own}, layer, atlas, {name: atlas.result.table})
    written += save(figure, folder / stem)
    where = f"{name}, layer {layer}, step {step} ({_protocol(info)})"
    predicted_SN = atlas.predicted_SLKN[:, layers.index(layer), steps.index(step)]
    counts = confusion(predicted_SN, atlas.labels_N, len(class_names))
    figure = confusion_matrix(counts, class_names, f"What the probe takes each class for: {where}")
    written += save(figure, folder / f"{stem}-confusion")
    at = classes.query("layer == @layer and step == @step")
    figure = class_accuracy({name: at}, class_names, chance=info["chance"], title=f"By class: {where}")
    return written + save(figure, folder / f"{stem}-by-class")


def shown_cell(own: pd.DataFrame) -> tuple[int, int]:
    """Layer and step that single pictures show: best on validation, else the last of both."""
    if own["val_accuracy"].notna().any():
        best = own.groupby(["layer", "step"])["val_accuracy"].mean().idxmax()
        return int(best[0]), int(best[1])
    last = own.sort_values(["layer", "step"]).iloc[-1]
    return int(last["layer"]), int(last["step"])


def _curves(tables: dict, layer: int, atlas: Atlas, controls: dict):
    info = atlas.result.info
    return probe_curves(
        tables,
        layer,
        total_steps=info["total_steps"],
        chance=info["chance"],
        controls=controls,
        title=f"What layer {layer} knows of the class, step by step ({_protocol(info)})",
    )


def compare_atlases(atlases: dict[str, Atlas], folder: Path, stem: str, seed: int) -> list[Path]:
    """Set every later checkpoint beside the first: sentences, tables, curves, difference maps."""
    first, *others = atlases
    written = []
    for other in others:
        found = _compared(first, atlases[first], other, atlases[other], seed)
        for sentence in found.sentences():
            console.print(sentence, highlight=False)
        infos = {name: atlases[name].result.info for name in (first, other)}
        info = {"measurement": "paired comparison", "names": [first, other], "seed": seed}
        info |= {"sentences": found.sentences(), "atlases": infos}
        own, base = (slug(name, among=atlases) for name in (other, first))
        pair = f"{stem}-{own}-against-{base}"
        written += write_result(Result(found.table, info), folder / f"{pair}.csv")
        tables = {name: _own(atlases[name]) for name in (other, first)}
        if tables[first]["layer"].nunique() > 1:
            figure = probe_heatmap_difference(
                tables[other], tables[first], (other, first), tested=found.table
            )
            written += save(figure, folder / f"{pair}-difference")
    tables = {name: _own(atlas) for name, atlas in atlases.items()}
    controls = {name: atlas.result.table for name, atlas in atlases.items()}
    layer, _ = shown_cell(tables[first])
    figure = _curves(tables, layer, atlases[first], controls)
    return written + save(figure, folder / f"{stem}-compared-layer-{layer}")


def _own(atlas: Atlas) -> pd.DataFrame:
    return atlas.result.table.query("control == 'none'")


def _compared(a: str, first: Atlas, b: str, second: Atlas, seed: int) -> Comparison:
    if first.broken or second.broken:
        raise UserError(f"{a} and {b} cannot be compared: features of one are not finite")
    info = first.result.info
    return compare_hits(
        first.hits_SLKN,
        second.hits_SLKN,
        layers=info["layers"],
        steps=info["steps"],
        names=(a, b),
        seed=seed,
    )
