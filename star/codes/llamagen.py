"""LlamaGen's own layout of codes, one file an image, into a code store and back.

Its ``extract_codes_c2i.py`` writes ``imagenet256_codes/0.npy``, ``1.npy``, … (int64 (1, views, T)) and
``imagenet256_labels/0.npy``, … (int64 (1,)) below a code path; the folder's name tells the data set and
the size of a view. Views are the ten crops, or the centre crop and its mirror image. A second crop
range lies below another code path, in files of the same numbers. Every file is checked, none unpickled.
"""

import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from star.base.errors import UserError
from star.base.files import remove_folder
from star.base.names import shown
from star.base.progress import Message, Progress, nothing
from star.base.record import Record
from star.codes.store import CodeStore, StoreWriter, open_codes
from star.codes.work import kept_if_useful, prepare_work, publish_work, reuse_stores
from star.images.views import Flip, ten_crop_names

__all__ = ["CodeFiles", "export_codes", "find_code_files", "import_codes"]

CLASSES = 1000  # of ImageNet
_FOLDER = re.compile(r"(.+?)(\d+)_codes")
_BATCH = 512  # images between two notes of progress
_UNKNOWN = ""  # the hash of a tokenizer that nobody named


@dataclass(frozen=True, kw_only=True)
class CodeFiles:
    """Files 0.npy, 1.npy, … of ``codes`` and ``labels``, with ``views`` and ``tokens`` each."""

    root: Path
    dataset: str
    size: int
    images: int
    views: int
    tokens: int
    fingerprint: str

    @property
    def codes(self) -> Path:
        return self.root / f"{self.dataset}{self.size}_codes"

    @property
    def labels(self) -> Path:
        return self.root / f"{self.dataset}{self.size}_labels"

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return round(math.sqrt(self.tokens))


