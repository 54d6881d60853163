"""What a person sees: messages, stage progress with time left, tables.

On a terminal these are Rich displays; piped into a file or a log they are plain lines.
"""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from figures.work import Said
from star.base.names import shown

__all__ = [
    "Stages",
    "console",
    "print_facts",
    "print_line",
    "print_rows",
    "print_written",
]


class _Screen(Console):
    """A console for texts with names in them: they are printed as they are or as
    ``star.base.names.shown``.

    Neither brackets nor colons in them are markup, and no control character steers the terminal.
    """

    def __init__(self) -> None:
        super().__init__(soft_wrap=True, markup=False, emoji=False)

    @property
    def encoding(self) -> str:
        """That of stdout, which older releases of rich do not ask."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()

    @property
    def is_terminal(self) -> bool:
        """A terminal that cannot move its cursor gets plain lines, as a log does."""
        return super().is_terminal and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")

    def print(self, *objects: object, **options: Any) -> None:
        """As rich's; a string is one line."""
        texts = (shown(item) if isinstance(item, str) else item for item in objects)
        super().print(*texts, **options)


console = _Screen()
_WORD = 40  # letters of a word of a table that a narrow terminal does not cut


class Stages:
    """A bar with time left for each named stage; ``report(stage, done, total)`` moves it."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._quarters: dict[str, int] = {}
        self._done: dict[str, int] = {}
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
        new = stage not in self._done or done < self._done[stage]
        self._done[stage] = done
        if console.is_terminal:
            if new:
                self._tasks[stage] = self._progress.add_task(shown(stage), total=total)
            self._progress.update(self._tasks[stage], completed=done, total=total)
            return
        if new:
            self._quarters[stage] = done
            self._started[stage] = time.monotonic()
        if done == total or done * 4 // total > self._quarters[stage] * 4 // total:
            seconds = time.monotonic() - self._started[stage]
            print_line(f"{stage}: {done}/{total} after {seconds:.0f} s")
        self._quarters[stage] = done

    def say(self, said: Said) -> None:
        """A line or a table above the bars."""
        if isinstance(said, str):
            print_line(said)
        else:
            print_rows(said.title, said.columns, said.rows)


def print_line(text: str) -> None:
    """One plain line, flushed, so that logs can be followed."""
    console.print(text, highlight=False, markup=False)
    console.file.flush()


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A small table; numbers right-aligned. No word is cut: a narrow terminal wraps the lines."""
    table = Table(title=shown(title), title_justify="left")
    for index, column in enumerate(columns):
        words = " ".join([column, *(row[index] for row in rows)]).split()
        longest = max(map(cell_len, words), default=0)
        table.add_column(
            shown(column), justify="left" if index == 0 else "right", min_width=min(longest, _WORD)
        )
    for row in rows:
        table.add_row(*map(shown, row))
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


def print_written(paths: Iterable[Path]) -> None:
    """The files a command wrote, folder by folder."""
    paths = list(paths)
    for folder in dict.fromkeys(path.parent for path in paths):
        names = ", ".join(path.name for path in paths if path.parent == folder)
        console.print(f"written to {folder}: {names}", highlight=False, markup=False)
