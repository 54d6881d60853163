"""Made-up features, splits and atlases for the tests of the probes: of classes told apart, or not."""

import numpy as np
import torch
from helpers import FakeStore, fake_store, small_model
from reference.fill import fill_

from probes.linear.atlas import AtlasConfig, probe_atlas
from probes.linear.mae import HeadBank, MaeConfig, train_heads
from probes.linear.protocols import ProtocolConfig
from probes.linear.splits import ProbeSplits, probe_splits
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.model import VQModel
from star.tokenizer.shape import VQConfig
from star.training.checkpoint import Loaded

CPU = torch.device("cpu")
COUNTS = {"train": 50, "val": 20, "test": 30}
GROUPS = [(1, 4), (1, 9), (3, 4), (3, 9)]
# Batches of 16: rates of 1.25 and of 6.4, MAE's own, at which 15 steps move the weights a lot.
CONFIG = MaeConfig(base_lrs=(20.0, 102.4), epochs=5, warmup_epochs=2, batch_size=16)
LAYERS, STEPS = (1, 3), (1, 4, 9)
MAE = MaeConfig(base_lrs=(0.5, 5.0), epochs=6, warmup_epochs=1, batch_size=15)


class ArraySource:
    """A source that reads arrays: ``parts[part]`` is (views, G, N, D).

    ``calls`` notes the images and views of every call for training views, in order.
    """

    def __init__(self, parts: dict[str, np.ndarray], groups: list[tuple[int, int]]) -> None:
        self.parts = {part: torch.from_numpy(values).float() for part, values in parts.items()}
        self.groups, self.device, self.broken = groups, CPU, set()
        self.views, _, _, self.width = parts["train"].shape
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, part, images_B, views_B):
        if views_B is None:
            return self.parts[part][0][:, images_B]
        assert part == "train"
        self.calls.append((images_B.copy(), views_B.copy()))
        return self.parts[part].transpose(1, 2)[views_B, images_B].transpose(0, 1).contiguous()


def splits_of(labels: dict[str, np.ndarray], classes: int) -> ProbeSplits:
    """Splits whose stores say the labels; nothing reads their codes."""
    stores = {
        part: FakeStore(**{**vars(fake_store(classes=classes)), "labels": of_part})
        for part, of_part in labels.items()
    }
    return ProbeSplits(stores, {part: np.arange(len(labels[part])) for part in labels}, "made up")


def blob_task(groups, *, seed=0, width=6, classes=3, views=3, counts=None, spread=1.0):
    """A source with a cloud of its own for each group, and its splits."""
    rng = np.random.default_rng(seed)
    parts, labels = {}, {}
    for part, images in (counts or COUNTS).items():
        of_groups = []
        labels[part] = rng.permutation(np.arange(images) % classes)
        for group in range(len(groups)):
            centres = np.random.default_rng([1, group]).normal(size=(classes, width))
            scale = np.logspace(-1, 1, width)
            noise = rng.normal(size=(views, images, width)) * spread
            of_groups.append((centres[labels[part]] + noise) * scale + 3.0)
        parts[part] = np.stack(of_groups, axis=1)
    return ArraySource(parts, list(groups)), splits_of(labels, classes)


def label_sets(splits, sets=2):
    labels = splits.labels("train")
    return np.stack([labels, np.random.default_rng(5).permutation(labels)][:sets])


def trained(source, labels_SN, config=CONFIG, *, classes=3, seed=7, **options):
    bank = HeadBank(source, len(labels_SN), len(config.base_lrs), classes, seed)
    train_heads(bank, source, labels_SN, config, seed=seed, **options)
    return bank


def tokenizer():
    """Decodes the eleven codes of the fake stores, one pixel each; always the same weights."""
    shape = VQConfig(
        channels=32, multipliers=(1,), encoder_blocks=1, decoder_blocks=1, codebook_size=11
    )
    return fill_(VQModel(shape))


def splits():
    stores = {
        "train": fake_store(images=40),
        "val": fake_store(images=16, views=1, seed=5),
        "test": fake_store(images=24, views=1, seed=6),
    }
    for store in stores.values():
        store.tokenizer_sha256 = tokenizer_sha256(tokenizer())
    return probe_splits(stores)


def loaded(folder, model=None) -> Loaded:
    path = folder / "ckpt.pt"
    path.write_bytes(b"a checkpoint")
    return Loaded(small_model() if model is None else model, path, "teacher", "small", step=3)


def config(name="ridge", **changes) -> AtlasConfig:
    values = {"layers": LAYERS, "steps": STEPS, "protocol": ProtocolConfig(name=name, mae=MAE)}
    return AtlasConfig(**{**values, **changes})


def atlas_of(folder, *, model=None, **options):
    settings = options.pop("config", config())
    return probe_atlas(loaded(folder, model), splits(), settings, tokenizer=tokenizer(), **options)
