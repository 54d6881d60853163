"""Our models as one ``.safetensors`` file: the weights, and as metadata what a reader must know.

Metadata are texts: ``format``, ``config`` (JSON of ``ModelConfig``), ``origin`` (the checkpoint) and,
where it is known, which ``weights`` of it they are, its ``objective``, its ``class_names`` and its
``tokenizer`` (JSON).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import safetensors.torch
from torch import Tensor

from star.base.errors import UserError
from star.base.files import plain_path, publish_file
from star.base.names import shown
from star.base.record import Record
from star.base.settings import config_from_dict, config_to_dict
from star.model.config import ModelConfig

__all__ = ["ModelFacts", "read_model_file", "write_model_file"]

FORMAT, KIND = "star-transformer-1", "star-transformer-"
Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the metadata say; None where they do not."""

    config: ModelConfig
    origin: str | None = None
    weights: str | None = None
    objective: str | None = None
    class_names: tuple[str, ...] | None = None
    tokenizer: Record | None = None

    def of_run(self) -> Record:
        """What a loaded model knows of the run it came from."""
        return {name: getattr(self, name) for name in ("objective", "class_names", "tokenizer")}

    def describe(self, weights: str) -> str:
        """One line; ``weights`` are those asked for."""
        said = "exported model" + (f" ({self.origin})" if self.origin else "")
        if self.weights not in (None, weights):
            said += f", which holds no {weights} weights"
        return said if self.config.null_class or "no null class" in said else f"{said}, no null class"


def write_model_file(path: Path, weights: dict[str, Tensor], facts: ModelFacts) -> None:
    """Write weights and facts, atomically."""
    texts = {"format": FORMAT, "config": json.dumps(config_to_dict(facts.config))}
    for name in ("origin", "weights", "objective"):
        if getattr(facts, name) is not None:
            texts[name] = shown(getattr(facts, name))
    for name in ("class_names", "tokenizer"):
        if getattr(facts, name) is not None:
            texts[name] = json.dumps(getattr(facts, name))
    with publish_file(path) as temporary, plain_path(temporary) as plain:
        safetensors.torch.save_file(weights, plain, metadata=texts)


def read_model_file(metadata: Mapping[str, str], path: Path) -> ModelFacts | None:
    """The facts in the metadata of our own models, None for other files.

    Raises ``UserError`` for metadata of another release, or that are broken or contradict themselves.
    """
    form = metadata.get("format", "")
    if not form.startswith(KIND):
        return None
    if form != FORMAT:
        raise UserError(f"{path} has format {form}; this release reads {FORMAT}")
    if "config" not in metadata:
        raise UserError(f"{path} is broken: its metadata have no config")
    values = _table(metadata, "config", dict, path)
    # Heads and grid cannot be told by the weights: no default may stand in for what is missing.
    missing = set(config_to_dict(ModelConfig())) - {"null_class"} - set(values)
    if missing:
        raise UserError(f"{path} is broken: its config does not say {', '.join(sorted(missing))}")
    try:
        config = config_from_dict(values, ModelConfig())
    except UserError as error:
        raise UserError(f"{path} is broken: {error}") from error
    if metadata.get("weights", "teacher") not in ("teacher", "student"):
        raise UserError(f"{path} is broken: it holds {metadata['weights']!r} weights")
    names = None
    if "class_names" in metadata:
        names = tuple(map(str, _table(metadata, "class_names", list, path)))
        if len(names) != config.num_classes:
            raise UserError(
                f"{path} is broken: it names {len(names)} classes, its model has {config.num_classes}"
            )
    return ModelFacts(
        config=config,
        origin=metadata.get("origin"),
        weights=metadata.get("weights"),
        objective=metadata.get("objective"),
        class_names=names,
        tokenizer=_table(metadata, "tokenizer", dict, path) if "tokenizer" in metadata else None,
    )


def _table(metadata: Mapping[str, str], name: str, kind: type[Kind], path: Path) -> Kind:
    """The JSON called ``name``, of type ``kind``."""
    what = f"{path} is broken: the {name} in its metadata"
    try:
        value = json.loads(metadata[name])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is no JSON ({error})") from error
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise UserError(f"{what} is a {type(value).__name__}, not {expected}")
    return value
