"""What several requests have in common: the checkpoints, their data, and where files go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from star.base.settings import option

__all__ = ["CheckpointRequest", "Precision", "checkpoints", "folder"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def folder(default: str):
    """The field of the folder that files are written to."""
    return option(None, "Folder for csv, json, PNG and PDF.", said=default)


@dataclass(frozen=True, kw_only=True)
class CheckpointRequest:
    """What is asked of every checkpoint."""

    data: str | None = option(None, "Source or code stores.", said="the run's own")
    tokenizer: Path | None = option(None, "Tokenizer file.", said="the run's own")
    weights: Literal["teacher", "student"] = option("teacher", "EMA teacher or student.")
    out: Path | None = folder("RUN")  # each request names its own
    heads: int | None = option(None, "Heads of a LlamaGen checkpoint that does not say.")
    grid: int | None = option(None, "Grid of a LlamaGen checkpoint that does not say.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")


def checkpoints():
    """The field of the checkpoints that a question is asked of, compared with the first."""
    return option(
        None,
        "Checkpoints or run folders; later ones are compared with the first.",
        said="the newest run",
        argument="CKPT",
    )
