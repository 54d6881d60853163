"""Images continued by a model from their first tokens, and what a model thinks of given tokens.

Shapes: B or N images, T tokens.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch

from probes.reading.images import ImageSample
from star.base.errors import UserError
from star.base.progress import Progress, nothing
from star.base.randomness import generator
from star.codes.store import Codes
from star.model.sampler import generate
from star.model.transformer import Transformer
from star.training.batches import plain_batches
from star.training.estimate import images_at_once

__all__ = [
    "AS_IT_IS",
    "PARTS",
    "Sampling",
    "default_starts",
    "nll_and_entropy",
    "parse_starts",
    "partners",
    "roll_out",
]

PARTS = 8  # of an image: where rollouts start by default


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How rollouts are drawn (``star.model.sampler.generate``); by default from the model as it is."""

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


AS_IT_IS = Sampling()


def default_starts(tokens: int) -> list[int]:
    """0, T/8, 2T/8, .. 7T/8."""
    return sorted({tokens * part // PARTS for part in range(PARTS)})


def parse_starts(text: str, tokens: int) -> list[int]:
    """``"0,8,32"`` as ascending numbers of real tokens; ``UserError`` unless each is below T."""
    try:
        starts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"starts are {text!r}; expected numbers such as 0,8,32") from None
    for start in starts:
        if not 0 <= start < tokens:
            raise UserError(
                f"start {start} cannot be; expected 0 to {tokens - 1}, fewer than an image's tokens"
            )
    return starts


def roll_out(
    model: Transformer,
    images: ImageSample,
    start: int,
    *,
    seed: int = 0,
    sampling: Sampling = AS_IT_IS,
    batch_size: int = 128,
    on_progress: Progress = nothing,
) -> np.ndarray:
    """(N, T) int64: the images' first ``start`` tokens, and what the model draws after them."""
    parts = []
    tokens_NT, images_there = images.codes[:, 0].astype(np.int64), len(images)
    for begin in range(0, images_there, batch_size):
        rows = range(begin, min(begin + batch_size, images_there))
        size, before = len(rows), begin * tokens_NT.shape[1]

        def report(step: int, steps: int, before: int = before, size: int = size) -> None:
            on_progress(before + step * size, tokens_NT.size)

        found = generate(
            model,
            images.labels[rows.start : rows.stop],
            seeds=[seed + row for row in rows],
            prefix_BK=torch.from_numpy(tokens_NT[rows.start : rows.stop, :start]),
            on_step=report,
            **asdict(sampling),
        )
        parts.append(found.cpu().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def nll_and_entropy(
    model: Transformer, images: Codes, *, batch_size: int = 128
) -> tuple[np.ndarray, np.ndarray]:
    """(N, T) NLL of each token given the image's class, and (N, T) entropy of its prediction, nats.

    ``UserError`` if predictions are not finite.
    """
    device = model.output.weight.device
    batch_size = images_at_once(model.config, batch_size, with_logits=True)
    nll, entropy = [], []
    for tokens_BT, labels_B in plain_batches(images, batch_size, device):
        logp_BTV = model(tokens_BT[:, :-1], labels_B).logits.float().log_softmax(-1)
        nll.append(-logp_BTV.gather(-1, tokens_BT[..., None])[..., 0].cpu().numpy())
        entropy.append(-(logp_BTV.exp() * logp_BTV).sum(-1).cpu().numpy())
    nll_NT, entropy_NT = np.concatenate(nll), np.concatenate(entropy)
    if not (np.isfinite(nll_NT).all() and np.isfinite(entropy_NT).all()):
        raise UserError("the model's predictions are not finite; the checkpoint is broken")
    return nll_NT, entropy_NT


def partners(labels: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """(N,) for each of ``rows`` another row of the same label, at random; itself if there is none."""
    rng, found = generator(seed, "exposure partners"), rows.copy()
    for label in np.unique(labels[rows]):
        members, mine = np.flatnonzero(labels == label), np.flatnonzero(labels[rows] == label)
        if len(members) > 1:
            picks = rng.integers(len(members) - 1, size=len(mine))
            picks += picks >= np.searchsorted(members, rows[mine])
            found[mine] = members[picks]
    return found
