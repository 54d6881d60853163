"""Training batches as a function of (seed, step): data order, views, label drops, masks (Eq. 3), steps.

Everything is drawn for the global batch and then sliced by rank, so it does not depend on the number
of processes, and resuming at step n needs only n. An epoch is one permutation of the images; what does
not fill a batch at its end is dropped, so that no image meets itself among its negatives.
"""

import mmap
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from star.base.errors import UserError
from star.base.randomness import generator
from star.codes.store import Codes, CodeStore, check_rows
from star.training.config import TrainConfig

__all__ = ["TrainBatch", "TrainLoader", "draw_steps", "draw_token_masks", "plain_batches"]


@dataclass(frozen=True)
class TrainBatch:
    """Everything drawn for one training step of this process, on its device."""

    tokens_BMT: Tensor
    labels_B: Tensor
    dropped_BM: Tensor
    masked_BMn: Tensor
    steps_K: Tensor

    def split(self, parts: int) -> list["TrainBatch"]:
        """The same draws in ``parts`` equal groups of images."""
        by_image = ("tokens_BMT", "labels_B", "dropped_BM", "masked_BMn")
        groups: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]] = zip(
            *(getattr(self, name).chunk(parts) for name in by_image), strict=True
        )
        return [TrainBatch(*group, self.steps_K) for group in groups]

    def pin_memory(self) -> "TrainBatch":
        """The same in page-locked memory (the loader calls this)."""
        return TrainBatch(**{name: value.pin_memory() for name, value in vars(self).items()})

    def labels(self, null_class: int, policy: str) -> Tensor:
        """(S,) class of each sequence: ``same`` (dropped or not), ``always`` or ``never`` shown."""
        labels_BM = self.labels_B[:, None].expand_as(self.dropped_BM)
        if policy == "same":
            labels_BM = torch.where(self.dropped_BM, null_class, labels_BM)
        elif policy == "never":
            labels_BM = torch.full_like(labels_BM, null_class)
        return labels_BM.flatten()


@dataclass
class TrainLoader:
    """Serves step n's batch of this process; steps count from 0."""

    store: CodeStore
    config: TrainConfig
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        config, store = self.config, self.store
        if store.views < config.objective.views:
            raise UserError(
                f"the code store has {store.views} views an image; {config.objective.views} distinct "
                "ones are needed (tokenise with more views, or lower --views)"
            )
        if len(store) < config.batch_size:
            raise UserError(
                f"batch_size is {config.batch_size}; the training split has only {len(store)} images"
            )
        if config.batch_size % (self.world * config.accumulate):
            parts = f" x {config.accumulate} parts" if config.accumulate > 1 else ""
            raise UserError(
                f"batch_size {config.batch_size} is not a multiple of the {self.world} processes{parts}"
            )
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def image_indices(self, step: int) -> np.ndarray:
        """(B,) images of the global batch at ``step``."""
        batch = self.config.batch_size
        epoch, position = divmod(step, len(self.store) // batch)
        if epoch != self._epoch:
            self._order = generator(self.config.seed, "epoch", epoch).permutation(len(self.store))
            self._epoch = epoch
        return self._order[position * batch : (position + 1) * batch]

    def batch(self, step: int) -> TrainBatch:
        """Everything drawn for ``step``, sliced to this process, on the CPU."""
        config, objective, store = self.config, self.config.objective, self.store
        images, views = config.batch_size, objective.views
        seed = config.seed
        # The first M of a random order of the views: distinct views of each image.
        order = generator(seed, "views", step).random((images, store.views)).argsort(axis=1)
        dropped = generator(seed, "label-drop", step).random((images, views)) < config.class_dropout
        masked = draw_token_masks(
            images * views, store.tokens, objective.mask_ratio, generator(seed, "mask", step)
        ).reshape(images, views, store.tokens - 1)
        steps = np.empty(0, dtype=np.int64)
        if objective.contrast_weight:
            rng = generator(seed, "steps", step)
            steps = draw_steps(store.tokens, objective.contrast_steps, objective.min_step, rng)

        share = images // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        chosen = self.image_indices(step)[mine]
        _expect_random_access(store.codes)
        codes = store.codes[chosen[:, None], order[mine, :views]]
        check_rows(store, codes, store.labels[chosen])
        return TrainBatch(
            tokens_BMT=torch.from_numpy(codes.astype(np.int64)),
            labels_B=torch.from_numpy(np.asarray(store.labels[chosen], dtype=np.int64)),
            dropped_BM=torch.from_numpy(dropped[mine]),
            masked_BMn=torch.from_numpy(masked[mine]),
            steps_K=torch.from_numpy(steps),
        )

    def batches(self, first: int, last: int, *, pin: bool = False) -> Iterator[TrainBatch]:
        """Batches of steps ``first`` to ``last`` - 1, made ahead by ``config.workers`` processes.

        ``pin``: in page-locked memory, from which a GPU copies while it computes.
        """
        yield from DataLoader(
            _Steps(self),
            sampler=range(first, last),
            batch_size=None,
            num_workers=self.config.workers,
            pin_memory=pin,
            worker_init_fn=_ignore_interrupt,
            generator=torch.Generator(),  # else it draws from the global state
        )


def draw_token_masks(sequences: int, tokens: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(sequences, tokens - 1) bool: exactly round(ratio * (tokens - 1)) masked in each sequence.

    The T - 1 input image tokens are masked independently for each sequence; the class is not among
    them. The same mask serves all heads and layers.
    """
    count = round(ratio * (tokens - 1))
    masked = np.zeros((sequences, tokens - 1), dtype=bool)
    if count:
        # The ranks of independent uniform numbers are a uniform permutation of each row.
        chosen = rng.random((sequences, tokens - 1)).argpartition(count - 1, axis=1)[:, :count]
        np.put_along_axis(masked, chosen, True, axis=1)
    return masked


def draw_steps(tokens: int, count: int, min_step: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` distinct steps between ``min_step`` and T (1-based), sorted; one set a batch."""
    assert min_step >= 1 and count <= tokens - min_step + 1, (tokens, count, min_step)
    return np.sort(rng.choice(np.arange(min_step, tokens + 1), size=count, replace=False))


def _expect_random_access(codes: np.ndarray) -> None:
    """Tell the system not to read ahead in a mapped file: 100 times faster until it is in memory."""
    if isinstance(codes.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        codes.base.madvise(mmap.MADV_RANDOM)


class _Steps(Dataset[TrainBatch]):
    """Step number to batch, in the form torch's DataLoader wants."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader

    def __getitem__(self, step: int) -> TrainBatch:
        return self.loader.batch(step)


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the training loop decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def plain_batches(
    store: Codes, batch_size: int, device: torch.device | str, images: range | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens_BT, labels_B) of the test view of ``images`` (default: all), in order."""
    chosen = range(len(store)) if images is None else images
    for start in range(chosen.start, chosen.stop, batch_size):
        rows = slice(start, min(start + batch_size, chosen.stop))
        codes = np.asarray(store.codes[rows, store.test_view], dtype=np.int64)
        labels = np.asarray(store.labels[rows], dtype=np.int64)
        check_rows(store, codes, labels)
        yield torch.from_numpy(codes).to(device), torch.from_numpy(labels).to(device)
