"""The images that pictures of a model are about: their tokens, their class, what they look like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probes.reading.features import check_store, check_tokenizer
from probes.reading.images import spread_images
from star.base.errors import UserError
from star.base.names import shown, slug
from star.base.progress import Progress, nothing
from star.codes.store import CodeStore
from star.images.open import ImageSource, load_image
from star.images.source import measured_split
from star.images.views import center_crop
from star.model.classes import class_words, null_label
from star.model.sampler import generate
from star.tokenizer.file import load_tokenizer, tokenizer_sha256
from star.tokenizer.model import VQModel, decode_tokens, encode_images
from star.training.checkpoint import Loaded

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Subject", "find_subjects", "require_tokenizer", "sampled_subjects"]

_BRIEF = 60  # letters of a name in a sentence
_SLUG = 80  # letters of a file name's part; the end of a long path tells images apart


@dataclass(frozen=True)
class Subject:
    """``tokens`` (T,), ``label`` (the null class if unknown), ``image`` (H, W, 3) uint8.

    ``name`` and ``description`` are texts (``star.base.names.shown``).
    """

    name: str
    tokens: Tensor
    label: int
    image: np.ndarray
    description: str

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return slug(self.name, keep="", most=None)[-_SLUG:].strip("-")


def require_tokenizer(loaded: Loaded, path: Path | None) -> VQModel:
    """The tokenizer of a checkpoint; ``UserError`` if there is none or it does not fit."""
    if path is None:
        raise UserError(
            f"{loaded.path} has no tokenizer beside it; give --tokenizer ({_wanted(loaded)})"
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


def _wanted(loaded: Loaded) -> str:
    """Which tokenizer belongs to the checkpoint, as far as it says."""
    if loaded.config is None and loaded.tokenizer is None:
        return "for LlamaGen: vq_ds16_c2i.pt"
    return f"the file of {(loaded.tokenizer or {}).get('name', 'the one it was trained with')!r}"


def find_subjects(
    loaded: Loaded,
    *,
    images: Sequence[str],
    codes: Path | None,
    label: int | None,
    data: ImageSource | Mapping[str, CodeStore] | None,
    tokenizer: Path | None,
) -> list[Subject]:
    """The images named by the caller, the codes given, or the first image of ``data``: of test, else
    val, else train.

    label: the class shown, by default the image's own, or the null class where nobody says. Raises
    ``UserError`` if there is no image, or no null class where it is needed.
    """
    config = loaded.model.config
    if codes is not None:
        return [_coded(loaded, codes, _class_of(loaded, label), tokenizer)]
    if images:
        shown_as = _class_of(loaded, label)
        model = require_tokenizer(loaded, tokenizer)
        return [_tokenized(loaded, model, name, load_image(name), shown_as) for name in images]
    if data is None:
        raise UserError(
            f"{loaded.path} does not say what data it was trained on; name an image, or give --codes"
        )
    model = require_tokenizer(loaded, tokenizer)
    if isinstance(data, Mapping):
        name = measured_split(data)
        store = data[name]
        check_store(loaded.model, store)
        check_tokenizer(loaded, store)
        _, tokens_1T, labels_1 = spread_images(store, 1)
        shown = decode_tokens(model, tokens_1T, config.grid)[0]
        label = int(labels_1[0]) if label is None else label
        words = f"first {name} image", tokens_1T[0], label, shown, "decoded from the codes"
        return [_subject(loaded, *words)]
    split = data.split(measured_split(data.splits))
    label = int(split.labels[0]) if label is None else label
    return [_tokenized(loaded, model, split.name(0), split.load(0), label)]


def _class_of(loaded: Loaded, label: int | None) -> int:
    """``label``, or for an image without a class the null class."""
    if label is not None:
        return label
    return null_label(loaded.model.config, "an image without a class", "give --class")


def sampled_subjects(
    loaded: Loaded,
    *,
    count: int,
    label: int | None,
    seed: int,
    cfg_scale: float,
    tokenizer: Path | None,
    on_step: Progress = nothing,
) -> list[Subject]:
    """``count`` images that the model samples under ``label`` (None: the null class).

    Image i uses ``seed`` + i; ``cfg_scale`` is the guidance (``star.model.sampler.generate``). Their
    tokens are those the model generated, so that maps of them follow the generation.
    """
    config = loaded.model.config
    model = require_tokenizer(loaded, tokenizer)
    shown = label
    if shown is None:
        shown = null_label(config, "sampling without a class", "give --class")
    seeds = range(seed, seed + count)
    tokens_BT = generate(
        loaded.model, [shown] * count, seeds=seeds, cfg_scale=cfg_scale, on_step=on_step
    )
    images = decode_tokens(model, tokens_BT, config.grid)
    words = class_words(shown, config.num_classes, loaded.class_names)
    words = f"the {words}" if shown == config.num_classes else words
    return [
        _subject(
            loaded,
            f"sample of {words}, seed {number}, guidance {cfg_scale:g}",
            tokens_T.cpu(),
            shown,
            image,
            "generated by the model itself",
        )
        for number, tokens_T, image in zip(seeds, tokens_BT, images, strict=True)
    ]


def _coded(loaded: Loaded, codes: Path, label: int, tokenizer: Path | None) -> Subject:
    config = loaded.model.config
    tokens = read_codes(codes, config.tokens)
    if tokenizer is None:
        shown = np.full((256, 256, 3), 128, dtype=np.uint8)
        return _subject(
            loaded, codes.name, tokens, label, shown, "no tokenizer: the picture is left grey"
        )
    image = decode_tokens(require_tokenizer(loaded, tokenizer), tokens[None], config.grid)[0]
    return _subject(loaded, codes.name, tokens, label, image, "decoded from the codes")


def _tokenized(
    loaded: Loaded, tokenizer: VQModel, name: str, picture: "Image.Image", label: int
) -> Subject:
    size = loaded.model.config.grid * tokenizer.config.stride
    cropped = np.asarray(center_crop(picture, size))
    tokens = torch.from_numpy(encode_images(tokenizer, cropped[None])[0].reshape(-1))
    said = f"scaled and cropped to {size} px"
    if picture.size != (size, size):
        said += f" from {picture.width} x {picture.height}"
    if "transparent_on" in picture.info:
        said += f", transparent parts on {picture.info['transparent_on']}"
    return _subject(loaded, name, tokens, label, cropped, said)


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
    loaded: Loaded, name: str, tokens: Tensor, label: int, image: np.ndarray, said: str
) -> Subject:
    words = class_words(label, loaded.model.config.num_classes, loaded.class_names)
    name = shown(name)
    brief = name if len(name) <= _BRIEF else "…" + name[1 - _BRIEF :]
    description = f"{brief}: {said}; the model is shown the {words}"
    return Subject(name, tokens, label, image, description)
