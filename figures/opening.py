"""What studies need first: checkpoints, the data they belong to, their tokenizers, their folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from figures.requests.shared import CheckpointRequest
from figures.work import Work
from probes.reading.features import check_store, check_tokenizer, parse_steps, scattered_steps
from star.base.device import resolve_device
from star.base.errors import UserError
from star.base.names import shown
from star.base.progress import Message
from star.codes.open import PreparedData
from star.codes.store import CodeStore, same_images
from star.images.open import ImageSource
from star.images.source import measured_split
from star.runs.metrics import RUNS
from star.tokenizer.file import load_tokenizer, tokenizer_beside, tokenizer_sha256
from star.tokenizer.model import VQModel
from star.training.checkpoint import Loaded, newest_checkpoint, open_model
from star.training.run_data import open_run_data, prepare_run_data

__all__ = [
    "check_out",
    "chosen_steps",
    "held_out_stores",
    "open_checkpoint",
    "open_checkpoints",
    "open_tokenizers",
    "output_folder",
    "run_data",
    "run_images",
    "tokenizer_path",
]


def open_checkpoint(path: Path | None, how: CheckpointRequest, say: Message) -> Loaded:
    """The checkpoint at ``path``, or of the newest run; says which one it took.

    how: its weights, device, and a LlamaGen checkpoint's heads and grid.
    """
    chosen = path if path is not None else newest_checkpoint(RUNS)
    loaded = open_model(
        chosen,
        weights=how.weights,
        device=resolve_device(how.device),
        heads=how.heads,
        grid=how.grid,
    )
    found = "" if path is not None else "newest run: "
    model = loaded.model.config
    millions = sum(parameter.numel() for parameter in loaded.model.parameters()) / 1e6
    say(
        f"{found}{loaded.path}: {loaded.description}; {model.layers} layers, {model.heads} heads, "
        f"width {model.width}, {millions:.1f}M parameters, "
        f"{model.grid} x {model.grid} tokens of {model.vocab_size}, {model.num_classes} classes"
    )
    return loaded


def open_checkpoints(
    paths: Sequence[Path] | None, how: CheckpointRequest, say: Message
) -> dict[str, Loaded]:
    """Checkpoints by the names they go by: AR, ST-AR, or with their folder where that is not enough.

    Without ``paths``, the newest run's.
    """
    loaded = [open_checkpoint(path, how, say) for path in paths or (None,)]
    named: dict[str, Loaded] = {}
    for item in loaded:
        alike = [other for other in loaded if other.objective_name == item.objective_name]
        name = item.objective_name
        if len(alike) > 1:
            name += f" {shown(_ending(item.path, [other.path for other in alike]))}"
        while name in named:
            name += " again"
        named[name] = item
    return named


def _ending(path: Path, others: Sequence[Path]) -> str:
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


def open_tokenizers(paths: Sequence[str] | None, device: str) -> dict[str, VQModel]:
    """Tokenizers by the names they go by; without ``paths``, the package's ``cifar10``.

    ``UserError`` if one is given twice.
    """
    where = resolve_device(device)
    found: dict[str, VQModel] = {}
    known: dict[str, str | None] = {}
    for given in [*paths] if paths else [None]:
        model = load_tokenizer(given)
        twin = known.setdefault(tokenizer_sha256(model), given)
        if len(known) == len(found):
            raise UserError(f"{twin} and {given} are the same tokenizer; give each once")
        name = model.name
        if name in found:
            name += f" ({shown(Path(given or '').stem)})"
        while name in found:
            name += " again"
        found[name] = model.to(where)
    return found


def tokenizer_path(loaded: Loaded, given: Path | None) -> Path | None:
    """``given``, else the copy beside the checkpoint, else None."""
    return given if given is not None else tokenizer_beside(loaded.path.parent)


def run_data(loaded: Loaded, data: str | None, tokenizer: Path | None, work: Work) -> PreparedData:
    """Code stores of ``data``, or of the run's own data (``star.training.run_data``), made if need
    be.
    """
    return prepare_run_data(loaded, data, **_preparing(loaded, tokenizer, work))


def run_images(
    loaded: Loaded, data: str | None, tokenizer: Path | None, work: Work
) -> ImageSource | dict[str, CodeStore]:
    """The images of ``data``, or of the run's own data: a source, or code stores by split."""
    return open_run_data(loaded, data, **_preparing(loaded, tokenizer, work))


def _preparing(loaded: Loaded, tokenizer: Path | None, work: Work) -> dict:
    """How codes are made for a checkpoint."""
    return {
        "tokenizer": tokenizer_path(loaded, tokenizer),
        "device": str(loaded.model.output.weight.device),
        "on_progress": work.stage,
        "on_message": work.say,
    }


def held_out_stores(
    opened: dict[str, Loaded], data: str | None, tokenizer: Path | None, work: Work
) -> dict[str, tuple[dict[str, CodeStore], CodeStore]]:
    """Of each checkpoint all code stores of its data, and the one to measure on: test, val or train.

    The codes are made if need be. ``UserError`` if codes do not fit their checkpoint, or if the
    checkpoints' images are not the same: before anything is measured.
    """
    found = {}
    for name, loaded in opened.items():
        stores = run_data(loaded, data, tokenizer, work).stores
        store = stores[measured_split(stores)]
        check_tokenizer(loaded, store)
        check_store(loaded.model, store, classes=False)
        found[name] = stores, store
    first, *others = (store for _, store in found.values())
    for store in others:
        same = same_images(first.manifest.get("source"), store.manifest.get("source"))
        if not same or len(first) != len(store):
            raise UserError(
                "the checkpoints' test images differ; give --data to measure both on the same"
            )
    return found


def chosen_steps(at: str | None, count: int | None, tokens: int) -> list[int]:
    """The steps named by --at, else --steps (8) of them, spread over the image and its columns."""
    if at is not None and count is not None:
        raise UserError(f"--at {at} and --steps {count} both name the steps; give one of them")
    if at is not None:
        return parse_steps(at, tokens)
    return scattered_steps(tokens, 8 if count is None else count)


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


def output_folder(loaded: Loaded, given: Path | None, name: str) -> Path:
    """``given``, else ``name`` in the run folder, else (a foreign checkpoint) here."""
    if given is not None:
        return given
    home = loaded.path.parent if loaded.config is not None else Path()
    return home / name
