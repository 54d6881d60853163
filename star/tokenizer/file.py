"""Tokenizer files: load ours or LlamaGen's, save ours, and name a tokenizer by its content.

Ours is one ``.safetensors`` file with the shape and a small card (data, steps, quality) as JSON in its
metadata. LlamaGen's published ``vq_ds16_c2i.pt`` and ``vq_ds8_c2i.pt`` hold bare weights, so the shape
is read off the tensors. Nothing from a file is ever run (``star.base.torch_files``).
"""

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from star.base.errors import UserError
from star.base.files import plain_path, publish_file, require_writable
from star.base.names import shown
from star.base.record import Record
from star.base.torch_files import load_safetensors, load_torch_file
from star.base.weights import check_weights
from star.model.state_keys import TOKENIZER, TRANSFORMER, choose_state, find_states
from star.tokenizer.model import VQModel
from star.tokenizer.shape import VQConfig

__all__ = [
    "DEFAULT",
    "SHIPPED",
    "TOKENIZER_FILE",
    "cache_folder",
    "find_tokenizer",
    "load_tokenizer",
    "require_cache",
    "save_tokenizer",
    "shipped_tokenizer_path",
    "tokenizer_beside",
    "tokenizer_sha256",
]

FORMAT, KIND = "star-vq-1", "star-vq-"
SHIPPED = ("cifar10", "digits")  # names of the tokenizers that come with the package
DEFAULT = "cifar10"  # the one that is meant where none is named
# Name of a tokenizer's copy beside code stores and in run folders.
TOKENIZER_FILE = "tokenizer.safetensors"
USAGE = "quantize.codebook_used"


def cache_folder() -> Path:
    """Folder for what the program makes itself: ``$STAR_CACHE``, else ``~/.cache/star``."""
    if os.environ.get("STAR_CACHE"):
        return Path(os.environ["STAR_CACHE"])
    try:
        return Path.home() / ".cache" / "star"
    except RuntimeError:  # a container's user without an entry
        raise UserError("there is no home folder; set STAR_CACHE to a folder of yours") from None


def require_cache() -> None:
    """Raise ``UserError`` unless the cache folder can be written to."""
    require_writable(cache_folder(), "set STAR_CACHE to a folder of yours")


def shipped_tokenizer_path(name: str = DEFAULT) -> Path:
    """File of the tokenizer called ``name`` that comes with the package, one of ``SHIPPED``."""
    assert name in SHIPPED, name
    return Path(__file__).parents[1] / "tokenizers" / f"{name}.safetensors"


def tokenizer_beside(folder: Path | str) -> Path | None:
    """The tokenizer's copy in a run folder, or beside code stores; None if there is none."""
    path = Path(folder) / TOKENIZER_FILE
    return path if path.exists() else None


def find_tokenizer(given: Path | str | None = None) -> Path:
    """The file that ``given`` means: a file, a folder that holds one, or one of the package's own.

    Those are meant by their names (None: ``DEFAULT``), unless a tokenizer of that name is here. What is
    none of these comes back as it is.
    """
    path = shipped_tokenizer_path() if given is None else Path(given)
    if (path / TOKENIZER_FILE).is_file():  # a run of star train-tokenizer, or a folder of stores
        return path / TOKENIZER_FILE
    # a folder of images may well be called cifar10
    named = str(path) in SHIPPED and not path.is_file()
    return shipped_tokenizer_path(str(path)) if named else path


def load_tokenizer(path: Path | str | None = None, device: torch.device | str = "cpu") -> VQModel:
    """Tokenizer in eval mode, float32 and without gradient.

    ``path`` is a file, a folder with one, or the name of one that comes with the package (``SHIPPED``):
    "cifar10" (which None means too) or "digits", each trained on what its name says (see its card).

    The model carries ``.config``, ``.card`` (a dictionary, empty for published weights) and ``.name``
    (the one it was saved with, the file's for published weights).
    Raises ``UserError`` if the file is missing, truncated, unsafe or not a VQ tokenizer.
    """
    path = find_tokenizer(path)
    if path.suffix == ".safetensors":
        weights, config, card, name = _read_safetensors(path)
    else:
        weights, config, card, name = _weights_of(load_torch_file(path), path), None, {}, None
    model = _build(weights, config or _infer_config(weights, path), path)
    model.card = card
    model.name = shown(name or path.stem)
    # A quarter faster on a CPU, a half under bf16, as long as nothing is trained (see
    # star.tokenizer.model).
    return model.to(device).to(memory_format=torch.channels_last)


