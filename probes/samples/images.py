"""Sets of images to be judged, or judged by: an ``.npz``, a folder, a source's split, a code store.

All are read in order, a batch at a time, as uint8 (n, H, W, 3). Samples are taken as they are and have
one size. Reference images of another size than the samples' are cut to it by ADM's centre crop.

Shapes: N images of H x W pixels.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from probes.samples.npz import image_batches, image_shape, read_array, stored_names
from star.base.errors import UserError
from star.base.files import sha256_file
from star.base.names import shown
from star.codes.open import is_code_folder
from star.codes.store import open_codes, open_splits
from star.images.folders import flat_split
from star.images.left_out import LeftOut, left_out_line
from star.images.open import is_flat_folder, open_source
from star.images.source import Split, measured_split
from star.images.views import center_crop
from star.tokenizer.file import load_tokenizer, tokenizer_beside, tokenizer_sha256
from star.tokenizer.model import decode_tokens

__all__ = ["ImageSet", "open_reference", "open_samples"]

LOSSY = (".jpg", ".jpeg", ".jfif", ".webp", ".avif")
Batches = Callable[[int], Iterator[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """N images, where they come from, and what is known of them.

    ``size``: (H, W) of all. ``sha256``: of the file; of a folder over names, sizes and labels; of a
    store's codes. ``plan``: how samples were made (checkpoint, guidance, seeds), where a file beside
    says so. ``tokenizer_sha256``: of what decodes codes. ``notes``: what to know before trusting a
    number.
    """

    path: str
    kind: str
    count: int
    size: tuple[int, int]
    sha256: str
    batches: Batches = field(repr=False)
    labels_N: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    split: str | None = None
    plan: dict | None = None
    crop: str | None = None
    tokenizer_sha256: str | None = None
    notes: tuple[str, ...] = ()

    def tensors(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Batches as uint8 (n, 3, H, W)."""
        for batch_NHWC in self.batches(batch_size):
            yield torch.from_numpy(batch_NHWC.copy()).permute(0, 3, 1, 2)

    def facts(self) -> dict:
        """Plain facts, for a fingerprint."""
        counts = None if self.labels_N is None else np.unique(self.labels_N, return_counts=True)[1]
        return {
            "path": self.path,
            "kind": self.kind,
            "sha256": self.sha256,
            "images": self.count,
            "size": list(self.size),
            "split": self.split,
            "crop": self.crop,
            "tokenizer_sha256": self.tokenizer_sha256,
            "classes": None if counts is None else len(counts),
            "images_a_class": None if counts is None else [int(counts.min()), int(counts.max())],
            "plan": self.plan,
        }


def open_samples(path: Path, tokenizer: Path | None = None) -> ImageSet:
    """Samples: an ``.npz``, a folder of images (with or without one folder a class), or a code store.

    ``tokenizer`` decodes a store, by default the one beside it. ``UserError`` for anything else, for
    fewer than two images, and for a store without a tokenizer. That a folder's images have one size is
    known only when they are read.
    """
    ready = _ready(path, None, tokenizer)
    if ready is not None:
        return ready
    if not path.is_dir():
        raise UserError(f"{path} is no .npz, folder of images or code store; expected samples")
    split, names = _listed(path)
    return _of_split(split, path, names, None, size=None)


