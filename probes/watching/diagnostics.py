"""What a training run is watched by: a few numbers, measured on a few hundred fixed images.

The images are drawn by the run's seed, so the numbers are a function of (weights, config, data): they
disturb nothing, and a resumed run repeats them. At 8 steps, under the null class, at half the depth:

- of the teacher (the model that is evaluated): kNN accuracy (``probes.linear.knn``), attention
  distance and class share over all layers (``probes.attention.stats``);
- of the student, where a collapse shows first: effective rank and cosine between images
  (``probes.representation.geometry``), both averaged over the steps;
- of both: their cosine on the same image, and the cosines between the loss terms' gradients.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from probes.attention.stats import attention_stats
from probes.linear.knn import VOTERS, knn_predict, voters
from probes.reading.features import StepFeatures, step_features, uniform_steps
from probes.reading.images import ImageSample, draw
from probes.representation.geometry import effective_rank, image_cosine, is_collapsed, row_cosine
from probes.watching.gradients import gradient_cosines
from star.base.randomness import generator
from star.codes.store import CodeStore
from star.training.batches import TrainBatch, TrainLoader
from star.training.config import TrainConfig
from star.training.student import Student
from star.training.teacher import Teacher

__all__ = ["in_loop_diagnostics"]

STEPS = 8
REFERENCES, QUERIES, ATTENTION_IMAGES, GRADIENT_IMAGES = 512, 256, 64, 16
# With more classes than these, 512 reference images would hold too few of each to vote.
CLASSES = 20
SHORT = {"step_contrast": "step", "view_contrast": "view"}


def in_loop_diagnostics(
    student: Student,
    teacher: Teacher,
    stores: Mapping[str, CodeStore],
    config: TrainConfig,
    precision: torch.dtype = torch.float32,
) -> dict[str, float | bool]:
    """The numbers by the name they have in a row of metrics.

    ``knn_acc`` (mean over the steps), ``knn_acc_step_8`` ..., ``knn_k`` (where fewer than 20 vote),
    ``attention_distance`` (grid cells), ``class_share``, ``effective_rank``, ``image_cosine``,
    ``teacher_student_cosine``, ``grad_cos_ar_mim`` ..., and ``collapsed``. Without a validation split
    there is no kNN accuracy and training images stand in for the rest; without a second image there is
    no ``collapsed``.
    """
    train, seed = stores["train"], config.seed
    held_out = stores.get("val", train)
    classes = np.unique(held_out.labels)
    if len(classes) > CLASSES:
        classes = generator(seed, "diagnostics classes").choice(classes, CLASSES, replace=False)
    images = draw(held_out, QUERIES, seed, "diagnostics images", classes=classes)
    model = teacher.model.config
    at: dict[str, Any] = {
        "layers": [max(1, model.layers // 2)],
        "steps": uniform_steps(model.tokens, min(STEPS, model.tokens)),
    }
    of_teacher = step_features(teacher.model, images, **at, precision=precision)
    of_student = step_features(student.model, images, **at, precision=precision)
    row: dict[str, float | bool] = {}
    reference = draw(train, REFERENCES, seed, "diagnostics reference", classes=classes)
    if held_out is not train and len(reference):
        known = step_features(teacher.model, reference, **at, precision=precision)
        row |= _knn(known, of_teacher, teacher.model.output.weight.device)
    row |= _attention(teacher, images, at["steps"])
    row |= _representation(of_student, of_teacher)
    batch = _fixed_batch(train, config, student.model.output.weight.device)
    cosines = gradient_cosines(student, teacher, batch, config.objective, precision)
    for (a, b), cosine in cosines.items():
        row[f"grad_cos_{SHORT.get(a, a)}_{SHORT.get(b, b)}"] = cosine
    return row


def _knn(known: StepFeatures, asked: StepFeatures, device: torch.device) -> dict[str, float]:
    k = voters(len(known.labels))
    by_step = {}
    for place, step in enumerate(known.steps):
        predicted = knn_predict(
            known.values[0, place], known.labels, asked.values[0, place], k=k, device=device
        )
        by_step[f"knn_acc_step_{step}"] = float((predicted == asked.labels).mean())
    fewer = {} if k == VOTERS else {"knn_k": k}
    return {"knn_acc": float(np.mean(list(by_step.values()))), **fewer, **by_step}


def _attention(teacher: Teacher, images: ImageSample, steps: list[int]) -> dict[str, float]:
    layers = list(range(1, teacher.model.config.layers + 1))
    # Images lie in their store's order, which may be by class: take some of every stretch.
    spread = np.linspace(0, len(images) - 1, min(ATTENTION_IMAGES, len(images))).round().astype(int)
    some = replace(images, codes=images.codes[spread], labels=images.labels[spread])
    names = ["distance", "class_share"]
    found = attention_stats(teacher.model, some, layers=layers, steps=steps, names=names)
    return {
        "attention_distance": found.overall("distance"),
        "class_share": found.overall("class_share"),
    }


def _representation(student: StepFeatures, teacher: StepFeatures) -> dict[str, float | bool]:
    pairs = list(zip(student.values[0], teacher.values[0], strict=True))
    row = {"teacher_student_cosine": float(np.mean([row_cosine(*pair) for pair in pairs]))}
    if len(student.labels) < 2:
        return row
    rank = float(np.mean([effective_rank(mine) for mine, _ in pairs]))
    cosine = float(np.mean([image_cosine(mine) for mine, _ in pairs]))
    return row | {
        "effective_rank": rank,
        "image_cosine": cosine,
        "collapsed": is_collapsed(rank, cosine),
    }


def _fixed_batch(train: CodeStore, config: TrainConfig, device: torch.device) -> TrainBatch:
    """The first training batch of the run in small: the same images, views and masks at every call."""
    small = replace(config, batch_size=min(GRADIENT_IMAGES, config.batch_size), accumulate=1)
    batch = TrainLoader(train, small).batch(0)
    return TrainBatch(**{name: value.to(device) for name, value in vars(batch).items()})
