"""What is said of an atlas: every accuracy beside its controls, and three summaries a layer."""

import pandas as pd

from figures.sentences import names_in_pictures
from figures.work import Rows, Said
from probes.linear.atlas import Atlas
from probes.linear.protocols import ProtocolConfig, varies
from star.base.errors import listed

__all__ = ["at_edges", "atlas_said", "few_updates", "protocol_said"]

FEW_UPDATES = 2000  # ImageNet's 1.28 million images give 7,020
SETTING = {"logreg": "C", "ridge": "penalty", "mae": "rate", "attentive": "rate"}
SHORT = {"random": "random", "shuffled": "shuffled", "codes": "tokens", "pixels": "pixels"}


def atlas_said(atlas: Atlas, name: str, class_names: tuple[str, ...]) -> list[Said]:
    """Every accuracy with its interval and its controls, percent; then three summaries a layer."""
    table, info = atlas.result.table, atlas.result.info
    own = table[table["control"] == "none"]
    seeds = len(info["seeds"])
    several = seeds > 1 and varies(info["protocol"])
    columns = ["layer", "step", "accuracy", "95 % interval", *(["spread"] if several else [])]
    tested = f"{info['splits']['images']['test']} test images"
    said: list[Said] = [
        Rows(
            f"{name}: {protocol_said(info)}, {tested}, %",
            [*columns, *SHORT.values()],
            _rows(table, several),
        )
    ]
    if several:
        said.append(
            f"Means over {seeds} seeds of the probe; spread: their standard deviation; intervals are "
            "of one seed, over images."
        )
    elif seeds > 1:
        said.append(
            f"Means over {seeds} seeds, without a spread: {info['protocol']} draws nothing, so seeds "
            "change the controls alone."
        )
    said += [f"{name}, layer {layer}: {_summary(of_layer)}" for layer, of_layer in own.groupby("layer")]
    pixels = "the images" if info["pixels"] == "source" else "the seen tokens, decoded"
    said.append(
        f"Controls: random = same layer with random weights, {info['random_weights']}; shuffled = "
        "training labels permuted; tokens = bag of the tokens seen; pixels of the area seen, of "
        f"{pixels}. Chance {100 * info['chance']:.1f} %."
    )
    return said + at_edges(table, info["protocol"]) + names_in_pictures(class_names)


def at_edges(table: pd.DataFrame, protocol: str) -> list[str]:
    """Where validation chose the first or last of its settings: the best may lie beyond.

    Not of shuffled labels, which are read best by no probe at all.
    """
    rows = table[table["control"] != "shuffled"]
    found = []
    for control, of_control in rows.groupby("control", sort=False):
        edge = of_control[of_control["at_edge"]]
        if edge.empty:
            continue
        whose = "the model" if control == "none" else SHORT[control]
        values = listed(f"{value:g}" for value in sorted(set(edge["choice"])))
        found.append(f"{len(edge)} of {len(of_control)} of {whose} ({values})")
    if not found:
        return []
    what = SETTING.get(protocol, "setting")
    return [
        f"note: validation chose the first or last {what} of those tried in some cells: "
        f"{listed(found)}; a better one may lie beyond (column at_edge)"
    ]


def protocol_said(info: dict) -> str:
    """The protocol's name, with the neighbours that voted."""
    return info["protocol"] + (f", k = {info['neighbours']}" if "neighbours" in info else "")


def few_updates(protocol: ProtocolConfig, images: int) -> list[str]:
    """MAE's protocol is made for large data: said where its heads are hardly trained."""
    mae, batch = protocol.mae, min(protocol.mae.batch_size, images)
    updates = mae.epochs * (images // batch)
    if protocol.name != "mae" or updates >= FEW_UPDATES or len(mae.base_lrs) > 1:
        return []
    return [
        f"note: {images:,} training images make {updates} updates at lr {mae.base_lrs[0]:g} x "
        f"{batch}/256 (ImageNet: 7,020 at 6.4): hardly trained heads. Try --batch-size 512 "
        "--lr 0.1,1,10, or --protocol logreg"
    ]


def _rows(table: pd.DataFrame, several: bool) -> list[list[str]]:
    mean = table.groupby(["control", "layer", "step"])["accuracy"].mean()
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
    return rows


def _summary(own: pd.DataFrame) -> str:
    """Last step, best step (chosen by validation accuracy) and mean: the paper does not say which."""
    by_step = own.groupby("step")[["accuracy", "val_accuracy"]].mean()
    text = f"last step {100 * by_step['accuracy'].iloc[-1]:.1f} %"
    if by_step["val_accuracy"].notna().any():
        best = by_step["val_accuracy"].idxmax()
        text += f", best on validation (step {best}) {100 * by_step['accuracy'][best]:.1f} %"
    return f"{text}, mean over steps {100 * by_step['accuracy'].mean():.1f} %"
