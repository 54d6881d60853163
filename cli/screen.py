"""What a person sees: messages, stage progress with time left, tables.

On a terminal these are Rich displays; piped into a file or a log they are plain lines.
"""

import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from probes.intervals import FEWEST

__all__ = ["Stages", "console", "note_few", "print_facts", "print_line", "print_rows", "print_written"]

# Paths are printed as they are: a bracket in one is no markup.
console = Console(soft_wrap=True, markup=False)


class Stages:
    """A bar with time left for each named stage; ``report(stage, done, total)`` moves it."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, int] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> "Stages":
        if console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if console.is_terminal:
            self._progress.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Progress of ``stage``; the first call of a stage starts its bar."""
        new = stage not in self._tasks
        if console.is_terminal:
            if new:
                self._tasks[stage] = self._progress.add_task(stage, total=total)
            self._progress.update(self._tasks[stage], completed=done, total=total)
            return
        if new:
            self._tasks[stage] = done
            self._started[stage] = time.monotonic()
        if done == total or done * 4 // total > self._tasks[stage] * 4 // total:
            seconds = time.monotonic() - self._started[stage]
            print_line(f"{stage}: {done}/{total} after {seconds:.0f} s")
        self._tasks[stage] = done

    def message(self, text: str) -> None:
        """A line above the bars."""
        (self._progress.console if console.is_terminal else console).print(
            text, highlight=False, markup=False
        )


def print_line(text: str) -> None:
    """One plain line, flushed, so that logs can be followed."""
    console.print(text, highlight=False, markup=False)
    console.file.flush()


def print_rows(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A small table; numbers right-aligned."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_facts(facts: dict, indent: int = 0) -> None:
    """Nested facts as indented lines; long lists are cut."""
    for key, value in facts.items():
        if isinstance(value, dict):
            print_line(f"{' ' * indent}{key}:")
            print_facts(value, indent + 2)
            continue
        if isinstance(value, list) and len(value) > 8:
            value = [*value[:8], f"... ({len(value)} in all)"]
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        print_line(f"{' ' * indent}{key}: {value}")


def note_few(images: int) -> None:
    """Say so where normal intervals over images are too narrow."""
    if images < FEWEST:
        console.print(
            f"note: {images} images; below {FEWEST} the 95 % intervals (normal) are too narrow",
            highlight=False,
        )


def print_written(paths: Iterable[Path]) -> None:
    """The files a command wrote, folder by folder."""
    paths = list(paths)
    for folder in dict.fromkeys(path.parent for path in paths):
        names = ", ".join(path.name for path in paths if path.parent == folder)
        console.print(f"written to {folder}: {names}", highlight=False, markup=False)
