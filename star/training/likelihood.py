"""Negative log-likelihood of held-out images, the number two training runs are compared by."""

from collections.abc import Mapping
from typing import TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from star.base.device import autocast
from star.base.progress import ShouldStop, never
from star.codes.store import Codes
from star.model.transformer import Transformer
from star.training.batches import plain_batches
from star.training.estimate import images_at_once

__all__ = ["image_nll", "token_nll"]


class NllOptions(TypedDict, total=False):
    """Options of ``token_nll``."""

    images: range | None
    batch_size: int
    precision: torch.dtype
    cut: Mapping[int, Tensor] | None
    label: int | None
    should_stop: ShouldStop


def image_nll(model: Transformer, store: Codes, **options: Unpack[NllOptions]) -> np.ndarray:
    """(N,) mean negative log-likelihood a token (nats) of each image's test view, given its class.

    ``options`` are those of ``token_nll``.
    """
    nll_N: np.ndarray = token_nll(model, store, **options).mean(1)
    return nll_N


@torch.no_grad()
def token_nll(
    model: Transformer,
    store: Codes,
    *,
    images: range | None = None,
    batch_size: int = 256,
    precision: torch.dtype = torch.float32,
    cut: Mapping[int, Tensor] | None = None,
    label: int | None = None,
    should_stop: ShouldStop = never,
) -> np.ndarray:
    """(N, T) negative log-likelihood (nats) of each token of each image's test view, given its class.

    ``images`` restricts it to some rows of the store, ``cut`` is the model's. ``label``: a class, or
    the null class, that all images are given in the stead of their own. A batch is of
    ``batch_size`` images, of fewer where a block of them would not fit (``star.training.estimate``).
    Fewer images if ``should_stop`` said so.
    """
    device = model.output.weight.device
    batch_size = images_at_once(model.config, batch_size, with_logits=False)
    values = [np.empty((0, model.config.tokens), dtype=np.float32)]
    for tokens_BT, labels_B in plain_batches(store, batch_size, device, images):
        if label is not None:
            labels_B = torch.full_like(labels_B, label)
        with autocast(device, precision):
            nll_BT = model(
                tokens_BT[:, :-1], labels_B, cut=cut, with_logits=False, targets_BN=tokens_BT
            ).nll
        values.append(nll_BT.cpu().numpy())
        if should_stop():
            break
    return np.concatenate(values)
