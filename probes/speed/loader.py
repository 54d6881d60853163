"""How fast are training batches made: the mapped code store against one file per image.

The store is a sparse file of the full ImageNet size (the tokens that are read are zeros, the offsets
are real); the other way is LlamaGen's layout, two small ``.npy`` files an image, one with the codes of
all views and one with the label. Both are read at random places and sit on the same disk.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probes.speed.timing import Timings, alternate
from star.base.errors import UserError
from star.base.files import write_json
from star.codes.store import FORMAT, FORMAT_VERSION, CodeStore, open_codes
from star.model.config import ModelConfig
from star.training.batches import TrainLoader
from star.training.config import TrainConfig

__all__ = ["ARMS", "LoaderBench", "bench_loader"]

ARMS = ("one file per image", "code store", "training batch")


@dataclass(frozen=True)
class LoaderBench:
    """Seconds a batch by arm, and how much private memory grew while the batches were made.

    ``training batch`` is the store's batch and everything else that a step draws (masks, steps, ...).
    """

    timings: Timings
    growth_bytes: int
    store_bytes: int
    files: int


def bench_loader(
    folder: Path,
    *,
    images: int = 1_281_167,
    views: int = 10,
    grid: int = 16,
    batch: int = 256,
    files: int = 20_000,
    rounds: int = 30,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> LoaderBench:
    """Time batches of ``batch`` images x 2 views from files made (and removed again) below ``folder``.

    ``files`` bounds the images of the one-file-per-image layout, which would take hours to write in
    full; fewer files favour it, since the system remembers them. Raises ``UserError`` if they are
    fewer than a batch.
    """
    if not 1 <= batch <= images:
        raise UserError(f"images is {images}; expected at least a batch ({batch} images, 1 or more)")
    if not batch <= files <= images:
        raise UserError(f"files is {files}; expected a batch ({batch}) to all images ({images})")
    config = TrainConfig(
        model=ModelConfig(grid=grid, num_classes=1000), batch_size=batch, data=str(folder)
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bench-loader-") as scratch:
        root = Path(scratch)
        store = _sparse_store(root / "store", images, views, grid)
        _write_files(root / "files", files, views, grid)
        loader = TrainLoader(store, config)
        rng = np.random.default_rng(config.seed)

        def read_store(index: int) -> tuple[np.ndarray, np.ndarray]:
            chosen = rng.integers(0, images, batch)
            picked = rng.integers(0, views, (batch, 2))
            return store.codes[chosen[:, None], picked].astype(np.int64), store.labels[chosen]

        def read_files(index: int) -> tuple[np.ndarray, np.ndarray]:
            chosen = rng.integers(0, files, batch)
            picked = rng.integers(0, views, (batch, 2))
            codes = [np.load(root / "files" / f"codes-{image}.npy")[0] for image in chosen]
            labels = [np.load(root / "files" / f"label-{image}.npy") for image in chosen]
            two = [of_image[rows] for of_image, rows in zip(codes, picked, strict=True)]
            return np.stack(two).astype(np.int64), np.concatenate(labels)

        arms = {ARMS[0]: read_files, ARMS[1]: read_store, ARMS[2]: loader.batch}
        before = 0

        def note(done: int, total: int) -> None:
            nonlocal before
            if done == 2:  # after the first allocations
                before = _private_bytes()
            on_round(done, total)

        timings = alternate(arms, rounds=rounds, warmup=2, on_round=note)
        growth = _private_bytes() - before
        size = (root / "store" / "codes.npy").stat().st_size
    return LoaderBench(timings, growth, size, files)


def _sparse_store(folder: Path, images: int, views: int, grid: int) -> CodeStore:
    """A store whose codes were never written: all zeros, no room taken on disk."""
    folder.mkdir()
    shape = (images, views, grid**2)
    np.lib.format.open_memmap(folder / "codes.npy", mode="w+", dtype=np.uint16, shape=shape)
    labels = np.arange(images) % 1000
    np.save(folder / "labels.npy", labels)
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "images": images,
        "views": views,
        "tokens": grid**2,
        "grid": grid,
        "vocab_size": 16384,
        "test_view": 0,
        "class_names": [str(label) for label in range(1000)],
        "class_counts": np.bincount(labels, minlength=1000).tolist(),
        "view_names": [f"view-{view}" for view in range(views)],
        "tokenizer_sha256": "",
        "sha256": {},
    }
    write_json(folder / "manifest.json", manifest)
    return open_codes(folder)


def _write_files(folder: Path, count: int, views: int, grid: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        codes = rng.integers(0, 16384, (1, views, grid**2), dtype=np.uint16)
        np.save(folder / f"codes-{index}.npy", codes)
        np.save(folder / f"label-{index}.npy", np.array([index % 1000]))


def _private_bytes() -> int:
    """Memory of this process that is no mapped file; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
