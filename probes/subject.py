"""The image that a picture of one model is about: its tokens, its class and what it looks like."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probes.tokens import encode_images
from star.checkpoint import Loaded
from star.codes import open_splits
from star.errors import UserError
from star.images import load_image, open_source
from star.prepare import is_code_folder
from star.tokenizer import load_tokenizer, tokenizer_sha256
from star.views import center_crop
from star.vq import VQModel, decode_tokens

__all__ = ["Subject", "find_subject", "parse_classes", "require_tokenizer"]


@dataclass(frozen=True)
class Subject:
    """``tokens`` (T,), ``label`` (the null class if unknown), ``image`` (H, W, 3) uint8."""

    name: str
    tokens: Tensor
    label: int
    image: np.ndarray
    description: str

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-").lower()


def parse_classes(text: str | None, num_classes: int) -> list[int]:
    """``"3"`` or ``"0,1,7"`` as classes (the first ten if None); the null class is ``num_classes``."""
    if text is None:
        return list(range(min(10, num_classes)))
    try:
        classes = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"class is {text!r}; expected a number or numbers such as 0,1,7") from None
    for label in classes:
        if not 0 <= label <= num_classes:
            raise UserError(
                f"class {label} does not exist; expected 0 to {num_classes - 1}, "
                f"or {num_classes} for the null class"
            )
    return classes


def require_tokenizer(loaded: Loaded, path: Path | None) -> VQModel:
    """The tokenizer of a checkpoint; ``UserError`` if there is none or it does not fit."""
    if path is None:
        raise UserError(
            f"{loaded.path} has no tokenizer beside it; give --tokenizer (for LlamaGen: vq_ds16_c2i.pt)"
        )
    tokenizer = load_tokenizer(path, loaded.model.output.weight.device)
    vocab = loaded.model.config.vocab_size
    if tokenizer.config.codebook_size != vocab:
        raise UserError(
            f"{path} has {tokenizer.config.codebook_size} codes; the model's vocabulary has {vocab}"
        )
    expected = (loaded.tokenizer or {}).get("sha256")
    if expected and tokenizer_sha256(tokenizer) != expected:
        raise UserError(
            f"{path} is not the tokenizer that {loaded.path} was trained with (sha256 {expected[:12]})"
        )
    return tokenizer


def find_subject(
    loaded: Loaded,
    *,
    image: str | None,
    codes: Path | None,
    label: int | None,
    data: str | None,
    tokenizer: Path | None,
) -> Subject:
    """The image named by the caller, the codes given, or the first test image of the run's data."""
    config = loaded.model.config
    null = config.num_classes
    if codes is not None:
        tokens = read_codes(codes, config.tokens)
        shown = np.full((256, 256, 3), 128, dtype=np.uint8)
        said = "no tokenizer: the picture is left grey"
        if tokenizer is not None:
            model = require_tokenizer(loaded, tokenizer)
            shown, said = decode_tokens(model, tokens[None], config.grid)[0], "decoded from the codes"
        return _subject(codes.name, tokens, label, null, shown, said)
    data = data or (loaded.config.data if loaded.config else None)
    if image is None and data is None:
        raise UserError(
            f"{loaded.path} does not say what data it was trained on; name an image, or give --codes"
        )
    model = require_tokenizer(loaded, tokenizer)
    if image is None and is_code_folder(data):
        store = open_splits(data).get("test") or open_splits(data)["train"]
        tokens = torch.from_numpy(store.codes[0, store.test_view].astype(np.int64))
        shown = decode_tokens(model, tokens[None], config.grid)[0]
        label = int(store.labels[0]) if label is None else label
        return _subject("first test image", tokens, label, null, shown, "decoded from the codes")
    if image is None:
        split = open_source(data).split("test")
        name, picture = split.name(0), split.load(0)
        label = int(split.labels[0]) if label is None else label
    else:
        name, picture = image, load_image(image)
    size = config.grid * model.config.stride
    cropped = np.asarray(center_crop(picture, size))
    tokens = torch.from_numpy(encode_images(model, cropped[None])[0].reshape(-1))
    said = f"centre-cropped to {size} px"
    if picture.size != (size, size):
        said += f" from {picture.width} x {picture.height}"
    return _subject(name, tokens, label, null, cropped, said)


def read_codes(path: Path, tokens: int) -> Tensor:
    """(T,) indices from a ``.npy`` of T integers in any shape; of LlamaGen's (1, views, T), view 0."""
    try:
        array = np.load(path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} as .npy codes ({error})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.size < tokens:
        raise UserError(f"{path} does not hold {tokens} integers, the tokens of one image")
    if array.size % tokens:
        raise UserError(f"{path} holds {array.size} integers; expected a multiple of {tokens}")
    return torch.from_numpy(array.reshape(-1)[:tokens].astype(np.int64))


def _subject(
    name: str, tokens: Tensor, label: int | None, null: int, image: np.ndarray, said: str
) -> Subject:
    shown = "null class" if label is None or label == null else f"class {label}"
    description = f"{name}: {said}; the model is shown the {shown}"
    return Subject(name, tokens, null if label is None else label, image, description)
