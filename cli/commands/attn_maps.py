"""``star attn-maps``: where each layer looks at each step, as pictures, as a GIF and as a table."""

from pathlib import Path

import typer

from cli.options import Data, Device, Grid, Heads, RunTokenizer, Weights
from cli.threads import computing

SAMPLES, MOVING = "The model's own samples", "Animation"


@computing("Drawing where layers look")
def attn_maps(
    names: list[str] = typer.Argument(
        None,
        metavar="[CKPT ..] [IMAGE ..]",
        help="Checkpoints or run folders, then images (files, digits/17, china.jpg, flower.jpg).  "
        "\\[default: the newest run, its first test image]",
    ),
    layers: str = typer.Option(
        None, help="Layers such as 2,4,6, or all.  \\[default: all; with --animate first, middle, last]"
    ),
    steps: int = typer.Option(
        None, help="Number of steps, spread over the image, up to 16.  \\[default: 8]"
    ),
    at: str = typer.Option(None, help="Exact steps such as 12,40,64 (instead of --steps)."),
    head: str = typer.Option(
        "mean",
        help="mean or max over heads, a head's number from 1, all (heads under each other), or rollout "
        "(through each layer).",
    ),
    label: str = typer.Option(
        None,
        "--class",
        help="Class shown to the model, by name or number.  "
        "\\[default: the image's own, else the null class]",
    ),
    codes: Path = typer.Option(None, help="Token indices (.npy, T integers) instead of an image."),
    sample: int = typer.Option(
        None,
        help="Instead of images: so many samples of --class, as generated.",
        rich_help_panel=SAMPLES,
    ),
    seed: int = typer.Option(
        None,
        help="Seed of the first sample; sample i uses seed + i.  \\[default: 0]",
        rich_help_panel=SAMPLES,
    ),
    cfg_scale: float = typer.Option(
        None, help="Classifier-free guidance; 1 is none.  \\[default: 2]", rich_help_panel=SAMPLES
    ),
    animate: bool = typer.Option(
        False, "--animate", help="A GIF over all steps instead of pictures.", rich_help_panel=MOVING
    ),
    fps: float = typer.Option(
        None, help="Frames a second.  \\[default: about 15 s in all]", rich_help_panel=MOVING
    ),
    scale_max: float = typer.Option(
        None, help="Weight of the darkest colour.  \\[default: the median of the maps' largest]"
    ),
    formats: str = typer.Option(None, help="Of the pictures.  \\[default: png,pdf,svg]"),
    data: Data = None,
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(
        None, help="Folder for what is written.  \\[default: attn-maps in the (first) run]"
    ),
    heads: Heads = None,
    grid: Grid = None,
    device: Device = "auto",
) -> None:
    """Attention of chosen layers and steps as heat over the image (Figures 1(a), 2, 5).

    Step t looks from its newest token (red); the most attended tokens are yellow,
    what it has not seen is grey; the bar is the weight on the class token. Several
    checkpoints are drawn under each other, all on one colour scale.

    Beside each picture: a .csv (model, image, layer, head, step, place, weight;
    place 0 is the class, 1 to T the image) and a .json of where it comes from;
    beside a GIF an .npz instead of the .csv.
    """
    options = locals()
    from cli.drivers.attn_maps_run import MapsRequest, run

    run(MapsRequest(**options))
