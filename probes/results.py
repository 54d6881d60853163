"""Results are small tables with provenance: one long-form ``.csv`` and a ``.json`` beside it.

Measuring code writes them, drawing code reads them, and nothing else passes between the two. One row
is one measurement; the ``.json`` says what was measured, on what, how and with which versions.
"""

import json
import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from star.base.errors import UserError
from star.base.files import publish_file, sha256_file, write_json
from star.base.names import shown, shown_values
from star.base.versions import PACKAGE, installed_version

if TYPE_CHECKING:  # torch takes seconds, and drawing needs none
    from star.training.checkpoint import Loaded

__all__ = [
    "PROBE_COLUMNS",
    "Result",
    "checkpoint_facts",
    "provenance",
    "read_result",
    "write_result",
]

PROBE_COLUMNS = (
    "layer", "step", "protocol", "control", "seed", "split", "accuracy", "low", "high", "n",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A table of measurements and what they were made from."""

    table: pd.DataFrame
    info: dict = field(default_factory=dict)


def provenance(**facts: object) -> dict:
    """``facts`` (checkpoint hash, data hash, config, seed, ...) plus command, time and versions."""
    packages = ("torch", "numpy", "scikit-learn", PACKAGE)
    program = Path(sys.argv[0]).name  # main.py under python -m cli.main
    versions = {package: installed_version(package) for package in packages}
    return {
        **facts,
        "command": shown(" ".join([program.replace("main.py", "star"), *sys.argv[1:]])),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "versions": {"python": platform.python_version(), **versions},
    }


def checkpoint_facts(loaded: "Loaded", prefix: str = "") -> dict:
    """What every result says of its checkpoint, under the same keys; ``prefix`` tells a second apart.

    ``checkpoint`` (its path), ``checkpoint_sha256``, ``checkpoint_step``, ``weights`` (teacher or
    student) and ``model`` (which weights they are, in words).
    """
    facts = {
        "checkpoint": str(loaded.path),
        "checkpoint_sha256": sha256_file(loaded.path),
        "checkpoint_step": loaded.step,
        "weights": loaded.weights,
        "model": loaded.description,
    }
    return {f"{prefix}{key}": value for key, value in facts.items()}


def write_result(result: Result, path: Path | str) -> list[Path]:
    """Write ``path`` (``.csv``) and its ``.json``; both appear whole. Returns their paths.

    Names in ``info`` are written as ``star.base.names.shown``; those in the table have to be given so.
    """
    path = Path(path).with_suffix(".csv")
    write_json(path.with_suffix(".json"), shown_values(result.info))
    with publish_file(path) as temporary:
        result.table.to_csv(temporary, index=False, float_format="%.6g", encoding="utf-8")
    return [path, path.with_suffix(".json")]


def read_result(path: Path | str) -> Result:
    """Read what ``write_result`` wrote; ``UserError`` if either file is missing or unreadable."""
    path = Path(path).with_suffix(".csv")
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=[""], encoding="utf-8")
        info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the result {path} and its .json: {error}") from error
    return Result(table, info)
