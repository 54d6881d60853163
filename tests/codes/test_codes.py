"""Code stores: round trip, resuming, damage found; and tokenising whole sources into them."""

import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fresh import exit_code
from PIL import Image

from star.base.errors import UserError
from star.base.files import sha256_file
from star.codes.encode import tokenize
from star.codes.store import StoreWriter, open_codes, open_splits
from star.images.open import BadImageError, open_source
from star.images.views import to_model_range, view_set


class MeanTokenizer:
    """Stand-in for a VQ model: a token is the mean brightness of a square of 4 x 4 pixels, of 64."""

    config = SimpleNamespace(codebook_size=64, stride=4)
    name = "mean"

    def __init__(self):
        self.sizes = []

    def encode(self, images_BCHW):
        self.sizes.append(len(images_BCHW))
        means_Bgg = torch.nn.functional.avg_pool2d(images_BCHW.double().mean(1), 4)
        return ((means_Bgg + 1) * 32).long().clamp(0, 63)


def _write(source, out, **options):
    options = {"tokenizer_hash": "a" * 64, "views": "affine-4", "size": 16, **options}
    return tokenize(source, options.pop("tokenizer", MeanTokenizer()), out, **options)


@pytest.fixture
def source(tmp_path):  # 24 train images, 6 val, 6 test, 24 x 20 pixels
    rng = np.random.default_rng(0)
    for split, images in (("train", 12), ("val", 3), ("test", 3)):
        for folder in (tmp_path / "set" / split / "ant", tmp_path / "set" / split / "bee"):
            folder.mkdir(parents=True)
            for index in range(images):
                pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return open_source(tmp_path / "set")


@pytest.fixture
def store(source, tmp_path):  # 24 images, 4 views, 16 tokens
    return _write(source, tmp_path / "out")["train"]


def _hashes(folder):
    return {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.glob("*/*"))}


def _edit(store, **changes):
    path = store.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_stores_hold_what_the_tokenizer_says(source, tmp_path):
    stores = _write(source, tmp_path / "out", seed=5)
    assert list(stores) == ["train", "val", "test"]
    assert sorted(file.name for file in (tmp_path / "out").rglob("*") if file.is_file()) == sorted(
        3 * ["codes.npy", "labels.npy", "manifest.json"]
    )
    for name, store in stores.items():
        store.verify()
        split = source.splits[name]
        views = view_set("affine-4", 16, seed=5)
        rows = range(4) if name == "train" else [0]
        assert store.codes.shape == (len(split), len(rows), 16) and store.codes.dtype == np.uint16
        assert store.labels.dtype == np.int64 and (store.labels == split.labels).all()
        for index in range(len(split)):
            expected = MeanTokenizer().encode(to_model_range(views(split.load(index), index)[rows]))
            assert (store.codes[index] == expected.flatten(1).numpy()).all()
    train, test = stores["train"], stores["test"]
    assert (train.grid, train.tokens, train.vocab_size, train.num_classes) == (4, 16, 64, 2)
    assert train.class_names == ("ant", "bee") and train.tokenizer_sha256 == "a" * 64
    assert train.views == 4 and train.test_view == 0 and len(train) == 24
    assert test.views == 1 and test.test_view == 0 and test.view_names == ("plain",)
    assert train.manifest["source"]["fingerprint"] == source.splits["train"].fingerprint()
    assert train.manifest["view_set"]["seed"] == 5 and train.manifest["class_counts"] == [12, 12]


def test_test_view_of_ten_crop(source, tmp_path):
    stores = _write(source, tmp_path / "out", views="ten-crop")
    assert stores["train"].views == 10 and stores["train"].test_view == 4
    assert stores["train"].manifest["view_set"]["crop_size"] == 17
    every = _write(source, tmp_path / "every", views="ten-crop", eval_views="all")
    assert every["test"].views == 10
    assert stores["test"].view_names == ("centre",)
    assert (every["test"].codes[:, 4] == stores["test"].codes[:, 0]).all()


