"""The images whose score is explained: the one named, the first test image, or several of the data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from figures.opening import run_images, tokenizer_path
from figures.requests.attribution import Request
from figures.sentences import names_in_pictures
from figures.work import Said, Work
from probes.reading.example import find_subjects, require_tokenizer
from probes.reading.images import spread_images
from star.codes.open import PreparedData
from star.codes.store import CodeStore
from star.images.open import ImageSource
from star.images.source import measured_split
from star.tokenizer.model import decode_tokens
from star.training.checkpoint import Loaded
from viz.attribution import MOST_IMAGES
from viz.base.names import labels as class_labels

__all__ = ["Chosen", "chosen_images"]


@dataclass(frozen=True)
class Chosen:
    """The images to explain and what they are called; some are drawn, by their place."""

    name: str
    slug: str
    images: list[tuple[str, Tensor, int]]  # name, tokens (T,), the class of its own or the one asked
    pictures: dict[int, np.ndarray]
    captions: dict[int, str]
    said: list[Said] = field(default_factory=list)


def chosen_images(
    asked: Request, loaded: Loaded, data: PreparedData | None, label: int | None, work: Work
) -> Chosen:
    """The images to explain: the one named, the first test image, or several."""
    tokenizer = tokenizer_path(loaded, asked.tokenizer)
    if asked.images is not None:
        assert data is not None  # several images need their stores, so they are there
        return _several(asked.images, loaded, data, label, tokenizer)
    (subject,) = find_subjects(
        loaded,
        images=[asked.image] if asked.image else [],
        codes=asked.codes,
        label=label,
        data=_images(asked, loaded, data, work),
        tokenizer=tokenizer,
    )
    said = subject.description
    if asked.target == "probe":
        said = said.split("; the model is shown")[0] + "; the model is shown the null class"
    caption = "/".join(Path(subject.name).parts[-2:])
    images = [(subject.name, subject.tokens, subject.label)]
    return Chosen(subject.name, subject.slug, images, {0: subject.image}, {0: caption}, [said])


def _several(
    count: int, loaded: Loaded, data: PreparedData, label: int | None, tokenizer: Path | None
) -> Chosen:
    """Test images evenly spaced; the first of every part of them is drawn."""
    store = data.stores[measured_split(data.stores)]
    rows, tokens_NT, labels = spread_images(store, count)
    decoder = data.tokenizer or require_tokenizer(loaded, tokenizer)
    few = min(len(rows), MOST_IMAGES)
    drawn = [place * len(rows) // few for place in range(few)]
    decoded = decode_tokens(decoder, tokens_NT[drawn], loaded.model.config.grid)
    names = [f"image {row} ({store.class_names[own]})" for row, own in zip(rows, labels, strict=True)]
    in_pictures = class_labels(store.class_names)
    own = [int(of_image) if label is None else label for of_image in labels]
    return Chosen(
        f"{len(rows)} test images",
        f"{len(rows)}-images",
        list(zip(names, tokens_NT, own, strict=True)),
        dict(zip(drawn, decoded, strict=True)),
        {place: f"image {rows[place]} ({in_pictures[labels[place]]})" for place in drawn},
        [
            *names_in_pictures(store.class_names, [labels[place] for place in drawn]),
            f"{len(rows)} evenly spaced images of {store.path}, decoded from the codes",
        ],
    )


def _images(
    asked: Request, loaded: Loaded, data: PreparedData | None, work: Work
) -> ImageSource | Mapping[str, CodeStore] | None:
    """Where the image comes from if none is named: a source or code stores, or None."""
    if asked.image is not None or asked.codes is not None:
        return None
    if data is not None:
        return data.source or data.stores
    if asked.data is None and loaded.config is None:
        return None
    return run_images(loaded, asked.data, asked.tokenizer, work)
