"""Hidden states of chosen layers at chosen steps, and where the steps are.

Step t (1..T) is the position that predicts token x_t: it has seen the class and x_1..x_{t-1}, and is
input position t - 1. "K steps" are T/K, 2T/K, .., T. Probing conditions on the null class, so that no
label reaches the features.

Shapes: N images, T tokens, K steps, L layers asked for, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from star.base.device import autocast
from star.base.errors import UserError
from star.codes.store import Codes, CodeStore
from star.model.classes import class_numbers, null_label
from star.model.config import ModelConfig
from star.model.transformer import Transformer, check_layers
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.model import VQModel
from star.training.batches import plain_batches
from star.training.checkpoint import Loaded
from star.training.estimate import images_at_once

__all__ = [
    "StepFeatures",
    "capture_steps",
    "check_cells",
    "check_decoder",
    "check_finite",
    "check_prefix",
    "check_steps",
    "check_store",
    "check_tokenizer",
    "parse_layers",
    "parse_steps",
    "scattered_steps",
    "step_features",
    "uniform_steps",
]


def uniform_steps(tokens: int, count: int) -> list[int]:
    """``count`` uniformly spaced steps that end at T; ``UserError`` unless 1 <= count <= T."""
    if not 1 <= count <= tokens:
        raise UserError(f"steps is {count}; expected 1 to {tokens}, the number of tokens of an image")
    return [round(tokens * (k + 1) / count) for k in range(count)]


def scattered_steps(tokens: int, count: int) -> list[int]:
    """One step in each of ``count`` equal stretches of the image, at quasi-random places.

    For pictures of attention: uniform steps all end a row of the grid, so that every current token
    would lie at the right border.
    """
    if not 1 <= count <= tokens:
        raise UserError(f"steps is {count}; expected 1 to {tokens}, the number of tokens of an image")
    golden = 0.6180339887498949
    places = [(k + 1 - (k + 1) * golden % 1) * tokens / count for k in range(count)]
    steps = [max(1, round(place)) for place in places]
    # With hardly more tokens than steps, rounding can give a step twice.
    return steps if len(set(steps)) == count else uniform_steps(tokens, count)


def parse_steps(text: str, tokens: int) -> list[int]:
    """``"12,40,64"`` as ascending step numbers; ``UserError`` for anything else."""
    try:
        steps = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"steps are {text!r}; expected numbers such as 12,40,64") from None
    check_steps(tokens, steps)
    return steps


def check_cells(config: ModelConfig, layers: Sequence[int], steps: Sequence[int]) -> None:
    """Raise ``UserError`` unless every layer and every step exists."""
    check_layers(config, layers)
    check_steps(config.tokens, steps)


def check_steps(tokens: int, steps: Sequence[int]) -> None:
    """Raise ``UserError`` unless every step is between 1 and T."""
    for step in steps:
        if not 1 <= step <= tokens:
            raise UserError(f"step {step} does not exist; expected 1 to {tokens}")


def parse_layers(text: str, layers: int) -> list[int]:
    """``"6"``, ``"2,4,6"`` or ``"all"`` as layer numbers, each once; ``UserError`` for others."""
    if text == "all":
        return list(range(1, layers + 1))
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UserError(f"layer is {text!r}; expected all, a number or numbers such as 2,4,6") from None


def check_store(model: Transformer, store: Codes, *, classes: bool = True) -> None:
    """Raise ``UserError`` unless the codes fit the model's vocabulary, grid and (``classes``) classes.

    Under the null class, a model may be shown images of any classes.
    """
    config = model.config
    for what, given, expected in (
        ("grid", store.grid, config.grid),
        ("vocabulary", store.vocab_size, config.vocab_size),
        (
            "number of classes",
            store.num_classes if classes else 0,
            config.num_classes if classes else 0,
        ),
    ):
        if given != expected:
            raise UserError(
                f"the codes in {store.path} have {what} {given}; the model was built for {expected}"
            )


def check_prefix(config: ModelConfig, tokens_T: Tensor, label: int) -> None:
    """Raise ``UserError`` unless ``tokens_T`` is one image and ``label`` a class or the null class."""
    if tokens_T.shape != (config.tokens,):
        raise UserError(
            f"the image has {tuple(tokens_T.shape)} tokens; the model expects {config.tokens}"
        )
    outside = tokens_T[(tokens_T < 0) | (tokens_T >= config.vocab_size)]
    if len(outside):
        raise UserError(
            f"token {int(outside[0])} does not exist; the model knows 0 to {config.vocab_size - 1}"
        )
    if not 0 <= label < config.class_rows:
        numbers = class_numbers(config.num_classes, config.null_class)
        raise UserError(f"class {label} does not exist; expected {numbers}")


def check_tokenizer(loaded: Loaded, store: CodeStore) -> None:
    """Raise ``UserError`` if the checkpoint names another tokenizer than the one of the codes."""
    trained_with = (loaded.tokenizer or {}).get("sha256")
    if trained_with and store.tokenizer_sha256 not in ("", trained_with):  # "": unknown
        raise UserError(
            f"{store.path} was made by another tokenizer than the one {loaded.path} was "
            f"trained with (sha256 {trained_with[:12]})"
        )


def check_decoder(tokenizer: VQModel, store: CodeStore) -> None:
    """Raise ``UserError`` if ``tokenizer`` is not the one that made the codes."""
    if store.tokenizer_sha256 not in ("", tokenizer_sha256(tokenizer)):  # "": unknown
        raise UserError(
            f"{store.path} was made by another tokenizer than {tokenizer.name}, which cannot decode "
            "its codes; give the one it was made by"
        )


def capture_steps(
    model: Transformer,
    tokens_BT: Tensor,
    labels_B: Tensor | int,
    sites: Sequence[str],
    steps: Sequence[int] | None,
    *,
    precision: torch.dtype = torch.float32,
    cut: Mapping[int, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Activations of a batch by the names ``sites`` (``star.model.transformer.capture_names``).

    labels_B: (B,) classes, or the one class of all. steps: where outputs, queries and attention rows
    are captured, K in place of N positions; None: at every position of the tokens given. precision, if
    not float32, is autocast to. cut is the model's.
    """
    device, at = tokens_BT.device, None
    if isinstance(labels_B, int):
        labels_B = torch.full((len(tokens_BT),), labels_B, device=device)
    if steps is not None:
        # Nothing after the last step is needed: causal attention cannot see it.
        tokens_BT = tokens_BT[:, : max(steps) - 1]
        at = torch.tensor(steps, device=device) - 1
    with autocast(device, precision):
        return model(
            tokens_BT, labels_B, capture=sites, capture_at=at, cut=cut, with_logits=False
        ).captured


