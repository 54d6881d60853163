"""What ``star nll`` says: the means, what was left out, and the comparison of two checkpoints."""

import math

import pandas as pd

from figures.sentences import OTHER_RUNS, difference
from figures.work import Rows, Said
from probes.likelihood.calibration import Calibration
from probes.likelihood.nll import Likelihood
from star.codes.store import CodeStore

__all__ = ["compared_said", "nll_said"]


def nll_said(name: str, found: Likelihood, calibrated: Calibration, store: CodeStore) -> list[Said]:
    """The means of one model with their intervals, and what could not be measured."""
    table = found.table()
    means = table[table["step"].eq(0)].set_index(["measure", "split", "class"])
    split = store.path.name
    rows = []
    for (measure, of, given), words in {
        ("nll", "held out", "own"): "NLL given the class (nats a token)",
        ("nll", "held out", "none"): "NLL given no class (nats a token)",
        ("class_gain", "held out", "own"): "gain of the class (nats a token)",
        ("nll", "train", "own"): "NLL of training images (nats a token)",
        ("train_gap", "held out", "own"): "held out minus training (nats a token)",
        ("bits_a_pixel", "held out", "own"): "bits a pixel given the class",
        ("bits_a_pixel", "held out", "none"): "bits a pixel given no class",
    }.items():
        if (measure, of, given) in means.index:
            row = means.loc[(measure, of, given)]
            rows.append([words, f"{row.value:.3f}", f"[{row.low:.3f}, {row.high:.3f}]", f"{row.n:.0f}"])
    title = f"{name}: {split} images, test view; even guessing is {math.log(store.vocab_size):.3f} nats"
    said: list[Said] = [Rows(title, ["mean", "value", "95 %", "images"], rows)]
    said += _of_classes(name, found, means)
    error, low, high = calibrated.error()
    right = 100 * calibrated.right_NT.mean()
    sure = 100 * calibrated.confidence_NT.mean(dtype=float)
    said.append(
        f"{name}: the most likely next token is right in {right:.1f} % of predictions and has "
        f"probability {sure:.1f} % on average; expected calibration error {100 * error:.2f} points "
        f"[{100 * low:.2f}, {100 * high:.2f}], floor {100 * calibrated.floor():.2f}"
    )
    return said + _left_out(name, found, split)


def _of_classes(name: str, found: Likelihood, means: pd.DataFrame) -> list[Said]:
    if not len(found.classified):
        return []
    row = means.loc[("class_accuracy", "held out", "each")]
    return [
        f"{name}: the class under which an image is most probable is its own in "
        f"{100 * row.value:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}] of {row.n:.0f} images "
        f"and {found.classes_nll.shape[1]} classes; always naming the most frequent: "
        f"{100 * row.control:.1f} %"
    ]


def _left_out(name: str, found: Likelihood, split: str) -> list[Said]:
    said: list[Said] = []
    if found.none_NT is None:
        said.append(f"{name} has no null class: NLL given no class and the gain are left out")
    if found.train_NT is None:
        said.append(
            f"the {split} images are all there are: no gap between held-out and training images"
        )
    if found.pixels is None:
        said.append("bits a pixel are left out: nothing says how large the images are (--tokenizer)")
    if not len(found.classified):
        said.append("no image is classified (--class-images)")
    return said


def compared_said(table: pd.DataFrame, names: tuple[str, str]) -> list[Said]:
    """The differences of the means; what one run an arm can say, and what not."""
    words = {
        ("nll", "own"): ("NLL given the class", 1, 3, " nats a token"),
        ("nll", "none"): ("NLL given no class", 1, 3, " nats a token"),
        ("class_gain", "own"): ("gain of the class", 1, 3, " nats a token"),
        ("class_accuracy", "each"): ("images whose class is the most probable", 100, 1, " %"),
    }
    said: list[Said] = []
    for row in table[table["step"].eq(0)].itertuples():
        text, factor, digits, unit = words[(row.measure, row[2])]  # "class" is no attribute's name
        said.append(f"{text}: {difference(row, names, factor=factor, digits=digits, unit=unit)}")
    return [*said, OTHER_RUNS]
