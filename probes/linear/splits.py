"""Which images a probe is trained on, chosen by and tested on.

Choices (strength, learning rate) are made on the validation images, and the number reported is that of
the test images. A data set with a test split keeps its three splits. One that has only train and val,
as ImageNet is used, is tested on val, and its validation images are cut from train by the seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.reading.features import check_cells, check_store
from probes.reading.images import draw_rows
from star.base.errors import UserError
from star.base.randomness import generator
from star.codes.store import CodeStore
from star.model.transformer import Transformer

__all__ = ["PARTS", "ProbeSplits", "check_probe", "fewer_images", "probe_splits"]

PARTS = ("train", "val", "test")
HELD_OUT = 20  # one training image in so many is cut off, but no more than
MOST_HELD_OUT = 10_000


@dataclass(frozen=True)
class ProbeSplits:
    """``stores[part]`` holds the images of a part, in rows ``rows[part]`` (ascending)."""

    stores: Mapping[str, CodeStore]
    rows: Mapping[str, np.ndarray]
    rule: str

    def labels(self, part: str) -> np.ndarray:
        """(N,) int64 classes of a part's images."""
        return np.asarray(self.stores[part].labels, dtype=np.int64)[self.rows[part]]

    def count(self, part: str) -> int:
        """N, images of a part."""
        return len(self.rows[part])

    @property
    def classes(self) -> int:
        return self.stores["train"].num_classes

    @property
    def chance(self) -> float:
        """Test accuracy of always naming the class that most training images have."""
        commonest = np.bincount(self.labels("train"), minlength=self.classes).argmax()
        return float((self.labels("test") == commonest).mean())

    def describe(self) -> dict:
        """For provenance: the rule, the counts and the stores' own hashes."""
        return {
            "rule": self.rule,
            "images": {part: self.count(part) for part in PARTS},
            "data": {part: dict(self.stores[part].manifest["sha256"]) for part in PARTS},
            "source": {part: _source(self.stores[part]) for part in PARTS},
        }


def _source(store: CodeStore) -> object:
    """What the manifest says of the images, less what was left out: that was not probed."""
    source = store.manifest.get("source")
    if not isinstance(source, dict):
        return source
    return {key: value for key, value in source.items() if key != "left_out"}


def probe_splits(stores: Mapping[str, CodeStore], seed: int = 0) -> ProbeSplits:
    """The three parts of ``stores``; ``seed`` decides only a cut that has to be made.

    Raises ``UserError`` if there is nothing to test on, if the training images are of one class, or if
    there are fewer test images than classes among them.
    """
    if "train" not in stores or not {"val", "test"} & set(stores):
        there = ", ".join(stores) or "none"
        raise UserError(f"the splits are {there}; probing needs train and val or test")
    every = {name: np.arange(len(store)) for name, store in stores.items()}
    if {"val", "test"} <= set(stores):
        used = {part: stores[part] for part in PARTS}
        splits = ProbeSplits(used, {part: every[part] for part in PARTS}, "the data's own")
    else:
        tested = "test" if "test" in stores else "val"
        kept, cut = _cut(len(stores["train"]), seed)
        splits = ProbeSplits(
            {"train": stores["train"], "val": stores["train"], "test": stores[tested]},
            {"train": kept, "val": cut, "test": every[tested]},
            f"tested on {tested}; {len(cut)} validation images cut from train by seed {seed}",
        )
    _check(splits)
    return splits


def _cut(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = generator(seed, "probe validation").permutation(images)
    size = min(MOST_HELD_OUT, max(1, images // HELD_OUT))
    return np.sort(order[size:]), np.sort(order[:size])


def _check(splits: ProbeSplits) -> None:
    known = np.unique(splits.labels("train"))
    where = splits.stores["train"].path
    if len(known) < 2:
        raise UserError(
            f"the {splits.count('train')} training images in {where} are of one class; a probe needs "
            "two classes or more"
        )
    if splits.count("test") < len(known):
        raise UserError(
            f"{splits.stores['test'].path} has {splits.count('test')} test images for {len(known)} "
            "classes; a probe needs at least one test image a class"
        )


def check_probe(
    model: Transformer, splits: ProbeSplits, layers: Sequence[int], steps: Sequence[int]
) -> None:
    """Raise ``UserError`` unless layers and steps exist and the codes fit the model (null class)."""
    check_cells(model.config, layers, steps)
    for store in splits.stores.values():
        check_store(model, store, classes=False)


def fewer_images(splits: ProbeSplits, count: int, seed: int) -> ProbeSplits:
    """The splits with at most ``count`` images of each part, a function of the seed."""
    rows = {
        part: draw_rows(rows_N, count, seed, f"fewer {part} images")
        for part, rows_N in splits.rows.items()
    }
    return ProbeSplits(splits.stores, rows, f"{splits.rule}; at most {count} of each part, seed {seed}")
