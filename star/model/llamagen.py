"""Read checkpoints of the public LlamaGen code as published, and say what was read.

The weights are found wherever a trainer put them (``star.model.state_keys``); a moving average is the
teacher. Width, depth, vocabulary and rows of the class table follow from the shapes; heads and grid do
not: they come from the file's arguments (``star.model.arguments``), else from the size table, else the
caller must give them. Whether the last row of the class table is the null class follows from what the
arguments say of the classes; a file that says nothing is taken to have one, as all published ones.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from star.base.errors import UserError
from star.base.record import Record
from star.model.arguments import Arguments
from star.model.config import SIZES, ModelConfig
from star.model.state_keys import TRANSFORMER, StateDict, choose_state

__all__ = ["read_llamagen"]

CLASS_TABLE = "cls_embedding.embedding_table.weight"
# Tables and caches that LlamaGen's modules keep beside their weights.
_NO_WEIGHTS = re.compile(r"(.*\.)?(freqs_cis|causal_mask|kv_cache\.[kv]_cache)")


def read_llamagen(
    content: Record,
    found: list[StateDict],
    path: Path,
    *,
    weights: str,
    heads: int | None,
    grid: int | None,
) -> tuple[ModelConfig, dict[str, Tensor], str]:
    """Configuration, state dict and a one-line description of a LlamaGen checkpoint.

    found: the transformers in ``content``. weights: ``teacher`` takes a moving average if there
    is one. Raises ``UserError`` if heads or grid can be found nowhere, or if what is given, what the
    file says and its shapes contradict each other.
    """
    state = choose_state(found, path, ema=weights == "teacher")
    tensors = {key: value for key, value in state.weights.items() if not _NO_WEIGHTS.fullmatch(key)}
    said = Arguments(content, path)
    shape = _Shape.of(tensors, path)
    shape.check(said, path)
    classes = _classes(shape.class_rows, said, path)
    config = _config(shape, said, path, classes, heads, grid)
    description = f"LlamaGen checkpoint, weights under {state.place}"
    if weights == "teacher" and not state.ema:
        description += " (it holds no EMA weights)"
    if classes.assumed:
        description += ", the last class row taken for the null class (the file does not say)"
    return config, tensors, description


@dataclass(frozen=True)
class _Shape:
    """What the shapes of the weights say; ``qkv`` is the width of queries, keys and values together."""

    layers: int
    width: int
    vocab_size: int
    class_rows: int
    qkv: int

    @classmethod
    def of(cls, state: dict[str, Tensor], path: Path) -> "_Shape":
        layers = [int(m.group(1)) for key in state if (m := re.match(r"layers\.(\d+)\.", key))]
        try:
            vocab_size, width = state[TRANSFORMER].shape
            rows = state[CLASS_TABLE].shape[0]
            qkv = state["layers.0.attention.wqkv.weight"].shape[0]
        except KeyError as error:
            raise UserError(
                f"{path} has no {error.args[0]}; expected a class-conditional LlamaGen checkpoint"
            ) from error
        except (ValueError, IndexError) as error:
            raise UserError(f"{path} has weights of other shapes than LlamaGen's") from error
        return cls(1 + max(layers, default=-1), width, vocab_size, rows, qkv)

    def check(self, said: Arguments, path: Path) -> None:
        """Raise ``UserError`` where the file says something else than its weights are."""
        for name, what, own in (
            ("n_layer", "layers", self.layers),
            ("vocab_size", "rows of the token table", self.vocab_size),
        ):
            number = said.whole(name)
            if number is not None and number != own:
                raise UserError(
                    f"{path} contradicts itself: it says {name} {number}, its weights have {own} {what}"
                )
        tokens = said.whole("cls_token_num")
        if tokens not in (None, 1):
            raise UserError(
                f"{path} says cls_token_num {tokens}; only models of 1 class token are read"
            )


@dataclass(frozen=True)
class _Classes:
    """``count`` classes, with a null class or without; ``assumed``: the file does not say which."""

    count: int
    null: bool
    assumed: bool = False


def _classes(rows: int, said: Arguments, path: Path) -> _Classes:
    """LlamaGen's class table has one row more than classes unless ``class_dropout_prob`` is 0."""
    count, dropout = said.whole("num_classes"), said.number("class_dropout_prob")
    if count is None:
        return _Classes(rows, False) if dropout == 0 else _Classes(rows - 1, True, dropout is None)
    if rows == count + 1:
        return _Classes(count, True)
    if rows == count and not dropout:
        return _Classes(count, False)
    expected = f"{count + 1} (with the null class)" if dropout else f"{count} or {count + 1}"
    raise UserError(
        f"{path} contradicts itself: it says num_classes {count}"
        + (f" and class_dropout_prob {dropout:g}" if dropout else "")
        + f", which makes {expected} rows, and its class table has {rows}"
    )


