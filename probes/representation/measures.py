"""Representation measures of a model in one table: one sample of images, layers x steps, null class.

``MEASURES`` names them. ``measure`` takes values and is what a notebook calls; ``measure_checkpoint``
takes what ``star.training.checkpoint.open_model`` and ``star.codes.store.open_splits`` give and adds
their provenance.

The table is long, one row a number, columns ``MEASURE_COLUMNS``:

- ``against`` says what a layer at a step is compared with: ``none``; ``self``, ``checkpoint`` or
  ``encoder`` (another layer and step of the model, of the other checkpoint, the encoder's features);
  ``view``, another view of the images; ``train``, labelled training images.
- ``layer``, ``step`` and, of the other side, ``layer_b``, ``step_b``; 0 is "all" or "has none". LDS
  is over all positions (step 0). Step consistency has a row for each pair of steps, one for each step
  with all others (``step_b`` 0) and one over all pairs (both 0).
- ``low``, ``high``: 95 %. A mean over images has the normal interval, an accuracy Wilson's; CKA and
  uniformity the jackknife over images; effective rank, mutual kNN and CKNNA the jackknife over ten
  groups of images (``probes.stats.intervals``). Images share their neighbours, so mutual kNN's normal
  interval would be too narrow (78 % of 120 draws of 300 images held their mean); the jackknife of the
  two kNN measures is wider than needed (99 %). All say how far the number would move with other images,
  at this number of images: effective rank, mutual kNN and CKNNA depend on it, so compare only tables
  of the same ``n``.
- ``baseline``: between images (consistency, alignment, LDS), by chance (mutual kNN, kNN: the most
  frequent class), features spread evenly (uniformity), 0 for CKA; empty where there is none.

Pairs of (layer, step) that share the layer or the step are compared. A side that is the same for all
images (step 1 has seen the class alone) has no CKA, mutual kNN or CKNNA: empty cells.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from probes.linear.knn import knn_predict, voters
from probes.reading.features import check_decoder, check_tokenizer
from probes.reading.images import draw
from probes.representation.encoders import Encoder
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
from probes.representation.similarity import (
    NEIGHBOURS,
    cka_left_out,
    cknna,
    hsic,
    mutual_knn,
    nearest,
)
from probes.representation.spatial import FAR, layer_lds
from probes.results import Result, checkpoint_facts, provenance
from probes.stats.intervals import jackknife_interval, mean_interval, share_interval
from star.base.errors import require_choice
from star.codes.store import CodeStore
from star.model.transformer import Transformer
from star.tokenizer.model import VQModel
from star.training.checkpoint import Loaded

__all__ = ["MEASURES", "MEASURE_COLUMNS", "measure", "measure_checkpoint"]

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
TWO_VIEWS = ("view_consistency", "alignment")
MEASURE_COLUMNS = (
    "measure", "against", "layer", "step", "layer_b", "step_b", "value", "low", "high", "n", "baseline",
)  # fmt: skip

Progress = Callable[[int, int], None]
Interval = tuple[float, float, float]  # value, low, high


def measure(
    model: Transformer,
    store: CodeStore,
    *,
    layers: list[int],
    steps: list[int],
    names: Sequence[str] | None = None,
    images: int = 2000,
    seed: int = 0,
    view: str | None = None,
    train: CodeStore | None = None,
    references: int = 5000,
    other: Transformer | None = None,
    other_layers: list[int] | None = None,
    encoder: Encoder | None = None,
    tokenizer: VQModel | None = None,
    neighbours: int = NEIGHBOURS,
    far: int = FAR,
    precision: torch.dtype = torch.float32,
    on_progress: Progress | None = None,
    facts: dict | None = None,
) -> Result:
    """The measures ``names`` (default: all that can be taken) of ``layers`` at ``steps``.

    images: how many of the store's (all, if it has fewer), drawn by ``seed``. view: the view that is
    compared with the test view (default: the store's first other one). train: where kNN looks, at
    ``references`` of its images. other: a second model, at ``other_layers`` (default: ``layers``) and
    the same steps. encoder: frozen encoder (``probes.representation.encoders``), which sees what
    ``tokenizer`` decodes of the codes. neighbours: k of mutual kNN and CKNNA. far: LDS's distance in
    grid cells. on_progress(done, total) counts measures. facts go into the provenance.

    A default run notes in ``info["left_out"]`` what it cannot measure and why; a measure asked for by
    name raises ``UserError`` instead, as do unknown names, layers, steps and views, too few images,
    codes that do not fit and features that are not finite.
    """
    for name in names or ():
        require_choice("measure", name, MEASURES)
    chosen = list(dict.fromkeys(names)) if names else list(MEASURES)
    layers, steps = list(dict.fromkeys(layers)), sorted(set(steps))
    work = Materials(
        model, store, layers, steps, images, seed, view, train, references, other,
        layers if other_layers is None else list(dict.fromkeys(other_layers)), encoder, tokenizer,
        neighbours, far, precision,
    )  # fmt: skip
    work.check()
    rows, left_out = [], {}
    for done, name in enumerate(chosen, start=1):
        try:
            found = _RUNNERS[name](work)
        except Missing as missing:
            if names:
                raise
            left_out[name], found = str(missing), []
        rows += [dict(zip(MEASURE_COLUMNS, (name, *row), strict=True)) for row in found]
        if on_progress is not None:
            on_progress(done, len(chosen))
    table = pd.DataFrame(rows, columns=list(MEASURE_COLUMNS))
    return Result(table, provenance(**work.facts(), left_out=left_out, **(facts or {})))


def measure_checkpoint(
    loaded: Loaded,
    stores: dict[str, CodeStore],
    *,
    split: str = "test",
    other: Loaded | None = None,
    **options,
) -> Result:
    """``measure`` (same options) of a checkpoint on ``split``, kNN looking at the train split.

    Where ``split`` has one view of an image and train has several, the measures of two views are taken
    on train, which ``info["of_train"]`` says.

    Raises ``UserError`` too if there is no such split or the codes are another tokenizer's than a
    checkpoint's or the one given for the encoder.
    """
    require_choice("split", split, stores)
    for checkpoint in (loaded, other):
        if checkpoint is not None:
            check_tokenizer(checkpoint, stores[split])
    if options.get("tokenizer") is not None:
        check_decoder(options["tokenizer"], stores[split])
    facts = {
        "split": split,
        "data": {name: stores[name].manifest["sha256"] for name in {split, "train"} & set(stores)},
        **checkpoint_facts(loaded),
        **({} if other is None else checkpoint_facts(other, "other_")),
    }
    options |= {"other": None if other is None else other.model, "facts": facts}
    names = list(options.pop("names", None) or ())
    of_train = [name for name in names or MEASURES if name in TWO_VIEWS]
    train = stores.get("train")
    if stores[split].views > 1 or train is None or train.views < 2 or not of_train:
        others = None if split == "train" else train
        return measure(loaded.model, stores[split], train=others, names=names or None, **options)
    first = [name for name in names or MEASURES if name not in TWO_VIEWS]
    found = measure(loaded.model, train, **{**options, "names": of_train})
    found = Result(found.table, {**found.info, "of_train": of_train})
    if not first:
        return found
    rest = measure(loaded.model, stores[split], train=train, names=names and first, **options)
    rest.info["left_out"] = {
        name: why for name, why in rest.info["left_out"].items() if name not in of_train
    }
    table = pd.concat([rest.table, found.table], ignore_index=True)
    return Result(table, {**rest.info, "of_train": of_train})


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
    def between(first, second) -> Interval:
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
    def between(first, second) -> Interval:
        value, *left_out = (likeness(a, b) for a, b in zip(first, second, strict=True))
        return jackknife_interval(value, np.array(left_out))

    def prepare(features_ND: np.ndarray) -> list:
        return nearest(features_ND, work.neighbours, work.groups_N)

    return work.compare("neighbours", prepare, between, baseline)


_RUNNERS = {
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
