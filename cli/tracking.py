"""``--track``: copies of the metrics rows for TensorBoard or Weights & Biases. metrics.jsonl stays.

A tracker is made before anything is written, so that a missing package ends the command at once; it is
started when the run folder is known, called with each row, and closed.
"""

import importlib
import uuid
from pathlib import Path
from types import ModuleType
from typing import Protocol

from star.base.errors import UserError
from star.base.files import publish_file
from star.base.names import shown
from star.base.settings import config_to_dict
from star.training.config import TrainConfig

__all__ = ["TRACKERS", "TensorBoard", "Tracker", "WandB"]


class Tracker(Protocol):
    """What ``star train`` needs of a tracker."""

    def start(self, run: Path, config: TrainConfig, step: int) -> None:
        """Open the record of ``run``; rows beyond ``step`` are about to be made again."""

    def __call__(self, row: dict) -> None:
        """Record one row of metrics."""

    def close(self) -> None:
        """Flush and end."""


class TensorBoard:
    """Scalars into ``RUN/tensorboard``."""

    def __init__(self) -> None:
        self._module = _package("tensorboard", "torch.utils.tensorboard")

    def start(self, run: Path, config: TrainConfig, step: int) -> None:
        self._writer = self._module.SummaryWriter(run / "tensorboard", purge_step=step + 1)

    def __call__(self, row: dict) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, float(value), row["step"])
        self._writer.flush()  # a killed run has what metrics.jsonl has

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, whose id is kept in ``RUN/wandb-id.txt`` so that a resume goes on.

    Where it goes is W&B's own setting: ``WANDB_MODE=offline`` writes below the run folder only.
    """

    def __init__(self) -> None:
        self._module = _package("wandb", "wandb")

    def start(self, run: Path, config: TrainConfig, step: int) -> None:
        file = run / "wandb-id.txt"
        if not file.exists():
            with publish_file(file) as temporary:
                temporary.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
        try:
            self._run = self._module.init(
                project="star",
                id=file.read_text(encoding="utf-8").strip(),
                resume="allow",
                name=shown(run.name),
                dir=str(run),
                config=config_to_dict(config),
            )
        except self._module.Error as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"Weights & Biases did not start ({reason}); run wandb login, or set WANDB_MODE=offline"
            ) from error

    def __call__(self, row: dict) -> None:
        # Steps that W&B already has (a resume from an earlier checkpoint) it leaves as they are.
        self._run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def _package(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--track {name} needs a package that is not here: pip install {name}"
        ) from error