def open_reference(
    spec: str,
    size: tuple[int, int],
    *,
    split: str | None = None,
    tokenizer: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> ImageSet:
    """Reference images at ``size``: what ``open_samples`` takes, or a source's split.

    Without ``split``: test, else val, else train. ``say`` hears what of a source is left out.
    """
    path = Path(spec)
    ready = _ready(path, split, tokenizer)
    if ready is not None:
        return ready
    if is_flat_folder(spec):
        if split is not None:
            raise UserError(f"{spec} has no folder train, so no splits; leave out --split {split}")
        images, names = _listed(path)
        return _of_split(images, path, names, None, size)
    source = open_source(spec, need_labels=False)
    line = left_out_line(spec, source.left_out)
    if line:
        say(line)
    chosen = split or measured_split(source.splits)
    return _of_split(source.split(chosen), path, source.class_names, chosen, size)


def _ready(path: Path, split: str | None, tokenizer: Path | None) -> ImageSet | None:
    """Images of one size: of an ``.npz`` or a code store; None if it is neither."""
    if path.suffix == ".npz":
        if split is not None:
            raise UserError(f"{path} is a file and has no splits; leave out --split {split}")
        return _of_npz(path)
    if is_code_folder(path) or (path / "manifest.json").is_file():
        return _of_codes(path, split, tokenizer)
    return None


def _of_npz(path: Path) -> ImageSet:
    count, height, width = image_shape(path)
    there = stored_names(path)
    labels, plan = None, _beside(path)
    for name in ("labels", "arr_1"):
        if name in there and labels is None:
            labels = read_array(path, name)
            if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
                raise UserError(
                    f"{path}: {name} is {labels.dtype} {labels.shape}; expected a whole number for "
                    f"each of {count} images"
                )
            if count and labels.min() < 0:
                raise UserError(f"{path}: {name} holds {labels.min()}; expected labels of at least 0")
    names = None if plan is None else plan.get("class_names")
    return ImageSet(
        path=str(path),
        kind="npz",
        count=count,
        size=(height, width),
        sha256=sha256_file(path),
        batches=lambda size: image_batches(path, size),
        labels_N=None if labels is None else labels.astype(np.int64),
        class_names=tuple(names) if isinstance(names, list) else None,
        plan=plan,
    )


def _beside(path: Path) -> dict | None:
    """How samples were made: the ``.json`` that ``star sample`` writes beside them."""
    try:
        return _plan(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _plan(found: object) -> dict | None:
    return found if isinstance(found, dict) and "sampling" in found else None


def _of_codes(path: Path, split: str | None, tokenizer: Path | None) -> ImageSet:
    stores = open_splits(path) if is_code_folder(path) else {path.name: open_codes(path)}
    chosen = split or measured_split(stores)
    if chosen not in stores:
        raise UserError(f"{path} has no split {chosen}; it has: {', '.join(stores)}")
    store = stores[chosen]
    file = tokenizer or tokenizer_beside(path) or tokenizer_beside(path.parent)
    if file is None:
        raise UserError(f"{path} holds codes and no tokenizer lies beside it; give --tokenizer")
    model = load_tokenizer(file)
    if store.tokenizer_sha256 not in ("", tokenizer_sha256(model)):
        raise UserError(f"{file} is not the tokenizer that made the codes in {path}")
    if len(store) < 2:
        raise UserError(f"{path} holds {len(store)} images; expected at least 2")
    side = model.config.stride * store.grid

    def batches(size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(store), size):
            tokens = store.codes[start : start + size, store.test_view].astype(np.int64)
            yield decode_tokens(model, torch.from_numpy(tokens), store.grid)

    plan = _plan(store.manifest.get("source"))
    redrawn = f"{store.path} holds codes: its images are as the tokenizer redraws them"
    return ImageSet(
        path=str(path),
        kind="codes",
        count=len(store),
        size=(side, side),
        sha256=str(store.manifest["sha256"].get("codes.npy")),
        batches=batches,
        labels_N=np.asarray(store.labels, dtype=np.int64),
        class_names=store.class_names,
        split=chosen,
        plan=plan,
        tokenizer_sha256=tokenizer_sha256(model),
        notes=(redrawn,) if plan is None else (),
    )


def _listed(path: Path) -> tuple[Split, tuple[str, ...] | None]:
    """Images below a folder; those in one folder each are labelled by it."""
    split = flat_split(path, LeftOut())
    folders = [Path(name).parent.as_posix() for name in split.names]
    if "." in folders or any("/" in folder for folder in folders):
        return split, None
    names = tuple(sorted(set(folders)))
    places = {name: label for label, name in enumerate(names)}
    labels = np.array([places[folder] for folder in folders], dtype=np.int64)
    return Split(names=split.names, labels=labels, read=split.read, content=split.content), names


def _of_split(
    split: Split,
    path: Path,
    names: tuple[str, ...] | None,
    chosen: str | None,
    size: tuple[int, int] | None,
) -> ImageSet:
    """``size`` None: as they are, all of one size; else cut to it."""
    if len(split) < 2:
        raise UserError(f"{path} holds {len(split)} images; expected at least 2")
    found = size
    if found is None:
        first = split.load(0)
        found = first.height, first.width
    elif found[0] != found[1]:
        raise UserError(f"samples are {found[0]} x {found[1]} pixels; a folder is cut to squares only")

    def load(index: int) -> np.ndarray:
        image = split.load(index)
        if size is not None:
            return np.asarray(center_crop(image, size[0]))
        if (image.height, image.width) != found:
            raise UserError(
                f"{path} holds images of several sizes: {split.name(0)} is {found[1]} x {found[0]} "
                f"pixels, {split.name(index)} {image.width} x {image.height}; expected one size"
            )
        return np.asarray(image)

    def batches(batch: int) -> Iterator[np.ndarray]:
        for start in range(0, len(split), batch):
            yield np.stack([load(i) for i in range(start, min(start + batch, len(split)))])

    lossy = sum(Path(name).suffix.lower() in LOSSY for name in split.names)
    notes: tuple[str, ...] = ()
    if lossy and size is None:
        notes = (
            f"{lossy} of {len(split)} samples are JPEG or another lossy format, which changes "
            "features: keep samples as .npz or PNG",
        )
    digest = hashlib.sha256(split.fingerprint().encode())
    return ImageSet(
        path=shown(str(path)),
        kind="folder" if chosen is None else "source",
        count=len(split),
        size=found,
        sha256=digest.hexdigest(),
        batches=batches,
        labels_N=None if names is None else split.labels,
        class_names=names,
        split=chosen,
        crop=None if size is None else f"ADM centre crop to {size[0]} x {size[0]}",
        notes=notes,
    )
