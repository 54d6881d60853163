"""The processes of ``probes.speed.contention``: each does one piece of work over and over when told to.

A process sets its environment before it imports torch, so nothing heavy is imported here.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection

__all__ = ["GO", "STOP", "WORKS", "serve"]

GO, STOP = "go", "stop"
IMAGES = 8  # of a training step, two views each
CROPS, PIXELS = 10, 32  # of a call of the tokenizer


def serve(link: Connection, environment: Mapping[str, str], work: str) -> None:
    """Work as ``link`` tells, in ``environment``, until the other end closes.

    ``GO``: until the next message. (units, seconds): so many pieces of work, or as many as begin within
    the seconds; the mean seconds of one are sent back.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    os.environ.clear()
    os.environ.update(environment)
    with contextlib.suppress(EOFError):
        unit = WORKS[work]()
        unit()  # what a library loads at its first use
        link.send(_threads(work))
        while True:
            order = link.recv()
            if order == GO:
                while not link.poll():
                    unit()
            elif order != STOP:
                link.send(_mean_seconds(unit, *order))


def _mean_seconds(unit: Callable[[], object], units: int, seconds: float) -> float:
    done, start = 0, time.perf_counter()
    while done < units and (not done or time.perf_counter() - start < seconds):
        unit()
        done += 1
    return (time.perf_counter() - start) / max(done, 1)


def _threads(work: str) -> int:
    if work == "busy":
        return 1
    import torch

    return torch.get_num_threads()


def _busy() -> Callable[[], object]:
    """One thread that computes without a pause, a millisecond at a time."""

    def unit() -> None:
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass

    return unit


def _training_step() -> Callable[[], object]:
    """A step of ST-AR of the tiny size."""
    from dataclasses import replace
    from itertools import count

    from probes.speed.step import random_store
    from star.base.device import resolve_device
    from star.training.batches import TrainLoader
    from star.training.config import preset
    from star.training.learner import Learner

    config = replace(preset("tiny"), batch_size=IMAGES)
    loader = TrainLoader(random_store(config, 4 * IMAGES), config)
    learner = Learner(config, resolve_device("cpu"))
    steps = count()
    return lambda: learner.update(loader.batch(0), next(steps))


def _tokenising() -> Callable[[], object]:
    """Ten crops through the encoder of the tokenizer that comes with the package."""
    import torch

    from star.base.randomness import torch_generator
    from star.tokenizer.file import load_tokenizer

    tokenizer = load_tokenizer()
    crops_BCHW = torch.rand(CROPS, 3, PIXELS, PIXELS, generator=torch_generator(0, "bench")) * 2 - 1
    return torch.no_grad()(lambda: tokenizer.encode(crops_BCHW))


WORKS = {"step": _training_step, "tokenize": _tokenising, "busy": _busy}
