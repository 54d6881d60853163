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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from star.codes import CodeStore, StoreWriter, open_splits
from star.device import autocast, resolve_device, resolve_precision
from star.errors import UserError, require_choice
from star.files import publish_folder, remove_folder, write_json
from star.images import BadImageError, ImageSource, Split
from star.views import ViewSet, to_model_range, view_set

__all__ = ["tokenize"]

_WORK = "work.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    batch_size: int
    skip_bad: bool
    device: torch.device
    dtype: torch.dtype


def tokenize(
    source: ImageSource,
    tokenizer,
    out: str | Path,
    *,
    size: int | None = None,
    views: str | None = None,
    eval_views: str = "test",
    batch_size: int = 256,
    skip_bad: bool = False,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "fp32",
    tokenizer_hash: str | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> dict[str, CodeStore]:
    """Write the code stores of all splits of ``source`` to the folder ``out`` and open them.

    ``size`` is the side of a view in pixels (default: the source's own, rounded down to a multiple of
    the tokenizer's stride); ``views`` a name of ``star.views`` (default: the source's); ``batch_size``
    counts views a tokenizer call; ``device`` and ``precision`` are names of ``star.device``.
    ``tokenizer`` (moved to the device) has ``encode(images_BCHW) -> indices_Bgg``, ``name``,
    ``config.codebook_size`` and ``config.stride``; ``tokenizer_hash`` is its identity (default:
    ``star.tokenizer.tokenizer_sha256``). ``on_progress(split, done, total)`` counts images after each
    batch, ``on_message`` gets a sentence when work is resumed, reused or thrown away.

    If ``out`` holds the stores that this call would write, they are opened and returned. Raises
    ``UserError`` if it holds anything else, for options that do not fit, and (``BadImageError``) at an
    image that cannot be read, unless ``skip_bad``: then its name goes to the manifest.
    """
    require_choice("eval_views", eval_views, ("test", "all"))
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected at least 1")
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    options = _Options(batch_size=batch_size, skip_bad=skip_bad, device=where, dtype=dtype)
    say = on_message or (lambda message: None)
    train_views = view_set(views or source.default_views, _size(source, tokenizer, size), seed=seed)
    view_sets = {
        split: train_views if split == "train" or eval_views == "all" else train_views.test_only()
        for split in source.splits
    }
    if tokenizer_hash is None:
        from star.tokenizer import tokenizer_sha256

        tokenizer_hash = tokenizer_sha256(tokenizer)
    plan = {
        split: _facts(source, split, tokenizer, tokenizer_hash, view_sets[split], dtype)
        for split in source.splits
    }
    plan = json.loads(json.dumps(plan))  # as it will be read back

    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _reuse(out, plan, say)
    partial = out.with_name(out.name + ".partial")
    _prepare(partial, plan, say)
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer.to(where)
    with _kept_if_useful(partial):
        for split, facts in plan.items():
            images, cut = source.splits[split], view_sets[split]
            report = functools.partial(on_progress or (lambda *progress: None), split)
            _write_split(partial / split, images, facts, cut, tokenizer, options, report)
    _publish(partial, out)
    return open_splits(out)


def _size(source: ImageSource, tokenizer, size: int | None) -> int:
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
    source: ImageSource, split: str, tokenizer, tokenizer_hash: str, views: ViewSet, dtype: torch.dtype
) -> dict:
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
            "images": len(source.splits[split]),
            "fingerprint": source.splits[split].fingerprint(),
        },
    }


def _identity(facts: object) -> dict:
    """What of ``facts`` decides the arrays: not the names of tokenizer and source, but their hashes.

    Facts edited to something else are those of no work.
    """
    if not isinstance(facts, dict) or not isinstance(facts.get("source"), dict):
        return {}
    fingerprint = facts["source"].get("fingerprint")
    rest = {key: value for key, value in facts.items() if key not in ("source", "tokenizer_name")}
    return {"source": fingerprint, **rest}


def _reuse(out: Path, plan: dict, say: Callable[[str], None]) -> dict[str, CodeStore]:
    """The stores at ``out`` if they are what ``plan`` would give, else ``UserError``."""
    advice = "choose another folder or remove it"
    if not (out / "train" / "manifest.json").is_file():
        raise UserError(f"{out} exists and holds no code stores; {advice}")
    stores = open_splits(out)
    if set(stores) != set(plan):
        raise UserError(f"{out} has the splits {', '.join(stores)}, not {', '.join(plan)}; {advice}")
    for split, facts in plan.items():
        found = _identity(stores[split].manifest)
        for key, value in _identity(facts).items():
            if found.get(key) != value:
                raise UserError(f"{out} exists and was made with another {key} ({split}); {advice}")
    say(f"{out} is already complete")
    return stores


