"""``star token-invariance``: which token indices change when the image hardly does?"""

from pathlib import Path
from typing import Literal

import typer

from cli.options import Device
from cli.threads import computing


@computing("Looking which tokens change when the image hardly does")
def token_invariance(
    image: str = typer.Argument(
        ...,
        help="One image (a file, digits/17, china.jpg, flower.jpg), or many: a folder, a .tar, parquet "
        "shards, digits, photos.",
    ),
    tokenizer: list[str] = typer.Option(
        None,
        help="Tokenizer file, cifar10 (the package's own) or digits; again to compare several.  "
        "\\[default: cifar10]",
    ),
    augment: str = typer.Option(
        None, help="Augmentations, with or without strengths: shift,noise:0,2,5.  \\[default: all]"
    ),
    images: int = typer.Option(
        None, help="Images of a folder, drawn by the seed; 0: all.  \\[default: 256]"
    ),
    split: Literal["train", "val", "test"] = typer.Option(
        None, help="Split of a source.  \\[default: test, else val, else train]"
    ),
    size: int = typer.Option(None, help="Centre crop in pixels.  \\[default: 8 tokens, VQ-8/16: 256]"),
    seed: int = typer.Option(0, help="Seed of the images drawn and of the noise."),
    batch_size: int = typer.Option(
        None, help="Images tokenised at a time.  \\[default: 64, 16 of 256 px]"
    ),
    max_megapixels: float = typer.Option(100.0, help="Refuse images of more pixels than this."),
    skip_bad: bool = typer.Option(False, help="Leave out images that cannot be read."),
    shift: float = typer.Option(
        None, help="One image's view: pixels to the right.  \\[default: 1 if alone]"
    ),
    rotate: float = typer.Option(None, help="One image's view: degrees.  \\[default: 0]"),
    scale: float = typer.Option(None, help="One image's view: 1.05 enlarges by 5 %.  \\[default: 1]"),
    out: Path = typer.Option(Path("token-invariance"), help="Folder for csv, json, PNG and PDF."),
    device: Device = "auto",
) -> None:
    """Which token indices change when the image hardly does (the paper's property 3).

    One image: two views, their indices and the changed cells (Figure 1(c)),
    and maps of where indices change. A folder: curves over the strength of each
    augmentation, beside what unrelated images share; how far changed cells move
    in the codebook; whether the decoded picture changes. Several tokenizers are
    compared on the same images (cells: each moves by its own stride).
    """
    from cli.drivers.token_invariance_run import InvarianceRequest, run_token_invariance

    run_token_invariance(
        InvarianceRequest(
            image=image,
            tokenizers=list(tokenizer or []),
            augment=augment,
            images=images,
            split=split,
            size=size,
            seed=seed,
            batch_size=batch_size,
            max_megapixels=max_megapixels,
            skip_bad=skip_bad,
            shift=shift,
            rotate=rotate,
            scale=scale,
            out=out,
            device=device,
        )
    )
