"""``star exposure``: how fast a model leaves the data when it goes on from its own tokens."""

from dataclasses import dataclass
from pathlib import Path

from figures.requests.shared import ComparisonRequest, folder
from star.base.settings import option

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True)
class Request(ComparisonRequest):
    """Measure how fast a model leaves the data when it continues its own samples (exposure bias).

    Held-out images are continued from their first tokens by the model, given their
    class. Rollout and real continuation are compared by distance: NLL and entropy,
    the codes at each place, and how often which codes are used, each beside real
    images. An offset right after the real tokens is calibration; only growth is
    exposure bias. 95 % intervals over images; several checkpoints on the same
    images and random numbers.
    """

    images: int = option(1000, "Held-out images, drawn by --seed.")
    starts: str | None = option(
        None, "Real tokens that rollouts start from, such as 0,8,32.", said="0, T/8, 2T/8, .."
    )
    cfg_scale: float = option(1.0, "Classifier-free guidance of rollouts; 1 is none.")
    temperature: float = option(1.0, "Divides the logits of rollouts.")
    top_k: int = option(0, "Keep the k most likely tokens; 0 keeps all.")
    top_p: float = option(1.0, "Keep the smallest set with this probability; 1 keeps all.")
    seed: int = option(0, "Draws images and rollouts.")
    out: Path | None = folder("RUN/exposure")
