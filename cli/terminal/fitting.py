"""A run of the loop under the live view: what the first signal does, and where it ended."""

import sys
from typing import Any

from cli.stopping import StopSignals
from cli.terminal.screen import print_line
from cli.terminal.training import TrainingView
from star.runs.loop import RunResult
from star.runs.metrics import read_metrics

__all__ = ["fit_shown", "leave_if_stopped"]


def fit_shown(trainer: Any, **options: Any) -> tuple[RunResult, int | None]:
    """``trainer.fit(**options)`` under the live view, and the signal that ended it early, if any."""
    folder = trainer.run.path
    rows = read_metrics(folder)[0] if trainer.step else ()
    view = TrainingView(str(folder), trainer.config.max_steps, rows)
    with view.shown(), StopSignals() as signals:
        result = trainer.fit(
            should_stop=lambda: signals.received is not None, callbacks=[view], **options
        )
    return result, signals.received


def leave_if_stopped(result: RunResult, signal: int | None, last: int, command: str) -> None:
    """Unless the run went to its end: say how it goes on, and exit, with 128 + n after signal n."""
    if signal is not None or not result.finished:
        print_line(f"step {result.step}/{last} saved, go on with: {command} --resume {result.run}")
        sys.exit(128 + signal if signal is not None else 0)
