"""``star reproduce``: the paper's figures and the comparison, from images to pictures."""

from pathlib import Path

import typer

from cli.options import Device
from cli.threads import computing


@computing("Tokenising, training, probing and drawing")
def reproduce(
    source: str = typer.Argument("digits", help="digits, or an image folder (train/, val/ or test/)."),
    out: Path = typer.Option(
        None, "--out", help="Folder for runs, results and figures.  \\[default: runs/reproduce-SOURCE]"
    ),
    tokenizer: Path = typer.Option(
        None, help="Tokenizer file.  \\[default: digits for digits, else cifar10]"
    ),
    max_steps: int = typer.Option(
        None, help="Training steps of each model.  \\[default: the recipe's]"
    ),
    batch_size: int = typer.Option(None, help="Images a step.  \\[default: the recipe's]"),
    seed: int = typer.Option(0, help="Seed of everything random, the first of several."),
    seeds: int = typer.Option(
        1, help="Runs of each model, with as many seeds: what a claim about methods needs."
    ),
    device: Device = "auto",
) -> None:
    """Train plain AR and ST-AR on one source, probe both, draw the paper's figures, compare.

    On the digits this takes minutes on two CPU cores. Running it again goes on where it was cut off;
    with more --seeds it trains those that are missing.
    """
    from cli.terminal.screen import Stages, console, print_rows
    from figures.reproduction.reproduce import plan_for
    from figures.reproduction.reproduce import reproduce as run
    from star.base.device import resolve_device
    from star.runs.metrics import RUNS

    plan = plan_for(source, seed=seed, seeds=seeds, max_steps=max_steps, batch_size=batch_size)
    out = out or RUNS / f"reproduce-{Path(source).name}"
    with Stages() as stages:
        summary = run(
            plan,
            out,
            tokenizer=tokenizer,
            device=resolve_device(device),
            on_progress=stages.report,
            on_message=stages.say,
        )
    rows = []
    for (measure, unit), group in summary.table.groupby(["measure", "unit"], sort=False):
        cells = []
        for row in group.itertuples():
            interval = f" [{row.low:.4g}, {row.high:.4g}]" if row.low == row.low else ""
            cells.append(f"{row.value:.4g}{interval}")
        rows.append([f"{measure} ({unit})" if unit else measure, *cells])
    print_rows(f"{source}: plain AR and ST-AR", ["", *summary.table["model"].unique()], rows)
    for text in [*summary.verdict, *summary.notes]:
        console.print(text, highlight=False)
    console.print(
        f"Figures: {out / 'figures'}   tables: {out / 'results'}   runs: {out}", highlight=False
    )