def _config(
    shape: _Shape,
    said: Arguments,
    path: Path,
    classes: _Classes,
    heads: int | None,
    grid: int | None,
) -> ModelConfig:
    heads = _agreed("heads", heads, _heads(shape, said, path), path)
    heads = heads or _heads_from_size(shape)
    if heads is None:
        raise UserError(f"{path} does not say how many heads its width {shape.width} has; give --heads")
    grid = _agreed("grid", grid, _grid(said, path), path)
    if grid is None:
        raise UserError(
            f"{path} does not say its token grid; give --grid (16 for 256 px, 24 for 384 px)"
        )
    if shape.width % heads:
        raise UserError(f"heads is {heads}; expected a divisor of the width {shape.width} of {path}")
    head_dim = shape.width // heads
    kv_heads = (shape.qkv // head_dim - heads) // 2
    kv_said = said.whole("n_kv_head")
    if kv_said not in (None, kv_heads):
        raise UserError(
            f"{path} contradicts itself: it says n_kv_head {kv_said}, its weights have {kv_heads} "
            f"with {heads} heads"
        )
    numerics = {name: said.number(name) for name in ("norm_eps", "rope_base")}
    return ModelConfig(
        layers=shape.layers,
        heads=heads,
        kv_heads=0 if kv_heads == heads else kv_heads,
        width=shape.width,
        grid=grid,
        vocab_size=shape.vocab_size,
        num_classes=classes.count,
        null_class=classes.null,
        **{name: value for name, value in numerics.items() if value is not None},
    )


def _agreed(name: str, given: int | None, said: int | None, path: Path) -> int | None:
    """The caller's number, else the file's; ``UserError`` if they contradict each other."""
    if given is not None and given < 1:
        raise UserError(f"{name} is {given}; expected at least 1")
    if given is not None and said is not None and given != said:
        raise UserError(f"{name} is {given}; {path} says {said}: leave --{name} out")
    return given if given is not None else said


def _heads(shape: _Shape, said: Arguments, path: Path) -> int | None:
    """Heads that the arguments name, as a number or by the model's name (``GPT-B``)."""
    heads = said.whole("n_head")
    if heads is not None:
        return heads
    model = said.text("gpt_model")
    size = SIZES.get(model.removeprefix("GPT-")) if model is not None else None
    if size is None:
        return None
    if (size[0], size[2]) != (shape.layers, shape.width):
        raise UserError(
            f"{path} contradicts itself: it says {model} ({size[0]} layers of width {size[2]}), its "
            f"weights have {shape.layers} layers of width {shape.width}"
        )
    return size[1]


def _heads_from_size(shape: _Shape) -> int | None:
    """Heads of the size with this depth and width."""
    sizes = (size[1] for size in SIZES.values() if (size[0], size[2]) == (shape.layers, shape.width))
    return next(sizes, None)


def _grid(said: Arguments, path: Path) -> int | None:
    """Tokens along a side by the image's size, or by LlamaGen's ``block_size`` (tokens of an image)."""
    image, downsample = said.whole("image_size"), said.whole("downsample_size")
    block = said.whole("block_size")
    by_block = math.isqrt(block) if block is not None and math.isqrt(block) ** 2 == block else None
    if image is None or downsample is None or downsample > image:
        return by_block
    if by_block not in (None, image // downsample):
        raise UserError(
            f"{path} contradicts itself: image_size {image} and downsample_size {downsample} make "
            f"{image // downsample} x {image // downsample} tokens, block_size is {block}"
        )
    return image // downsample
