"""``star watch`` and ``star plot``: the curves of training runs, while they come and afterwards."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from star.base.names import shown
from star.base.settings import config_from_dict
from star.classifier.config import ClassifierConfig
from star.tokenizer.config import TokenizerConfig
from star.training.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import RenderableType


def watch(
    run: Path = typer.Argument(None, help="Run folder.  \\[default: the newest run]"),
    once: bool = typer.Option(False, "--once", help="Print one view and leave (for logs)."),
    every: float = typer.Option(1.0, help="Seconds between two looks at the run."),
) -> None:
    """Show a run in progress from another terminal: newest rows, time left, small curves.

    Reads metrics.jsonl only, so it can come and go while star train works. Ends when the run has made
    its last step, or with Ctrl-C. Into a pipe each new row is one line.
    """
    from rich.live import Live

    from cli.terminal.screen import console, print_line
    from cli.terminal.training import NEWEST, clock, collapse_warning, overview, row_line, seconds_left
    from star.base.errors import UserError
    from star.runs.metrics import METRICS, newest_run, read_metrics

    if not every > 0:
        raise UserError(f"every is {every}; expected a number of seconds > 0")
    folder = run if run is not None else newest_run()
    if not (folder / "config.json").is_file():
        raise UserError(f"there is no run in {folder}; give the --run folder of star train")
    config = run_settings(folder)
    last = config.max_steps

    def look() -> list[dict]:
        return read_metrics(folder)[0] if (folder / METRICS).exists() else []

    def left(rows: list[dict]) -> str:
        seconds = seconds_left(rows, config)
        return "no row yet" if seconds is None else clock(seconds)

    def view(rows: list[dict]) -> "RenderableType":
        note = left(rows)
        if rows:
            age = max(0.0, time.time() - (folder / METRICS).stat().st_mtime)
            note = f"about {note} left, last row {clock(age)} ago"
        return overview(str(folder), rows, last, note)

    rows = look()
    if once:
        console.print(view(rows))
        return
    if not console.is_terminal:
        shown = rows[-NEWEST - 1]["step"] if len(rows) > NEWEST else 0
        while True:
            for index, row in enumerate(rows):
                if row["step"] > shown:
                    print_line(row_line(row, last, left(rows[: index + 1])))
                    if warning := collapse_warning(row):
                        print_line(f"warning: {warning}")
                    shown = row["step"]
            if shown >= last:
                return
            time.sleep(every)
            rows = look()
    with Live(view(rows), console=console, auto_refresh=False) as live:
        while not (rows and rows[-1]["step"] >= last):
            time.sleep(every)
            rows = look()
            live.update(view(rows), refresh=True)


def plot(
    runs: list[Path] = typer.Argument(None, help="Run folders.  \\[default: the newest run]"),
    out: Path = typer.Option(
        None, help="Folder for PNG and PDF.  \\[default: RUN/plot; of several runs: plot]"
    ),
) -> None:
    """Draw the training curves of one or several runs, one line a run.

    Losses, validation NLL, and what --diagnose-every measured: kNN accuracy, effective rank, cosines,
    attention. A run may still be in progress.
    """
    import pandas as pd

    from cli.terminal.screen import console, print_written
    from star.base.errors import UserError
    from star.runs.metrics import METRICS, newest_run, read_metrics
    from viz.base.style import save
    from viz.training import training_curves

    folders = list(dict.fromkeys(runs or [newest_run()]))
    tables = {}
    for folder, name in zip(folders, _names(folders), strict=True):
        rows, garbled = read_metrics(folder)
        if garbled:
            console.print(
                f"{folder / METRICS}: {garbled} lines cannot be read and are left out", highlight=False
            )
        if not rows:
            raise UserError(f"{folder / METRICS} has no rows yet; wait for the run's first step")
        tables[name] = pd.DataFrame(rows)
    title = f"Training: {next(iter(tables))}" if len(tables) == 1 else "Training"
    figure = training_curves(tables, title=title)
    target = out or (folders[0] / "plot" if len(folders) == 1 else Path("plot"))
    written = save(figure, target / "training")
    print_written(written)


def _names(folders: list[Path]) -> list[str]:
    """What a legend calls each run: objective and folder name, the whole path where names repeat."""
    short = [folder.resolve().name for folder in folders]
    names = []
    for folder, name in zip(folders, short, strict=True):
        objective = ""
        if (folder / "config.json").exists():
            config = run_settings(folder)
            objective = "tokenizer, " if isinstance(config, TokenizerConfig) else "classifier, "
            if isinstance(config, TrainConfig):
                objective = "ST-AR, " if config.objective.uses_teacher else "AR, "
        names.append(objective + shown(name if short.count(name) == 1 else str(folder)))
    return names


def run_settings(folder: Path) -> TrainConfig | TokenizerConfig | ClassifierConfig:
    """The settings of a run of ``star train``, ``train-tokenizer`` or ``train-classifier``."""
    from star.base.settings import read_settings

    values = read_settings(folder / "config.json")
    if "through" in values:
        return config_from_dict(values, ClassifierConfig())
    return config_from_dict(values, TokenizerConfig() if "shape" in values else TrainConfig())
