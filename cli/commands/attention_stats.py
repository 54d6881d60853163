"""``star attention-stats``: where models look, in numbers over a data set."""

from pathlib import Path
from typing import Literal

import typer

from cli.options import Data, Device, Grid, Heads, RunTokenizer, Weights
from cli.threads import computing


@computing("Measuring where models look")
def attention_stats(
    ckpts: list[Path] = typer.Argument(
        None,
        metavar="CKPT",
        help="Checkpoints or run folders; later ones are compared with the first.  "
        "\\[default: the newest run]",
    ),
    layers: str = typer.Option("all", help="Layers such as 2,4,6, or all."),
    steps: int = typer.Option(
        None, help="Number of steps, spread over the image and its columns.  \\[default: 8]"
    ),
    at: str = typer.Option(None, help="Exact steps such as 12,40,64 (instead of --steps)."),
    images: int = typer.Option(1000, help="Most test images measured, drawn by --seed."),
    seed: int = typer.Option(0, help="Draws the images."),
    rollout: bool = typer.Option(
        False, "--rollout", help="Attention rollout through each layer instead of its own attention."
    ),
    null_class: bool = typer.Option(
        False, "--null-class", help="Show the null class instead of each image's own."
    ),
    precision: Literal["auto", "fp32", "bf16", "fp16"] = typer.Option(
        "fp32", help="Of the model's forward passes; rows are always float32."
    ),
    data: Data = None,
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(
        None, help="Folder for csv, json, PNG and PDF.  \\[default: RUN/attention-stats]"
    ),
    heads: Heads = None,
    grid: Grid = None,
    device: Device = "auto",
) -> None:
    """Weight on the class token, the neighbourhood and more, by layer, step and head.

    Every number stands beside that of even attention over what the step sees:
    step 32 cannot look where step 256 can. Intervals are 95 %, over images.
    Two checkpoints are compared on the same images by paired tests. The steps
    lie in different columns of the grid: T/8, 2T/8, .. would all end a row.

    In LlamaGen models the class token's key is zero, so its logit is a constant
    0: class_norm_share weighs each value by its size after the output projection.
    """
    options = locals()
    from cli.drivers.attention_stats_run import StatsRequest, run

    run(StatsRequest(**options))
