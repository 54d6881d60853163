"""The training loop: plain AR and ST-AR by the same code, as a function of (config, step).

The loop owns the optimiser, the teacher's updates, the metrics file and the checkpoints. It knows no
probe and no picture: callbacks receive each row of metrics.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from star.batches import TrainLoader
from star.checkpoint import load_optimizer
from star.codes import CodeStore
from star.config import TrainConfig, config_to_dict
from star.device import autocast, peak_memory_bytes, resolve_precision
from star.distributed import (
    any_process,
    distribute,
    gradients_synced,
    mean_over_processes,
    rank,
    world_size,
)
from star.dropout import Dropout
from star.errors import UserError
from star.estimate import require_training_memory
from star.files import write_json
from star.likelihood import image_nll
from star.objective import TrainBatch, compute_losses
from star.randomness import torch_generator
from star.run_folder import RunFolder
from star.student import Student
from star.teacher import Teacher
from star.transformer import build_model
from star.weights import check_weights

__all__ = ["TrainResult", "Trainer", "learning_rate"]

OnRow = Callable[[dict], None]


@dataclass
class TrainResult:
    """Where a run ended: its folder, steps done, whether it finished, and the last row of metrics."""

    run: Path
    step: int
    finished: bool
    last_row: dict = field(default_factory=dict)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step n (from 0): linear warm-up, then constant or cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """One run in one folder. ``Trainer(...)`` starts afresh, ``Trainer.resume(...)`` goes on."""

    def __init__(
        self, config: TrainConfig, stores: dict[str, CodeStore], run: Path, device: torch.device
    ):
        train = stores["train"]
        self.config = config.fitted_to(
            grid=train.grid, vocab_size=train.vocab_size, num_classes=train.num_classes
        )
        objective, model_config = self.config.objective, self.config.model
        objective.check_model(model_config)
        require_training_memory(self.config, device)
        self.stores, self.device = stores, device
        self.run = RunFolder(run, self.config.keep)
        self.loader = TrainLoader(train, self.config, rank(), world_size())
        self.precision = resolve_precision(config.precision, device)
        self.step = 0
        self.saved_step = -1  # of the checkpoint in the run folder; -1: none
        model = build_model(model_config, torch_generator(config.seed, "init"))
        self.student = Student(model, objective)
        if self.student.projector is not None:
            self.student.projector.initialize(torch_generator(config.seed, "projector"))
        self.student.to(device)
        self.teacher = Teacher(
            self.student.model, decay=objective.ema_decay, warmup=objective.ema_warmup
        )
        self.optimizer = _adamw(self.student, self.config)
        self.wrapped = distribute(self.student)

    @classmethod
    def resume(cls, run: Path, stores: dict[str, CodeStore], device: torch.device) -> "Trainer":
        """Go on from the newest checkpoint; ``UserError`` if it or any part of the state is missing."""
        settings = RunFolder(run).settings()
        path, content = RunFolder(run).newest()
        trainer = cls(settings, stores, run, device)
        trainer._check_data(content, path)
        parts: dict[str, nn.Module | None] = {
            "student": trainer.student.model,
            "teacher": trainer.teacher.model,
            "projector": trainer.student.projector,
        }
        for name, module in parts.items():
            if module is not None:
                check_weights(module, content[name] or {}, path)
                module.load_state_dict(content[name])
        load_optimizer(trainer.optimizer, content["optimizer"], path)
        trainer.teacher.updates = content["teacher_updates"]
        trainer.step = trainer.saved_step = content["step"]
        if rank() == 0:
            trainer.run.clean()
            trainer.run.cut_metrics(trainer.step)
        return trainer

    @classmethod
    def start_or_resume(
        cls, config: TrainConfig, stores: dict[str, CodeStore], run: Path, device: torch.device
    ) -> "Trainer":
        """Resume ``run`` if it holds a checkpoint of this very configuration, else start it."""
        if RunFolder(run).newest_path() is None:
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
    ) -> TrainResult:
        """Train to ``max_steps``, or end early (and save) at ``stop_after`` or on ``should_stop``.

        ``callbacks`` get each row of metrics, ``on_step`` the number of steps done.
        Raises ``UserError`` before the update if a loss term or the gradient norm is not finite.
        """
        config = self.config
        if stop_after is not None and stop_after < 1:
            raise UserError(f"stop_after is {stop_after}; expected at least 1")
        if rank() == 0:
            self.run.path.mkdir(parents=True, exist_ok=True)
            if self.step == 0:  # rows of a run that died before its first checkpoint
                self.run.cut_metrics(0)
            write_json(self.run.path / "config.json", config_to_dict(config))
        end = min(config.max_steps, stop_after or config.max_steps)
        row: dict = {}
        tick, ticked_step = time.perf_counter(), self.step
        for batch in self.loader.batches(self.step, end):
            if any_process(should_stop(), self.device):
                break
            terms, norm, lr = self._update(batch)
            self.step += 1
            log = self.step % config.log_every == 0 or self.step in (1, config.max_steps)
            validate = self.step % config.validate_every == 0 or self.step == config.max_steps
            if log or validate:
                now = time.perf_counter()
                sequences = config.batch_size * config.objective.views * (self.step - ticked_step)
                row = {
                    "step": self.step,
                    **terms,
                    "lr": lr,
                    "grad_norm": norm,
                    "sequences_per_second": round(sequences / (now - tick), 2),
                    "peak_memory_bytes": peak_memory_bytes(self.device),
                }
                if validate:
                    row |= self._validate(should_stop)
                if rank() == 0:
                    self.run.append(row)
                for callback in callbacks:
                    callback(row)
                tick, ticked_step = time.perf_counter(), self.step
            if self.step % config.save_every == 0:
                self.save()
            on_step(self.step)
        if self.saved_step != self.step:
            self.save()
        return TrainResult(self.run.path, self.step, self.step >= config.max_steps, row)

    def _update(self, batch: TrainBatch) -> tuple[dict[str, float], float, float]:
        """One optimiser step; returns loss and terms of the global batch, gradient norm and rate."""
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        parts = _to_device(batch, self.device).split(config.accumulate)
        means = torch.stack([self._backward(part, index) for index, part in enumerate(parts)]).mean(0)
        values = dict(zip([*self.terms, "loss"], means.tolist(), strict=True))
        norm = float(nn.utils.clip_grad_norm_(self.student.parameters(), config.clip or math.inf))
        if not math.isfinite(norm):
            raise self._not_finite("the gradient norm", norm)
        lr = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.teacher.update(self.student.model)
        return values, norm, lr

    def _backward(self, batch: TrainBatch, part: int) -> torch.Tensor:
        """Add the gradients of one part of the batch; returns its terms and loss over all processes.

        Raises ``UserError`` before the backward pass if one of them is not finite anywhere.
        """
        config, parts = self.config, self.config.accumulate
        # Every part of every process drops its own elements.
        dropout = Dropout(
            probability=config.dropout,
            seed=config.seed,
            step=self.step,
            rank=rank() * parts + part,
        )
        with gradients_synced(self.wrapped, part == parts - 1):
            with autocast(self.device, self.precision):
                total, terms = compute_losses(
                    self.wrapped, self.teacher, batch, config.objective, dropout
                )
            self.terms = list(terms)
            means = mean_over_processes(torch.stack([*terms.values(), total]))
            for name, value in zip([*terms, "loss"], means.tolist(), strict=True):
                if not math.isfinite(value):
                    raise self._not_finite(f"loss term {name!r}", value)
            (total / parts).backward()
        return means

    def _not_finite(self, what: str, value: float) -> UserError:
        return UserError(
            f"{what} is {value} at step {self.step + 1}; stopped before the update, the last saved "
            f"checkpoint in {self.run.path} is untouched (try a lower --lr)"
        )

    def _validate(self, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Validation NLL of teacher and student; nothing without a split or on a request to stop."""
        if "val" not in self.stores:
            return {}
        values = {}
        for name, model in (("val_nll", self.teacher.model), ("val_nll_student", self.student.model)):
            store = self.stores["val"]
            share = -(-len(store) // world_size())
            mine = range(rank() * share, min((rank() + 1) * share, len(store)))
            nll = image_nll(
                model, store, images=mine, precision=self.precision, should_stop=should_stop
            )
            sums = torch.tensor([nll.sum(), len(nll)], dtype=torch.float64, device=self.device)
            total, count = (mean_over_processes(sums) * world_size()).tolist()
            if round(count) < len(store):
                return {}
            values[name] = total / count
        return values

    def save(self) -> None:
        """Publish everything a resume, a probe or a sampler needs; rank 0 writes."""
        self.saved_step = self.step
        if rank() > 0:
            return
        train = self.stores["train"]
        self.run.save(
            {
                "step": self.step,
                "config": config_to_dict(self.config),
                "student": self.student.model.state_dict(),
                "teacher": self.teacher.model.state_dict(),
                "teacher_updates": self.teacher.updates,
                "projector": self.student.projector and self.student.projector.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "tokenizer": {
                    "sha256": train.tokenizer_sha256,
                    "name": train.manifest.get("tokenizer_name"),
                },
                "class_names": list(train.class_names),
                "data": {name: store.manifest["sha256"] for name, store in self.stores.items()},
            }
        )

    def _check_data(self, content: dict, path: Path) -> None:
        for name, store in self.stores.items():
            if content["data"].get(name) != store.manifest["sha256"]:
                raise UserError(
                    f"{path} was trained on other codes than {store.path} ({name} split); "
                    "give the original --data"
                )


def _adamw(student: Student, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on tensors of two or more dimensions only (LlamaGen)."""
    decayed = [p for p in student.parameters() if p.ndim >= 2]
    others = [p for p in student.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def _to_device(batch: TrainBatch, device: torch.device) -> TrainBatch:
    moved = {name: value.to(device, non_blocking=True) for name, value in vars(batch).items()}
    return TrainBatch(**moved)
