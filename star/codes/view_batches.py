"""Images decoded and cut into views ahead of the tokenizer, in threads or in worker processes.

Batches are consecutive images and come in order, the same whatever the number of workers. Threads are
enough where a CPU encodes: decoding an image of 32 pixels takes a twentieth of encoding its ten crops.
A GPU needs processes, since threads share Python's lock.
"""

import functools
import re
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from star.base.errors import UserError
from star.base.threads import usable_cores
from star.images.decode import BadImageError
from star.images.source import Split
from star.images.views import ViewSet

__all__ = ["ViewBatch", "default_workers", "view_batches"]

MOST_WORKERS = 16  # by default: beyond it the one process that encodes is what is waited for
AHEAD = 2  # batches that each worker process makes ahead
_Result = Callable[[], tuple[np.ndarray, bool]]  # gives an image's views or raises; see ``_Cutter.one``


@dataclass(kw_only=True)
class ViewBatch:
    """Views (n, views, size, size, 3) uint8 of the images ``rows``; names skipped, names of animations.

    ``error`` is the first image that cannot be used, unless such images are to be skipped.
    """

    rows: list[int] = field(default_factory=list)
    pixels: torch.Tensor | None = None
    skipped: list[str] = field(default_factory=list)
    animated: list[str] = field(default_factory=list)
    error: UserError | None = None


@dataclass(frozen=True, kw_only=True)
class _Cutter(Dataset[ViewBatch]):
    """The images of a split from place ``first`` on, ``count`` a batch, by the batch's number."""

    split: Split
    views: ViewSet
    first: int
    count: int
    skip_bad: bool
    max_megapixels: float

    def __len__(self) -> int:
        return -(-(len(self.split) - self.first) // self.count)

    def indices(self, number: int) -> range:
        start = self.first + number * self.count
        return range(start, min(start + self.count, len(self.split)))

    def one(self, index: int) -> tuple[np.ndarray, bool]:
        """Views of an image, and whether it is the first of several frames."""
        image = self.split.load(index, self.max_megapixels)
        try:
            return self.views(image, index), "frames" in image.info
        except UserError as error:
            raise BadImageError(f"{self.split.name(index)}: {error}") from error

    def collect(self, number: int, results: Iterable[_Result]) -> ViewBatch:
        """The batch of its images' ``results``, each a call that gives what ``one`` does."""
        batch, arrays = ViewBatch(), []
        for index, result in zip(self.indices(number), results, strict=True):
            name = self.split.name(index)
            try:
                views, several = result()
            except BadImageError as error:
                if not self.skip_bad:
                    return ViewBatch(error=error)
                batch.skipped.append(name)
                continue
            except UserError as error:
                return ViewBatch(error=error)
            arrays.append(views)
            batch.rows.append(index)
            if several:
                batch.animated.append(name)
        if arrays:
            batch.pixels = torch.from_numpy(np.stack(arrays))
        return batch

    def __getitem__(self, number: int) -> ViewBatch:
        return self.collect(number, (functools.partial(self.one, i) for i in self.indices(number)))


def default_workers(device: torch.device) -> int:
    """Worker processes where none are asked for: none (threads) beside a CPU that encodes."""
    return 0 if device.type == "cpu" else min(MOST_WORKERS, max(1, usable_cores() - 1))


def view_batches(
    split: Split,
    views: ViewSet,
    *,
    first: int,
    count: int,
    workers: int,
    skip_bad: bool,
    max_megapixels: float,
) -> Generator[ViewBatch, None, None]:
    """Batches of ``count`` images of ``split`` from place ``first`` on, in order.

    Raises ``BadImageError`` at an image that cannot be used unless ``skip_bad``, and ``UserError`` if a
    worker process ends.
    """
    cutter = _Cutter(
        split=split,
        views=views,
        first=first,
        count=count,
        skip_bad=skip_bad,
        max_megapixels=max_megapixels,
    )
    for batch in _in_processes(cutter, workers) if workers else _in_threads(cutter):
        if batch.error is not None:
            raise batch.error
        yield batch


def _in_threads(cutter: _Cutter) -> Iterator[ViewBatch]:
    """Threads decode the next batch while the caller works on this one."""

    def submit(number: int) -> list[_Result]:
        return [pool.submit(cutter.one, index).result for index in cutter.indices(number)]

    pool = ThreadPoolExecutor(min(8, usable_cores()))
    try:
        ahead = submit(0)
        for number in range(len(cutter)):
            results, ahead = ahead, submit(number + 1)
            yield cutter.collect(number, results)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_processes(cutter: _Cutter, workers: int) -> Iterator[ViewBatch]:
    try:
        yield from _started(cutter, workers)
    except RuntimeError as error:
        found = re.search(r"DataLoader worker.*?pid\D*(\d+(?:, \d+)*).*", str(error))
        if found is None:
            raise
        raise UserError(
            f"a process that decodes images ended by itself (pid {found[1]}; out of memory?); "
            f"try fewer than {workers} --workers"
        ) from error


def _started(cutter: _Cutter, workers: int) -> Iterator[ViewBatch]:
    with warnings.catch_warnings():
        # More workers than cores were asked for; the machine is the user's.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            cutter,
            batch_size=None,
            sampler=range(len(cutter)),
            num_workers=min(workers, len(cutter)),
            prefetch_factor=AHEAD,
            worker_init_fn=_follow_the_first_process,
            generator=torch.Generator(),  # else it draws from the global state
        )
        return iter(loader)


def _follow_the_first_process(worker: int) -> None:
    # Both may reach the whole process group. The first process ends the others, which also leave by
    # themselves within seconds once it is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _say_unless_left_alone


def _say_unless_left_alone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    # A batch on its way when the first process leaves: nobody is there to miss it.
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)
