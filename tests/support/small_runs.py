"""Small training runs for the tests: their configuration, their stores, their rows of metrics."""

import json

import torch
from helpers import fake_store

from star.model.config import ModelConfig
from star.training.config import ObjectiveConfig, TrainConfig

TIMES = ("sequences_per_second", "steps_per_second", "peak_memory_bytes")
CPU = torch.device("cpu")


def tiny(**changes) -> TrainConfig:
    values = {
        "model": ModelConfig(layers=2, heads=2, width=16),
        "objective": ObjectiveConfig(contrast_steps=3, ema_decay=0.9),
        "batch_size": 8,
        "max_steps": 12,
        "lr": 1e-2,
        "warmup_steps": 2,
        "precision": "fp32",
        "log_every": 1,
        "validate_every": 6,
        "save_every": 5,
    }
    return TrainConfig(**{**values, **changes})


def small_stores():
    """Training and validation codes of the made-up classes."""
    return {"train": fake_store(), "val": fake_store(images=8, views=1, seed=5)}


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(row):
    return {k: v for k, v in row.items() if k not in TIMES}
