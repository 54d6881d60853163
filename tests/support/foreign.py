"""Checkpoints of the public LlamaGen code as other trainers leave them, made of a small model."""

from argparse import Namespace
from pathlib import Path

import torch
from helpers import SMALL, small_model

from star.model.config import ModelConfig

ARGUMENTS = {
    "gpt_model": "GPT-custom", "n_head": SMALL.heads, "num_classes": SMALL.num_classes,
    "vocab_size": SMALL.vocab_size, "image_size": 16 * SMALL.grid, "downsample_size": 16,
}  # fmt: skip
CLASS_TABLE = "cls_embedding.embedding_table.weight"


def weights(seed: int = 0, config: ModelConfig = SMALL) -> dict[str, torch.Tensor]:
    """State dict of a small model."""
    return small_model(config, seed).state_dict()


def arguments(**changes) -> Namespace:
    """What LlamaGen's trainer keeps of its command line; a change to None leaves an entry out."""
    return Namespace(**{k: v for k, v in (ARGUMENTS | changes).items() if v is not None})


def in_blocks(state: dict, word: str, place: int = 2) -> dict:
    """``word`` inside the keys of every block, before their ``place``-th part."""

    def key(name: str) -> str:
        parts = name.split(".")
        return ".".join([*parts[:place], word, *parts[place:]]) if parts[0] == "layers" else name

    return {key(name): value for name, value in state.items()}


def in_front(state: dict, prefix: str) -> dict:
    """``prefix`` before every key."""
    return {prefix + name: value for name, value in state.items()}


def write(path: Path, content: dict) -> Path:
    """A ``.pt`` file of ``content``."""
    torch.save(content, path)
    return path