def _prepare(partial: Path, plan: dict, say: Callable[[str], None]) -> None:
    """Make the work folder, keeping one that fits ``plan``; a folder that is not ours is an error."""
    try:
        if partial.is_dir():
            try:
                known = json.loads((partial / _WORK).read_text())
            except (FileNotFoundError, ValueError):
                known = None
                # A kill at the very start leaves nothing, or the temporary file of work.json.
                if not all(entry.name.startswith(".work.") for entry in partial.iterdir()):
                    raise UserError(f"{partial} is no work folder of star; remove it") from None
            if known is not None and _same_work(known, plan):
                if _holds_work(partial):
                    say(f"going on with the work kept in {partial}")
                return
            if known is not None:
                say(f"starting afresh: {partial} was made from other images, tokenizer or views")
            remove_folder(partial)
        partial.mkdir(parents=True)
        write_json(partial / _WORK, plan)
    except OSError as error:
        raise UserError(
            f"cannot write to {partial}: {error.strerror}; choose another folder"
        ) from error


def _same_work(known: object, plan: dict) -> bool:
    if not isinstance(known, dict):
        return False
    return list(known) == list(plan) and all(_identity(known[s]) == _identity(plan[s]) for s in plan)


@contextlib.contextmanager
def _kept_if_useful(partial: Path) -> Iterator[None]:
    """If the body fails: keep the work folder and say so, or remove it if no batch was finished."""
    try:
        yield
    except BaseException as error:
        if not _holds_work(partial):
            remove_folder(partial)
        elif isinstance(error, UserError):
            # Without the image it is another source, and nothing of the work would serve.
            on = "--skip-bad goes" if isinstance(error, BadImageError) else "the same command goes"
            message = f"{error}; the work so far is kept in {partial}: {on} on from there"
            raise type(error)(message) from error
        if isinstance(error, OSError):
            raise UserError(f"cannot write to {partial}: {error.strerror or error}") from error
        raise


def _holds_work(partial: Path) -> bool:
    """Whether at least one batch of one split is on disk."""
    return any(partial.glob("*/progress.json")) or any(partial.glob("*/manifest.json"))


def _publish(partial: Path, out: Path) -> None:
    """One rename; before it, drop what killed runs may have left; after it, our own note."""
    for leftover in [*partial.rglob(".*"), *partial.glob("*/progress.json")]:
        leftover.unlink()
    publish_folder(partial, out)
    (out / _WORK).unlink()


def _write_split(
    folder: Path,
    split: Split,
    facts: dict,
    views: ViewSet,
    tokenizer,
    options: _Options,
    report: Callable[[int, int], None],
) -> None:
    total = len(split)
    if (folder / "manifest.json").is_file():
        report(total, total)
        return
    writer = StoreWriter(folder, images=total, views=len(views), tokens=facts["grid"] ** 2)
    per_batch = max(1, options.batch_size // len(views))
    report(writer.done, total)
    for rows, pixels, skipped in _batches(split, views, writer.done, per_batch, options.skip_bad):
        codes = np.zeros((0, *writer.shape[1:]), dtype=np.uint16)
        if rows:
            codes = _encode(tokenizer, pixels, facts, options)
        writer.add(codes, split.labels[rows], skipped=skipped)
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
    writer.finish({**facts, "versions": versions})


def _batches(
    split: Split, views: ViewSet, start: int, count: int, skip_bad: bool
) -> Iterator[tuple[list[int], np.ndarray, list[str]]]:
    """(indices read, their views (n, views, size, size, 3) uint8, names skipped), in order.

    Threads decode the next batch while the caller works on this one.
    """

    def views_of(index: int) -> np.ndarray:
        try:
            return views(split.load(index), index)
        except BadImageError:
            raise
        except UserError as error:
            raise BadImageError(f"{split.name(index)}: {error}") from error

    def submit(first: int) -> dict[int, Future]:
        return {i: pool.submit(views_of, i) for i in range(first, min(first + count, len(split)))}

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        ahead = submit(start)
        while ahead:
            batch, ahead = ahead, submit(max(ahead) + 1)
            rows, arrays, skipped = [], [], []
            for index, future in batch.items():
                try:
                    arrays.append(future.result())
                    rows.append(index)
                except BadImageError:
                    if not skip_bad:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
                    skipped.append(split.name(index))
            yield rows, np.stack(arrays) if arrays else np.zeros(0, np.uint8), skipped


def _encode(tokenizer, pixels: np.ndarray, facts: dict, options: _Options) -> np.ndarray:
    """Codes (n, views, T) uint16 of pixels (n, views, size, size, 3) uint8."""
    count, views = pixels.shape[:2]
    flat = pixels.reshape(-1, *pixels.shape[2:])
    parts = []
    with torch.inference_mode():
        for start in range(0, len(flat), options.batch_size):
            images_BCHW = to_model_range(flat[start : start + options.batch_size], options.device)
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
