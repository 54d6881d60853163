"""``star ablate``: what a model loses when it may not look."""

from pathlib import Path
from typing import Literal

import typer

from cli.options import Data, Device, Grid, Heads, RunTokenizer, Weights
from cli.threads import computing


@computing("Cutting attention to see what is lost")
def ablate(
    ckpts: list[Path] = typer.Argument(
        None,
        metavar="CKPT",
        help="Checkpoints or run folders; later ones are compared with the first.  "
        "\\[default: the newest run]",
    ),
    cut: str = typer.Option(
        "class,neighbourhood,random",
        help="Cuts, one by one: class, neighbourhood, row_above, random; class+random cuts both; none.",
    ),
    layers: str = typer.Option(
        "all", help="Layers that are cut together: all or 2,4,6; or each: one after the other."
    ),
    at: str = typer.Option(None, help="Steps whose queries are cut, e.g. 12,40,64.  \\[default: all]"),
    reach: str = typer.Option(
        None, help="Distances d of the curve, e.g. 0,1,2; none.  \\[default: up to 9, 0 to grid - 1]"
    ),
    strict_steps: int = typer.Option(
        8, help="Steps of the strict curve, where nothing farther arrives by any route; 0: none."
    ),
    images: int = typer.Option(500, help="Test images for the NLL, drawn by --seed."),
    probe_layer: int = typer.Option(
        None, help="Layer whose probe is measured; 0: none.  \\[default: half the depth]"
    ),
    probe_images: int = typer.Option(2000, help="Most images of each split for the probe (ridge)."),
    steps: int = typer.Option(8, help="Number of uniformly spaced steps that are probed."),
    seed: int = typer.Option(0, help="Draws the images and the random cut."),
    precision: Literal["auto", "fp32", "bf16", "fp16"] = typer.Option(
        "fp32", help="Of the model's forward passes."
    ),
    data: Data = None,
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(None, help="Folder for csv, json, PNG and PDF.  \\[default: RUN/ablate]"),
    heads: Heads = None,
    grid: Grid = None,
    device: Device = "auto",
) -> None:
    """Cut attention and measure what changes: the causal check of attention maps.

    A cut hides keys from the softmax of all heads in the chosen layers; a
    position always reads itself. Changes are "with the cut minus without", by
    image, with 95 % intervals: NLL (nats a token) and accuracy of a linear probe
    of the class, refit on the cut model and fixed from the intact one.

    The curve says how far the model looks: NLL against d when no layer looks
    farther than d cells (farther tokens still arrive in hops), and, strictly,
    when nothing farther arrives at all. random is the control: a cut as large
    as the neighbourhood, elsewhere.
    """
    options = locals()
    from cli.drivers.ablate_run import AblateRequest, run

    run(AblateRequest(**options))
