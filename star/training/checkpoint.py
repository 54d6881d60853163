"""Checkpoints: one ``.pt`` that loads with ``weights_only=True``, published atomically.

Content (format version 1): ``format``, ``version``, ``step``, ``config`` (a plain dictionary),
``student``, ``teacher``, ``projector``, ``optimizer``, ``teacher_updates``, ``tokenizer`` (sha256,
name, stride), ``class_names``, ``data`` (``star.training.run_data``). ``load_model`` reads ours, what
``star export`` writes, and LlamaGen's.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from star.base.errors import UserError, require_choice
from star.base.names import shown
from star.base.randomness import torch_generator
from star.base.record import Record
from star.base.settings import config_from_dict
from star.base.torch_files import load_safetensors, load_torch_file
from star.base.weights import check_weights
from star.model.config import ModelConfig
from star.model.file import read_model_file
from star.model.llamagen import read_llamagen
from star.model.state_keys import TOKENIZER, TRANSFORMER, find_states
from star.model.transformer import Transformer, build_model
from star.runs.checkpoint import CheckpointKind, load_checkpoint
from star.training.config import TrainConfig

__all__ = [
    "DISPENSABLE",
    "MODEL_RUN",
    "Loaded",
    "initial_model",
    "load_model",
    "newest_checkpoint",
    "open_model",
    "refuse_shape",
]

FORMAT = "star"
DISPENSABLE = ("teacher", "projector", "optimizer")  # what a run can go on without


MODEL_RUN = CheckpointKind(
    format=FORMAT,
    command="star train",
    parts={
        "step": int, "config": dict, "student": dict, "teacher": dict, "teacher_updates": int,
        "projector": dict | None, "optimizer": dict, "tokenizer": dict, "class_names": list,
        "data": dict,
    },
    settings=TrainConfig(),
    dispensable=DISPENSABLE,
    foreign="; a LlamaGen file cannot be resumed",
)  # fmt: skip


def newest_checkpoint(runs: Path) -> Path:
    """``ckpt.pt`` of the newest run below ``runs``; ``UserError`` if there is none."""
    found = sorted(runs.glob("**/ckpt.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            f"no run with a ckpt.pt below {runs}; train one with star train, or name a file"
        )
    return found[-1]


@dataclass(frozen=True)
class Loaded:
    """A model and what its file says about it; fields are None where a file does not say."""

    model: Transformer
    path: Path
    weights: str
    description: str
    step: int | None = None
    config: TrainConfig | None = None
    class_names: tuple[str, ...] | None = None
    tokenizer: Record | None = None
    data: Record | None = None  # of our own runs: see ``star.training.run_data``
    objective: str | None = None

    @property
    def objective_name(self) -> str:
        """``AR`` or ``ST-AR`` for our own models, ``LlamaGen`` for its checkpoints."""
        if self.config is None:
            return self.objective or "LlamaGen"
        return "ST-AR" if self.config.objective.uses_teacher else "AR"


def initial_model(config: TrainConfig, device: torch.device | str = "cpu") -> Transformer:
    """The model that a run of this configuration begins with: its weights follow from the seed."""
    return build_model(config.model, torch_generator(config.seed, "init"), device)


def open_model(
    path: Path | str,
    *,
    weights: str = "teacher",
    device: torch.device | str = "cpu",
    heads: int | None = None,
    grid: int | None = None,
) -> Loaded:
    """Load a model with everything its checkpoint says; see ``load_model``."""
    require_choice("weights", weights, ("teacher", "student"))
    path = Path(path)
    if path.is_dir() and (path / "ckpt.pt").exists():
        path = path / "ckpt.pt"
    if path.suffix == ".safetensors":
        tensors, metadata = load_safetensors(path)
        facts = read_model_file(metadata, path)
        if facts is not None:
            refuse_shape(path, heads, grid)
            if weights == "student" and facts.weights == "teacher":
                raise UserError(f"{path} holds the teacher's weights alone; leave --weights out")
            said = facts.describe(weights)
            model = _fill(facts.config, tensors, path, device)
            return Loaded(model, path, facts.weights or weights, said, **facts.of_run())
        content = {**tensors, "metadata": metadata}
    else:
        content = load_torch_file(path)
    if content.get("format") == FORMAT:
        refuse_shape(path, heads, grid)
        return _open_own(path, weights, device)
    found = find_states(content, TRANSFORMER, path)
    if not found:
        raise UserError(
            f"{path} is neither a checkpoint of star train nor a LlamaGen one ({_holds(content, path)})"
        )
    model_config, state, said = read_llamagen(
        content, found, path, weights=weights, heads=heads, grid=grid
    )
    if not model_config.null_class:
        said += ", no null class"
    return Loaded(_fill(model_config, state, path, device), path, weights, said)


def _open_own(path: Path, weights: str, device: torch.device | str) -> Loaded:
    """The model in a checkpoint of ``star train``."""
    content = load_checkpoint(path, kind=MODEL_RUN)
    try:
        config = config_from_dict(content["config"], TrainConfig())
    except UserError as error:
        raise UserError(f"{path} holds settings that this release does not know: {error}") from error
    names = tuple(shown(str(name)) for name in content["class_names"])
    if len(names) != config.model.num_classes:
        raise UserError(
            f"{path} is broken: it names {len(names)} classes, its model has {config.model.num_classes}"
        )
    return Loaded(
        _fill(config.model, content[weights], path, device),
        path,
        weights,
        f"{weights} weights of step {content['step']}",
        step=content["step"],
        config=config,
        class_names=names,
        tokenizer=content["tokenizer"],
        data=content["data"],
    )


def _holds(content: Record, path: Path) -> str:
    """What a file holds that is no model, for a message."""
    if find_states(content, TOKENIZER, path):
        return "it is a VQ tokenizer: --tokenizer takes it"
    keys = ", ".join(map(str, [key for key in content if key != "metadata"][:5]))
    return f"it holds: {keys}" if keys else "it is empty"


def refuse_shape(path: Path, heads: int | None, grid: int | None) -> None:
    """Raise ``UserError`` for ``heads`` or ``grid`` given with a file that says them itself."""
    for name, given in (("heads", heads), ("grid", grid)):
        if given is not None:
            raise UserError(
                f"{name} is {given}, but only a LlamaGen checkpoint may need it, and {path} is none: "
                f"leave --{name} out"
            )


def load_model(
    path: Path | str,
    *,
    weights: str = "teacher",
    device: torch.device | str = "cpu",
    heads: int | None = None,
    grid: int | None = None,
) -> Transformer:
    """A transformer, without gradients, from a checkpoint of ours or of the public LlamaGen code.

    weights: ``teacher`` (EMA) or ``student``. heads, grid: only for LlamaGen files that do not say.
    Raises ``UserError`` if the file is missing, broken, unsafe or does not fit.
    """
    return open_model(path, weights=weights, device=device, heads=heads, grid=grid).model


def _fill(config: ModelConfig, state: Record, path: Path, device: torch.device | str) -> Transformer:
    with torch.device("meta"):  # the shapes alone: a wrong configuration may ask for any memory
        check_weights(Transformer(config), state, path)
    model = build_model(config, device=device)
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()
