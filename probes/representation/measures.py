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
- ``low``, ``high``: 95 %. A mean over images has Student's t, an accuracy Wilson's; CKA and
  uniformity the jackknife over images; effective rank, mutual kNN and CKNNA the jackknife over ten
  groups of images (``probes.stats.intervals``). Images share their neighbours, so mutual kNN's
  interval would be too narrow (78 % of 120 draws of 300 images held their mean); the jackknife of the
  two kNN measures is wider than needed (99 %). All say how far the number would move with other images,
  at this number of images: effective rank, mutual kNN and CKNNA depend on it, so compare only tables
  of the same ``n``.
- ``baseline``: between images (consistency, alignment, LDS), by chance (mutual kNN, kNN: the most
  frequent class), features spread evenly (uniformity), 0 for CKA; empty where there is none.

Pairs of (layer, step) that share the layer or the step are compared. A side that is the same for all
images (step 1 has seen the class alone) has no CKA, mutual kNN or CKNNA: empty cells.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

from probes.reading.features import check_decoder, check_tokenizer
from probes.representation.encoders import Encoder
from probes.representation.rows import MEASURES, measure_rows
from probes.representation.sides import Materials, Missing
from probes.representation.similarity import NEIGHBOURS
from probes.representation.spatial import FAR
from probes.results import Result, checkpoint_facts, provenance
from star.base.errors import require_choice
from star.codes.store import CodeStore
from star.model.transformer import Transformer
from star.tokenizer.model import VQModel
from star.training.checkpoint import Loaded

__all__ = ["MEASURES", "MEASURE_COLUMNS", "measure", "measure_checkpoint"]

TWO_VIEWS = ("view_consistency", "alignment")
MEASURE_COLUMNS = (
    "measure", "against", "layer", "step", "layer_b", "step_b", "value", "low", "high", "n", "baseline",
)  # fmt: skip

Progress = Callable[[int, int], None]


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
            found = measure_rows(name, work)
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
    **options: Any,
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