def test_batches_are_bounded_and_do_not_change_the_codes(source, tmp_path):
    small, large = MeanTokenizer(), MeanTokenizer()
    seen = []
    _write(source, tmp_path / "small", tokenizer=small, batch_size=3,
           on_progress=lambda *progress: seen.append(progress))  # fmt: skip
    _write(source, tmp_path / "large", tokenizer=large, batch_size=256)
    assert max(small.sizes) == 3 and max(large.sizes) == 96
    assert _hashes(tmp_path / "small") == _hashes(tmp_path / "large")
    assert seen[:3] == [("train", 0, 24), ("train", 1, 24), ("train", 2, 24)]
    assert seen[-1] == ("test", 6, 6)


class Killed(BaseException): ...


def _kill_at(place):
    def on_progress(split, done, total):
        if (split, done) == place:
            raise Killed

    return on_progress


@pytest.mark.parametrize("at", [("train", 8), ("train", 24), ("val", 6), ("test", 6)])
def test_a_killed_run_goes_on_to_the_same_bytes(source, tmp_path, at):
    _write(source, tmp_path / "whole", batch_size=16)
    first, second, notes = MeanTokenizer(), MeanTokenizer(), []

    with pytest.raises(Killed):
        _write(source, tmp_path / "out", tokenizer=first, batch_size=16, on_progress=_kill_at(at))
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").is_dir()
    # what a kill in the middle of a write leaves behind must not be published
    (tmp_path / "out.partial" / "train" / ".progress.abc.json").write_text("{")
    _write(source, tmp_path / "out", tokenizer=second, batch_size=16, on_message=notes.append)
    assert sum(first.sizes) + sum(second.sizes) == 24 * 4 + 6 + 6  # nothing was done twice
    assert _hashes(tmp_path / "out") == _hashes(tmp_path / "whole")
    assert len(notes) == 1 and "going on with the work" in notes[0]
    assert not (tmp_path / "out.partial").exists()
    assert not list((tmp_path / "out").rglob(".*"))


def killed(folder):
    def kill(split, done, total):
        if (split, done) == ("train", 12):
            os.kill(os.getpid(), signal.SIGKILL)

    _write(open_source(folder / "set"), folder / "out", batch_size=16, on_progress=kill)


def test_a_process_that_is_really_killed(source, tmp_path):
    assert exit_code(killed, tmp_path) == -signal.SIGKILL
    _write(source, tmp_path / "out", batch_size=16)
    _write(source, tmp_path / "whole", batch_size=16)
    assert _hashes(tmp_path / "out") == _hashes(tmp_path / "whole")


@pytest.mark.parametrize("change", ["views", "size", "tokenizer_hash", "seed", "images"])
def test_work_of_another_kind_is_started_afresh(source, tmp_path, change):
    with pytest.raises(Killed):
        _write(source, tmp_path / "out", batch_size=16, on_progress=_kill_at(("train", 8)))
    options = {"views": "affine-5", "size": 20, "tokenizer_hash": "b" * 64, "seed": 1}
    options = {change: options[change]} if change in options else {}
    if change == "images":
        (tmp_path / "set" / "train" / "bee" / "00.png").unlink()
        source = open_source(tmp_path / "set")
    notes = []
    _write(source, tmp_path / "out", on_message=notes.append, **options)
    _write(source, tmp_path / "whole", **options)
    assert len(notes) == 1 and "starting afresh" in notes[0]
    assert _hashes(tmp_path / "out") == _hashes(tmp_path / "whole")


def test_out_that_holds_something(source, tmp_path):
    out = tmp_path / "out"
    _write(source, out)
    before, again, notes = _hashes(out), MeanTokenizer(), []
    stores = _write(source, out, tokenizer=again, on_message=notes.append)
    assert again.sizes == [] and _hashes(out) == before and len(stores) == 3
    assert "already complete" in notes[0]
    # the same images elsewhere, the same tokenizer under another name: still the same
    moved = open_source(shutil.copytree(tmp_path / "set", tmp_path / "moved"))
    again.name = "renamed"
    assert len(_write(moved, out, tokenizer=again)) == 3
    with pytest.raises(UserError, match=r"out exists and was made with another view_set \(train\)"):
        _write(source, out, seed=1)
    with pytest.raises(UserError, match=r"another tokenizer_sha256"):
        _write(source, out, tokenizer_hash="b" * 64)
    thesis = tmp_path / "other" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    for place in (thesis.parent, thesis):
        with pytest.raises(UserError, match=f"{place.name} exists and holds no code stores"):
            _write(source, place)
    assert thesis.read_text() == "mine"


