"""A training run of a model: plain AR and ST-AR by the same code, as a function of (config, step).

The loop is ``star.runs.loop``, one optimiser step ``star.training.learner``; here are the data,
validation, and what a checkpoint holds.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import torch

from star.base.device import deterministic
from star.base.errors import UserError
from star.base.progress import OnRow, OnStep, ShouldStop, never, nothing
from star.base.record import Record
from star.codes.store import CodeStore
from star.model.transformer import Transformer, build_model
from star.parallel.processes import (
    alone,
    any_process,
    mean_over_processes,
    rank,
    wait_for_all,
    world_size,
)
from star.parallel.sharding import is_sharded, whole
from star.runs.folder import RunFolder
from star.runs.loop import RunResult, TrainingLoop
from star.training.batches import TrainBatch, TrainLoader
from star.training.checkpoint import MODEL_RUN
from star.training.config import TrainConfig
from star.training.estimate import require_training_memory
from star.training.learner import Learner
from star.training.likelihood import image_nll
from star.training.own_data import data_record

__all__ = ["Trainer"]


class Trainer(TrainingLoop):
    """One run in one folder. ``Trainer(...)`` starts afresh, ``Trainer.resume(...)`` goes on."""

    config: TrainConfig

    def __init__(
        self, config: TrainConfig, stores: dict[str, CodeStore], run: Path, device: torch.device
    ):
        train = stores["train"]
        self.config = config.fitted_to(
            grid=train.grid, vocab_size=train.vocab_size, num_classes=train.num_classes
        )
        require_training_memory(self.config, device, world_size())
        super().__init__(RunFolder(run, self.config.keep, kind=MODEL_RUN))
        self.stores, self.device = stores, device
        self.loader = TrainLoader(train, self.config, rank(), world_size())
        self.learner = Learner(self.config, device)

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
        trainer._go_on_from(content["step"])
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
        should_stop: ShouldStop = never,
        callbacks: Sequence[OnRow] = (),
        on_step: OnStep = nothing,
        diagnose: Callable[["Trainer"], Record] | None = None,
        sample: Callable[[str, Transformer], Record] | None = None,
    ) -> RunResult:
        """Train to ``max_steps``, or end early (and save) at ``stop_after`` or on ``should_stop``.

        ``callbacks`` get each row of metrics, ``on_step`` the number of steps done. ``diagnose`` adds
        its numbers to the row of every ``diagnose_every``-th step and of the last: it must change
        nothing, and every process calls it, each as if it were alone. ``sample`` does the same every
        ``sample_every`` steps, but only process 0 calls it: with ``teacher``, then ``student``, and the
        model of that name, whole (under sharding a copy on the CPU), while the others wait.
        Raises ``UserError`` before the update if a loss term or the gradient norm is not finite.
        """
        measures: list[tuple[int, Callable[[], Record]]] = []
        if diagnose is not None and self.config.diagnose_every:
            diagnosis = functools.partial(self._diagnosis, diagnose)
            measures.append((self.config.diagnose_every, diagnosis))
        if sample is not None and self.config.sample_every:
            measures.append((self.config.sample_every, functools.partial(self._samples, sample)))
        return self._run(
            stop_after,
            should_stop=should_stop,
            callbacks=callbacks,
            on_step=on_step,
            measures=measures,
        )

    def _diagnosis(self, diagnose: Callable[["Trainer"], Record]) -> Record:
        # Other shapes than training: not worth compiling.
        with alone(), torch.compiler.set_stance("force_eager"):
            return diagnose(self)

    def _samples(self, sample: Callable[[str, Transformer], Record]) -> Record:
        """What ``sample`` says of teacher and student; nothing in other processes than the first."""
        found: Record = {}
        models = {"teacher": self.learner.teacher.model, "student": self.learner.student.model}
        for name, model in models.items():
            drawn_by = _whole(model)  # all processes take part
            if drawn_by is not None:
                with alone(), torch.compiler.set_stance("force_eager"):
                    found |= sample(name, drawn_by)
            wait_for_all()  # longer than the next collective would
        return found

    def _stream(self, first: int, last: int) -> Iterator[TrainBatch]:
        return self.loader.batches(first, last, pin=self.device.type == "cuda")

    def _update(self, batch: TrainBatch, stop: bool) -> tuple[Record, bool]:
        with deterministic(self.config.deterministic):
            update = self.learner.update(batch, self.step, stop=stop)
        return update.row(), update.stop

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        sequences = self.config.batch_size * self.config.objective.views * steps
        return {"sequences_per_second": round(sequences / seconds, 2)}

    def _validation(self, should_stop: ShouldStop) -> dict[str, float]:
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

    def _content(self) -> Record:
        """All that a resume, a probe or a sampler needs."""
        train = self.stores["train"]
        return {
            **self.learner.state_dict(),
            "tokenizer": {
                "sha256": train.tokenizer_sha256,
                "name": train.manifest.get("tokenizer_name"),
            },
            "class_names": list(train.class_names),
            "data": data_record(self.stores),
        }

    def _check_data(self, content: Record, path: Path) -> None:
        for name, store in self.stores.items():
            own = content["data"].get(name)
            hashes = store.manifest["sha256"]
            if not isinstance(own, dict) or any(own.get(key) != hashes[key] for key in hashes):
                raise UserError(
                    f"{path} was trained on other codes than {store.path} ({name} split); a run goes "
                    "on with its own alone: bring them back, or train another run"
                )


def _whole(model: Transformer) -> Transformer | None:
    """``model``, or of a sharded one a copy on the CPU; None in other processes than the first."""
    config, state = model.config, model.state_dict
    if not is_sharded(model):
        return model if rank() == 0 else None
    weights = whole(state())
    if rank() > 0:
        return None
    assert isinstance(weights, dict)
    copy = build_model(config)
    copy.load_state_dict(weights)
    return copy.requires_grad_(False)
