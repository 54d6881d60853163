"""``star probe``: what layers know of the class, step by step, with controls and comparisons."""

from pathlib import Path
from typing import Literal

import typer

from cli.options import Data, Device, Grid, Heads, RunTokenizer, Weights
from cli.threads import computing
from star.model.config import SIZES

MAE, MEASURES, DRY = "Protocol mae", "Representation measures", "Dry run"
PROTOCOLS = Literal["logreg", "mae", "ridge", "knn", "attentive"]


@computing("Probing what layers know of the class")
def probe(
    ckpts: list[Path] = typer.Argument(
        None,
        metavar="CKPT",
        help="Checkpoints or run folders; two or more are compared.  \\[default: the newest run]",
    ),
    layer: str = typer.Option(
        None,
        help="Layer 1 to L (output of that block), several (2,4,6), or all.  "
        "\\[default: half the depth, the paper's 6 of 12]",
    ),
    steps: int = typer.Option(8, help="Number of uniformly spaced steps, the last being T."),
    protocol: PROTOCOLS = typer.Option("logreg", help="How a probe is fitted, see above."),
    lr: str = typer.Option(
        None,
        help="Base rates per 256 images, e.g. 0.1,1,10; the best on validation is taken.  "
        "\\[default: 0.1]",
        rich_help_panel=MAE,
    ),
    epochs: int = typer.Option(
        None, help="Epochs, a ninth of them warm-up.  \\[default: 90]", rich_help_panel=MAE
    ),
    batch_size: int = typer.Option(
        None, help="Images a batch.  \\[default: min(16384, N)]", rich_help_panel=MAE
    ),
    seeds: int = typer.Option(1, help="Probe with seeds 0, 1, ..; means and spread are printed."),
    cache_gb: float = typer.Option(4.0, help="Memory for features a process; beyond, they stream."),
    precision: Literal["auto", "fp32", "bf16", "fp16"] = typer.Option(
        "fp32", help="Of the frozen model's forward passes."
    ),
    data: Data = None,
    images: str = typer.Option(
        None, help="Image folder that code stores were made from, for the pixel control."
    ),
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(None, help="Folder for csv, json, PNG and PDF.  \\[default: RUN/probe]"),
    heads: Heads = None,
    grid: Grid = None,
    measure: str = typer.Option(
        None, help="Instead of probes: all, or names such as cka,knn,lds.", rich_help_panel=MEASURES
    ),
    split: Literal["test", "val", "train"] = typer.Option(
        "test", help="Images that are measured.", rich_help_panel=MEASURES
    ),
    encoder: str = typer.Option(
        None, help="Frozen encoder to align with: resnet50 or timm/NAME.", rich_help_panel=MEASURES
    ),
    encoder_weights: Path = typer.Option(None, help="File of its weights.", rich_help_panel=MEASURES),
    nproc: int = typer.Option(1, help="Processes (torchrun); each takes a share of the images."),
    device: Device = "auto",
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print sizes, FLOPs and time; do nothing.", rich_help_panel=DRY
    ),
    size: str = typer.Option(
        None, "--preset", help=f"Without a checkpoint: {', '.join(SIZES)}.", rich_help_panel=DRY
    ),
    train_images: int = typer.Option(
        1_281_167, help="Training images, with --preset.", rich_help_panel=DRY
    ),
    tflops: float = typer.Option(None, help="TFLOP/s that one device sustains.", rich_help_panel=DRY),
) -> None:
    """Probe frozen features for the class; every number beside its controls.

    Step t has seen the class position (null class) and tokens 1 to t-1.
    Choices are made on the validation split, accuracies are of the test split.
    An interrupted probe goes on when it is started again.

    logreg: logistic regression (L-BFGS). mae: MAE's linear probing (BatchNorm,
    LARS), made for large data. ridge: closed form. knn: up to 20 neighbours.
    attentive: a learned query over the steps seen so far.

    --measure takes label-free numbers of the same features instead:
    step_consistency, view_consistency, alignment, uniformity, effective_rank,
    knn, lds, cka, mutual_knn, cknna.
    """
    options = locals()
    from cli.drivers.probe_run import ProbeRequest, run

    run(ProbeRequest(**options))
