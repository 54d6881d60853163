"""``star attribute``: what the score of a step owes to the tokens it has seen, beside attention."""

from pathlib import Path
from typing import Literal

import typer

from cli.options import Checkpoint, Data, Device, Grid, Heads, RunTokenizer, Weights
from cli.threads import computing


@computing("Explaining the score of a step")
def attribute(
    ckpt: Checkpoint = None,
    image: str = typer.Argument(
        None,
        help="Image file, digits/17, china.jpg or flower.jpg.  \\[default: the run's first test image]",
    ),
    step: int = typer.Option(
        None, help="Step t, 2 to T: predicts token t from tokens 1..t-1.  \\[default: 3T/4]"
    ),
    target: Literal["logprob", "logit", "probe"] = typer.Option(
        "logprob",
        help="Score explained: log-probability or logit of the true next token, or a linear probe's "
        "score of the class, with the model under the null class.",
    ),
    layer: int = typer.Option(
        None, help="Layer the probe reads (--target probe).  \\[default: half the depth]"
    ),
    label: str = typer.Option(
        None,
        "--class",
        help="Class shown to the model, by name or number; with --target probe the class whose score "
        "is explained.  "
        "\\[default: the image's own, else the null class]",
    ),
    attention: str = typer.Option(
        "all", help="Layers whose attention is averaged over heads: 4, 2,4,6, or all up to the score."
    ),
    points: int = typer.Option(64, help="Points on the path of integrated gradients."),
    batch_size: int = typer.Option(64, help="Inputs in one pass; fewer need less memory."),
    patch: int = typer.Option(2, help="Side of an occluded patch, in tokens."),
    draws: int = typer.Option(
        10, help="Draws for sensitivity (10 times as many for infidelity); 0 leaves both out."
    ),
    noise: float = typer.Option(
        0.1, help="Noise for sensitivity, relative to the embeddings' standard deviation."
    ),
    images: int = typer.Option(
        None, help="Explain N test images of the data, evenly spaced, with means and 95 % intervals."
    ),
    probe_images: int = typer.Option(
        None,
        help="Most images the probe is trained, chosen and tested on, each (--target probe).  "
        "\\[default: 2000]",
    ),
    seed: int = typer.Option(0, help="Seed of the draws and of the probe's images."),
    codes: Path = typer.Option(None, help="Token indices (.npy, T integers) instead of an image."),
    data: Data = None,
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(
        None, help="Folder for csv, json, PNG and PDF.  \\[default: RUN/attribute]"
    ),
    heads: Heads = None,
    grid: Grid = None,
    device: Device = "auto",
) -> None:
    """Explain the score of one step by the tokens and the class that it has seen.

    Integrated gradients on the token and class embeddings, gradient x input, and
    occlusion of patches: signed, beside the attention of the same step, with the
    correlation of their ranks. Contributions are relative to a baseline that says
    nothing: the mean token embedding and the null class (the mean class where the
    null class is what the model is shown).

    Printed with them: the completeness gap (sum of contributions minus what there
    is to explain), infidelity and sensitivity (Yeh et al. 2019).
    """
    from cli.drivers.attribute_run import AttributeRequest, run

    run(
        AttributeRequest(
            ckpt=ckpt, image=image, step=step, target=target, layer=layer, label=label,
            attention=attention, points=points, batch_size=batch_size, patch=patch, draws=draws,
            noise=noise, images=images, probe_images=probe_images, seed=seed, codes=codes, data=data,
            tokenizer=tokenizer, weights=weights, out=out, heads=heads, grid=grid, device=device,
        )
    )  # fmt: skip
