"""``star codebook``: how a tokenizer's codes are used, and what they draw."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from figures.requests.shared import compute_device, folder
from star.base.settings import option

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Usage, entropy and nearest neighbours of a tokenizer's codes, and pictures of them.

    A code is drawn as the mean of the decoded cells where it occurs. Codes are
    neighbours by the cosine of their vectors, as the quantizer compares them.
    """

    data: str = option(
        "digits",
        "What the codes are counted in: a source, an image folder, or code stores.",
        argument="data",
    )
    tokenizer: str | None = option(
        None,
        "Tokenizer file, cifar10 or digits.",
        said="the one beside the stores, else the source's",
    )
    split: Literal["train", "val", "test"] = option("test", "Images that are counted.")
    top: int = option(64, "Most used codes that are drawn, each above its nearest.")
    out: Path = folder(Path("codebook"))
    device: str = compute_device()
