"""What a person sees of a training run: the newest rows, small curves and a warning, in 80 columns.

``star train`` shows it live, ``star watch`` from another terminal. Into a pipe each row is one line.
Everything that does not fit is in metrics.jsonl.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.terminal.curves import braille_curve
from cli.terminal.screen import console, print_line
from star.base.names import shown
from star.classifier.config import ClassifierConfig
from star.tokenizer.config import TokenizerConfig
from star.training.config import TrainConfig

__all__ = ["TrainingView", "clock", "collapse_warning", "overview", "row_line", "seconds_left"]

NEWEST = 10
CURVE = (24, 4)  # characters across and down
# metrics column: its heading; those that no row has are left out
COLUMNS = {
    "step": "step",
    "loss": "loss",
    "ar": "L_AR",
    "mim": "L_MIM",
    "step_contrast": "L_step",
    "view_contrast": "L_view",
    "val_nll": "val NLL",
    "knn_acc": "kNN",
    "cond_acc": "class",
    "l1": "L1",
    "commitment": "commit",
    "lpips": "LPIPS",
    "gen": "L_G",
    "disc": "L_D",
    "acc": "acc",
    "val_acc": "val acc",
    "codes_used": "codes",
    "val_psnr": "val PSNR",
    "val_ssim": "SSIM",
    "sequences_per_second": "seq/s",
    "steps_per_second": "steps/s",
}
CURVES = ("loss", "val_nll", "knn_acc", "val_psnr", "val_acc")
# Too many for a line of a log.
HIDDEN = ("peak_memory_bytes", "collapsed", "knn_acc_step_", "grad_cos_")


def overview(title: str, rows: Sequence[dict], max_steps: int, note: str) -> RenderableType:
    """The whole view: ``title``, how far and ``note``, newest rows, curves, the warning if due."""
    title = shown(title)
    step = rows[-1]["step"] if rows else 0
    note = note if step < max_steps else "finished"
    share = f"{100 * step // max_steps} %"
    head = Text(
        f"{title}\nstep {step}/{max_steps} ({share}), {note}", overflow="ellipsis", no_wrap=True
    )
    head.stylize("bold", 0, len(title))
    parts: list[RenderableType] = [head]
    if rows:
        parts.append(_table(rows))
    if rows and "utf" in console.encoding:  # braille has no plain letters to fall back on
        parts.append(_curves(rows))
    if seen := _classes_seen(rows):
        parts.append(Text(seen, style="dim", overflow="ellipsis", no_wrap=True))
    warning = next((collapse_warning(row) for row in reversed(rows) if "collapsed" in row), None)
    if warning:
        parts.append(Text(f"warning: {warning}", style="bold yellow"))
    return Group(*parts)


def _table(rows: Sequence[dict]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    for name in shown:
        table.add_column(_heading(name, rows), justify="right", no_wrap=True)
    for row in rows[-NEWEST:]:
        table.add_row(*(_number(row.get(name)) for name in shown))
    return table


def _classes_seen(rows: Sequence[dict]) -> str | None:
    """The newest numbers behind the column "class": of how many samples, beside which accuracy."""
    row = next((row for row in reversed(rows) if "cond_n" in row), None)
    if row is None:
        return None
    worth = {"real": "cond_acc_real", "redrawn": "cond_acc_redrawn"}
    beside = ", ".join(f"{name} {row[column]:.3f}" for name, column in worth.items() if column in row)
    seen = f"teacher {row['cond_acc']:.3f}, student {row['cond_acc_student']:.3f}"
    return f"class seen: {seen} of {row['cond_n']}" + (f" ({beside})" if beside else "")


def _heading(name: str, rows: Sequence[dict]) -> str:
    """What a column is called; kNN with its k where fewer than usual voted."""
    k = next((row["knn_k"] for row in reversed(rows) if "knn_k" in row), None)
    return COLUMNS[name] + (f" (k {k})" if name == "knn_acc" and k is not None else "")


def _curves(rows: Sequence[dict]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    cells = []
    for name in CURVES:
        points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), float)]
        points = [(x, y) for x, y in points if abs(y) < float("inf")]
        if points:
            heading = f"{_heading(name, rows)} {points[0][1]:.3g} → {points[-1][1]:.3g}"
            lines = [heading, *braille_curve(points, *CURVE)]
            cells.append(Text("\n".join(lines), no_wrap=True))
            grid.add_column(width=CURVE[0])
    grid.add_row(*cells)
    return grid


def row_line(row: dict, max_steps: int, left: str) -> str:
    """One row as a line of a log."""
    shown = {name: value for name, value in row.items() if not name.startswith(HIDDEN)}
    parts = [f"{name} {_number(value)}" for name, value in shown.items() if name != "step"]
    return "  ".join([f"step {row['step']}/{max_steps}", *parts, f"left {left}"])


def collapse_warning(row: dict) -> str | None:
    """What to say if the row's diagnostics found collapsed features."""
    if not row.get("collapsed"):
        return None
    return (
        f"features collapsed at step {row['step']} (effective rank {row['effective_rank']:.2f}, cosine "
        f"between images {row['image_cosine']:.4f}); try a lower --lr or smaller loss weights"
    )


def seconds_left(
    rows: Sequence[dict], config: TrainConfig | TokenizerConfig | ClassifierConfig
) -> float | None:
    """Time for the steps to come at the recent speed; None if not known yet."""
    column, a_step = "steps_per_second", 1
    if isinstance(config, TrainConfig):
        column, a_step = "sequences_per_second", config.batch_size * config.objective.views
    speeds = [row[column] for row in rows[-20:] if row.get(column)]
    if not speeds:
        return None
    return (config.max_steps - rows[-1]["step"]) * a_step / statistics.median(speeds)


def clock(seconds: float) -> str:
    """``1:05``, or ``2:01:05`` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class TrainingView:
    """Shows rows as training makes them: the live view on a terminal, else plain lines."""

    def __init__(self, title: str, max_steps: int, rows: Sequence[dict] = ()) -> None:
        """``rows``: those of the run before it was resumed."""
        self.title, self.last = title, max_steps
        self.rows = list(rows)
        self.first = self.rows[-1]["step"] if self.rows else 0
        self.start = time.monotonic()
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
        seconds = (time.monotonic() - self.start) / max(1, row["step"] - self.first)
        left = clock(seconds * (self.last - row["step"]))
        if self._live is not None:
            self._live.update(overview(self.title, self.rows, self.last, f"{left} left"))
            return
        print_line(row_line(row, self.last, left))
        if warning := collapse_warning(row):
            print_line(f"warning: {warning}")
