"""MAE's linear probing of every head at once, in one streaming pass over a frozen source.

A head is BatchNorm without affine parameters (eps 1e-6, momentum 0.1) and a linear layer (weight
truncated normal of std 0.01, bias 0) on one group of features, trained by LARS at lr = base x batch /
256, linear warm-up over 10 of 90 epochs and a cosine to 0, the rate changing with every batch. Heads
of all groups, label sets and base rates share each batch of features: a batch costs one batched
matrix product for the logits and one for the gradients.

Departures from the public code, which the result lists (``DEPARTURES``): see there.

Shapes: G groups, S label sets, R base rates, D width, C classes, H = S R C columns of a group, B batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.linear.lars import lars_step, linprobe_lr
from probes.linear.predictions import epoch_batches
from probes.linear.sharing import add_up
from probes.linear.sources import Source
from star.base.errors import UserError
from star.base.randomness import torch_generator
from star.parallel.processes import world_size

__all__ = [
    "DEPARTURES",
    "HeadBank",
    "MaeConfig",
    "batch_normalise",
    "running_normalise",
    "train_heads",
]

DEPARTURES = (
    "RandomResizedCrop and flip become a random stored view of each image, drawn anew every epoch; the "
    "test view is the store's",
    "a batch holds min(16384, N) images, and lr is derived from that number",
    "batch norm takes its moments over the whole batch, not over each process's part",
    "the validation images, by which rates are chosen, are never trained on",
)
BATCH_NORM_EPS, BATCH_NORM_MOMENTUM = 1e-6, 0.1
INIT_STD = 0.01
# Floats (normalised features, logits, their errors) that one product takes at a time: 1 GiB.
PIECE = 1 << 28


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """MAE's settings; ``base_lrs`` are rates per 256 images, all trained together."""

    base_lrs: tuple[float, ...] = (0.1,)
    epochs: int = 90
    warmup_epochs: int = 10
    batch_size: int = 16384

    def __post_init__(self) -> None:
        for lr in self.base_lrs or (math.nan,):
            if not 0 < lr < math.inf:
                raise UserError(f"a base learning rate is {lr}; expected numbers > 0")
        if self.batch_size < 2:
            raise UserError(f"batch_size is {self.batch_size}; expected at least 2")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise UserError(
                f"epochs is {self.epochs}, warm-up {self.warmup_epochs}; expected 0 <= warm-up < epochs"
            )


