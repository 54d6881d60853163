"""What a file or folder holds, as plain facts: a checkpoint, model, run, code store, tokenizer, .."""

from pathlib import Path

from star.base.errors import UserError
from star.base.files import sha256_file
from star.base.record import Record
from star.base.settings import config_to_dict
from star.base.torch_files import load_safetensors, load_torch_file
from star.classifier.file import is_classifier, load_classifier
from star.classifier.trainer import CLASSIFIER_RUN
from star.codes.open import is_code_folder
from star.codes.store import CodeStore, open_codes, open_splits
from star.model.state_keys import TOKENIZER, TRANSFORMER, find_states
from star.runs.folder import RunFolder
from star.runs.metrics import METRICS, read_metrics
from star.tokenizer.file import find_tokenizer, load_tokenizer, tokenizer_sha256
from star.training.checkpoint import FORMAT, MODEL_RUN, Loaded, open_model, refuse_shape

__all__ = ["describe"]


def describe(path: Path | str, *, heads: int | None = None, grid: int | None = None) -> Record:
    """Facts about ``path``, ready for JSON; ``kind`` says what it is.

    Raises ``UserError`` if it is missing, damaged or nothing of ours.
    """
    path = Path(path)
    if not path.exists():
        path = find_tokenizer(path)  # the package's own have names
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_dir():
        refuse_shape(path, heads, grid)
        return _folder(path)
    if path.suffix == ".safetensors" and is_classifier(load_safetensors(path)[1]):
        refuse_shape(path, heads, grid)
        return _classifier(path)
    if _is_tokenizer(path):
        refuse_shape(path, heads, grid)
        return _tokenizer(path)
    return _checkpoint(path, heads, grid)


def _folder(path: Path) -> Record:
    if (path / "manifest.json").exists():
        return {"kind": "code store", **_store(open_codes(path))}
    if is_code_folder(path):
        return {
            "kind": "folder of code stores",
            "path": str(path),
            "splits": {name: _store(store) for name, store in open_splits(path).items()},
        }
    run = RunFolder(path, kind=MODEL_RUN)
    newest = run.newest_path()
    if newest is not None:
        rows = read_metrics(path)[0] if (path / METRICS).exists() else []
        kind, held = _run(path, newest)
        return {
            "kind": kind,
            "path": str(path),
            "checkpoints": [file.name for file in run.checkpoints()],
            "last_metrics": rows[-1] if rows else None,
            "newest": held,
        }
    raise UserError(f"{path} is neither a run folder nor a code store")


def _run(path: Path, newest: Path) -> tuple[str, Record]:
    """What a run trains, and what its newest checkpoint holds."""
    content = load_torch_file(newest)
    if content.get("format") == CLASSIFIER_RUN.format:
        kept = {name: content.get(name) for name in ("step", "config", "data", "facts")}
        return "classifier run", {"path": str(newest), **kept}
    if _is_tokenizer(newest):
        return "tokenizer run", _tokenizer(path)
    return "run", _checkpoint(newest, None, None)


def _store(store: CodeStore) -> Record:
    keys = ("images", "views", "tokens", "grid", "vocab_size", "tokenizer_name", "tokenizer_sha256")
    facts = {key: store.manifest.get(key) for key in keys}
    return {
        "path": str(store.path),
        **facts,
        "view_names": list(store.view_names),
        "classes": dict(zip(store.class_names, store.manifest["class_counts"], strict=True)),
        "source": store.manifest.get("source"),
        "sha256": store.manifest["sha256"],
    }


def _is_tokenizer(path: Path) -> bool:
    """Whether a file holds a VQ tokenizer and no model."""
    content = load_safetensors(path)[0] if path.suffix == ".safetensors" else load_torch_file(path)
    own = content.get("format") == FORMAT
    return not own and bool(
        find_states(content, TOKENIZER, path) and not find_states(content, TRANSFORMER, path)
    )


def _tokenizer(path: Path) -> Record:
    model = load_tokenizer(path)
    return {
        "kind": "tokenizer",
        "path": str(path),
        "name": model.name,
        "sha256": tokenizer_sha256(model),
        "stride": model.config.stride,
        "codes": model.config.codebook_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "card": model.card,
    }


def _classifier(path: Path) -> Record:
    model = load_classifier(path)
    facts = dict(model.facts)
    return {
        "kind": "classifier",
        "path": str(path),
        "name": model.name,
        "sha256": facts.pop("sha256"),
        "classes": model.config.classes,
        "class_names": model.class_names,
        "size": model.config.size,
        "features": model.config.features,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "card": facts,
    }


def _checkpoint(path: Path, heads: int | None, grid: int | None) -> Record:
    loaded: Loaded = open_model(path, heads=heads, grid=grid)
    facts = {
        "kind": "model" if path.suffix == ".safetensors" else "checkpoint",
        "path": str(path),
        "sha256": sha256_file(path),
        "description": loaded.description,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "model": config_to_dict(loaded.model.config),
    }
    if loaded.config is None:
        names = None if loaded.class_names is None else list(loaded.class_names)
        named = {"tokenizer": loaded.tokenizer, "class_names": names}
        return facts | {name: value for name, value in named.items() if value is not None}
    content = load_torch_file(path)
    assert content["format"] == FORMAT
    return facts | {
        "format_version": content["version"],
        "step": loaded.step,
        "max_steps": loaded.config.max_steps,
        "objective_name": loaded.objective_name,
        "weights": ["teacher", "student"],
        "projector": content["projector"] is not None,
        "teacher_updates": content["teacher_updates"],
        "tokenizer": loaded.tokenizer,
        "class_names": list(loaded.class_names or ()),
        "data": content["data"],
        "config": content["config"],
    }