def save_tokenizer(model: VQModel, path: Path | str, card: Record) -> None:
    """Write the tokenizer as one ``.safetensors`` file, atomically, with its config and card.

    Raises ``UserError`` for another file ending, ``ValueError`` if the card is not plain JSON.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} does not end in .safetensors, the format tokenizers are saved in")
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "card": json.dumps(card, allow_nan=False),
        "name": shown(str(card.get("name") or model.name)),
    }
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with publish_file(path) as temporary, plain_path(temporary) as plain:
        safetensors.torch.save_file(weights, plain, metadata=metadata)


def tokenizer_sha256(model: VQModel) -> str:
    """Identity of a tokenizer: sha256 of its shape and of every weight as little-endian float32.

    It does not depend on the file format, the device or the order of the keys. The usage buffer is
    left out, since it changes no token and no pixel.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(dataclasses.asdict(model.config), sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        if key == USAGE:
            continue
        digest.update(f"\n{key} {tuple(value.shape)}\n".encode())
        array = value.detach().float().cpu().contiguous().numpy()
        digest.update(array.astype(np.dtype("<f4"), copy=False).tobytes())
    return digest.hexdigest()


def _read_safetensors(path: Path) -> tuple[Record, VQConfig | None, Record, str | None]:
    tensors, metadata = load_safetensors(path)
    weights = _weights_of(tensors, path)
    form = metadata.get("format", "")
    if form.startswith(KIND) and form != FORMAT:
        raise UserError(f"{path} has format {form}; this release reads {FORMAT}")
    if "config" not in metadata:
        return weights, None, {}, None
    try:
        config = VQConfig(**json.loads(metadata["config"]))
        card = json.loads(metadata.get("card", "{}"))
        if not isinstance(card, dict):
            raise TypeError("the card is not an object")
    except (json.JSONDecodeError, RecursionError, TypeError, UserError) as error:
        raise UserError(f"the metadata of {path} is not a tokenizer's ({error})") from error
    return weights, config, card, metadata.get("name")


def _weights_of(content: Record, path: Path) -> dict[str, torch.Tensor]:
    """State dict of a VQ tokenizer inside a checkpoint, wherever a trainer put it.

    LlamaGen's sampling and code extraction read the plain weights where a file has a moving average
    too, and so does this.
    """
    found = find_states(content, TOKENIZER, path)
    if found:
        return choose_state(found, path, ema=False).weights
    if find_states(content, TRANSFORMER, path):
        raise UserError(f"{path} is not a VQ tokenizer but a model (a transformer over tokens)")
    keys = ", ".join(str(key) for key in list(content)[:4]) or "nothing"
    raise UserError(f"{path} is not a VQ tokenizer: no {TOKENIZER} anywhere in it (found: {keys})")


def _infer_config(weights: dict[str, torch.Tensor], path: Path) -> VQConfig:
    """Shape of a tokenizer from the shapes of its tensors."""

    def count(pattern: str) -> int:
        found = (re.match(pattern, key) for key in weights)
        return 1 + max((int(match.group(1)) for match in found if match), default=-1)

    def shape(key: str, ndim: int) -> torch.Size:
        if key not in weights or weights[key].ndim != ndim:
            raise UserError(f"{path} is not a VQ tokenizer of LlamaGen's layout: it needs {key}")
        return weights[key].shape

    channels = shape("encoder.conv_in.weight", 4)[0]
    widths = [
        shape(f"encoder.conv_blocks.{level}.res.0.norm2.weight", 1)[0]
        for level in range(count(r"encoder\.conv_blocks\.(\d+)\."))
    ]
    codebook_size, codebook_dim = shape(TOKENIZER, 2)
    return VQConfig(
        channels=channels,
        multipliers=tuple(width // max(channels, 1) for width in widths),
        encoder_blocks=count(r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
        decoder_blocks=count(r"decoder\.conv_blocks\.0\.res\.(\d+)\."),
        z_channels=shape("encoder.conv_out.weight", 4)[0],
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
    )


def _build(weights: dict[str, torch.Tensor], config: VQConfig, path: Path) -> VQModel:
    with torch.device("meta"):  # no memory and no random initialisation for weights to be replaced
        model = VQModel(config)
    # The buffer holds no knowledge: files without it, or with another window, are as good.
    weights = {**weights, USAGE: torch.zeros(model.state_dict()[USAGE].shape)}
    check_weights(model, weights, path)
    # Copies: the file they are parts of may be overwritten.
    weights = {key: value.detach().to(torch.float32, copy=True) for key, value in weights.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)
