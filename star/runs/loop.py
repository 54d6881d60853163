"""The one training loop, of models and of tokenizers: steps, rows of metrics, checkpoints, the end.

A kind of run says what a batch is, what a step does with it, what is validated and what a checkpoint
holds; everything random is a function of (seed, step), so that a run that was stopped, killed or
resumed ends as the one that ran through. The loop knows no probe and no picture: callbacks receive
each row of metrics. Of several processes each runs it, and process 0 writes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from star.base.device import peak_memory_bytes
from star.base.errors import UserError
from star.base.files import write_json
from star.base.progress import OnRow, OnStep, ShouldStop
from star.base.record import Record
from star.base.settings import config_to_dict
from star.parallel.processes import rank, wait_for_all, world_size
from star.runs.folder import RunFolder

__all__ = ["RunResult", "TrainingLoop"]


class RunSettings(Protocol):
    """What the loop reads of a run's settings, which are a dataclass; in steps."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def max_steps(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def save_every(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Where a run ended: its folder, steps done, whether it finished, and the last row of metrics."""

    run: Path
    step: int
    finished: bool
    last_row: Record


class TrainingLoop:
    """One run in one folder; ``step`` counts the steps done, whoever did them."""

    config: RunSettings
    device: torch.device

    def __init__(self, run: RunFolder[Any]) -> None:
        self.run = run
        self.step = 0
        self.saved_step = -1  # of the checkpoint in the run folder; -1: none

    def _stream(self, first: int, last: int) -> Iterator[Any]:
        """Batches of the steps ``first`` to ``last`` - 1."""
        raise NotImplementedError

    def _update(self, batch: Any, stop: bool) -> tuple[Record, bool]:
        """One step: its numbers, and whether any process wishes to ``stop`` as this one does or not."""
        raise NotImplementedError

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        raise NotImplementedError

    def _validation(self, should_stop: ShouldStop) -> dict[str, float]:
        """Numbers of held-out images; every process calls it."""
        raise NotImplementedError

    def _content(self) -> Record:
        """What a checkpoint holds besides step and settings; every process calls it."""
        raise NotImplementedError

    def save(self) -> None:
        """Publish everything that a resume needs, as the newest checkpoint."""
        content = {"step": self.step, "config": config_to_dict(self.config), **self._content()}
        if rank() == 0:
            self.run.save(content)
        self.saved_step = self.step
        wait_for_all()  # a large checkpoint may take longer than the next collective would wait

    def _go_on_from(self, step: int) -> None:
        """Stand at the checkpoint of ``step``, which has been read: drop what came after it."""
        self.step = self.saved_step = step
        if rank() == 0:
            with self.run.locked():
                self.run.clean()
                self.run.cut_metrics(step)

    def _due(self, every: int) -> bool:
        """Whether something is done at this step that is done every so often (0: never) and last."""
        return self.step == self.config.max_steps or (every > 0 and self.step % every == 0)

    def _run(self, stop_after: int | None, **options: Any) -> RunResult:
        """Train to ``max_steps``, or end early (and save) at ``stop_after``; options of ``_steps``."""
        if stop_after is not None and stop_after < 1:
            raise UserError(f"stop_after is {stop_after}; expected at least 1")
        if stop_after is not None and stop_after < self.step:
            raise UserError(f"stop_after is {stop_after}, but the run is at step {self.step} already")
        end = min(self.config.max_steps, stop_after or self.config.max_steps)
        if rank() > 0:
            return self._steps(end, **options)
        self.run.path.mkdir(parents=True, exist_ok=True)
        with self.run.locked():
            if self.step == 0:  # rows of a run that died before its first checkpoint
                self.run.cut_metrics(0)
            write_json(self.run.path / "config.json", config_to_dict(self.config))
            return self._steps(end, **options)

    def _steps(
        self,
        end: int,
        *,
        should_stop: ShouldStop,
        callbacks: Sequence[OnRow],
        on_step: OnStep,
        measures: Sequence[tuple[int, Callable[[], Record]]] = (),
    ) -> RunResult:
        """Steps up to ``end``, fewer on ``should_stop``.

        Each of ``measures``, with its n, adds its numbers to the row of every n-th step and of the
        last.
        """
        config = self.config
        row: Record = {}
        tick, ticked_step = time.perf_counter(), self.step
        for batch in self._stream(self.step, end):
            wish = should_stop()
            if wish and world_size() == 1:
                break
            numbers, stop = self._update(batch, wish)  # several processes hear of a wish there
            self.step += 1
            validates = self._due(config.validate_every)
            due = [measure for every, measure in measures if self._due(every)]
            if self.step == 1 or self._due(config.log_every) or validates or due:
                seconds = time.perf_counter() - tick
                row = {"step": self.step, **numbers, **self._speed(self.step - ticked_step, seconds)}
                row["peak_memory_bytes"] = peak_memory_bytes(self.device)
                if validates:
                    row |= self._validation(should_stop)
                for measure in due:
                    row |= measure()
                if rank() == 0:
                    self.run.append(row)
                for callback in callbacks:
                    callback(row)
                tick, ticked_step = time.perf_counter(), self.step
            if self._due(config.save_every):
                self.save()
            on_step(self.step)
            if stop:
                break
        if self.saved_step != self.step:
            self.save()
        return RunResult(
            run=self.run.path,
            step=self.step,
            finished=self.step >= config.max_steps,
            last_row=row,
        )
