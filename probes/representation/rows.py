"""How each representation measure is taken: from the materials to its rows of the table.

A row is what ``probes.representation.measures`` says, from ``against`` on.

Shapes: N images, D width, K steps, P pairs of steps, L layers.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

from probes.linear.knn import knn_predict, voters
from probes.reading.images import draw
from probes.representation.geometry import (
    alignment,
    effective_rank,
    even_uniformity,
    pair_consistency,
    rank_left_out,
    step_consistency,
    uniformity,
)
from probes.representation.sides import Materials, Missing, by_cell
from probes.representation.similarity import Hsic, cka_left_out, cknna, hsic, mutual_knn, nearest
from probes.representation.spatial import layer_lds
from probes.stats.intervals import jackknife_interval, mean_interval, share_interval

__all__ = ["MEASURES", "measure_rows"]

Interval = tuple[float, float, float]  # value, low, high


MEASURES = {
    "step_consistency": "cosine of two steps of an image, against two images (the paper's property 2)",
    "view_consistency": "cosine of a step under two views, against two images (property 3)",
    "alignment": "squared distance of a step's two views on the unit sphere (Wang & Isola 2020)",
    "uniformity": "log E exp(-2 distance^2) of images on the unit sphere; lower: spread more evenly",
    "effective_rank": "RankMe: exp of the entropy of the features' singular values",
    "knn": "accuracy of nearest neighbours among training images (DINO's protocol)",
    "lds": "cosine of neighbouring tokens minus that of distant ones (iREPA)",
    "cka": "debiased linear CKA with other layers, steps, a checkpoint or an encoder",
    "mutual_knn": "share of nearest neighbours in common with the same (Huh et al. 2024)",
    "cknna": "CKA restricted to common nearest neighbours, with the same (Huh et al. 2024)",
}


def _step_consistency(work: Materials) -> list[tuple]:
    if len(work.steps) < 2:
        raise Missing("step consistency compares two steps or more; give more steps")
    pairs = list(itertools.combinations(work.steps, 2))
    rows = []
    for layer, features_KND in zip(work.layers, work.features.values, strict=True):
        within_PN, between_PN = step_consistency(features_KND)
        cuts = [((0, 0), [True] * len(pairs))]
        cuts += [((step, 0), [step in pair for pair in pairs]) for step in work.steps]
        cuts += [(pair, [pair == some for some in pairs]) for pair in pairs]
        for (step, step_b), mine in cuts:
            values_N = within_PN[mine].mean(0)
            baseline = float(between_PN[mine].mean())
            interval = mean_interval(values_N)
            rows.append(("self", layer, step, layer, step_b, *interval, len(values_N), baseline))
    return rows


def _view_consistency(work: Materials) -> list[tuple]:
    rows, others = [], by_cell(work.second_view)
    for cell, x in work.cells.items():
        within_N, between_N = pair_consistency(x, others[cell])
        baseline = float(between_N.mean())
        rows.append(("view", *cell, *cell, *mean_interval(within_N), len(x), baseline))
    return rows


def _alignment(work: Materials) -> list[tuple]:
    rows, others = [], by_cell(work.second_view)
    for cell, x in work.cells.items():
        between = 2 - 2 * float(pair_consistency(x, others[cell])[1].mean())
        rows.append(("view", *cell, *cell, *mean_interval(alignment(x, others[cell])), len(x), between))
    return rows


def _uniformity(work: Materials) -> list[tuple]:
    baseline = even_uniformity(work.model.config.width)
    return [
        ("none", *cell, 0, 0, *jackknife_interval(*uniformity(x)), len(x), baseline)
        for cell, x in work.cells.items()
    ]


def _effective_rank(work: Materials) -> list[tuple]:
    rows = []
    for cell, x in work.cells.items():
        interval = jackknife_interval(effective_rank(x), rank_left_out(x, work.groups_N))
        rows.append(("none", *cell, 0, 0, *interval, len(x), math.nan))
    return rows


def _knn(work: Materials) -> list[tuple]:
    if work.train is None:
        raise Missing(
            "kNN looks its neighbours up among training images other than those measured; give a train "
            "split and measure another"
        )
    reference = draw(work.train, work.references, work.seed, "measures reference")
    known = work.features_of(work.model, reference, work.layers)
    k, labels_N = voters(len(reference)), work.sample.labels
    chance = float(np.bincount(labels_N).max() / len(labels_N))
    device = work.model.output.weight.device
    rows = []
    for cell, reference_ND in by_cell(known).items():
        found = knn_predict(reference_ND, known.labels, work.cells[cell], k=k, device=device)
        interval = share_interval(found == labels_N)
        rows.append(("train", *cell, 0, 0, *interval, len(labels_N), chance))
    return rows


def _lds(work: Materials) -> list[tuple]:
    farthest = 2 * (work.store.grid - 1)
    if work.far > farthest:
        raise Missing(
            f"distant tokens are {work.far} cells apart; on a grid of {work.store.grid} x "
            f"{work.store.grid} expected at most {farthest}"
        )
    values_LN, between_L = layer_lds(
        work.model, work.sample, layers=work.layers, far=work.far, precision=work.precision
    )
    return [
        ("none", layer, 0, 0, 0, *mean_interval(values_N), len(values_N), float(between))
        for layer, values_N, between in zip(work.layers, values_LN, between_L, strict=True)
    ]


def _cka(work: Materials) -> list[tuple]:
    def between(first: tuple[np.ndarray, Hsic], second: tuple[np.ndarray, Hsic]) -> Interval:
        value, low, high = jackknife_interval(
            *cka_left_out(hsic(first[0], second[0]), first[1], second[1])
        )
        return value, max(low, -1.0), min(high, 1.0)

    return work.compare("hsic", lambda x: (x, hsic(x, x)), between, 0.0)


def _mutual_knn(work: Materials) -> list[tuple]:
    chance = work.neighbours / (len(work.sample) - 1)
    return _compare_neighbours(work, lambda a, b: float(mutual_knn(a, b).mean()), chance)


def _cknna(work: Materials) -> list[tuple]:
    return _compare_neighbours(work, cknna, math.nan)


def _compare_neighbours(work: Materials, likeness: Callable, baseline: float) -> list[tuple]:
    def between(first: list, second: list) -> Interval:
        value, *left_out = (likeness(a, b) for a, b in zip(first, second, strict=True))
        return jackknife_interval(value, np.array(left_out))

    def prepare(features_ND: np.ndarray) -> list:
        return nearest(features_ND, work.neighbours, work.groups_N)

    return work.compare("neighbours", prepare, between, baseline)


_ROWS = {
    "step_consistency": _step_consistency,
    "view_consistency": _view_consistency,
    "alignment": _alignment,
    "uniformity": _uniformity,
    "effective_rank": _effective_rank,
    "knn": _knn,
    "lds": _lds,
    "cka": _cka,
    "mutual_knn": _mutual_knn,
    "cknna": _cknna,
}


def measure_rows(name: str, work: Materials) -> list[tuple]:
    """The rows of the measure ``name``; ``Missing`` where ``work`` lacks what it needs."""
    return _ROWS[name](work)
