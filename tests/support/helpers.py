"""Small shared pieces for the tests: a tiny model, an in-memory code store, the golden arrays."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from star.base.randomness import torch_generator
from star.model.config import ModelConfig
from star.model.transformer import Transformer, build_model
from star.tokenizer.shape import VQConfig

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"

TINY = [
    "--layers", "2", "--width", "32", "--heads", "2", "--batch-size", "4", "--max-steps", "4",
    "--log-every", "1", "--validate-every", "4", "--warmup-steps", "0", "--device", "cpu",
    "--precision", "fp32",
]  # fmt: skip

TINY_VQ = VQConfig(
    channels=32,
    multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=2,
    z_channels=16,
    codebook_size=32,
    codebook_dim=4,
)
SMALL = ModelConfig(layers=3, heads=2, width=16, grid=3, vocab_size=11, num_classes=4)


def small_model(
    config: ModelConfig = SMALL, seed: int = 0, device: torch.device | str = "cpu"
) -> Transformer:
    """A model whose output layer is not zero, so that logits carry information."""
    model = build_model(config, torch_generator(seed, "init"))
    model.output.weight.data.normal_(std=0.3, generator=torch_generator(seed, "output"))
    return model.to(device)


def small_pictures() -> torch.Tensor:
    """64 blurred random images, uint8 (64, 3, 8, 8)."""
    rng = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 256, (64, 3, 3, 3), generator=rng).float()
    smooth = torch.nn.functional.interpolate(coarse, size=8, mode="bilinear", align_corners=True)
    return smooth.to(torch.uint8)


class FakeStore(SimpleNamespace):
    """What training reads of a code store, held in memory."""

    def __len__(self) -> int:
        return len(self.labels)


def fake_store(
    *, images: int = 24, views: int = 4, grid: int = 3, vocab: int = 11, classes: int = 4, seed: int = 0
) -> FakeStore:
    """Learnable codes: every image is its class's pattern with one token in ten replaced."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    patterns = np.random.default_rng(99).integers(0, vocab, (classes, grid**2))
    codes = np.repeat(patterns[labels][:, None], views, axis=1)
    noise = rng.random(codes.shape) < 0.1
    codes[noise] = rng.integers(0, vocab, noise.sum())
    return FakeStore(
        path=Path("fake"),
        codes=codes.astype(np.uint16),
        labels=labels.astype(np.int64),
        grid=grid,
        tokens=grid**2,
        vocab_size=vocab,
        num_classes=classes,
        views=views,
        test_view=0,
        class_names=tuple(f"class{c}" for c in range(classes)),
        tokenizer_sha256="0" * 64,
        manifest={
            "sha256": {"codes.npy": f"codes-{seed}", "labels.npy": "l"},
            "tokenizer_name": "fake",
        },
    )


def cli(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        **options,
    )


def refused(result, *parts):
    """One line on stderr, exit code 2, no traceback."""
    code, out, err = result
    assert code == 2, (code, out, err)
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err, err
    return True
