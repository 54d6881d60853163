"""The training loop: plain AR and ST-AR by the same code, as a function of (config, step).

The loop owns the order of the batches, the metrics file, validation and the checkpoints; one optimiser
step is ``star.training.learner``. It knows no probe and no picture: callbacks receive each row of
metrics.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from star.base.device import deterministic, peak_memory_bytes
from star.base.errors import UserError
from star.base.files import write_json
from star.base.settings import config_to_dict
from star.codes.store import CodeStore
from star.parallel.processes import (
    alone,
    any_process,
    mean_over_processes,
    rank,
    wait_for_all,
    world_size,
)
from star.runs.folder import RunFolder
from star.training.batches import TrainLoader
from star.training.checkpoint import MODEL_RUN
from star.training.config import TrainConfig
from star.training.estimate import require_training_memory
from star.training.learner import Learner
from star.training.likelihood import image_nll
from star.training.own_data import data_record

__all__ = ["TrainResult", "Trainer"]

OnRow = Callable[[dict], None]


@dataclass
class TrainResult:
    """Where a run ended: its folder, steps done, whether it finished, and the last row of metrics."""

    run: Path
    step: int
    finished: bool
    last_row: dict = field(default_factory=dict)


class Trainer:
    """One run in one folder. ``Trainer(...)`` starts afresh, ``Trainer.resume(...)`` goes on."""

    def __init__(
        self, config: TrainConfig, stores: dict[str, CodeStore], run: Path, device: torch.device
    ):
        train = stores["train"]
        self.config = config.fitted_to(
            grid=train.grid, vocab_size=train.vocab_size, num_classes=train.num_classes
        )
        require_training_memory(self.config, device, world_size())
        self.stores, self.device = stores, device
        self.run = RunFolder(run, self.config.keep, kind=MODEL_RUN)
        self.loader = TrainLoader(train, self.config, rank(), world_size())
        self.learner = Learner(self.config, device)
        self.step = 0
        self.saved_step = -1  # of the checkpoint in the run folder; -1: none

    @classmethod
    def resume(
        cls,
        run: Path,
        stores: dict[str, CodeStore],
        device: torch.device,
        without: Collection[str] = (),
    ) -> "Trainer":
        """Go on from the newest checkpoint.

        Raises ``UserError`` if it or any part of its state is missing or unreadable, other than the
        parts ``without`` (of ``star.training.checkpoint.DISPENSABLE``), which start anew.
        """
        settings = RunFolder(run, kind=MODEL_RUN).settings(without)
        path, content = RunFolder(run, kind=MODEL_RUN).newest(without=without)
        trainer = cls(settings, stores, run, device)
        trainer._check_data(content, path)
        trainer.learner.load_state_dict(content, path, without)
        trainer.step = trainer.saved_step = content["step"]
        if rank() == 0:
            with trainer.run.locked():
                trainer.run.clean()
                trainer.run.cut_metrics(trainer.step)
        return trainer

    @classmethod
    def start_or_resume(
        cls, config: TrainConfig, stores: dict[str, CodeStore], run: Path, device: torch.device
    ) -> "Trainer":
        """Resume ``run`` if it holds a checkpoint of this very configuration, else start it."""
        if RunFolder(run, kind=MODEL_RUN).newest_path() is None:
            return cls(config, stores, run, device)
        trainer = cls.resume(run, stores, device)
        model = trainer.config.model
        expected = config.fitted_to(
            grid=model.grid, vocab_size=model.vocab_size, num_classes=model.num_classes
        )
        if trainer.config != expected:
            raise UserError(f"{run} was trained with other settings; use another folder or delete it")
        return trainer

    def fit(
        self,
        *,
        stop_after: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        callbacks: Sequence[OnRow] = (),
        on_step: Callable[[int], None] = lambda step: None,
        diagnose: Callable[["Trainer"], dict] | None = None,
    ) -> TrainResult:
        """Train to ``max_steps``, or end early (and save) at ``stop_after`` or on ``should_stop``.

        ``callbacks`` get each row of metrics, ``on_step`` the number of steps done. ``diagnose`` adds
        its numbers to the row of every ``diagnose_every``-th step and of the last: it must change
        nothing, and every process calls it, each as if it were alone.
        Raises ``UserError`` before the update if a loss term or the gradient norm is not finite.
        """
        if stop_after is not None and stop_after < 1:
            raise UserError(f"stop_after is {stop_after}; expected at least 1")
        if stop_after is not None and stop_after < self.step:
            raise UserError(f"stop_after is {stop_after}, but the run is at step {self.step} already")
        if rank() > 0:
            return self._loop(stop_after, should_stop, callbacks, on_step, diagnose)
        self.run.path.mkdir(parents=True, exist_ok=True)
        with self.run.locked():
            if self.step == 0:  # rows of a run that died before its first checkpoint
                self.run.cut_metrics(0)
            write_json(self.run.path / "config.json", config_to_dict(self.config))
            return self._loop(stop_after, should_stop, callbacks, on_step, diagnose)

    def _loop(
        self,
        stop_after: int | None,
        should_stop: Callable[[], bool],
        callbacks: Sequence[OnRow],
        on_step: Callable[[int], None],
        diagnose: Callable[["Trainer"], dict] | None,
    ) -> TrainResult:
        config = self.config
        end = min(config.max_steps, stop_after or config.max_steps)
        row: dict = {}
        tick, ticked_step = time.perf_counter(), self.step
        for batch in self.loader.batches(self.step, end, pin=self.device.type == "cuda"):
            wish = should_stop()
            if wish and world_size() == 1:
                break
            with deterministic(config.deterministic):
                update = self.learner.update(batch, self.step, stop=wish)  # several hear of it there
            self.step += 1
            log = self.step % config.log_every == 0 or self.step in (1, config.max_steps)
            validate = self.step % config.validate_every == 0 or self.step == config.max_steps
            measure = diagnose is not None and self._diagnoses_now()
            if log or validate or measure:
                now = time.perf_counter()
                sequences = config.batch_size * config.objective.views * (self.step - ticked_step)
                row = {
                    "step": self.step,
                    **update.row(),
                    "sequences_per_second": round(sequences / (now - tick), 2),
                    "peak_memory_bytes": peak_memory_bytes(self.device),
                }
                if validate:
                    row |= self._validate(should_stop)
                if measure:
                    # Other shapes than training: not worth compiling.
                    with alone(), torch.compiler.set_stance("force_eager"):
                        row |= diagnose(self)
                if rank() == 0:
                    self.run.append(row)
                for callback in callbacks:
                    callback(row)
                tick, ticked_step = time.perf_counter(), self.step
            if self.step % config.save_every == 0:
                self.save()
            on_step(self.step)
            if update.stop:
                break
        if self.saved_step != self.step:
            self.save()
        return TrainResult(self.run.path, self.step, self.step >= config.max_steps, row)

    def _diagnoses_now(self) -> bool:
        every = self.config.diagnose_every
        return every > 0 and (self.step % every == 0 or self.step == self.config.max_steps)

    def _validate(self, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Validation NLL of teacher and student; nothing without a split or on a request to stop."""
        if "val" not in self.stores:
            return {}
        store, learner = self.stores["val"], self.learner
        # All processes see equally many images (under sharding they compute together): the last ones
        # begin earlier and leave out what others have counted.
        share = -(-len(store) // world_size())
        begin = min(rank() * share, len(store) - share)
        counted = rank() * share - begin
        models = {"val_nll": learner.teacher.model, "val_nll_student": learner.student.model}
        values = {}
        for name, model in models.items():
            with torch.compiler.set_stance("force_eager"):  # other shapes than training: not worth it
                nll = image_nll(
                    model,
                    store,
                    images=range(begin, begin + share),
                    precision=learner.precision,
                    should_stop=lambda: any_process(should_stop(), self.device),
                )
            if len(nll) < share:
                return {}
            mine = torch.tensor([nll[counted:].sum()], dtype=torch.float64, device=self.device)
            values[name] = float(mean_over_processes(mine)) * world_size() / len(store)
        return values

    def save(self) -> None:
        """Publish everything a resume, a probe or a sampler needs; rank 0 writes."""
        self.saved_step = self.step
        state = self.learner.state_dict()
        if rank() == 0:
            self._write(state)
        wait_for_all()  # a large checkpoint may take longer than the next collective would wait

    def _write(self, state: dict) -> None:
        train = self.stores["train"]
        self.run.save(
            {
                "step": self.step,
                "config": config_to_dict(self.config),
                **state,
                "tokenizer": {
                    "sha256": train.tokenizer_sha256,
                    "name": train.manifest.get("tokenizer_name"),
                },
                "class_names": list(train.class_names),
                "data": data_record(self.stores),
            }
        )

    def _check_data(self, content: dict, path: Path) -> None:
        for name, store in self.stores.items():
            own = content["data"].get(name)
            hashes = store.manifest["sha256"]
            if not isinstance(own, dict) or any(own.get(key) != hashes[key] for key in hashes):
                raise UserError(
                    f"{path} was trained on other codes than {store.path} ({name} split); a run goes "
                    "on with its own alone: bring them back, or train another run"
                )
