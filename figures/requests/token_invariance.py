"""``star token-invariance``: which token indices change when the image hardly does?"""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from figures.requests.shared import compute_device, folder
from star.base.settings import option

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which token indices change when the image hardly does (the paper's property 3).

    One image: two views, their indices and the changed cells (Figure 1(c)),
    and maps of where indices change. A folder: curves over the strength of each
    augmentation, beside what unrelated images share; how far changed cells move
    in the codebook; whether the decoded picture changes. Several tokenizers are
    compared on the same images (cells: each moves by its own stride).
    """

    image: str = option(
        MISSING,
        "One image (a file, digits/17, china.jpg, flower.jpg), or many: a folder, a .tar, parquet "
        "shards, digits, photos.",
        argument="image",
    )
    tokenizer: list[str] | None = option(
        None,
        "Tokenizer file, cifar10 or digits (the package's own); again to compare several.",
        said="cifar10",
    )
    augment: str | None = option(
        None, "Augmentations, with or without strengths: shift,noise:0,2,5.", said="all"
    )
    images: int | None = option(None, "Images of a folder, drawn by the seed; 0: all.", said="256")
    split: Literal["train", "val", "test"] | None = option(
        None, "Split of a source.", said="test, else val, else train"
    )
    size: int | None = option(None, "Centre crop in pixels.", said="8 tokens, VQ-8/16: 256")
    seed: int = option(0, "Seed of the images drawn and of the noise.")
    batch_size: int | None = option(None, "Images tokenised at a time.", said="64, 16 of 256 px")
    max_megapixels: float = option(100.0, "Refuse images of more pixels than this.")
    skip_bad: bool = option(False, "Leave out images that cannot be read.", said="no-skip-bad")
    shift: float | None = option(None, "One image's view: pixels to the right.", said="1 if alone")
    rotate: float | None = option(None, "One image's view: degrees.", said="0")
    scale: float | None = option(None, "One image's view: 1.05 enlarges by 5 %.", said="1")
    out: Path = folder(Path("token-invariance"))
    device: str = compute_device()