class HeadBank:
    """Stacked heads: weights (G, D, S, R, C), biases (G, S, R, C), and what training keeps beside.

    A head starts from numbers that depend on (seed, layer, step) alone, so it ends the same whichever
    other heads are trained with it.
    """

    def __init__(self, source: Source, label_sets: int, rates: int, classes: int, seed: int) -> None:
        device = source.device
        first_GDC = torch.stack(
            [_first_weight(source.width, classes, seed, *group) for group in source.groups]
        )
        shape = (len(source.groups), source.width, label_sets, rates, classes)
        self.weight = first_GDC[:, :, None, None].expand(shape).to(device).contiguous()
        self.bias = torch.zeros(shape[0], *shape[2:], device=device)
        self.weight_velocity = torch.zeros_like(self.weight)
        self.bias_velocity = torch.zeros_like(self.bias)
        self.mean = torch.zeros(shape[:2], device=device)
        self.variance = torch.ones(shape[:2], device=device)

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name; the tensors themselves."""
        return {
            "weight": self.weight,
            "bias": self.bias,
            "weight_velocity": self.weight_velocity,
            "bias_velocity": self.bias_velocity,
            "mean": self.mean,
            "variance": self.variance,
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        for name, value in self.state().items():
            value.copy_(state[name])

    @torch.no_grad()
    def update(self, features_GBD: Tensor, labels_SB: Tensor, images: int, lrs_R: list[float]) -> None:
        """One LARS step on a batch of ``images``, of which this process holds B."""
        weight_gradient, bias_gradient = torch.empty_like(self.weight), torch.empty_like(self.bias)
        # Pieces by the mean share of a process: their sums over processes must be the same ones in all.
        for some in self._pieces(-(-images // world_size())):
            moments = self.mean[some], self.variance[some]
            x_GBD = batch_normalise(features_GBD[some], images, *moments, unbiased=True)
            error_GBH = self._error(x_GBD, some, labels_SB, images)
            weight_gradient[some] = (x_GBD.mT @ error_GBH).view_as(self.weight[some])
            bias_gradient[some] = error_GBH.sum(1).view_as(self.bias[some])
        add_up(weight_gradient)
        add_up(bias_gradient)
        lr_R1 = torch.tensor(lrs_R, device=self.weight.device)[:, None]
        lars_step(
            self.weight, weight_gradient, self.weight_velocity, lr_R1, head_dims=(1, 4), adapt=True
        )
        lars_step(self.bias, bias_gradient, self.bias_velocity, lr_R1, adapt=False)

    def _pieces(self, batch: int) -> list[slice]:
        """Groups that are worked on at a time, so that memory does not grow with their number."""
        floats = max(1, batch) * (self.weight.shape[1] + 3 * self.bias[0].numel())
        size = max(1, PIECE // floats)
        return [slice(start, start + size) for start in range(0, len(self.weight), size)]

    def _error(self, x_GBD: Tensor, some: slice, labels_SB: Tensor, images: int) -> Tensor:
        """(G, B, H) gradient of the mean cross-entropy with respect to the logits."""
        logits_GBSRC = self._logits(x_GBD, some)
        error = logits_GBSRC.softmax(-1)
        picked = labels_SB.T[None, :, :, None, None].expand(*error.shape[:-1], 1)
        error.scatter_add_(-1, picked, error.new_full((1,), -1.0).expand(picked.shape))
        return error.flatten(2) / images

    def _logits(self, x_GBD: Tensor, some: slice) -> Tensor:
        weight = self.weight[some]
        flat_GBH = torch.baddbmm(self.bias[some].flatten(1)[:, None], x_GBD, weight.flatten(2))
        return flat_GBH.unflatten(2, weight.shape[2:])

    @torch.no_grad()
    def predict(self, features_GBD: Tensor) -> Tensor:
        """(G, S, R, B) predicted classes, with the running moments."""
        found = []
        for some in self._pieces(features_GBD.shape[1]):
            x_GBD = running_normalise(features_GBD[some], self.mean[some], self.variance[some])
            found.append(self._logits(x_GBD, some).argmax(-1).permute(0, 2, 3, 1))
        return torch.cat(found)


def batch_normalise(
    x_GBD: Tensor, images: int, mean_GD: Tensor, variance_GD: Tensor, *, unbiased: bool
) -> Tensor:
    """Batch norm by the moments of the whole batch, ``images`` over all processes.

    They move the running ``mean_GD`` and ``variance_GD`` in place; ``unbiased``: with ddof 1, as torch.
    """
    batch_GD = add_up(x_GBD.sum(1)) / images
    x_GBD = x_GBD - batch_GD[:, None]
    spread_GD = add_up(x_GBD.square().sum(1)) / images
    x_GBD *= (spread_GD + BATCH_NORM_EPS).rsqrt()[:, None]
    mean_GD.lerp_(batch_GD, BATCH_NORM_MOMENTUM)
    moved_GD = spread_GD * images / (images - 1) if unbiased else spread_GD
    variance_GD.lerp_(moved_GD, BATCH_NORM_MOMENTUM)
    return x_GBD


def running_normalise(x_GBD: Tensor, mean_GD: Tensor, variance_GD: Tensor) -> Tensor:
    """Batch norm by the running moments."""
    return (x_GBD - mean_GD[:, None]) * (variance_GD + BATCH_NORM_EPS).rsqrt()[:, None]


def train_heads(
    bank: HeadBank,
    source: Source,
    labels_SN: np.ndarray,
    config: MaeConfig,
    *,
    seed: int,
    first_epoch: int = 0,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[int], None] = lambda epochs_done: None,
) -> None:
    """Train ``bank`` on the training part of ``source``, from ``first_epoch`` on.

    ``on_batch`` gets images seen and images in all.
    """
    images = labels_SN.shape[1]
    batch = min(config.batch_size, images)
    batches = images // batch
    total = config.epochs * batches * batch
    labels = torch.from_numpy(labels_SN).to(source.device)
    for epoch in range(first_epoch, config.epochs):
        found = epoch_batches(source, images, batch, seed, epoch)
        for index, (chosen, features) in enumerate(found):
            lrs = step_rates(config, batch, epoch + index / batches)
            bank.update(features, labels[:, chosen], batch, lrs)
            on_batch((epoch * batches + index + 1) * batch, total)
        on_epoch(epoch + 1)


def step_rates(config: MaeConfig, batch: int, epoch: float) -> list[float]:
    """Learning rate of each base rate at a fractional epoch."""
    return [
        linprobe_lr(epoch, base * batch / 256, epochs=config.epochs, warmup_epochs=config.warmup_epochs)
        for base in config.base_lrs
    ]


def _first_weight(width: int, classes: int, seed: int, layer: int, step: int) -> Tensor:
    weight_CD = torch.empty(classes, width)
    drawn = torch_generator(seed, "probe head", layer, step)
    torch.nn.init.trunc_normal_(weight_CD, std=INIT_STD, generator=drawn)
    return weight_CD.T
