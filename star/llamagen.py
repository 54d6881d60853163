"""Read checkpoints of the public LlamaGen code as published, and say what was read.

The weights may lie under ``model``, ``module``, ``state_dict`` or at the top level, with wrapper
prefixes and a stray ``freqs_cis``; an ``ema`` entry is the teacher. Width, depth, vocabulary and class
count follow from the shapes; heads and grid do not: they come from the pickled arguments, else from
the size table, else the caller must give them.
"""

import re
from argparse import Namespace
from pathlib import Path

from torch import Tensor

from star.config import SIZES, ModelConfig
from star.errors import UserError
from star.safe_load import strip_prefixes

__all__ = ["is_llamagen", "read_llamagen"]

WEIGHT_ENTRIES = ("model", "module", "state_dict")
TELL_TALE = "tok_embeddings.weight"


def _weights(entry: object) -> dict[str, Tensor] | None:
    """The state dict in one entry of a file, or None if it holds no transformer."""
    if not isinstance(entry, dict):
        return None
    weights = strip_prefixes({k: v for k, v in entry.items() if isinstance(k, str)})
    if TELL_TALE not in weights:
        return None
    return {k: v for k, v in weights.items() if k != "freqs_cis" and isinstance(v, Tensor)}


def is_llamagen(content: dict) -> bool:
    """Whether a loaded file holds LlamaGen weights in one of the known layouts."""
    entries = (content, *(content.get(name) for name in (*WEIGHT_ENTRIES, "ema")))
    return any(_weights(entry) is not None for entry in entries)


def read_llamagen(
    content: dict, path: Path, *, weights: str, heads: int | None, grid: int | None
) -> tuple[ModelConfig, dict[str, Tensor], str]:
    """Configuration, state dict and a one-line description of a LlamaGen checkpoint.

    weights: ``teacher`` takes the ``ema`` entry if there is one. Raises ``UserError`` if heads or
    grid can be found nowhere, or if the shapes contradict each other.
    """
    ema = _weights(content.get("ema"))
    found = next(
        (
            (name, state)
            for name, state in (
                *((name, _weights(content.get(name))) for name in WEIGHT_ENTRIES),
                ("top level", _weights(content)),
            )
            if state is not None
        ),
        None,
    )
    if ema is not None and (weights == "teacher" or found is None):
        found = ("ema", ema)
    assert found is not None, "is_llamagen was checked"
    name, state = found
    args = vars(content["args"]) if isinstance(content.get("args"), Namespace) else {}
    config = _config(state, args, path, heads, grid)
    said = f"LlamaGen checkpoint, weights under {name!r}"
    if weights == "teacher" and name != "ema":
        said += " (it holds no EMA weights)"
    return config, state, said


def _config(
    state: dict[str, Tensor], args: dict, path: Path, heads: int | None, grid: int | None
) -> ModelConfig:
    layers = 1 + max(
        (int(m.group(1)) for key in state if (m := re.match(r"layers\.(\d+)\.", key))), default=-1
    )
    try:
        vocab_size, width = state[TELL_TALE].shape
        classes = state["cls_embedding.embedding_table.weight"].shape[0] - 1
        qkv = state["layers.0.attention.wqkv.weight"].shape[0]
    except KeyError as error:
        raise UserError(
            f"{path} has no {error.args[0]}; expected a class-conditional LlamaGen checkpoint"
        ) from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} has weights of other shapes than LlamaGen's") from error
    heads = _agreed("heads", heads, _heads_from_args(args), path) or _heads_from_size(layers, width)
    if heads is None:
        raise UserError(f"{path} does not say how many heads its width {width} has; give --heads")
    grid = _agreed("grid", grid, _grid_from_args(args), path)
    if grid is None:
        raise UserError(
            f"{path} does not say its token grid; give --grid (16 for 256 px, 24 for 384 px)"
        )
    if width % heads:
        raise UserError(f"heads is {heads}; expected a divisor of the width {width} of {path}")
    head_dim = width // heads
    kv_heads = (qkv // head_dim - heads) // 2
    return ModelConfig(
        layers=layers,
        heads=heads,
        kv_heads=0 if kv_heads == heads else kv_heads,
        width=width,
        grid=grid,
        vocab_size=vocab_size,
        num_classes=classes,
    )


def _agreed(name: str, given: int | None, said: int | None, path: Path) -> int | None:
    """The caller's number, else the file's; ``UserError`` if they contradict each other."""
    if given is not None and given < 1:
        raise UserError(f"{name} is {given}; expected at least 1")
    if given is not None and said is not None and given != said:
        raise UserError(f"{name} is {given}; {path} says {said}: leave --{name} out")
    return given if given is not None else said


def _heads_from_args(args: dict) -> int | None:
    """Heads that the arguments name, as a number or by the model's name (``GPT-B``)."""
    heads, model = args.get("n_head"), args.get("gpt_model")
    if type(heads) is int and heads > 0:
        return heads
    name = model.removeprefix("GPT-") if isinstance(model, str) else None
    return SIZES[name][1] if name in SIZES else None


def _heads_from_size(layers: int, width: int) -> int | None:
    """Heads of the size with this depth and width."""
    return next((size[1] for size in SIZES.values() if (size[0], size[2]) == (layers, width)), None)


def _grid_from_args(args: dict) -> int | None:
    image, downsample = args.get("image_size"), args.get("downsample_size")
    whole = type(image) is int and type(downsample) is int and 0 < downsample <= image
    return image // downsample if whole else None
