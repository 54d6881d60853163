"""Reading ``metrics.jsonl`` of a run folder: one row of numbers a line, whole or left out.

The newest run is the one that wrote its rows last. Without torch, so that a display in another
terminal starts at once.
"""

import json
from pathlib import Path

from star.base.errors import UserError
from star.base.record import Record

__all__ = ["METRICS", "RUNS", "newest_run", "parse_row", "read_metrics"]

METRICS = "metrics.jsonl"
RUNS = Path("runs")  # where runs of models go, and the newest is looked for


def parse_row(line: str) -> Record | None:
    """A row, or None for a line that was cut short or is not one of ours."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def read_metrics(run: Path) -> tuple[list[Record], int]:
    """The rows of ``run`` in order, and the number of lines that could not be read.

    Raises ``UserError`` if the folder holds no ``metrics.jsonl``.
    """
    path = run / METRICS
    if not path.is_file():
        what = "no such run folder" if not run.exists() else f"it holds no {METRICS}"
        raise UserError(
            f"cannot read the metrics of {run}: {what}; give the --run folder of star train"
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [row for row in map(parse_row, lines) if row is not None]
    return rows, len(lines) - len(rows)


def newest_run() -> Path:
    """The folder of the run whose metrics changed last; ``UserError`` if there is none."""
    found = sorted(RUNS.glob(f"**/{METRICS}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"there is no run below {RUNS}/; name a run folder, or train one: star train")
    return found[-1].parent
