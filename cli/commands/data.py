"""``star tokenize``: images to code stores, and their verification."""

from pathlib import Path
from typing import Literal

import typer

from cli.options import Device, SourceTokenizer
from cli.threads import computing


@computing("Turning images into codes")
def tokenize(
    source: str = typer.Argument(
        ...,
        help="digits, photos, an image folder with train/CLASS/* and val/ or test/, a .tar of one, or "
        "parquet shards.",
    ),
    out: Path = typer.Argument(None, help="Folder to write: train/, val/, test/ and the tokenizer."),
    tokenizer: SourceTokenizer = None,
    size: int = typer.Option(
        None, help="Side of a view in pixels.  \\[default: the source's own; without --tokenizer 32]"
    ),
    views: str = typer.Option(
        None,
        help="ten-crop, ten-crop-1.05, ten-crop-1.1+1.05, flip, random-crop-N, affine-N or plain.  "
        "\\[default: the source's own]",
    ),
    eval_views: Literal["test", "all"] = typer.Option("test", help="Views of val and test."),
    batch_size: int = typer.Option(
        None, help="Views a tokenizer call.  \\[default: by device and size]"
    ),
    workers: int = typer.Option(
        None,
        help="Processes that decode images; 0: threads.  \\[default: 0 beside a CPU that encodes, else "
        "by the cores]",
    ),
    label_column: str = typer.Option(
        None, help="Parquet: the column of labels, where several could be meant."
    ),
    skip_bad: bool = typer.Option(False, help="Leave out images that cannot be read (listed after)."),
    max_megapixels: float = typer.Option(100.0, help="Refuse images of more pixels than this."),
    seed: int = typer.Option(0, help="Seed of the random views (affine-N, random-crop-N)."),
    precision: Literal["auto", "fp32", "bf16"] = typer.Option("fp32", help="Tokenizer precision."),
    device: Device = "auto",
    verify: bool = typer.Option(
        False, "--verify", help="Check the stores in SOURCE instead of writing."
    ),
) -> None:
    """Turn images into codes once: one memory-mapped store a split, resumable, published whole.

    star tokenize --verify DIR re-reads every array and compares hashes, shapes and ranges.
    """
    from cli.terminal.screen import Stages, console
    from star.base.errors import UserError
    from star.codes.open import keep_tokenizer, tokenize_source
    from star.codes.store import open_splits

    if verify:
        for name, store in open_splits(source).items():
            store.verify()
            shape = " x ".join(str(size) for size in store.codes.shape)
            console.print(f"{name}: {shape} codes are as their manifest says", highlight=False)
        return
    if out is None:
        raise UserError("no OUT folder was given; expected: star tokenize SOURCE OUT")
    with Stages() as stages:
        data = tokenize_source(
            source,
            out,
            tokenizer=tokenizer,
            label_column=label_column,
            size=size,
            views=views,
            eval_views=eval_views,
            batch_size=batch_size,
            workers=workers,
            max_megapixels=max_megapixels,
            skip_bad=skip_bad,
            seed=seed,
            device=device,
            precision=precision,
            on_progress=stages.report,
            on_message=stages.say,
        )
    keep_tokenizer(data, out)
    _print_stores(data.stores)
    console.print(f"written: {out}", highlight=False)


def _print_stores(stores: dict) -> None:
    """What each store holds, and the images that are not in it or not whole."""
    from cli.terminal.screen import console

    for name, store in stores.items():
        skipped, animated = store.skipped, store.animated
        console.print(
            f"{name}: {len(store)} images x {store.views} views x {store.tokens} tokens, "
            f"{store.num_classes} classes"
            + (f", skipped: {', '.join(skipped)}" if skipped else "")
            + (f", first frame only: {', '.join(animated)}" if animated else ""),
            highlight=False,
        )
