"""The same images in a folder, a tar and parquet shards give the same codes; and what is refused."""

import io
import json
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from helpers import refused
from PIL import Image

from star.base.errors import UserError
from star.images.open import open_source

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is optional: pip install .[parquet]")
import pyarrow.parquet as pq  # noqa: E402


def _png(color, size=(20, 24)):
    file = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(color).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    ).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images():
    """{split: [(class, file name, bytes)]}: 2 classes, 8 + 2 + 4 images."""
    counts = {"train": 4, "val": 1, "test": 2}
    found, number = {}, 0
    for split, each in counts.items():
        rows = []
        for label, name in enumerate(("ant", "bee")):
            for index in range(each):
                number += 1
                rows.append((label, name, f"{index}.png", _png(number)))
        found[split] = rows
    return found


def folder_of(root, images):
    for split, rows in images.items():
        for _, name, file, content in rows:
            path = root / split / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def tar_of(path, images, prefix=""):
    with tarfile.open(path, "w") as tar:
        for split, rows in images.items():
            for _, name, file, content in rows:
                add(tar, f"{prefix}{split}/{name}/{file}", content)
    return path


def add(tar, name, content, **changes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def parquet_of(root, images, *, names=("ant", "bee"), strings=False, raw=False, groups=3):
    root.mkdir(parents=True, exist_ok=True)
    for split, rows in images.items():
        kind = pyarrow.binary()
        if not raw:
            kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        values = [content if raw else {"bytes": content, "path": file} for _, _, file, content in rows]
        labels = [name if strings else label for label, name, _, _ in rows]
        table = pyarrow.table({"image": pyarrow.array(values, kind), "label": labels})
        if names:
            features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
            told = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": told})
        file = {"val": "validation"}.get(split, split) + "-00000-of-00001.parquet"
        pq.write_table(table, root / file, row_group_size=groups)
    return root


def tokens_of(star, tokenizer, source, out, *options):
    command = ("tokenize", source, out, "--tokenizer", tokenizer, "--size", 16, "--views", "ten-crop")
    code, _, err = star(*command, "--device", "cpu", *options)
    assert code == 0, err
    return {split: np.load(f"{out}/{split}/codes.npy") for split in ("train", "val", "test")}


def test_folder_tar_and_parquet_give_the_same_codes_with_any_workers(
    star, tmp_path, images, tokenizer_file
):
    expected = tokens_of(star, tokenizer_file, folder_of(tmp_path / "set", images), "folder")
    sources = {
        "tar": tar_of(tmp_path / "a.tar", images),
        "tar in a folder": tar_of(tmp_path / "b.tar", images, "some/data/"),
        "parquet": parquet_of(tmp_path / "pq", images),
        "parquet of names and bytes": parquet_of(
            tmp_path / "named" / "data", images, names=None, strings=True, raw=True
        ).parent,
    }
    for name, source in sources.items():
        opened = open_source(source)
        assert opened.class_names == ("ant", "bee") and opened.native_size == 20, name
        for workers in (0, 2):
            found = tokens_of(star, tokenizer_file, source, f"{name}-{workers}", "--workers", workers)
            for split in expected:
                assert np.array_equal(found[split], expected[split]), (name, workers, split)


def test_sources_can_go_to_other_processes(tmp_path, images):
    for source in (tar_of(tmp_path / "a.tar", images), parquet_of(tmp_path / "pq", images)):
        split = open_source(source).splits["train"]
        split.load(0)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            there = pool.submit(split.load, 5).result()
        assert np.array_equal(np.asarray(there), np.asarray(split.load(5)))


def test_rows_are_read_by_row_group_and_few_are_kept(tmp_path, images):
    split = open_source(parquet_of(tmp_path / "pq", images, groups=1)).splits["train"]
    expected = [content for _, _, _, content in images["train"]]
    for index in (0, 7, 3, 4, 1, 0):
        with Image.open(io.BytesIO(expected[index])) as image:
            assert np.array_equal(np.asarray(image), np.asarray(split.load(index)))
    shard = next(shard for name, shard in split.read.shards.items() if name.startswith("train"))
    assert len(shard._groups) == 2


def test_web_dataset_shards(tmp_path, images):
    root = tmp_path / "shards"
    root.mkdir()
    for split, rows in images.items():
        with tarfile.open(root / f"{split}-000000.tar", "w") as tar:
            for index, (label, _, _, content) in enumerate(rows):
                add(tar, f"{index:05d}.png", content)
                add(tar, f"{index:05d}.cls", str(label).encode())
    source = open_source(root)
    assert {name: len(split) for name, split in source.splits.items()} == {
        "train": 8, "val": 2, "test": 4,
    }  # fmt: skip
    assert source.class_names == ("0", "1")
    assert source.splits["train"].labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert source.splits["test"].load(3).size == (20, 24)


def test_links_devices_and_paths_outside_are_left_out(tmp_path, images):
    path = tar_of(tmp_path / "a.tar", images)
    with tarfile.open(path, "a") as tar:
        for name, kind in (("train/ant/l.png", tarfile.SYMTYPE), ("train/ant/d.png", tarfile.CHRTYPE)):
            add(tar, name, b"", type=kind, linkname="/etc/passwd")
        add(tar, "/" + "train/ant/abs.png", _png(90))
        add(tar, "../train/ant/up.png", _png(91))
    source = open_source(path)
    assert len(source.splits["train"]) == 8
    assert any("4 members left out" in note for note in source.notes)


def test_unusable_archives(star, tmp_path, images, monkeypatch):
    whole = tar_of(tmp_path / "a.tar", images).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    (tmp_path / "text.tar").write_text("text" * 400)
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with tarfile.open(tmp_path / "flat.tar", "w") as tar:
        add(tar, "a.png", _png(1))
    for name, part in (
        ("cut.tar", "cut"), ("text.tar", "as an uncompressed tar"), ("a.tar.gz", "is compressed"),
        ("flat.tar", "no images of train"),
    ):  # fmt: skip
        assert refused(star("tokenize", name, "out"), part)
    (tmp_path / "x.parquet").write_text("text, and no parquet at all")
    assert refused(star("tokenize", "x.parquet", "out"), "is no parquet file")
    pq.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "y.parquet")
    assert refused(star("tokenize", "y.parquet", "out"), "no column of images", "found: text")
    parquet_of(tmp_path / "less", {"test": images["test"], "val": images["val"]})
    assert refused(star("tokenize", "less", "out"), "no shard of train")
    strange = dict(images, test=[(5, "wasp", "0.png", _png(3))])
    parquet_of(tmp_path / "more", strange)
    assert refused(star("tokenize", "more", "out"), "test has classes that train has not: 5")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert refused(star("tokenize", "y.parquet", "out"), 'pip install "star-autoregressive[parquet]"')


