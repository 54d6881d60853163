"""Samples by the ten thousand: batch by batch into a work folder, then one ``.npz`` and a code store.

Sample i has class and seed of its own, both functions of i, and its place in a batch: every batch is
padded to the same size, so that matrix products have one shape and a sample's tokens depend neither on
how many were asked for, nor on the number of processes, nor on whether the work was interrupted.
``OUT.partial/`` holds a file a finished batch; process r of R makes the batches r, r + R, ...
"""

import contextlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from star.base.errors import UserError, require_choice
from star.base.files import publish_file, publish_folder, remove_folder, write_json
from star.base.progress import Message, StageProgress, nothing
from star.base.randomness import generator
from star.base.record import Record
from star.codes.store import StoreWriter
from star.model.classes import null_label
from star.model.sampler import SCHEDULES, check_sampling, generate
from star.model.transformer import Transformer
from star.parallel.processes import main_first, rank, wait_for_all, world_size
from star.tokenizer.model import VQModel, decode_tokens

__all__ = [
    "BALANCES",
    "SampleOptions",
    "sample_batch",
    "sample_batches",
    "sample_labels",
    "write_samples",
]

BALANCES = ("balanced", "random")
_WORK = "work.json"
SPLIT = "train"  # the one that a folder of stores cannot lack
_MOST_CODES = 1 << 16  # a code store holds uint16


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What decides the tokens, besides the model. ``batch_size``: what every batch is padded to."""

    count: int
    seed: int = 0
    balance: str = "balanced"
    cfg_scale: float = 2.0
    cfg_interval: int = -1
    cfg_schedule: str = "constant"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least {least}")
        require_choice("classes", self.balance, BALANCES)
        require_choice("cfg_schedule", self.cfg_schedule, SCHEDULES)
        check_sampling(self.cfg_scale, self.temperature, self.top_k, self.top_p)


def sample_labels(options: SampleOptions, chosen: list[int], start: int, stop: int) -> np.ndarray:
    """Labels of the samples start to stop: ``chosen`` in turn, or each drawn from them by its seed."""
    if options.balance == "balanced":
        return np.array([chosen[i % len(chosen)] for i in range(start, stop)])
    seeds = range(options.seed + start, options.seed + stop)
    draws = [generator(seed, "sample class").integers(len(chosen)) for seed in seeds]
    return np.array([chosen[draw] for draw in draws])


def sample_batch(
    model: Transformer, tokenizer: VQModel, options: SampleOptions, chosen: list[int], rows: range
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The samples ``rows`` (of ``sample_batches``) of the classes ``chosen``.

    Images uint8 (n, H, W, 3), tokens int64 (n, T), labels (n,).
    """
    full = rows.start + options.batch_size  # the rows past the last sample are padding
    tokens_BT = generate(
        model,
        sample_labels(options, chosen, rows.start, full),
        seeds=range(options.seed + rows.start, options.seed + full),
        cfg_scale=options.cfg_scale,
        cfg_interval=options.cfg_interval,
        cfg_schedule=options.cfg_schedule,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        greedy=options.greedy,
    )
    pixels_BHWC = decode_tokens(tokenizer, tokens_BT, model.config.grid)
    labels_n = sample_labels(options, chosen, rows.start, rows.stop)
    return pixels_BHWC[: len(rows)], tokens_BT[: len(rows)].cpu().numpy(), labels_n


def write_samples(
    model: Transformer,
    tokenizer: VQModel,
    out: Path,
    options: SampleOptions,
    *,
    chosen: list[int],
    facts: Record,
    class_names: list[str],
    images: bool = False,
    on_progress: StageProgress = nothing,
    on_message: Message = nothing,
) -> list[Path]:
    """Write ``out`` (.npz: arr_0 uint8 (N, H, W, 3), labels, tokens), its .json and a code store.

    ``facts`` name the model and the tokenizer (``tokenizer_sha256``) and are part of the plan: a work
    folder of the same plan is gone on with, files of another are refused (``UserError``). ``images``:
    a folder of PNG files besides. Returns the paths, the ``.npz`` first; it appears last.
    """
    config = model.config
    if options.cfg_scale != 1:
        null_label(config, f"guidance (cfg_scale {options.cfg_scale:g})", "give --cfg-scale 1")
    outside = [label for label in chosen if not 0 <= label < config.num_classes]
    if outside:
        raise UserError("the null class has no label in a code store; name classes that have one")
    if out.suffix != ".npz":
        raise UserError(f"out is {out}; expected a name that ends in .npz")
    if config.vocab_size > _MOST_CODES:
        raise UserError(f"the model has {config.vocab_size} codes; a code store holds {_MOST_CODES}")
    named = {"class_names": class_names, "of_classes": chosen}
    plan = json.loads(json.dumps({**facts, "sampling": asdict(options), **named}))
    beside = {"json": out.with_suffix(".json"), "codes": out.with_name(f"{out.stem}-codes")}
    if images:
        beside["images"] = out.with_name(f"{out.stem}-images")
    partial = out.with_name(f"{out.name}.partial")
    with _explained(partial, on_message):
        with main_first():
            complete = _prepare(out, beside, partial, plan)
        if complete:
            on_message(f"{out} is already complete")
            return [out, *beside.values()]
        _make_batches(model, tokenizer, partial, options, chosen, on_progress)
        wait_for_all()
        if rank() == 0:
            store = _store_facts(plan, config.vocab_size, config.grid, class_names)
            _assemble(out, beside, partial, options, store, plan, on_progress)
    wait_for_all()
    return [out, *beside.values()]


