"""From images to code stores: every view of every image through the tokenizer, one store a split.

Train gets all views, val and test the test view (or all, by ``eval_views="all"``). Everything is
written to ``OUT.partial/`` and appears under its name by one rename. A killed run goes on where it was:
what is there is used only if images, tokenizer, views and size are the same.
"""

import contextlib
import dataclasses
import functools
import json
import os
import platform
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from star.base.device import autocast, exact_float32, resolve_device, resolve_precision
from star.base.errors import UserError, require_choice
from star.base.files import remove_folder
from star.base.progress import Message, Progress, StageProgress, nothing
from star.base.record import Record
from star.codes.imagenet import imagenet_warning
from star.codes.store import CodeStore, StoreWriter, open_splits
from star.codes.view_batches import default_workers, view_batches
from star.codes.work import kept_if_useful, prepare_work, publish_work, reuse_stores
from star.images.decode import MAX_MEGAPIXELS, require_megapixels
from star.images.left_out import left_out_line
from star.images.source import ImageSource, Split
from star.images.views import ViewSet, to_model_range, view_set
from star.tokenizer.model import VQModel

__all__ = ["TokenizeOptions", "tokenize"]

# A CPU is fastest where activations stay below what the C library maps anew each time (32 MB); a GPU
# needs enough of them to be busy. Bytes of the widest activation of one tokenizer call.
_CALL_BYTES = {"cpu": 8 << 20, "cuda": 1 << 30}
_CALLS = 16  # tokenizer calls between two notes of progress, where the batch size is ours to choose
_MOST_VIEWS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    batch_size: int | None
    skip_bad: bool
    max_megapixels: float
    workers: int
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        require_megapixels(self.max_megapixels)
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; expected at least 1")
        if not 0 <= self.workers <= 1000:
            raise UserError(f"workers is {self.workers}; expected 0 (threads) to 1000 processes")

    def per_call(self, tokenizer: VQModel, size: int) -> int:
        """Views of one tokenizer call."""
        if self.batch_size is not None:
            return self.batch_size
        widest = 4 * getattr(tokenizer.config, "channels", 128) * size**2
        most = _CALL_BYTES["cpu" if self.device.type == "cpu" else "cuda"]
        return min(max(1, most // widest), _MOST_VIEWS)

    def per_batch(self, per_call: int, views: int) -> int:
        """Images between two notes of progress."""
        if self.batch_size is None:
            per_call = min(_CALLS * per_call, _MOST_VIEWS)
        return max(1, per_call // views)


class TokenizeOptions(TypedDict, total=False):
    """Options of ``tokenize`` that others pass on."""

    size: int | None
    views: str | None
    eval_views: str
    batch_size: int | None
    workers: int | None
    skip_bad: bool
    max_megapixels: float
    seed: int
    device: str
    precision: str


def tokenize(
    source: ImageSource,
    tokenizer: VQModel,
    out: str | Path,
    *,
    size: int | None = None,
    views: str | None = None,
    eval_views: str = "test",
    batch_size: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "fp32",
    tokenizer_hash: str | None = None,
    on_progress: StageProgress = nothing,
    on_message: Message = nothing,
) -> dict[str, CodeStore]:
    """Write the code stores of all splits of ``source`` to the folder ``out`` and open them.

    ``size`` is the side of a view in pixels (default: the source's own, rounded down to a multiple of
    the tokenizer's stride); ``views`` a name of ``star.images.views`` (default: the source's);
    ``batch_size`` counts views a tokenizer call (default: by device and size); ``workers`` processes
    decode images (0: threads of this one; default: those beside a CPU that encodes, else processes by
    the cores); ``device`` and ``precision`` are names of ``star.base.device``.
    ``tokenizer`` (moved to the device) has ``encode(images_BCHW) -> indices_Bgg``, ``name``,
    ``config.codebook_size`` and ``config.stride``; ``tokenizer_hash`` is its identity (default:
    ``star.tokenizer.file.tokenizer_sha256``). ``on_progress(split, done, total)`` counts images after
    each batch, ``on_message`` gets a sentence when work is resumed, reused or thrown away, and on what
    of the source is left out.

    If ``out`` holds the stores that this call would write, they are opened and returned. Raises
    ``UserError`` if it holds anything else, for options that do not fit, and (``BadImageError``) at an
    image that cannot be read or has more than ``max_megapixels``, unless ``skip_bad``: then its name
    goes to the manifest. The arrays do not depend on ``workers``.
    """
    require_choice("eval_views", eval_views, ("test", "all"))
    where = resolve_device(device)
    options = _Options(
        batch_size=batch_size,
        skip_bad=skip_bad,
        max_megapixels=max_megapixels,
        workers=default_workers(where) if workers is None else workers,
        device=where,
        dtype=resolve_precision(precision, where),
    )
    size = _size(source, tokenizer, size)
    every = view_set(views or source.default_views, size, seed=seed)
    view_sets = dict.fromkeys(source.splits, every if eval_views == "all" else every.test_only())
    view_sets["train"] = every
    if tokenizer_hash is None:
        from star.tokenizer.file import tokenizer_sha256

        tokenizer_hash = tokenizer_sha256(tokenizer)
    plan = {
        split: _facts(source, split, tokenizer, tokenizer_hash, view_sets[split], options.dtype)
        for split in source.splits
    }
    plan = json.loads(json.dumps(plan))  # as it will be read back

    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return reuse_stores(out, plan, on_message)
    said = (left_out_line(source.name, source.left_out), imagenet_warning(source.class_names))
    for line in (*source.notes, *said):
        if line:
            on_message(line)
    partial = out.with_name(out.name + ".partial")
    prepare_work(partial, plan, on_message)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.to(where)
    with kept_if_useful(partial):
        for split, facts in plan.items():
            images, cut = source.splits[split], view_sets[split]
            report = functools.partial(on_progress, split)
            _write_split(partial / split, images, facts, cut, tokenizer, options, report)
    publish_work(partial, out)
    return open_splits(out)


def _size(source: ImageSource, tokenizer: VQModel, size: int | None) -> int:
    stride = tokenizer.config.stride
    if size is None:
        size = source.native_size // stride * stride
        if size == 0:
            raise UserError(
                f"{source.name} has images of {source.native_size} pixels, smaller than one token "
                f"({stride} pixels); give a --size that is a multiple of {stride}"
            )
    if size < 1 or size % stride:
        raise UserError(f"size is {size}; expected a multiple of the tokenizer's stride {stride}")
    return size


def _facts(
    source: ImageSource,
    split: str,
    tokenizer: VQModel,
    tokenizer_hash: str,
    views: ViewSet,
    dtype: torch.dtype,
) -> Record:
    """What the manifest of a split says before any work."""
    vocab_size = tokenizer.config.codebook_size
    if vocab_size > 1 << 16:
        raise UserError(f"the codebook has {vocab_size} entries; code stores hold at most 65536")
    if len(source.splits[split]) == 0:
        raise UserError(f"the {split} split of {source.name} has no images")
    return {
        "split": split,
        "grid": views.size // tokenizer.config.stride,
        "vocab_size": vocab_size,
        "tokenizer_name": tokenizer.name,
        "tokenizer_sha256": tokenizer_hash,
        "precision": str(dtype).removeprefix("torch."),
        "view_set": views.describe(),
        "view_names": views.view_names,
        "test_view": views.test_view,
        "class_names": source.class_names,
        "source": {
            "name": source.name,
            "notes": source.notes,
            "left_out": source.left_out,
            "images": len(source.splits[split]),
            "fingerprint": source.splits[split].fingerprint(),
            **({"label_column": source.label_column} if source.label_column else {}),
        },
    }


def _write_split(
    folder: Path,
    split: Split,
    facts: Record,
    views: ViewSet,
    tokenizer: VQModel,
    options: _Options,
    report: Progress,
) -> None:
    total = len(split)
    if (folder / "manifest.json").is_file():
        report(total, total)
        return
    writer = StoreWriter(folder, images=total, views=len(views), tokens=facts["grid"] ** 2)
    per_call = options.per_call(tokenizer, views.size)
    report(writer.done, total)
    batches = view_batches(
        split,
        views,
        first=writer.done,
        count=options.per_batch(per_call, len(views)),
        workers=options.workers,
        skip_bad=options.skip_bad,
        max_megapixels=options.max_megapixels,
    )
    with contextlib.closing(batches):  # the processes end before the work folder is looked after
        for batch in batches:
            codes = np.zeros((0, *writer.shape[1:]), dtype=np.uint16)
            if batch.pixels is not None:
                codes = _encode(tokenizer, batch.pixels.numpy(), facts, per_call, options)
            labels = split.labels[batch.rows]
            writer.add(codes, labels, skipped=batch.skipped, animated=batch.animated)
            report(writer.done, total)
    if writer.written == 0:
        remove_folder(folder)
        raise UserError(f"no image of the {facts['split']} split could be read")
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": _pillow_version(),
        "device": str(options.device),
    }
    # Not among the facts of the work: stores from before say nothing of it, and go on being these.
    writer.finish({**facts, "tf32": False, "versions": versions})


def _encode(
    tokenizer: VQModel, pixels: np.ndarray, facts: Record, per_call: int, options: _Options
) -> np.ndarray:
    """Codes (n, views, T) uint16 of pixels (n, views, size, size, 3) uint8."""
    count, views = pixels.shape[:2]
    flat = pixels.reshape(-1, *pixels.shape[2:])
    parts = []
    with torch.inference_mode(), exact_float32():
        for start in range(0, len(flat), per_call):
            images_BCHW = to_model_range(flat[start : start + per_call], options.device)
            with autocast(options.device, options.dtype):
                indices_Bgg = tokenizer.encode(images_BCHW)
            parts.append(indices_Bgg.flatten(1).cpu().numpy())
    codes = np.concatenate(parts).reshape(count, views, -1)
    assert codes.shape[2] == facts["grid"] ** 2, codes.shape
    assert codes.min() >= 0 and codes.max() < facts["vocab_size"], (codes.min(), codes.max())
    return codes.astype(np.uint16)


def _pillow_version() -> str:
    import PIL

    return PIL.__version__
