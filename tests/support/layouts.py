"""Small image sources for the tests: the same files as a folder or in a tar, and parquet shards."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(number: int) -> bytes:
    """A noise picture of 8 x 6 pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(*paths: str) -> dict[str, bytes]:
    """A picture of its own for every path."""
    return {path: png(number) for number, path in enumerate(paths)}


def split_of(split: str, *, classes=("ant", "bee"), each: int = 2) -> dict[str, bytes]:
    """``split/<class>/0.png`` and so on."""
    return pictures(*(f"{split}/{name}/{index}.png" for name in classes for index in range(each)))


def in_folder(root: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def in_tar(path: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


KINDS = {
    "folder": lambda at, files: in_folder(at / "set", files),
    "tar": lambda at, files: in_tar(at / "set.tar", files),
    "tar below folders": lambda at, files: in_tar(at / "set.tar", files, "./test/some data/"),
}


def web(first: int, count: int = 6, classes: int = 3) -> dict[str, bytes]:
    """The members of a web dataset's shard: a picture, a class and a caption for every key."""
    found = {}
    for number in range(first, first + count):
        found[f"{number:05d}.png"] = png(number)
        found[f"{number:05d}.cls"] = str(number % classes).encode()
        found[f"{number:05d}.json"] = b"{}"
    return found


def parquet(path: Path, columns: dict, features: dict | None = None, image: str = "image") -> Path:
    """A shard with a picture a row beside ``columns``; ``features`` as Hugging Face notes them."""
    import pyarrow
    import pyarrow.parquet

    rows = len(next(iter(columns.values())))
    images = [{"bytes": png(number), "path": None} for number in range(rows)]
    table = pyarrow.table({image: images, **columns})
    if features is not None:
        told = json.dumps({"info": {"features": {image: {"_type": "Image"}, **features}}})
        table = table.replace_schema_metadata({"huggingface": told})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)
    return path


def counts(source) -> dict[str, int]:
    return {name: len(split) for name, split in source.splits.items()}


def classes_of(source, split: str) -> dict[str, str]:
    """{image: class} of a split."""
    part = source.splits[split]
    return {
        name: source.class_names[label] for name, label in zip(part.names, part.labels, strict=True)
    }
