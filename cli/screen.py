"""What a person sees: messages, stage progress with time left, tables, the live view of a training run.

On a terminal these are Rich displays; piped into a file or a log they are plain lines.
"""

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

__all__ = ["Stages", "TrainingView", "console", "print_facts", "print_rows"]

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


class TrainingView:
    """Shows a training run's rows: a live table with time left on a terminal, else plain lines."""

    def __init__(self, first_step: int, max_steps: int, title: str) -> None:
        self.first, self.last, self.title = first_step, max_steps, title
        self.start = time.monotonic()
        self.rows: list[dict] = []
        self._live: Live | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator["TrainingView"]:
        """Show the view while the block runs."""
        if not console.is_terminal:
            yield self
            return
        with Live(console=console, refresh_per_second=4) as self._live:
            yield self

    def __call__(self, row: dict) -> None:
        self.rows.append(row)
        if self._live is not None:
            self._live.update(self._table())
        else:
            print_line(self._line(row))

    def _left(self, step: int) -> str:
        seconds = (time.monotonic() - self.start) / max(1, step - self.first) * (self.last - step)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"

    def _line(self, row: dict) -> str:
        hidden = ("step", "peak_memory_bytes")
        parts = [f"{name} {value:.4g}" for name, value in row.items() if name not in hidden]
        return (
            f"step {row['step']}/{self.last}  " + "  ".join(parts) + f"  left {self._left(row['step'])}"
        )

    def _table(self) -> Table:
        latest = self.rows[-1]
        title = f"{self.title}: step {latest['step']}/{self.last}, {self._left(latest['step'])} left"
        names = [name for name in latest if name not in ("peak_memory_bytes",)]
        names += [name for row in self.rows for name in row if name.startswith("val_")]
        names = list(dict.fromkeys(names))
        table = Table(title=title, title_justify="left")
        for name in names:
            table.add_column(name, justify="right")
        for row in self.rows[-12:]:
            table.add_row(*(_number(row.get(name)) for name in names))
        return table


def _number(value: object) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


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