def find_code_files(root: Path) -> CodeFiles:
    """What lies below the code path ``root``; ``UserError`` for another layout and for holes."""
    matches = map(_FOLDER.fullmatch, _names(root))
    found = [match for match in matches if match and (root / match[0]).is_dir()]
    if len(found) != 1:
        what = " and ".join(m[0] for m in found) or f"{', '.join(_names(root)[:4]) or 'nothing'}"
        raise UserError(
            f"{root} holds {what}; expected one folder such as imagenet256_codes, and its "
            "imagenet256_labels, with 0.npy, 1.npy, ... in each (of two crop ranges: one code path "
            "here, the other with --also)"
        )
    dataset, size = found[0][1], int(found[0][2])
    folders = [root / f"{dataset}{size}_{kind}" for kind in ("codes", "labels")]
    if not folders[1].is_dir():
        raise UserError(f"{folders[1]} is missing; expected a label file for each of {folders[0]}")
    listed = [_files(folder) for folder in folders]
    images = len(listed[0])
    for folder, files in zip(folders, listed, strict=True):
        hole = next((n for n in range(max(images, len(files))) if f"{n}.npy" not in files), None)
        if hole is not None:
            raise UserError(
                f"{folder} has {len(files):,} files but no {hole}.npy; expected 0.npy to "
                f"{images - 1}.npy without holes, as many codes as labels"
            )
    if not images:
        raise UserError(f"{folders[0]} holds no .npy files")
    digest = hashlib.sha256()
    for files in listed:
        for name in sorted(files):
            digest.update(f"{name} {files[name]}\n".encode())
    first = _load(folders[0] / "0.npy")
    if first.ndim != 3 or first.shape[0] != 1 or round(first.shape[2] ** 0.5) ** 2 != first.shape[2]:
        raise UserError(
            f"{folders[0] / '0.npy'} has shape {first.shape}; expected (1, views, T) with T a square"
        )
    return CodeFiles(
        root=root,
        dataset=dataset,
        size=size,
        images=images,
        views=first.shape[1],
        tokens=first.shape[2],
        fingerprint=digest.hexdigest(),
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error


def _files(folder: Path) -> dict[str, str]:
    """Size and time of every ``.npy`` file, which tell whether it was replaced."""
    with os.scandir(folder) as entries:
        stats = {e.name: e.stat() for e in entries if e.name.endswith(".npy")}
    return {name: f"{stat.st_size} {stat.st_mtime_ns}" for name, stat in stats.items()}


def _load(path: Path) -> np.ndarray:
    try:
        loaded: np.ndarray = np.load(path, allow_pickle=False)
        return loaded
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UserError(
            f"cannot read {path}, it is damaged or no array of numbers: extract it again"
        ) from error


def import_codes(
    parts: list[CodeFiles],
    out: Path,
    *,
    crop_ranges: list[float],
    vocab_size: int,
    tokenizer_name: str = "unknown",
    tokenizer_sha256: str = _UNKNOWN,
    on_progress: Progress = nothing,
    on_message: Message = nothing,
) -> CodeStore:
    """Write ``out``/train from the files of one code path, or of one for each crop range.

    Resumable and published whole, as ``star.codes.encode``. Raises ``UserError`` at the first file of
    another shape or type, or with a code outside the codebook.
    """
    first = parts[0]
    for part in parts[1:]:
        if (part.images, part.views, part.tokens) != (first.images, first.views, first.tokens):
            raise UserError(
                f"{part.root} has {part.images} images x {part.views} views x {part.tokens} tokens; "
                f"{first.root} {first.images} x {first.views} x {first.tokens}"
            )
    if not 1 <= vocab_size <= 1 << 16:
        raise UserError(f"the codebook has {vocab_size} entries; code stores hold 1 to 65536")
    labels = _labels(parts)
    facts = _facts(parts, crop_ranges, vocab_size, labels)
    facts |= {"tokenizer_name": tokenizer_name, "tokenizer_sha256": tokenizer_sha256}
    plan, out = {"train": facts}, Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return reuse_stores(out, plan, on_message)["train"]
    partial = out.with_name(out.name + ".partial")
    prepare_work(partial, plan, on_message)
    with kept_if_useful(partial):
        if not (partial / "train" / "manifest.json").is_file():
            _write(partial / "train", parts, facts, labels, on_progress)
    publish_work(partial, out)
    return open_codes(out / "train")


def _labels(parts: list[CodeFiles]) -> np.ndarray:
    """(N,) int64, the same in all parts."""
    labels = np.empty(parts[0].images, dtype=np.int64)
    for part in parts:
        for image in range(part.images):
            path = part.labels / f"{image}.npy"
            label = _load(path)
            if label.shape == (1,) and label.dtype.kind in "iu" and label[0] < 0:
                raise UserError(f"{path} says class {label[0]}; expected 0 or more")
            if label.shape != (1,) or label.dtype.kind not in "iu":
                raise UserError(f"{path} is {label.dtype} {label.shape}; expected a class, int64 (1,)")
            if part is not parts[0] and label[0] != labels[image]:
                raise UserError(
                    f"{path} says class {label[0]}, {parts[0].labels / path.name} {labels[image]}: "
                    "the crop ranges are not of the same images in the same order"
                )
            labels[image] = label[0]
    if labels.max() >= 1 << 20:
        raise UserError(f"{parts[0].labels} has label {labels.max()}; expected a class number")
    return labels


def _facts(
    parts: list[CodeFiles], crop_ranges: list[float], vocab_size: int, labels: np.ndarray
) -> Record:
    first = parts[0]
    classes = max(CLASSES if first.dataset == "imagenet" else 2, int(labels.max()) + 1)
    if first.views == 10:
        several = len(parts) > 1
        names = [n for r in crop_ranges for n in ten_crop_names(r if several else None)]
        kind = "ten-crop" + ("-" + "+".join(f"{r:g}" for r in crop_ranges) if several else "")
    elif first.views == 2 and len(parts) == 1:
        names, kind = list(Flip.view_names), "flip"
    else:
        raise UserError(
            f"{first.root} has {first.views} views an image; expected 10 (ten-crop) or, for one code "
            "path, 2 (the centre crop and its mirror image)"
        )
    return {
        "split": "train",
        "grid": first.grid,
        "vocab_size": vocab_size,
        "view_set": {"name": kind, "size": first.size, "crop_ranges": crop_ranges},
        "view_names": names,
        "test_view": 4 if first.views == 10 else 0,
        "class_names": [str(label) for label in range(classes)],
        "source": {
            "name": f"{first.dataset} (LlamaGen's code files)",
            "notes": ["classes are LlamaGen's numbers"],
            "images": first.images,
            "fingerprint": " ".join(part.fingerprint for part in parts),
        },
    }


def _write(
    folder: Path, parts: list[CodeFiles], facts: Record, labels: np.ndarray, on_progress: Progress
) -> None:
    shape = (1, parts[0].views, parts[0].tokens)
    writer = StoreWriter(
        folder, images=parts[0].images, views=len(facts["view_names"]), tokens=shape[2]
    )
    on_progress(writer.done, parts[0].images)
    while writer.done < parts[0].images:
        rows = range(writer.done, min(writer.done + _BATCH, parts[0].images))
        codes = np.stack([_codes_of(parts, image, shape, facts["vocab_size"]) for image in rows])
        writer.add(codes, labels[rows.start : rows.stop])
        on_progress(writer.done, parts[0].images)
    writer.finish(facts)


def _codes_of(
    parts: list[CodeFiles], image: int, shape: tuple[int, ...], vocab_size: int
) -> np.ndarray:
    """Codes (views of all parts, T) uint16 of one image."""
    found = []
    for part in parts:
        path = part.codes / f"{image}.npy"
        codes = _load(path)
        if codes.shape != shape or codes.dtype.kind not in "iu":
            raise UserError(f"{path} is {codes.dtype} {codes.shape}; expected int64 {shape} as 0.npy")
        if codes.min() < 0 or codes.max() >= vocab_size:
            worst = codes.min() if codes.min() < 0 else codes.max()
            raise UserError(f"{path} has code {worst}; the codebook has entries 0 to {vocab_size - 1}")
        found.append(codes[0].astype(np.uint16))
    return np.concatenate(found)


def export_codes(
    store: CodeStore, out: Path, *, dataset: str = "imagenet", on_progress: Progress = nothing
) -> list[Path]:
    """Write a store as LlamaGen's files; return the code paths: ``out``, or one a crop range below it.

    Twenty views become ``out``/ten_crop and ``out``/ten_crop_105, the names under which LlamaGen's
    trainer finds the second. ``out`` appears whole, by one rename. Raises ``UserError`` if it exists,
    and for views that LlamaGen's layout does not have.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z_-]*", dataset):
        raise UserError(f"dataset is {dataset!r}; expected a name of letters, such as imagenet")
    if store.views not in (2, 10, 20):
        raise UserError(
            f"{store.path} has {store.views} views an image; LlamaGen's layout has the ten crops (10, "
            "or 20 of two crop ranges) or the centre crop and its mirror image (2): tokenise again"
        )
    size = store.manifest.get("view_set", {}).get("size", 16 * store.grid)
    out = Path(os.path.abspath(out))
    if out.exists():
        raise UserError(f"{out} exists; choose another folder or remove it")
    partial = out.with_name(out.name + ".partial")
    if partial.exists() and not (partial / "export.txt").is_file():
        raise UserError(f"{partial} is no work folder of star; remove it")
    remove_folder(partial)  # of a killed export: files may be torn, so it starts again
    names = ["."] if store.views <= 10 else ["ten_crop", "ten_crop_105"]
    folders = [(f"{n}/{dataset}{size}_codes", f"{n}/{dataset}{size}_labels") for n in names]
    for folder in [name for pair in folders for name in pair]:
        (partial / folder).mkdir(parents=True)
    (partial / "export.txt").write_text(f"codes of {shown(str(store.path))}\n", encoding="utf-8")
    each = store.views // len(names)
    try:
        for image in range(len(store)):
            for place, (codes, labels) in enumerate(folders):
                views = store.codes[image, place * each : (place + 1) * each]
                np.save(partial / codes / f"{image}.npy", views[None].astype(np.int64))
                np.save(partial / labels / f"{image}.npy", store.labels[image : image + 1])
            if image % 1000 == 999 or image + 1 == len(store):
                on_progress(image + 1, len(store))
    except BaseException:
        remove_folder(partial)
        raise
    (partial / "export.txt").unlink()
    os.rename(partial, out)
    return [out / name for name in names]
