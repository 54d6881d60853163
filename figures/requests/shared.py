"""What several requests have in common: the checkpoints, their data, and where files go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from star.base.settings import option

__all__ = [
    "CheckpointRequest",
    "ComparisonRequest",
    "Precision",
    "compute_device",
    "folder",
    "layers_of_features",
    "steps_of_features",
]

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def compute_device() -> Any:
    """The field of the device that computes."""
    return option("auto", "auto, cpu, cuda or cuda:N.")


def folder(default: str | Path) -> Any:
    """The field of the folder that files are written to: by default this path, or what a text says."""
    text = "Folder for csv, json, PNG and PDF."
    return option(default, text) if isinstance(default, Path) else option(None, text, said=default)


@dataclass(frozen=True, kw_only=True)
class CheckpointRequest:
    """What is asked of every checkpoint."""

    data: str | None = option(None, "Source or code stores.", said="the run's own")
    tokenizer: Path | None = option(None, "Tokenizer file.", said="the run's own")
    weights: Literal["teacher", "student"] = option("teacher", "EMA teacher or student.")
    out: Path | None = folder("RUN")  # each request names its own
    heads: int | None = option(None, "Heads of a LlamaGen checkpoint that does not say.")
    grid: int | None = option(None, "Grid of a LlamaGen checkpoint that does not say.")
    device: str = compute_device()


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest(CheckpointRequest):
    """What is asked of one checkpoint or several."""

    ckpts: list[Path] | None = option(
        None,
        "Checkpoints or run folders; later ones are compared with the first.",
        said="the newest run",
        argument="CKPT",
    )


def layers_of_features() -> Any:
    """The field of the layers whose features are read."""
    return option(
        None,
        "Layer 1 to L (output of that block), several (2,4,6), or all.",
        said="half the depth, the paper's 6 of 12",
    )


def steps_of_features() -> Any:
    """The field of the steps at which features are read."""
    return option(8, "Number of uniformly spaced steps, the last being T.")
