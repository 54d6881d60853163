"""Where the features of a probe come from: a frozen model, or the controls' tokens and pixels.

A source gives, for some images of a part and one view of each, the features of all its groups; a group
is one layer at one step. Features are float32 (the residual stream has channels whose mean is a hundred
times their spread, of which float16 would leave little). What is not finite marks its group as broken
and becomes 0, so that the others can be finished.

Shapes: G groups, B images, D width of a feature, T tokens, g grid, V codebook size.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probes.linear.splits import PARTS, ProbeSplits
from probes.reading.features import capture_steps
from star.codes.store import check_rows
from star.images.views import scaled
from star.model.classes import null_label
from star.model.transformer import Transformer
from star.training.estimate import images_at_once

__all__ = ["CodeSource", "ModelSource", "PixelSource", "Source"]


class Source(Protocol):
    """Features on demand. ``groups`` are (layer, step); ``broken`` those found not finite so far."""

    groups: list[tuple[int, int]]
    width: int
    views: int
    device: torch.device
    broken: set[int]

    def __call__(self, part: str, images_B: np.ndarray, views_B: np.ndarray | None) -> Tensor:
        """(G, B, D) float32 of images of a part; ``views_B`` None is the test view."""


def read_tokens(
    splits: ProbeSplits, part: str, images_B: np.ndarray, views_B: np.ndarray | None
) -> np.ndarray:
    """(B, T) int64 tokens of a part's images, checked against the store's codebook."""
    store = splits.stores[part]
    rows = splits.rows[part][images_B]
    views = store.test_view if views_B is None else views_B
    codes = np.asarray(store.codes[rows, views], dtype=np.int64)
    check_rows(store, codes, np.asarray(store.labels[rows]))
    return codes


class ModelSource:
    """Outputs of a frozen model's layers at steps, under the null class.

    ``cut`` (as ``Transformer.forward`` takes it) is applied to images of the parts ``cut_parts``.
    Raises ``UserError`` for a model without a null class.
    """

    def __init__(
        self,
        model: Transformer,
        splits: ProbeSplits,
        *,
        layers: list[int],
        steps: list[int],
        precision: torch.dtype = torch.float32,
        batch_size: int = 256,
        cut: Mapping[int, Tensor] | None = None,
        cut_parts: Sequence[str] = PARTS,
    ) -> None:
        self.model, self.splits = model, splits
        self.null = null_label(model.config, "a probe")
        self.cut, self.cut_parts = cut, cut_parts
        self.layers, self.steps = layers, steps
        self.groups = [(layer, step) for layer in layers for step in steps]
        self.width = model.config.width
        self.views = splits.stores["train"].views
        self.device = model.output.weight.device
        self.precision = precision
        self.batch_size = images_at_once(model.config, batch_size, with_logits=False)
        self.broken: set[int] = set()

    @torch.no_grad()
    def __call__(self, part: str, images_B: np.ndarray, views_B: np.ndarray | None) -> Tensor:
        shape = (len(self.groups), len(images_B), self.width)
        features_GBD = torch.empty(shape, device=self.device)
        for start in range(0, len(images_B), self.batch_size):
            some = slice(start, start + self.batch_size)
            codes = read_tokens(
                self.splits, part, images_B[some], None if views_B is None else views_B[some]
            )
            cut = self.cut if part in self.cut_parts else None
            features_GBD[:, some] = self._forward(torch.from_numpy(codes).to(self.device), cut)
        return features_GBD

    def _forward(self, tokens_BT: Tensor, cut: Mapping[int, Tensor] | None) -> Tensor:
        names = [f"layers.{layer}" for layer in self.layers]
        captured = capture_steps(
            self.model, tokens_BT, self.null, names, self.steps, precision=self.precision, cut=cut
        )
        features = torch.cat([captured[name] for name in names], dim=1)
        return self._finite(features.transpose(0, 1).float())

    def _finite(self, features_GBD: Tensor) -> Tensor:
        bad_G = ~features_GBD.isfinite().all(-1).all(-1)
        if bad_G.any():
            self.broken |= set(bad_G.nonzero().flatten().tolist())
            features_GBD = features_GBD.masked_fill(bad_G[:, None, None], 0)
        return features_GBD


class CodeSource:
    """Control: a bag of visual words, the share of each code among the tokens seen so far."""

    def __init__(self, splits: ProbeSplits, steps: list[int], device: torch.device) -> None:
        self.splits, self.steps, self.device = splits, steps, device
        self.groups = [(0, step) for step in steps]
        self.width = splits.stores["train"].vocab_size
        self.views = splits.stores["train"].views
        self.broken: set[int] = set()

    def __call__(self, part: str, images_B: np.ndarray, views_B: np.ndarray | None) -> Tensor:
        codes = read_tokens(self.splits, part, images_B, views_B)
        tokens_BT = torch.from_numpy(codes).to(self.device)
        counts_BV = torch.zeros(len(codes), self.width, device=self.device)
        bags, before = [], 0
        for step in self.steps:
            new = tokens_BT[:, before : step - 1]
            counts_BV.scatter_add_(1, new, torch.ones(new.shape, device=self.device))
            before = step - 1
            bags.append(counts_BV / max(1, step - 1))
        return torch.stack(bags)


class PixelSource:
    """Control: the pixels of the cells seen so far, test view; unseen cells are 0.

    ``pixels`` maps a part to (N, P, g c, g c, 3) uint8, c pixels a cell (``probes.linear.pixels``): one
    picture of each image, or one for each step.
    """

    def __init__(
        self,
        splits: ProbeSplits,
        steps: list[int],
        pixels: dict[str, np.ndarray],
        device: torch.device,
    ) -> None:
        self.steps, self.device, self.pixels = steps, device, pixels
        self.groups = [(0, step) for step in steps]
        self.grid = splits.stores["train"].grid
        self.width = int(np.prod(pixels["train"].shape[2:]))
        self.views = 1
        self.broken: set[int] = set()

    def __call__(self, part: str, images_B: np.ndarray, views_B: np.ndarray | None) -> Tensor:
        pictures_BPHWC = torch.from_numpy(self.pixels[part][images_B]).to(self.device)
        order = torch.arange(self.grid**2, device=self.device).view(1, 1, self.grid, self.grid)
        side, last = pictures_BPHWC.shape[2], pictures_BPHWC.shape[1] - 1
        order_HW1 = F.interpolate(order.float(), size=(side, side), mode="nearest")[0, 0, :, :, None]
        seen = []
        for place, step in enumerate(self.steps):
            images_BHWC = scaled(pictures_BPHWC[:, min(place, last)])
            seen.append((images_BHWC * (order_HW1 < step - 1)).flatten(1))
        return torch.stack(seen)
