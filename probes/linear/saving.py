"""Heads in training, kept on disk so that an interrupted probe goes on at its last whole epoch."""

import time
from pathlib import Path

import torch

from probes.linear.mae import HeadBank
from star.base.errors import UserError
from star.base.files import publish_file
from star.base.torch_files import load_torch_file
from star.parallel.processes import rank

__all__ = ["BankFile"]

SECONDS = 30.0  # between two saves


class BankFile:
    """Saves a bank under ``path`` (None: nowhere) every half minute, by process 0."""

    def __init__(self, path: Path | None, epochs: int) -> None:
        self._path, self._epochs = path, epochs
        self._saved = time.monotonic()

    def load(self, bank: HeadBank) -> int:
        """Fill ``bank`` from the file if there is one; returns the epochs that are done."""
        if self._path is None or not self._path.exists():
            return 0
        content = load_torch_file(self._path)
        try:
            bank.load(content["bank"])
            return int(content["epoch"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{self._path} is broken ({error}); delete it and start again") from error

    def save(self, bank: HeadBank, epoch: int) -> None:
        """Keep ``bank`` after ``epoch`` epochs, unless it was kept a moment ago."""
        if self._path is None or rank() > 0 or epoch == self._epochs:
            return
        if time.monotonic() - self._saved < SECONDS:
            return
        with publish_file(self._path) as temporary:
            torch.save({"bank": bank.state(), "epoch": epoch}, temporary)
        self._saved = time.monotonic()
