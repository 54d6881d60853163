"""``star sample``: what does a model draw?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from figures.requests.shared import CheckpointRequest, Precision
from star.base.settings import option

__all__ = ["Request"]

MANY = "Many samples, for an evaluation"


@dataclass(frozen=True, kw_only=True)
class Request(CheckpointRequest):
    """Sample images class by class into one labelled grid, or --count of them for an evaluation."""

    ckpt: Path | None = option(
        None, "Checkpoint or run folder.", said="the newest run", argument="CKPT"
    )
    each: int = option(8, "Images a class.")
    label: str | None = option(
        None,
        "Classes by name or number, such as zebra or 0,1,7; null: none.",
        said="the first 10; with --count all",
        flag="--class",
    )
    cfg_scale: float = option(2.0, "Classifier-free guidance; 1 is none.")
    cfg_interval: int = option(-1, "Guidance ends after this decoded token; -1 never.")
    cfg_schedule: Literal["constant", "linear"] = option(
        "constant", "Guidance over the tokens; linear: from none to the full one."
    )
    temperature: float = option(1.0, "Divides the logits.")
    top_k: int = option(0, "Keep the k most likely tokens; 0 keeps all.")
    top_p: float = option(1.0, "Keep the smallest set with this probability; 1 keeps all.")
    greedy: bool = option(False, "Take the most likely token.", flag="--greedy")
    seed: int = option(0, "Seed of the first image; image i uses seed + i.")
    out: Path | None = option(
        None,
        "Folder for picture and codes; with --count the .npz.",
        said="RUN/samples, RUN/samples/samples-WEIGHTS-COUNT.npz",
    )
    precision: Precision | None = option(
        None, "Of the weights.", said="fp32; bf16 on GPUs that have it, as LlamaGen"
    )
    count: int | None = option(
        None, "This many samples as .npz and code store, resumable; no grid.", panel=MANY
    )
    classes: Literal["balanced", "random"] | None = option(
        None, "Classes in turn, or at random.", said="balanced", panel=MANY
    )
    batch_size: int | None = option(
        None, "Every batch is padded to it; part of the plan.", said="32", panel=MANY
    )
    images: bool = option(False, "PNG files too.", flag="--images", panel=MANY)
    nproc: int = option(1, "Processes (torchrun); each takes batches.", panel=MANY)
