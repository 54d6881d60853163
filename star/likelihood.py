"""Negative log-likelihood of held-out images, the number two training runs are compared by."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from star.batches import plain_batches
from star.codes import CodeStore
from star.device import autocast
from star.transformer import Transformer

__all__ = ["image_nll"]


@torch.no_grad()
def image_nll(
    model: Transformer,
    store: CodeStore,
    *,
    images: range | None = None,
    batch_size: int = 256,
    precision: torch.dtype = torch.float32,
    should_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """(N,) mean negative log-likelihood a token (nats) of each image's test view, given its class.

    ``images`` restricts it to some rows of the store. Fewer values if ``should_stop`` said so.
    """
    device = model.output.weight.device
    values = []
    for tokens_BT, labels_B in plain_batches(store, batch_size, device, images):
        with autocast(device, precision):
            logits_BTV = model(tokens_BT[:, :-1], labels_B).logits
        nll_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), tokens_BT, reduction="none")
        values.append(nll_BT.mean(1).cpu().numpy())
        if should_stop():
            break
    return np.concatenate(values) if values else np.empty(0, dtype=np.float32)
