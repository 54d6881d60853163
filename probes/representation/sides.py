"""What representation measures are taken of: one sample of images and its features on every side.

The sample is a function of the seed. A *cell* is a layer at a step; a *side* is what cells are compared
with: the model itself, another checkpoint, an encoder. Everything is made when first asked for and
kept, so that measures share it; the features of all layers and steps of a side are in memory at once.

Shapes: N images, D width.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from probes.linear.knn import voters
from probes.reading.features import StepFeatures, check_finite, step_features
from probes.reading.images import ImageSample, draw
from probes.representation.encoders import Encoder, encode_pooled
from probes.representation.similarity import is_constant
from star.base.device import require_memory
from star.base.errors import UserError, require_choice
from star.base.randomness import generator
from star.codes.store import CodeStore
from star.model.transformer import Transformer, check_layers
from star.tokenizer.model import VQModel, decode_tokens

__all__ = ["GROUPS", "Materials", "Missing", "by_cell"]

GROUPS = 10  # of images, for jackknives that leave out more than one
BATCH = 64  # images decoded for an encoder at once

Cell = tuple[int, int]  # layer, step


class Missing(UserError):
    """A measure lacks something it needs: an error where it was asked for, else a note."""


@dataclass
class Materials:
    """The arguments of ``probes.representation.measures.measure`` and what follows from them."""

    model: Transformer
    store: CodeStore
    layers: list[int]
    steps: list[int]
    images: int
    seed: int
    view: str | None
    train: CodeStore | None
    references: int
    other: Transformer | None
    other_layers: list[int]
    encoder: Encoder | None
    tokenizer: VQModel | None
    neighbours: int
    far: int
    precision: torch.dtype

    def check(self) -> None:
        """Raise ``UserError`` unless layers and view exist and images less a group have neighbours."""
        check_layers(self.model.config, self.layers)
        if self.other is not None:
            check_layers(self.other.config, self.other_layers)
        if self.neighbours < 2:
            raise UserError(f"neighbours is {self.neighbours}; expected at least 2")
        least = max(20, 2 * self.neighbours)
        count = min(self.images, len(self.store))
        if count < least:
            whole = len(self.store) == count
            had = f"{self.store.path} has {count}" if whole else f"{count} were asked for"
            raise UserError(f"the measures need at least {least} images; {had}")
        if self.references < 1:
            raise UserError(f"references is {self.references}; expected at least 1 training image")
        if self.view is not None:
            names = self.store.view_names
            others = [name for i, name in enumerate(names) if i != self.store.test_view]
            require_choice("view", self.view, others)
        if self.encoder is not None and self.tokenizer is None:
            raise UserError(
                "the encoder needs pixels, and codes give none without the tokenizer; give both"
            )

    def facts(self) -> dict:
        """What was measured, for the provenance."""
        encoder = knn = None
        if self.train is not None:
            references = min(self.references, len(self.train))
            knn = {"references": references, "k": voters(references)}
        if self.encoder is not None:
            encoder = {
                "name": self.encoder.name,
                "sha256": self.encoder.sha256,
                "images": "decoded from the codes of the test view",
            }
        return {
            "measurement": "representation measures",
            "condition": "null class",
            "images": len(self.sample),
            "seed": self.seed,
            "total_steps": self.model.config.tokens,
            "width": self.model.config.width,
            "test_view": self.store.view_names[self.store.test_view],
            "other_view": None if self.store.views < 2 else self.store.view_names[self.other_view],
            "neighbours": self.neighbours,
            "far_distance": self.far,
            "knn": knn,
            "encoder": encoder,
        }

    @property
    def other_view(self) -> int:
        if self.view is not None:
            return self.store.view_names.index(self.view)
        return 1 if self.store.test_view == 0 else 0

    @cached_property
    def sample(self) -> ImageSample:
        return draw(self.store, self.images, self.seed, "measures images")

    @cached_property
    def groups_N(self) -> np.ndarray:
        order = generator(self.seed, "measures groups").permutation(len(self.sample))
        return order % GROUPS

    def features_of(self, model: Transformer, sample: ImageSample, layers: list[int]) -> StepFeatures:
        size = 4 * len(layers) * len(self.steps) * len(sample) * model.config.width
        require_memory(f"the features of {len(layers)} layers at {len(self.steps)} steps", size, "cpu")
        found = step_features(model, sample, layers=layers, steps=self.steps, precision=self.precision)
        check_finite(found)
        return found

    @cached_property
    def features(self) -> StepFeatures:
        return self.features_of(self.model, self.sample, self.layers)

    @cached_property
    def second_view(self) -> StepFeatures:
        if self.store.views < 2:
            raise Missing(
                f"{self.store.path} has one view of each image, which cannot be compared with another; "
                "tokenise with --eval-views all, or measure the train split"
            )
        sample = draw(self.store, self.images, self.seed, "measures images", view=self.other_view)
        return self.features_of(self.model, sample, self.layers)

    @cached_property
    def cells(self) -> dict[Cell, np.ndarray]:
        return by_cell(self.features)

    @cached_property
    def opponents(self) -> dict[str, dict[Cell, np.ndarray]]:
        """What is compared with ``cells``, by its name in the column ``against``."""
        sides = {}
        if len(self.cells) > 1:
            sides["self"] = self.cells
        if self.other is not None:
            sides["checkpoint"] = by_cell(self.features_of(self.other, self.sample, self.other_layers))
        if self.encoder is not None:
            sides["encoder"] = {(0, 0): self._encoded()}
        if not sides:
            raise Missing(
                "one layer at one step has nothing to be compared with; give more layers or steps, "
                "another checkpoint or an encoder"
            )
        return sides

    def _encoded(self) -> np.ndarray:
        assert self.encoder is not None and self.tokenizer is not None
        parts = []
        for start in range(0, len(self.sample), BATCH):
            codes = self.sample.codes[start : start + BATCH, 0].astype(np.int64)
            pixels = decode_tokens(self.tokenizer, torch.from_numpy(codes), self.sample.grid)
            parts.append(encode_pooled(self.encoder, pixels))
        encoded = np.concatenate(parts)
        if not np.isfinite(encoded).all():
            raise UserError(
                f"features of encoder {self.encoder.name} are not finite; check its weights"
            )
        return encoded

    @cached_property
    def _prepared(self) -> dict[tuple[str, str], dict]:
        return {}

    def _prepare(self, kind: str, prepare: Callable, side: str, cells: dict[Cell, np.ndarray]) -> dict:
        """``prepare`` of every cell of a side, made once a kind; None of cells that are constant."""
        if (kind, side) not in self._prepared:
            self._prepared[kind, side] = {
                cell: None if is_constant(x_ND) else prepare(x_ND) for cell, x_ND in cells.items()
            }
        return self._prepared[kind, side]

    def compare(self, kind: str, prepare: Callable, between: Callable, baseline: float) -> list[tuple]:
        """Rows of a paired measure: ``prepare`` of each cell once, then ``between`` of pairs."""
        rows = []
        for against, cells in self.opponents.items():
            own = self._prepare(kind, prepare, "self", self.cells)
            theirs = self._prepare(kind, prepare, against, cells)
            for a, b in itertools.product(own, theirs):
                if not _are_compared(against, a, b):
                    continue
                usable = own[a] is not None and theirs[b] is not None
                interval = between(own[a], theirs[b]) if usable else (math.nan,) * 3
                rows.append((against, *a, *b, *interval, len(self.sample), baseline))
        return rows


def by_cell(features: StepFeatures) -> dict[Cell, np.ndarray]:
    places = itertools.product(enumerate(features.layers), enumerate(features.steps))
    return {(layer, step): features.values[a, b] for (a, layer), (b, step) in places}


def _are_compared(against: str, a: Cell, b: Cell) -> bool:
    if against == "encoder":
        return True
    shared = a[0] == b[0] or a[1] == b[1]
    return shared and (against == "checkpoint" or a < b)
