"""Made-up features and splits for the tests of the probes: classes that can be told apart, or not."""

import numpy as np
import torch
from helpers import FakeStore, fake_store

from probes.linear.splits import ProbeSplits

CPU = torch.device("cpu")
COUNTS = {"train": 50, "val": 20, "test": 30}


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