def test_an_empty_out_is_used_and_a_strange_partial_is_not_touched(source, tmp_path):
    (tmp_path / "out").mkdir()
    assert len(_write(source, tmp_path / "out")) == 3
    thesis = tmp_path / "more.partial" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    with pytest.raises(UserError, match=r"more.partial is no work folder of star"):
        _write(source, tmp_path / "more")
    assert thesis.exists()


def test_a_bad_image_in_the_first_batch_leaves_nothing(source, tmp_path):
    (tmp_path / "set" / "train" / "ant" / "01.png").write_text("text")
    with pytest.raises(
        BadImageError, match=r"01.png \(it is no image\): remove it or pass --skip-bad$"
    ):
        _write(open_source(tmp_path / "set"), tmp_path / "out", batch_size=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_bad_image_later_keeps_the_work(source, tmp_path):
    (tmp_path / "set" / "train" / "bee" / "01.png").write_text("text")
    source = open_source(tmp_path / "set")
    with pytest.raises(BadImageError, match=r"01.png .*work so far is kept .*: --skip-bad goes on"):
        _write(source, tmp_path / "out", batch_size=16)
    tokenizer = MeanTokenizer()
    stores = _write(source, tmp_path / "out", batch_size=16, skip_bad=True, tokenizer=tokenizer)
    assert sum(tokenizer.sizes) == 11 * 4 + 12  # the first twelve images were kept
    train = stores["train"]
    train.verify()
    assert train.manifest["skipped"] == {"count": 1, "names": ["train/bee/01.png"]}
    assert train.codes.shape == (23, 4, 16) and train.manifest["class_counts"] == [12, 11]
    whole = _write(source, tmp_path / "whole", skip_bad=True)["train"]
    assert (whole.codes == train.codes).all() and (whole.labels == train.labels).all()


def test_nothing_readable(source, tmp_path):
    for file in (tmp_path / "set" / "train").rglob("*.png"):
        file.write_text("text")
    with pytest.raises(UserError, match=r"no image of the train split could be read"):
        _write(open_source(tmp_path / "set"), tmp_path / "out", skip_bad=True, batch_size=16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 18}, "size is 18; expected a multiple of the tokenizer's stride 4"),
        ({"size": 0}, "size is 0"),
        ({"views": "five-crop"}, "views are 'five-crop'"),
        ({"eval_views": "some"}, "eval_views is 'some'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"device": "tpu-7"}, "device is 'tpu-7'"),
    ],
)
def test_options_that_cannot_work(source, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        _write(source, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_size_comes_from_the_source(source, tmp_path):
    assert _write(source, tmp_path / "out", size=None)["train"].grid == 5  # 20 pixels, stride 4
    coarse = MeanTokenizer()
    coarse.config = SimpleNamespace(codebook_size=64, stride=32)
    with pytest.raises(UserError, match=r"images of 20 pixels, smaller than one token"):
        _write(source, tmp_path / "none", size=None, tokenizer=coarse)
    coarse.config = SimpleNamespace(codebook_size=65537, stride=4)
    with pytest.raises(UserError, match=r"65537 entries; code stores hold at most 65536"):
        _write(source, tmp_path / "none", tokenizer=coarse)


def test_a_place_that_cannot_hold_it(source, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot write to .*00.png/out.partial: Not a directory"):
        _write(source, tmp_path / "set" / "train" / "ant" / "00.png" / "out")
    usage = SimpleNamespace(free=100)
    monkeypatch.setattr("star.codes.store.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"GB, 0.00 GB are free; make room"):
        _write(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_the_real_tokenizer_fits_in(tmp_path):
    from star.tokenizer.model import VQModel
    from star.tokenizer.shape import vq_preset

    model = VQModel(vq_preset("small")).eval()
    stores = tokenize(open_source("photos"), model, tmp_path / "out", size=32)
    assert list(stores) == ["train"] and stores["train"].codes.shape == (2, 10, 64)
    assert len(stores["train"].tokenizer_sha256) == 64
    stores["train"].verify()


@pytest.mark.parametrize("file", ["codes.npy", "labels.npy"])
@pytest.mark.parametrize("place", [130, -1])
def test_verify_finds_a_flipped_byte(store, file, place):
    store.verify()
    content = bytearray((store.path / file).read_bytes())
    content[place] ^= 1
    (store.path / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file} has sha256 .* the file was changed"):
        open_codes(store.path).verify()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("codes.npy", lambda a: np.where(a == a.max(), 64, a).astype(np.uint16), "has code 64"),
        ("labels.npy", lambda a: a + 1, "label 2; expected 0 to 1"),
        ("labels.npy", lambda a: np.zeros_like(a), "images per class differ"),
    ],
)
def test_verify_checks_ranges_and_counts_too(store, file, change, message):
    path = store.path / file
    np.save(path, change(np.load(path)))
    _edit(store, sha256=store.manifest["sha256"] | {file: sha256_file(path)})
    with pytest.raises(UserError, match=message):
        open_codes(store.path).verify()


@pytest.mark.parametrize("file", ["codes.npy", "labels.npy", "manifest.json"])
def test_missing_and_truncated_files(store, file):
    path = store.path / file
    content = path.read_bytes()
    for keep in (len(content) - 3, 70, 0, None):
        path.unlink() if keep is None else path.write_bytes(content[:keep])
        with pytest.raises(UserError, match=rf"{file}.*remove the whole folder of stores"):
            open_codes(store.path)


def test_arrays_of_another_type_and_pickles_are_refused(store):
    np.save(store.path / "codes.npy", np.load(store.path / "codes.npy").astype(np.int64))
    with pytest.raises(UserError, match=r"codes.npy is int64"):
        open_codes(store.path)
    np.save(store.path / "codes.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"codes.npy is damaged"):
        open_codes(store.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "zip"}, "not the manifest of a code store"),
        ({"format_version": 2}, "has format version 2; this program reads 1"),
        ({"images": 23, "class_counts": [12, 11]}, r"codes.npy is uint16 \(24, 4, 16\)"),
        ({"grid": 5}, "contradicts itself"),
        ({"test_view": 4}, "contradicts itself"),
        ({"view_names": ["plain"]}, "contradicts itself"),
        ({"class_counts": [12, 13]}, "contradicts itself"),
        ({"vocab_size": "64"}, "vocab_size is '64'; expected int"),
        ({"class_names": None}, "class_names is None; expected list"),
    ],
)
def test_manifests_that_do_not_fit(store, changes, message):
    _edit(store, **changes)
    with pytest.raises(UserError, match=message):
        open_codes(store.path)


def test_wrong_folders(store, tmp_path):
    out = store.path.parent
    with pytest.raises(UserError, match=r"no code store at .*nowhere"):
        open_codes(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"it holds the stores train, val, test: open .*train"):
        open_codes(out)
    for wrong in (tmp_path, store.path):
        with pytest.raises(UserError, match=r"is no folder of code stores"):
            open_splits(wrong)
    (out / "val" / "codes.npy").unlink()
    with pytest.raises(UserError, match=r"val.codes.npy is missing"):
        open_splits(out)
    shutil.rmtree(out / "val")
    assert list(open_splits(out)) == ["train", "test"]
    _edit(open_codes(out / "test"), tokenizer_sha256="b" * 64)
    with pytest.raises(UserError, match=r"test and train differ in tokenizer_sha256"):
        open_splits(out)


def test_opening_a_store_of_imagenets_size_is_instant(tmp_path):
    writer = StoreWriter(tmp_path / "train", images=1_281_167, views=10, tokens=256)
    del writer  # 6.6 GB, sparse: nothing but the headers is on disk
    manifest = {
        "format": "star-codes", "format_version": 1, "images": 1_281_167, "views": 10, "tokens": 256,
        "grid": 16, "vocab_size": 16384, "test_view": 4, "class_names": ["a"], "sha256": {},
        "class_counts": [1_281_167], "view_names": list("abcdefghij"), "tokenizer_sha256": "a",
    }  # fmt: skip
    (tmp_path / "train" / "manifest.json").write_text(json.dumps(manifest))
    start = time.process_time()  # whatever runs beside
    store = open_codes(tmp_path / "train")
    assert isinstance(store.codes, np.memmap) and store.codes.mode == "r"
    assert store.codes[1_281_166, 9, 255] == 0
    assert time.process_time() - start < 1.0
