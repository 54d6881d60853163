"""What the paper's figures are drawn from, and how it is measured on two trained models."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from figures.reproduction.plan import PLAIN, Plan
from probes.attention.maps import AttentionMaps, attention_maps
from probes.reading.features import scattered_steps
from probes.tokens.augmentations import chosen_views
from probes.tokens.change import ViewChange, token_change
from probes.tokens.images import drawn
from probes.tokens.invariance import measure_invariance
from star.codes.open import PreparedData
from star.images.open import ImageSource
from star.images.views import center_crop
from star.model.sampler import generate
from star.tokenizer.model import VQModel, decode_tokens, encode_images
from star.training.checkpoint import Loaded

__all__ = ["PARTS", "Material", "measured_material"]

PARTS = 3  # of the measurement: attention, two views of an image, samples


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything measured on two models, plain AR first, that the figures are drawn from.

    ``probe_tables`` are those of atlases (``probes.linear.atlas``), controls included.
    ``image`` (H, W, 3) uint8 is the one the attention maps belong to; ``unchanged`` holds the mean
    share of unchanged indices over many images and its chance level; ``samples`` and ``real`` are
    (N, H, W, 3), drawn in rows of ``columns``.
    """

    probe_tables: dict[str, pd.DataFrame]
    layer: int
    total_steps: int
    chance: float
    image: np.ndarray
    attention: dict[str, AttentionMaps]
    grid: int
    change: ViewChange
    unchanged: tuple[float, float]
    samples: dict[str, np.ndarray]
    real: np.ndarray
    columns: int


def measured_material(
    plan: Plan,
    data: PreparedData,
    loaded: dict[str, Loaded],
    probed: dict[str, pd.DataFrame],
    *,
    layer: int,
    on_part: Callable[[int], None],
) -> Material:
    """Measure what the figures need of two models that were probed.

    probed: tables of their atlases. layer: the one whose probe is drawn. ``on_part(done)`` counts
    ``PARTS``.
    """
    source, tokenizer = data.source, data.tokenizer
    assert source is not None and tokenizer is not None  # a plan's source is of images
    test, store, model = source.splits["test"], data.stores["test"], loaded[PLAIN].model.config
    size = store.grid * tokenizer.config.stride
    image = np.asarray(center_crop(test.load(0), size))
    label = int(test.labels[0])
    attention = {
        name: _attention(item, tokenizer, image, label, plan.probe_steps)
        for name, item in loaded.items()
    }
    on_part(1)
    change = token_change(tokenizer, test.load(0), size=size, shift=1.0, rotate=0.0, scale=1.0)
    nudged = chosen_views("shift:1", size=size, stride=tokenizer.config.stride)
    many = drawn(test, plan.attention_images, plan.config.seed)
    unchanged = measure_invariance(tokenizer, many, nudged, size=size).values
    on_part(2)
    samples = {name: _sampled(item, tokenizer, plan) for name, item in loaded.items()}
    on_part(PARTS)
    return Material(
        probe_tables=probed,
        layer=layer,
        total_steps=model.tokens,
        chance=float(np.bincount(store.labels).max() / len(store)),
        image=image,
        attention=attention,
        grid=model.grid,
        change=change,
        unchanged=(float(unchanged["equal"].mean()), float(unchanged["chance"].mean())),
        samples=samples,
        real=_real(source, size, plan.samples_a_class),
        columns=plan.samples_a_class,
    )


def _attention(
    loaded: Loaded, tokenizer: VQModel, image: np.ndarray, label: int, steps: int
) -> AttentionMaps:
    config = loaded.model.config
    tokens = torch.from_numpy(encode_images(tokenizer, image[None])[0].reshape(-1))
    layers = list(range(1, config.layers + 1))
    return attention_maps(
        loaded.model, tokens, label, layers=layers, steps=scattered_steps(config.tokens, steps)
    )


def _sampled(loaded: Loaded, tokenizer: VQModel, plan: Plan) -> np.ndarray:
    """(classes * n, H, W, 3) samples, n of each class in order."""
    classes, each = loaded.model.config.num_classes, plan.samples_a_class
    labels = np.repeat(np.arange(classes), each)
    tokens_BT = generate(loaded.model, labels, seeds=range(len(labels)), cfg_scale=plan.cfg_scale)
    return decode_tokens(tokenizer, tokens_BT, loaded.model.config.grid)


def _real(source: ImageSource, size: int, each: int) -> np.ndarray:
    test = source.splits["test"]
    chosen = [
        i for c in range(len(source.class_names)) for i in np.flatnonzero(test.labels == c)[:each]
    ]
    return np.stack([np.asarray(center_crop(test.load(int(i)), size)) for i in chosen])