@dataclass(frozen=True)
class StepFeatures:
    """``values`` (L, K, N, D) float32 of ``layers`` at ``steps``, with ``labels`` (N,)."""

    values: np.ndarray
    labels: np.ndarray
    layers: list[int]
    steps: list[int]


@torch.no_grad()
def step_features(
    model: Transformer,
    store: Codes,
    *,
    layers: list[int],
    steps: list[int],
    batch_size: int = 256,
    precision: torch.dtype = torch.float32,
) -> StepFeatures:
    """Outputs of ``layers`` at ``steps`` for every image's test view, under the null class.

    Raises ``UserError`` for a layer or step that does not exist, for codes that do not fit and for a
    model without a null class.
    """
    check_cells(model.config, layers, steps)
    check_store(model, store, classes=False)
    null = null_label(model.config, "a feature without a class")
    names = [f"layers.{layer}" for layer in layers]
    values = np.empty((len(layers), len(steps), len(store), model.config.width), dtype=np.float32)
    done = 0
    batch_size = images_at_once(model.config, batch_size, with_logits=False)
    for tokens_BT, labels_B in plain_batches(store, batch_size, model.output.weight.device):
        captured = capture_steps(model, tokens_BT, null, names, steps, precision=precision)
        for place, name in enumerate(names):
            chosen_BKD = captured[name].float().cpu().numpy()
            values[place, :, done : done + len(labels_B)] = chosen_BKD.swapaxes(0, 1)
        done += len(labels_B)
    return StepFeatures(values, np.asarray(store.labels), list(layers), list(steps))


def check_finite(part: StepFeatures) -> None:
    """Raise ``UserError`` that names the first layer and step whose features are not finite."""
    bad = ~np.isfinite(part.values).all((2, 3))
    if bad.any():
        layer, step = np.argwhere(bad)[0]
        raise UserError(
            f"features of layer {part.layers[layer]} at step {part.steps[step]} are not finite; "
            "the checkpoint is broken"
        )