def _prepare(out: Path, beside: dict[str, Path], partial: Path, plan: Record) -> bool:
    """Whether everything is there already; else make the work folder. ``UserError`` at other files."""
    advice = "choose another name or remove it"
    there = [path for path in (out, *beside.values()) if path.exists()]
    if there and _read(beside["json"]) != plan:
        raise UserError(f"{there[0]} exists and is not of these samples; {advice}")
    if beside["codes"].exists():
        manifest = _read(beside["codes"] / SPLIT / "manifest.json")
        source = manifest.get("source") if isinstance(manifest, dict) else None
        if not isinstance(source, dict) or source.get("sampling") != plan["sampling"]:
            raise UserError(f"{beside['codes']} exists and is not of these samples; {advice}")
    pictures = beside.get("images")
    if pictures and pictures.exists() and not _only_pngs(pictures):
        raise UserError(f"{pictures} exists and holds other files; {advice}")
    if len(there) == 1 + len(beside):
        return True
    ours = _read(partial / _WORK) == plan or not partial.exists() or _unused(partial)
    if not ours:
        raise UserError(f"{partial} holds the work of other samples; {advice}")
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / _WORK, plan)
    return False


def _only_pngs(folder: Path) -> bool:
    return folder.is_dir() and all(
        entry.suffix == ".png" and entry.stem.isdecimal() for entry in folder.iterdir()
    )


def _unused(partial: Path) -> bool:
    """Whether a kill at the very start left nothing but the temporary file of the note."""
    return partial.is_dir() and all(entry.name.startswith(".work.") for entry in partial.iterdir())


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _explained(partial: Path, say: Message) -> Iterator[None]:
    """Whatever ends the work early, finished batches stay, and the user is told how to go on."""
    kept = f"finished batches are kept in {partial}: the same command goes on from there"
    try:
        yield
    except KeyboardInterrupt:
        say(kept)
        raise
    except OSError as error:
        raise UserError(f"cannot write samples: {error.strerror or error}; {kept}") from error


def sample_batches(options: SampleOptions) -> list[range]:
    """Which samples are drawn together; the last batch may be short."""
    size, count = options.batch_size, options.count
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _batch_file(partial: Path, rows: range) -> Path:
    return partial / f"batch-{rows.start:09d}.npz"


def _make_batches(
    model: Transformer,
    tokenizer: VQModel,
    partial: Path,
    options: SampleOptions,
    chosen: list[int],
    on_progress: StageProgress,
) -> None:
    mine = sample_batches(options)[rank() :: world_size()]
    for done, rows in enumerate(mine):
        path = _batch_file(partial, rows)
        if path.exists():
            continue
        pixels, tokens, labels = sample_batch(model, tokenizer, options, chosen, rows)
        with publish_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, arr_0=pixels, tokens=tokens, labels=labels)
        on_progress("sample batches", done + 1, len(mine))


def _store_facts(plan: Record, vocab: int, grid: int, class_names: list[str]) -> Record:
    return {
        "vocab_size": vocab,
        "grid": grid,
        "class_names": class_names,
        "view_names": ["sample"],
        "test_view": 0,
        "tokenizer_sha256": plan["tokenizer_sha256"],
        "source": {"name": "samples of a model", "fingerprint": None, **plan},
    }


def _assemble(
    out: Path,
    beside: dict[str, Path],
    partial: Path,
    options: SampleOptions,
    store: Record,
    plan: Record,
    on_progress: StageProgress,
) -> None:
    """Everything from the batches; what an earlier end already published is made again."""
    files = [_batch_file(partial, rows) for rows in sample_batches(options)]
    tokens, labels = (np.concatenate([_load(file, name) for file in files]) for name in _SMALL)
    write_json(beside["json"], plan)
    for name in ("codes", "images"):
        remove_folder(partial / name)
    writer = StoreWriter(
        partial / "codes" / SPLIT, images=options.count, views=1, tokens=tokens.shape[1]
    )
    writer.add(tokens[:, None].astype(np.uint16), labels)
    writer.finish(store)
    if "images" in beside:
        (partial / "images").mkdir()
        for rows, file in zip(sample_batches(options), files, strict=True):
            for index, pixels in zip(rows, _load(file, "arr_0"), strict=True):
                Image.fromarray(pixels).save(partial / "images" / f"{index:06d}.png")
    for name in ("codes", "images"):
        if name in beside:
            remove_folder(beside[name])
            publish_folder(partial / name, beside[name])
    with publish_file(out) as temporary:
        _write_npz(temporary, files, tokens, labels, options.count, on_progress)
    shutil.rmtree(partial)


_SMALL = ("tokens", "labels")


def _load(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as batch:
        array: np.ndarray = batch[name]
    return array


def _write_npz(
    path: Path,
    files: list[Path],
    tokens: np.ndarray,
    labels: np.ndarray,
    count: int,
    on_progress: StageProgress,
) -> None:
    """An ``.npz`` as ``np.savez`` writes it, with the images read batch by batch."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
            for done, file in enumerate(files):
                pixels = _load(file, "arr_0")
                if done == 0:
                    shape = (count, *pixels.shape[1:])
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(entry, header)
                entry.write(pixels.tobytes())
                on_progress("assemble", done + 1, len(files))
        for name, array in (("tokens", tokens), ("labels", labels)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
