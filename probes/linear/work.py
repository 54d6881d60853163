"""What an atlas has done so far, kept on disk so that an interrupted one goes on where it was.

Predictions of every arm that is done, and the heads of the one in training (``probes.linear.saving``),
in a folder named after the settings: other settings never meet them.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from probes.linear.predictions import Predictions
from star.base.files import publish_file, write_json
from star.parallel.processes import rank

__all__ = ["AtlasWork"]

# Facts of a run that do not decide its result.
_CHANGING = ("command", "time", "machine", "processes", "checkpoint", "seeds")


class AtlasWork:
    """What is done so far, in a folder that belongs to exactly these settings."""

    def __init__(self, folder: Path | None, info: dict) -> None:
        self._folder = folder
        if folder is None:
            return
        same = {key: value for key, value in info.items() if key not in _CHANGING}
        self._folder = folder / hashlib.sha256(json.dumps(same).encode()).hexdigest()[:12]
        if rank() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / "settings.json", same)

    def _path(self, arm: str, seed: int, ending: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{arm}-seed-{seed}.{ending}"

    def bank_file(self, arm: str, seed: int) -> Path | None:
        """Where the heads of an arm are kept while they train."""
        return None if self._folder is None else self._path(arm, seed, "pt")

    def read(self, arm: str, seed: int) -> tuple[Predictions, set[int]] | None:
        """An arm that is done, or None."""
        if self._folder is None or not self._path(arm, seed, "npz").exists():
            return None
        with np.load(self._path(arm, seed, "npz")) as file:
            names = [field.name for field in dataclasses.fields(Predictions)]
            predictions = Predictions(**{name: file[name] for name in names})
            return predictions, set(file["broken"].tolist())

    def write(self, arm: str, seed: int, predictions: Predictions, broken: set[int]) -> None:
        """Keep an arm that is done; its heads go."""
        if self._folder is None or rank() > 0:
            return
        path = self._path(arm, seed, "npz")
        with publish_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **vars(predictions), broken=np.array(sorted(broken), dtype=np.int64))
        self._path(arm, seed, "pt").unlink(missing_ok=True)
