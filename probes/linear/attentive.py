"""Attentive probe: one learned query looks over the steps seen so far. The non-linear reference.

Where a linear probe reads the newest state alone, this one pools the states at the probed steps up to
its own with weights softmax(q . x / sqrt(D)) and classifies the pooled state linearly ("attentive
probing" of V-JEPA and AIM, with one head and no projections; query and classifier are trained
together). States are batch-normalised without affine parameters, by their own step's moments. AdamW
(weight decay 0.1 on the classifier's weights), linear warm-up and cosine; several rates are trained
side by side and chosen between on the validation part.

Shapes: G groups = L layers x K steps (all steps of a layer, ascending), S label sets, R rates, D width,
C classes, B batch; a head is one (l, k, s, r).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probes.linear.lars import linprobe_lr
from probes.linear.mae import batch_normalise, running_normalise
from probes.linear.predictions import epoch_batches
from probes.linear.sharing import add_up
from probes.linear.sources import Source
from star.base.randomness import torch_generator

__all__ = ["EPOCHS", "RATES", "AttentiveBank", "train_attentive"]

RATES = (3e-3, 1e-2, 3e-2)
EPOCHS, WARMUP_EPOCHS = 30, 3
LEAST_BATCH, MOST_BATCH, BATCHES = 32, 1024, 64
WEIGHT_DECAY = 0.1


class AttentiveBank:
    """For each rate queries (L, K, S, D), weights (L, K, S, D, C), biases; moments of the states."""

    def __init__(self, source: Source, steps: int, label_sets: int, classes: int, seed: int) -> None:
        self.layers, self.steps = len(source.groups) // steps, steps
        width, device = source.width, source.device
        heads = (self.layers, steps, label_sets)
        first = torch.stack([_first_query(width, seed, *group) for group in source.groups])
        first = first.view(self.layers, steps, 1, width).expand(*heads, width).to(device)
        self.queries = [first.clone() for _ in RATES]
        self.weights = [torch.zeros(*heads, width, classes, device=device) for _ in RATES]
        self.biases = [torch.zeros(*heads, 1, classes, device=device) for _ in RATES]
        self.mean = torch.zeros(len(source.groups), width, device=device)
        self.variance = torch.ones_like(self.mean)
        # Head k sees the states of steps 1 .. k of its layer.
        self.unseen_KJ = torch.ones(steps, steps, device=device).triu(1).bool()

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [*self.queries, *self.weights, *self.biases]

    def logits(self, x_GBD: Tensor, rate: int) -> Tensor:
        """(L, K, S, B, C) of normalised states, by the heads trained at a rate (its index)."""
        x_LJBD = x_GBD.unflatten(0, (self.layers, self.steps))
        query_LKSD = self.queries[rate] / math.sqrt(x_GBD.shape[-1])
        scores = torch.einsum("lksd,ljbd->lksbj", query_LKSD, x_LJBD)
        hidden = self.unseen_KJ.view(1, self.steps, 1, 1, self.steps)
        shares = scores.masked_fill(hidden, -math.inf).softmax(-1)
        pooled = torch.einsum("lksbj,ljbd->lksbd", shares, x_LJBD)
        return pooled @ self.weights[rate] + self.biases[rate]

    def normalise(self, features_GBD: Tensor, images: int | None) -> Tensor:
        """States by their batch's moments (``images`` over all processes), or by the running ones."""
        if images is None:
            return running_normalise(features_GBD, self.mean, self.variance)
        return batch_normalise(features_GBD, images, self.mean, self.variance, unbiased=False)

    @torch.no_grad()
    def predict(self, features_GBD: Tensor) -> Tensor:
        """(G, S, R, B) predicted classes."""
        x_GBD = self.normalise(features_GBD, None)
        found = [self.logits(x_GBD, rate).argmax(-1).flatten(0, 1) for rate in range(len(RATES))]
        return torch.stack(found, dim=2)


def train_attentive(
    bank: AttentiveBank,
    source: Source,
    labels_SN: np.ndarray,
    *,
    seed: int,
    epochs: int = EPOCHS,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train ``bank`` on the training part, a random stored view of each image in every epoch."""
    images = labels_SN.shape[1]
    # Some 64 updates an epoch, however many images there are.
    batch = min(images, max(LEAST_BATCH, min(MOST_BATCH, images // BATCHES)))
    batches = images // batch
    labels = torch.from_numpy(labels_SN).to(source.device)
    optimizer = _optimizer(bank)
    schedule: dict[str, Any] = {"epochs": epochs, "warmup_epochs": min(WARMUP_EPOCHS, epochs / 2)}
    for epoch in range(epochs):
        found = epoch_batches(source, images, batch, seed, epoch)
        for index, (chosen, features) in enumerate(found):
            x_GBD = bank.normalise(features, batch)
            for rate in range(len(RATES)):
                logits = bank.logits(x_GBD, rate)
                target = labels[:, chosen].expand(logits.shape[:-1])
                loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="sum")
                (loss / batch).backward()
            for value in bank.parameters():
                assert value.grad is not None
                add_up(value.grad)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * linprobe_lr(epoch + index / batches, 1, **schedule)
            optimizer.step()
            optimizer.zero_grad()
            on_batch((epoch * batches + index + 1) * batch, epochs * batches * batch)
    for value in bank.parameters():
        value.requires_grad_(False)


def _optimizer(bank: AttentiveBank) -> torch.optim.AdamW:
    groups = []
    for rate, query, weight, bias in zip(RATES, bank.queries, bank.weights, bank.biases, strict=True):
        for value in (query, weight, bias):
            value.requires_grad_()
        groups.append({"params": [weight], "peak": rate, "weight_decay": WEIGHT_DECAY})
        groups.append({"params": [query, bias], "peak": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(groups)


def _first_query(width: int, seed: int, layer: int, step: int) -> Tensor:
    drawn = torch_generator(seed, "probe query", layer, step)
    return 0.02 * torch.randn(width, generator=drawn)
