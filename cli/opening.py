"""What several commands need first: checkpoints, the data they belong to, and their tokenizers."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from star.errors import UserError

RUNS = Path("runs")


def open_checkpoint(path: Path | None, weights: str, device: str, heads: int | None, grid: int | None):
    """The checkpoint at ``path``, or of the newest run; says which one it took."""
    from cli.screen import console
    from star.checkpoint import newest_checkpoint, open_model
    from star.device import resolve_device

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
    count = Counter(item.objective_name for item in loaded)
    named = {}
    for item in loaded:
        name = item.objective_name
        if count[name] > 1:
            name += f" {item.path.parent.name}" if item.path.stem == "ckpt" else f" {item.path.stem}"
        while name in named:
            name += " again"
        named[name] = item
    return named


def newest_run() -> Path:
    """The folder of the run whose metrics changed last; ``UserError`` if there is none."""
    from star.metrics import METRICS

    found = sorted(RUNS.glob(f"**/{METRICS}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"there is no run below {RUNS}/; name a run folder, or train one: star train")
    return found[-1].parent


def tokenizer_path(run: Path, given: Path | None) -> Path | None:
    """``given``, else the copy in the run folder, else None."""
    from star.prepare import TOKENIZER_FILE

    beside = run / TOKENIZER_FILE
    return given or (beside if beside.exists() else None)


def data_name(loaded, given: str | None) -> str:
    """``given``, else the data the checkpoint was trained on."""
    if given is not None:
        return given
    if loaded.config is None:
        raise UserError(
            f"{loaded.path} does not say what data it was trained on; give --data (a source, an image "
            "folder or a folder of code stores)"
        )
    return loaded.config.data


def held_out_store(loaded, data: str | None, tokenizer: Path | None, like=None) -> tuple[dict, object]:
    """All code stores of the checkpoint's data and the one to measure on: test, else val, else train.

    The codes are made if need be. ``like``: the store another checkpoint was measured on; ``UserError``
    if this one does not hold the same images.
    """
    from cli.screen import Stages
    from probes.features import check_tokenizer
    from star.prepare import prepare_data

    with Stages() as stages:
        prepared = prepare_data(
            data_name(loaded, data),
            tokenizer=tokenizer_path(loaded.path.parent, tokenizer),
            device=str(loaded.model.output.weight.device),
            on_progress=stages.report,
            on_message=stages.message,
        )
    store = next(prepared.stores[n] for n in ("test", "val", "train") if n in prepared.stores)
    check_tokenizer(loaded, store)
    if like is not None:
        same = like.manifest.get("source") == store.manifest.get("source")
        if not same or len(like) != len(store):
            raise UserError(
                "the checkpoints' test images differ; give --data to measure both on the same"
            )
    return prepared.stores, store


def output_folder(loaded, given: Path | None, name: str) -> Path:
    """``given``, else ``name`` in the run folder, else (a foreign checkpoint) here."""
    if given is not None:
        return given
    home = loaded.path.parent if loaded.config is not None else Path()
    return home / name


def slug(name: str) -> str:
    """A model's name as part of a file's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
