"""What the self-test computes: a small model, a batch and an image, each from a fixed seed.

The results are those of any machine but for the order of sums, as long as torch and NumPy draw the same
random numbers from the same seed.

Shapes: B images, M views, T tokens, V codebook size.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from star.base.randomness import generator, torch_generator
from star.base.settings import config_to_dict
from star.images.views import scaled
from star.model.config import ModelConfig
from star.model.sampler import generate
from star.model.transformer import Transformer, build_model
from star.runs.checkpoint import load_checkpoint, save_checkpoint
from star.training.batches import TrainBatch, draw_steps, draw_token_masks
from star.training.checkpoint import MODEL_RUN
from star.training.config import ObjectiveConfig, TrainConfig
from star.training.learner import Learner

__all__ = [
    "CONFIG",
    "draws",
    "greedy",
    "image",
    "logits",
    "losses",
    "saved_and_loaded",
    "trial_learner",
    "trial_model",
]

PURPOSE = "self-test"
CONFIG = TrainConfig(
    model=ModelConfig(layers=3, heads=4, width=64, grid=4, vocab_size=64, num_classes=10),
    objective=ObjectiveConfig(projector_ratio=1),
    batch_size=4,
    max_steps=2,
    lr=1e-3,
    warmup_steps=0,
    dropout=0.0,  # its masks are drawn where the model is, and differ between devices
    precision="fp32",
)


def draws() -> dict[str, list]:
    """The first numbers of both sources of randomness, on the CPU."""
    normal = torch.empty(16).normal_(generator=torch_generator(0, PURPOSE, 1))
    return {
        "numpy": generator(0, PURPOSE, 1).integers(0, 1 << 30, 8).tolist(),
        "torch": normal.tolist(),
    }


def trial_model(device: torch.device | str) -> Transformer:
    """The model on ``device``: activations, logits and attention of order 1, drawn on the CPU."""
    model = build_model(CONFIG.model)
    random = torch_generator(0, PURPOSE, 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1, 0.1, generator=random)
            else:
                std = 1.0 if "embed" in name else parameter.shape[1] ** -0.5
                parameter.normal_(0, std, generator=random)
    return model.to(device)


def _batch() -> TrainBatch:
    """Everything drawn for a training step, on the CPU, as a code store would give it."""
    model, objective = CONFIG.model, CONFIG.objective
    images, views, tokens = CONFIG.batch_size, objective.views, model.tokens
    random = generator(0, PURPOSE, 3)
    masked = draw_token_masks(images * views, tokens, objective.mask_ratio, random)
    drawn = {
        "tokens_BMT": random.integers(0, model.vocab_size, (images, views, tokens)),
        "labels_B": random.integers(0, model.num_classes, images),
        "dropped_BM": random.random((images, views)) < 0.25,
        "masked_BMn": masked.reshape(images, views, tokens - 1),
        "steps_K": draw_steps(tokens, objective.contrast_steps, objective.min_step, random),
    }
    return TrainBatch(**{name: torch.from_numpy(value) for name, value in drawn.items()})


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    """(B, some positions, some of V) float32 on the CPU: logits of the first view of the batch."""
    batch, device = _batch(), model.output.weight.device
    tokens_Bn, labels_B = batch.tokens_BMT[:, 0].to(device), batch.labels_B.to(device)
    return model(tokens_Bn, labels_B).logits[:, ::4, ::8].float().cpu()


def greedy(model: Transformer) -> list[list[int]]:
    """Tokens of one image each of two classes, the most likely each time, with guidance and a cache."""
    return generate(model, [3, 8], seeds=[0, 1], cfg_scale=2.0, greedy=True).tolist()


def trial_learner(device: torch.device) -> Learner:
    """A training run of the model at its start, student and teacher alike."""
    learner = Learner(CONFIG, device)
    weights = trial_model(device).state_dict()
    learner.student.model.load_state_dict(weights)
    learner.teacher.model.load_state_dict(weights)
    return learner


def losses(device: torch.device) -> list[dict[str, float | None]]:
    """Losses, their terms and the gradient norm of two steps on one batch.

    The second depends on all that the first changed.
    """
    learner, batch = trial_learner(device), _batch()
    updates = [learner.update(batch, step) for step in range(CONFIG.max_steps)]
    return [{**update.losses, "grad_norm": update.grad_norm} for update in updates]


def saved_and_loaded(device: torch.device, path: Path) -> bool:
    """Whether a run's checkpoint comes back from ``path`` as it was, bit for bit."""
    learner = trial_learner(device)
    learner.update(_batch(), 0)  # now the optimizer has something to keep
    content = {
        "step": 1,
        "config": config_to_dict(CONFIG),
        **learner.state_dict(),
        "tokenizer": {"sha256": None, "name": None},
        "class_names": [str(c) for c in range(CONFIG.model.num_classes)],
        "data": {},
    }
    save_checkpoint(path, content, kind=MODEL_RUN)
    found = load_checkpoint(path, kind=MODEL_RUN)
    return _same(content, {key: found[key] for key in content})


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a.cpu(), b.cpu()) if isinstance(a, Tensor) else a == b


def image() -> Tensor:
    """(1, 3, 32, 32) in [-1, 1]: ramps and edges, from whole numbers alone.

    The nearest code of each of its vectors is well ahead of the second.
    """
    channel, row, column = np.ogrid[:3, :32, :32]
    pixels = (column * (10 + 5 * channel) + row * (15 - channel)) % 256
    return scaled(torch.from_numpy(pixels.astype(np.uint8))[None])
