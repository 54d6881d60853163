"""A run folder: ``config.json``, ``metrics.jsonl``, ``step-*.pt`` and ``ckpt.pt``, the newest of them.

A checkpoint is written under a temporary name, synced and renamed to ``step-N.pt``; then ``ckpt.pt``
becomes another name of the same file. A process killed at any moment therefore leaves only whole
checkpoints under these names, and at most a temporary file, which the next start removes.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Generic

from star.base.errors import UserError
from star.base.files import publish_file
from star.base.record import Record
from star.base.settings import Config, config_from_dict, config_to_dict, read_settings
from star.runs.checkpoint import CheckpointKind, load_checkpoint, save_checkpoint
from star.runs.metrics import METRICS, read_metrics

__all__ = ["NEWEST", "RunFolder"]

NEWEST = "ckpt.pt"


class RunFolder(Generic[Config]):
    """Checkpoints of one kind and metrics of one run; ``keep`` newest checkpoints stay (at least 2)."""

    def __init__(self, path: Path, keep: int = 2, *, kind: CheckpointKind[Config]) -> None:
        assert keep >= 2, keep
        self.path, self.keep, self.kind = path, keep, kind

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder (which must exist) while the block runs; a killed process holds nothing.

        Raises ``UserError`` if another process, or another run in this one, trains in it.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            # A file system without locks is no reason not to train.
            with contextlib.suppress(OSError):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"another process is training in {self.path}; wait, or give another --run"
                    ) from None
            yield
        finally:
            os.close(descriptor)

    def checkpoints(self) -> list[Path]:
        """``step-*.pt``, newest last."""
        return sorted(self.path.glob("step-*.pt"))

    def save(self, content: Record) -> Path:
        """Publish ``content`` as ``step-N.pt`` and ``ckpt.pt``; older ones beyond ``keep`` go.

        Raises ``UserError`` if it cannot be written (a full disk); what was there before stays.
        """
        path = self.path / f"step-{content['step']:09d}.pt"
        newest = self.path / NEWEST
        try:
            save_checkpoint(path, content, self.kind)
            with publish_file(newest) as temporary:
                _same_file(path, temporary)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            reason = str(error).splitlines()[0]
            raise UserError(
                f"cannot save the checkpoint of step {content['step']} in {self.path} ({reason}); the "
                "earlier ones are untouched: make room and resume"
            ) from error
        for old in self.checkpoints()[: -self.keep]:
            old.unlink()
        return path

    def newest_path(self) -> Path | None:
        """The newest checkpoint, or None if the folder holds none.

        A kill between the two names of a save leaves a ``step-*.pt`` newer than ``ckpt.pt``.
        """
        newest = self.path / NEWEST
        return next(reversed(self.checkpoints()), newest if newest.exists() else None)

    def newest(self, device: str = "cpu", without: Collection[str] = ()) -> tuple[Path, Record]:
        """The newest checkpoint and its content less the parts ``without``.

        Raises ``UserError`` if the folder holds none or the newest cannot be read; an older one is
        never taken silently.
        """
        path = self.newest_path()
        if path is None:
            raise UserError(f"{self.path} holds no checkpoint ({NEWEST} or step-*.pt) to go on from")
        try:
            return path, load_checkpoint(path, device, without, kind=self.kind)
        except UserError as error:
            older = [other.name for other in self.checkpoints() if other != path]
            advice = f"; delete it to go on from {older[-1]}" if older else ""
            raise UserError(f"{error}{advice}") from error

    def settings(self, without: Collection[str] = ()) -> Config:
        """Settings of the run, from its newest checkpoint.

        Raises ``UserError`` if ``config.json`` was edited since: a run goes on exactly as it was.
        """
        path, content = self.newest("meta", without)  # reads no weights
        settings, written = (
            config_from_dict(content["config"], self.kind.settings),
            self.path / "config.json",
        )
        if written.exists():
            present = config_from_dict(read_settings(written), self.kind.settings)
            edited = _differences(config_to_dict(present), config_to_dict(settings))
            if edited:
                raise UserError(
                    f"{written} is not what {path.name} was trained with: {', '.join(edited)}; a run "
                    f"goes on with its own settings: delete {written.name} (it is written anew), or "
                    f"start another run with --config {written}"
                )
        return settings

    def clean(self) -> None:
        """Remove what a killed save left behind."""
        for leftover in (*self.path.glob(".step-*.pt"), *self.path.glob(f".{Path(NEWEST).stem}.*.pt")):
            leftover.unlink()

    def append(self, row: Record) -> None:
        """Add one row to ``metrics.jsonl``."""
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def cut_metrics(self, step: int) -> None:
        """Drop rows beyond ``step``: the steps after it are about to be done again."""
        path = self.path / METRICS
        if not path.exists():
            return
        rows, _ = read_metrics(self.path)
        kept = [row for row in rows if row["step"] <= step]
        with publish_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def _same_file(source: Path, target: Path) -> None:
    """Make ``target`` another name of ``source``, or a copy where the file system has no hard links."""
    target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _differences(written: Record, own: Record, prefix: str = "") -> list[str]:
    """``name is WRITTEN, not OWN`` for every setting that differs; both hold the same settings."""
    found = []
    for key, value in own.items():
        if isinstance(value, dict):
            found += _differences(written[key], value, f"{prefix}{key}.")
        elif written[key] != value:
            found.append(f"{prefix}{key} is {written[key]!r}, not {value!r}")
    return found
