"""``star inspect`` and ``star export``: what is in a file, and weights for other programs."""

from pathlib import Path
from typing import Literal

import typer

from cli.options import Checkpoint, Grid, Heads, Weights


def inspect(
    path: Path = typer.Argument(..., help="Checkpoint, run, code store, tokenizer or classifier."),
    json_: bool = typer.Option(False, "--json", help="Everything as JSON, for programs."),
    heads: Heads = None,
    grid: Grid = None,
) -> None:
    """Say what a file or folder holds, with the hashes that name its content."""
    import json

    from cli.terminal.screen import print_facts
    from star.base.names import shown_values
    from star.training.inspect import describe

    facts = describe(path, heads=heads, grid=grid)
    if json_:
        print(json.dumps(shown_values(facts), indent=2))
    else:
        print_facts(facts)


def export(
    ckpt: Checkpoint = None,
    out: Path = typer.Argument(None, help="File to write.  \\[default: beside the checkpoint]"),
    form: Literal["llamagen", "safetensors"] = typer.Option(
        "llamagen", "--format", help="LlamaGen's .pt layout, or safetensors with the configuration."
    ),
    weights: Weights = "teacher",
    heads: Heads = None,
    grid: Grid = None,
) -> None:
    """Write the transformer alone (no projector, no optimiser) for other programs."""
    from cli.terminal.screen import console, print_line
    from figures.opening import open_checkpoint
    from figures.requests.shared import CheckpointRequest
    from star.training.export import ENDINGS, check_ending, export_model

    if out is not None:
        check_ending(out, form)
    how = CheckpointRequest(weights=weights, device="cpu", heads=heads, grid=grid)
    loaded = open_checkpoint(ckpt, how, print_line)
    path = out or loaded.path.with_name(f"{loaded.path.stem}-{weights}-{form}{ENDINGS[form]}")
    console.print(f"written: {export_model(loaded, path, form)}", highlight=False, markup=False)