def test_an_unlabelled_test_split_is_left_out_with_a_note(tmp_path, images):
    images["test"] = [(-1, name, file, content) for _, name, file, content in images["test"]]
    source = open_source(parquet_of(tmp_path / "pq", images))
    assert len(source.splits["test"]) == 2  # the validation split, as the custom is
    assert "its test split has no labels" in source.notes[0]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_bad_images_inside_are_named_and_can_be_skipped(star, tmp_path, images, tokenizer_file, kind):
    images["train"][2] = (0, "ant", "2.png", images["train"][2][3][:200])
    images["train"][6] = (1, "bee", "2.png", b"")
    source = (
        tar_of(tmp_path / "a.tar", images) if kind == "tar" else parquet_of(tmp_path / "pq", images)
    )
    command = (
        "tokenize",
        source,
        "out",
        "--tokenizer",
        tokenizer_file,
        "--size",
        16,
        "--device",
        "cpu",
    )
    assert refused(star(*command), "cannot decode", "--skip-bad")
    code, out, err = star(*command, "--skip-bad")
    assert code == 0, err
    assert "train: 6 images" in out and "skipped: " in out


def test_an_image_folder_with_an_archive_beside_it_is_a_folder(tmp_path, images):
    root = folder_of(tmp_path / "set", images)
    tar_of(root / "old.tar", {"train": images["train"][:2]})
    assert len(open_source(root).splits["train"]) == 8
    with pytest.raises(UserError, match="is a file; expected digits"):
        open_source(root / "train" / "ant" / "0.png")
