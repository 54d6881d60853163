"""Find a network's weights in a file, wherever a trainer put them and whatever it wrote into the keys.

Wrappers (``torch.compile``, DDP, FSDP, activation checkpointing, DeepSpeed, Fabric) leave a word of
theirs somewhere in a key, Lightning and others put a name in front of every key, and each trainer has
its own entry for the weights and for their moving average. A network is known by one key of its own,
the tell-tale; what stands before it is the prefix, and what lies beside it is not the network's.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from star.base.errors import UserError, listed
from star.base.record import Record

__all__ = [
    "TOKENIZER",
    "TRANSFORMER",
    "StateDict",
    "choose_state",
    "find_states",
    "without_wrappers",
]

TRANSFORMER, TOKENIZER = "tok_embeddings.weight", "quantize.embedding.weight"  # tell-tales

WRAPPERS = frozenset(
    (
        "module",  # DataParallel, DDP, DeepSpeed, torch's AveragedModel
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_fpw_module",  # FSDP of fairscale and of PyTorch before 2.0
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning and its Fabric
        "_original_module",
        "_module",  # Opacus
        "_wrapped_module",
    )
)
EMA_WORDS = frozenset(("ema", "teacher", "averaged", "swa", "shadow"))
DEPTH = 3  # dictionaries inside dictionaries that are searched
TOP = "top level"


@dataclass(frozen=True)
class StateDict:
    """Weights under ``entry`` (names from the top), keys less ``prefix``; ``ema``: a moving average."""

    entry: tuple[str, ...]
    prefix: str
    ema: bool
    weights: dict[str, Tensor]

    @property
    def place(self) -> str:
        """Where they lie, for messages: an entry, and the prefix if there is one."""
        where = repr("/".join(self.entry) or TOP)
        return f"{where} (keys {self.prefix}*)" if self.prefix else where


def without_wrappers(weights: Record, path: Path) -> Record:
    """``weights`` with the wrappers' words taken out of every key, wherever they stand.

    Raises ``UserError`` if two keys become the same.
    """
    plain: dict[str, object] = {}
    came_from: dict[str, str] = {}
    for key, value in weights.items():
        if not isinstance(key, str):
            continue
        short = ".".join(word for word in key.split(".") if word not in WRAPPERS)
        if short in plain:
            raise UserError(
                f"{path} holds {short} twice, as {came_from[short]} and as {key}; expected one model"
            )
        plain[short], came_from[short] = value, key
    return plain


def find_states(content: Record, tell_tale: str, path: Path) -> list[StateDict]:
    """Every state dict in a loaded file that has the key ``tell_tale``, in the file's order.

    The state of an optimiser is not searched. Raises ``UserError`` if two keys become the same.
    """
    found = []
    for entry, values in _dictionaries(content):
        if not any(isinstance(key, str) and key.endswith(tell_tale) for key in values):
            continue
        plain = without_wrappers(values, path)
        prefixes = [
            key.removesuffix(tell_tale)
            for key, value in plain.items()
            if _is_own(key, tell_tale) and isinstance(value, Tensor)
        ]
        for prefix in prefixes:
            inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
            weights = {
                key.removeprefix(prefix): value
                for key, value in plain.items()
                if isinstance(value, Tensor) and key.startswith(prefix) and not key.startswith(inner)
            }
            names = (*entry, *prefix.split("."))
            # A tensor without dimensions counts something (AveragedModel's n_averaged): no weight.
            weights = {key: value for key, value in weights.items() if value.ndim or key == tell_tale}
            found.append(StateDict(entry, prefix, any(map(_is_ema, names)), weights))
    return found


def choose_state(found: Iterable[StateDict], path: Path, *, ema: bool) -> StateDict:
    """The moving average if ``ema`` and there is one, the other weights if not; else what there is.

    Raises ``UserError``, naming the places, where two that differ are left.
    """
    found = list(found)
    rest = [state for state in found if state.ema == ema] or found
    for other in rest[1:]:
        if not _same(rest[0].weights, other.weights):
            places = listed(state.place for state in rest)
            raise UserError(
                f"{path} holds {len(rest)} different models, under {places}; save the one to use alone"
            )
    return rest[0]


def _dictionaries(
    content: Record, entry: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Record]]:
    """(names from the top, dictionary) of every dictionary that is searched, the outer ones first."""
    yield entry, content
    if len(entry) == DEPTH:
        return
    for name, value in content.items():
        if isinstance(value, dict) and isinstance(name, str) and "optim" not in name.lower():
            yield from _dictionaries(value, (*entry, name))


def _is_own(key: str, tell_tale: str) -> bool:
    return key == tell_tale or key.endswith(f".{tell_tale}")


def _is_ema(name: str) -> bool:
    """Whether a name has a word for a moving average: model_ema, emaModel, ema_0.9999."""
    return any(word.lower() in EMA_WORDS for word in re.findall(r"[A-Z]*[a-z]+|[A-Z]+", name))


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.dtype == other[key].dtype and torch.equal(value, other[key]) for key, value in one.items()
    )
