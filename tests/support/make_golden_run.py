"""Write ``golden/run.txt`` and ``golden/checkpoint_v1.pt`` anew: run this file.

The first is the loss of the first 20 steps of the tiny preset, term by term, on synthetic codes, CPU,
float32. It is rewritten only when the training computation is meant to change; the second, a whole tiny
checkpoint, only when the checkpoint format gets a new version (keep the old file and add one).
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from helpers import GOLDEN, fake_store

from star.model.config import ModelConfig
from star.training.config import ObjectiveConfig, TrainConfig, preset
from star.training.trainer import Trainer

TERMS = ("loss", "ar", "mim", "step_contrast", "view_contrast", "grad_norm")


def golden_config() -> TrainConfig:
    """The tiny preset on small batches, every step logged, no validation."""
    return dataclasses.replace(
        preset("tiny"), batch_size=4, max_steps=20, precision="fp32", log_every=1, save_every=1000
    )


def run_rows() -> list[dict]:
    """Rows of metrics of the golden run."""
    store = fake_store(images=40, views=4, grid=8, vocab=256, classes=10)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(golden_config(), {"train": store}, Path(folder), torch.device("cpu")).fit()
        return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def small_trainer(folder: Path) -> Trainer:
    """The run whose checkpoint is committed for each format version."""
    config = TrainConfig(
        model=ModelConfig(layers=1, heads=1, width=8),
        objective=ObjectiveConfig(contrast_steps=2, projector_ratio=1),
        batch_size=4,
        max_steps=4,
        precision="fp32",
    )
    stores = {"train": fake_store(images=8)}
    return Trainer(config, stores, folder, torch.device("cpu"))


if __name__ == "__main__":
    lines = ["step " + " ".join(TERMS)]
    for row in run_rows():
        lines.append(f"{row['step']} " + " ".join(f"{row[term]:.7g}" for term in TERMS))
    (GOLDEN / "run.txt").write_text("\n".join(lines) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        small_trainer(Path(folder)).fit(stop_after=2)
        (GOLDEN / "checkpoint_v1.pt").write_bytes((Path(folder) / "ckpt.pt").read_bytes())
