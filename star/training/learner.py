"""One optimiser step of plain AR or ST-AR: student, EMA teacher, AdamW, precision and processes.

``Learner.update`` computes the losses of one batch, averages the gradients over the processes, stops
on anything that is not finite, and moves student and teacher. The loop around it (data, logging,
validation, checkpoints) is ``star.training.trainer``.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from star.base.device import autocast, keep_freed_memory, resolve_precision
from star.base.errors import UserError
from star.base.loss_scale import LossScale
from star.base.randomness import torch_generator
from star.base.record import Record
from star.base.weights import check_weights, load_optimizer
from star.model.dropout import Dropout
from star.parallel.processes import distribute, gradients_synced, mean_over_processes, rank, world_size
from star.parallel.sharding import gathered, local, shard, to_sharded, whole
from star.runs.schedule import learning_rate
from star.training.batches import TrainBatch
from star.training.checkpoint import initial_model
from star.training.config import TrainConfig
from star.training.objective import compute_losses
from star.training.student import Student
from star.training.teacher import Teacher

__all__ = ["Learner", "Update"]


@dataclass(frozen=True)
class Update:
    """What one step did.

    ``losses`` of the global batch by name, learning rate, gradient norm before clipping (None where
    float16 overflowed and nothing was changed), the loss scale of the steps to come (float16 only), and
    whether any process asked to stop.
    """

    losses: dict[str, float]
    lr: float
    grad_norm: float | None
    loss_scale: float | None
    stop: bool

    def row(self) -> dict[str, float]:
        """The numbers there are, as a row of metrics names them."""
        named = {"lr": self.lr, "grad_norm": self.grad_norm, "loss_scale": self.loss_scale}
        return self.losses | {name: value for name, value in named.items() if value is not None}


class Learner:
    """Everything that an optimiser step reads and changes, initialised from ``config.seed``."""

    def __init__(self, config: TrainConfig, device: torch.device):
        objective = config.objective
        objective.check_model(config.model)
        keep_freed_memory(device)
        self.config, self.device = config, device
        self.precision = resolve_precision(config.precision, device)
        self.loss_scale = LossScale(enabled=self.precision is torch.float16)
        model = initial_model(config)
        self.student = Student(model, objective, recompute=config.checkpoint_activations)
        if self.student.projector is not None:
            self.student.projector.initialize(torch_generator(config.seed, "projector"))
        self.student.to(device)
        self.teacher = Teacher(
            self.student.model, decay=objective.ema_decay, warmup=objective.ema_warmup
        )
        if config.compile:
            for block in (*self.student.model.layers, *self.teacher.model.layers):
                block.compile()
        if config.shard and world_size() > 1:
            # The model is a unit of its own: validation calls it without the projector.
            # bfloat16 has float32's range: gradients need no scale on their way.
            half = self.precision if self.precision is torch.bfloat16 else torch.float32
            shard(*self.student.model.layers, device=device, gathered_in=half)
            shard(self.student.model, self.student, device=device)
            shard(*self.teacher.model.layers, device=device, gathered_in=half)
            shard(self.teacher.model, device=device)
            self.wrapped: nn.Module = self.student
        else:
            self.wrapped = distribute(self.student)
        self.optimizer = _adamw(self.student, config)

    def update(self, batch: TrainBatch, step: int, stop: bool = False) -> Update:
        """One optimiser step on this process's share of the batch of ``step`` (from 0).

        ``stop`` is this process's wish to end; the others hear of it together with the losses. Raises
        ``UserError`` before anything is changed if a loss term or the gradient norm is not finite
        anywhere. In float16 a norm that is not finite lowers the loss scale instead, and the step
        changes nothing.
        """
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        parts = _to_device(batch, self.device).split(config.accumulate)
        terms = [self._backward(part, step, n) for n, part in enumerate(parts)]
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        self.loss_scale.unscale([local(gradient) for gradient in gradients])
        whole = gathered(nn.utils.clip_grad_norm_(self.student.parameters(), config.clip or math.inf))
        losses, norm, stop = self._read(terms, whole, stop, step)
        lr, scaled = learning_rate(config, step), self.loss_scale.enabled
        finite = math.isfinite(norm)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.teacher.update(self.student.model)
        elif not self.loss_scale.can_fall:
            raise _not_finite("the gradient norm", norm, step)
        self.loss_scale.update(finite)
        return Update(
            losses=losses,
            lr=lr,
            grad_norm=norm if finite else None,
            loss_scale=self.loss_scale.value if scaled else None,
            stop=stop,
        )

    def _backward(self, batch: TrainBatch, step: int, part: int) -> dict[str, torch.Tensor]:
        """Add the gradients of one part of the batch; returns its terms and loss, on the device."""
        config, parts = self.config, self.config.accumulate
        # Every part of every process drops its own elements.
        dropout = Dropout(
            probability=config.dropout, seed=config.seed, step=step, rank=rank() * parts + part
        )
        with gradients_synced(self.wrapped, part == parts - 1):
            with autocast(self.device, self.precision):
                total, terms = compute_losses(
                    self.wrapped, self.teacher, batch, config.objective, dropout
                )
            (total * (self.loss_scale.value / parts)).backward()
        return {name: value.detach() for name, value in terms.items()} | {"loss": total.detach()}

    def _read(
        self, terms: list[dict[str, torch.Tensor]], norm: torch.Tensor, stop: bool, step: int
    ) -> tuple[dict[str, float], float, bool]:
        """Losses of the global batch, the norm, and whether any process wants to stop.

        The only moment of a step at which the device is waited for. Raises ``UserError`` for a term
        that is not finite, in any part or process.
        """
        of_parts = torch.stack([torch.stack(list(part.values())) for part in terms])
        wish = of_parts.new_full((1,), float(stop))
        means = mean_over_processes(torch.cat([of_parts.mean(0), wish]))
        *values, wishes, norm_value = torch.cat([means, norm.to(means)[None]]).tolist()
        losses = dict(zip(terms[0], values, strict=True))
        for name, value in losses.items():
            if not math.isfinite(value):
                what = "the loss" if name == "loss" else f"loss term {name!r}"
                raise _not_finite(what, value, step)
        return losses, norm_value, wishes > 0

    def parts(self) -> dict[str, nn.Module]:
        """The modules whose weights a checkpoint holds, by their names in it."""
        found = {
            "student": self.student.model,
            "teacher": self.teacher.model,
            "projector": self.student.projector,
        }
        return {name: module for name, module in found.items() if module is not None}

    def state_dict(self) -> Record:
        """Everything that changes, as whole tensors.

        Under sharding all processes must call it, and only process 0 gets the tensors.
        """
        return {
            "projector": None,
            **{name: whole(module.state_dict()) for name, module in self.parts().items()},
            "optimizer": whole(self.optimizer.state_dict()),
            "teacher_updates": self.teacher.updates,
            "loss_scale": self.loss_scale.state_dict(),
        }

    def load_state_dict(self, state: Record, path: Path, without: Collection[str] = ()) -> None:
        """Take over what ``state_dict`` gave, whatever the number of processes was.

        ``path`` is the file that it came from, named by a ``UserError`` where a part does not fit.
        Parts ``without`` (of ``star.training.checkpoint.DISPENSABLE``) start anew: a teacher as a copy
        of the student.
        """
        for name, module in self.parts().items():
            if name not in without:
                check_weights(module, state[name] or {}, path)
                module.load_state_dict(to_sharded(state[name], module.state_dict()))
        if "teacher" in without:
            self.teacher.model.load_state_dict(self.student.model.state_dict())
        else:
            self.teacher.updates = state["teacher_updates"]
        if "optimizer" not in without:
            _load_optimizer(self.optimizer, state["optimizer"], path)
        self.loss_scale.load_state_dict(state.get("loss_scale"))


def _adamw(student: Student, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on tensors of two or more dimensions only (LlamaGen)."""
    decayed = [p for p in student.parameters() if p.ndim >= 2]
    others = [p for p in student.parameters() if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Record, path: Path) -> None:
    """Take over ``state``; ``UserError`` unless it holds finite moments of these very parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        moments = {
            index: to_sharded(values, dict.fromkeys(values, parameters[index]))
            for index, values in state["state"].items()
        }
        load_optimizer(optimizer, {**state, "state": moments})
        for parameter in parameters:
            for value in optimizer.state[parameter].values():
                fits = value.ndim == 0 or value.shape == parameter.shape
                if not (fits and torch.isfinite(local(value)).all()):
                    raise ValueError("a moment of another shape or not finite")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken: its optimizer is not this model's ({error})") from error


def _to_device(batch: TrainBatch, device: torch.device) -> TrainBatch:
    moved = {name: value.to(device, non_blocking=True) for name, value in vars(batch).items()}
    return TrainBatch(**moved)


def _not_finite(what: str, value: float, step: int) -> UserError:
    return UserError(
        f"{what} is {value} at step {step + 1}; stopped before the update, the last saved "
        "checkpoint is untouched (try a lower --lr)"
    )
