"""What several commands need first: checkpoints, the data they belong to, and their tokenizers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from star.base.errors import UserError
from star.base.names import shown

RUNS = Path("runs")
Given = TypeVar("Given")


def open_checkpoint(path: Path | None, weights: str, device: str, heads: int | None, grid: int | None):
    """The checkpoint at ``path``, or of the newest run; says which one it took."""
    from cli.terminal.screen import console
    from star.base.device import resolve_device
    from star.training.checkpoint import newest_checkpoint, open_model

    chosen = path if path is not None else newest_checkpoint(RUNS)
    loaded = open_model(chosen, weights=weights, device=resolve_device(device), heads=heads, grid=grid)
    found = "" if path is not None else "newest run: "
    model = loaded.model.config
    millions = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    shape = (
        f"{model.layers} layers, {model.heads} heads, width {model.width}, {millions:.1f}M parameters, "
        f"{model.grid} x {model.grid} tokens of {model.vocab_size}, {model.num_classes} classes"
    )
    console.print(f"{found}{loaded.path}: {loaded.description}; {shape}", highlight=False, markup=False)
    return loaded


def open_checkpoints(
    paths: Sequence[Path] | None, weights: str, device: str, heads: int | None, grid: int | None
) -> dict:
    """Checkpoints by the names they go by: AR, ST-AR, or with their folder where that is not enough.

    Without ``paths``, the newest run's.
    """
    loaded = [open_checkpoint(path, weights, device, heads, grid) for path in paths or [None]]
    named: dict = {}
    for item in loaded:
        alike = [other for other in loaded if other.objective_name == item.objective_name]
        name = item.objective_name
        if len(alike) > 1:
            name += f" {shown(_place(item.path, [other.path for other in alike]))}"
        while name in named:
            name += " again"
        named[name] = item
    return named


def _place(path: Path, others: Sequence[Path]) -> str:
    """The end of a run's (or file's) path that tells it from the others, as short as possible."""

    def parts(of: Path) -> tuple[str, ...]:
        full = of.absolute()
        return full.parent.parts if of.stem == "ckpt" else full.with_suffix("").parts

    rivals = {parts(other) for other in others} - {parts(path)}
    for count in range(1, len(parts(path)) + 1):
        end = parts(path)[-count:]
        if not any(rival[-count:] == end for rival in rivals):
            break
    return "/".join(end)


def newest_run() -> Path:
    """The folder of the run whose metrics changed last; ``UserError`` if there is none."""
    from star.runs.metrics import METRICS

    found = sorted(RUNS.glob(f"**/{METRICS}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"there is no run below {RUNS}/; name a run folder, or train one: star train")
    return found[-1].parent


def tokenizer_path(run: Path, given: Given | None) -> Given | Path | None:
    """``given``, else the copy in the run folder, else None."""
    from star.tokenizer.file import TOKENIZER_FILE

    beside = run / TOKENIZER_FILE
    return given or (beside if beside.exists() else None)


def run_data(loaded, data: str | None, tokenizer: Path | None, stages):
    """Code stores of ``data``, or of the run's own data (``star.training.run_data``), made if need
    be.
    """
    from star.training.run_data import prepare_run_data

    return prepare_run_data(loaded, data, **_preparing(loaded, tokenizer, stages))


def _preparing(loaded, tokenizer: Path | None, stages) -> dict:
    """How codes are made for a checkpoint."""
    return {
        "tokenizer": tokenizer_path(loaded.path.parent, tokenizer),
        "device": str(loaded.model.output.weight.device),
        "on_progress": stages.report,
        "on_message": stages.say,
    }


def check_out(out: Path | None) -> None:
    """Raise ``UserError`` if results cannot be written to folder ``out``, before they are made."""
    if out is None:
        return
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        inside = "" if there == out else f" cannot be made: {there}"
        raise UserError(f"--out {out}{inside} is a file; expected a folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"--out {out} cannot be written: no permission in {there}")


def output_folder(loaded, given: Path | None, name: str) -> Path:
    """``given``, else ``name`` in the run folder, else (a foreign checkpoint) here."""
    if given is not None:
        return given
    home = loaded.path.parent if loaded.config is not None else Path()
    return home / name
