"""A run's own data, taken by name, are compared with what it recorded; other images are refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fake_store, refused

from star.base.errors import UserError
from star.codes.encode import tokenize
from star.codes.store import open_splits
from star.images.open import open_source
from star.tokenizer.file import load_tokenizer
from star.training.checkpoint import open_model
from star.training.own_data import OwnData, data_record
from star.training.run_data import open_run_data, prepare_run_data

CLASSES = ("one", "zero")


def edited(trained, run, *, data="pics", change=None) -> Path:
    """A copy of the run trained on ``data``; ``change`` edits its checkpoint's content."""
    shutil.copytree(trained, run)
    content = torch.load(run / "ckpt.pt", weights_only=True)
    content["config"]["data"] = str(data)
    if change is not None:
        change(content)
    for path in run.glob("*.pt"):
        path.unlink()
    torch.save(content, run / "ckpt.pt")
    (run / "config.json").write_text(json.dumps(content["config"]))
    return run


def forget(content) -> None:
    """What runs of earlier releases recorded: hashes alone."""
    for split in content["data"].values():
        del split["fingerprint"], split["images"]


def other_codes(content) -> None:
    content["data"]["test"]["codes.npy"] = "0" * 64


def grow(folder: Path) -> None:
    """Other images under the same names."""
    for path in folder.glob("test/*/*.png"):
        path.write_bytes(path.read_bytes() + b"\0")


@pytest.fixture
def there(tmp_path, monkeypatch, digit_folder):
    """A working folder with the run's own images in pics/."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digit_folder, "pics")
    return tmp_path


@pytest.fixture
def no_codes(monkeypatch):
    """Nothing may be tokenised."""

    def fail(*given, **options):
        raise AssertionError("tokenised before the data were compared")

    monkeypatch.setattr("star.codes.open.tokenize", fail)


def test_a_run_records_its_images_and_its_codes(trained, digit_folder):
    record, source = open_model(trained).data, open_source(digit_folder)
    assert list(record) == list(source.splits)
    for name, split in source.splits.items():
        assert record[name]["fingerprint"] == split.fingerprint()
        assert record[name]["images"] == len(split)
        assert len(record[name]["codes.npy"]) == len(record[name]["labels.npy"]) == 64


def test_stores_that_say_nothing_of_their_images_are_known_by_hashes():
    stores = {"train": fake_store()}
    assert data_record(stores) == {"train": {"codes.npy": "codes-0", "labels.npy": "l"}}


def test_the_same_images_elsewhere_are_the_runs_own(there, trained):
    run = edited(trained, there / "run")
    said = []
    prepared = prepare_run_data(
        open_model(run), None, tokenizer=run / "tokenizer.safetensors", on_message=said.append
    )
    assert len(prepared.stores["test"]) == 16 and not any("note" in text for text in said)


COMMANDS = [
    ["probe", "RUN", "--layer", "1"],
    ["probe", "RUN", "--measure", "cka"],
    ["probe", "RUN", "--dry-run"],
    ["attn-maps", "RUN"],
    ["attention-stats", "RUN"],
    ["attribute", "RUN"],
    ["attribute", "RUN", "--target", "probe"],
    ["ablate", "RUN"],
]


@pytest.mark.parametrize("command", [*COMMANDS, ["train", "--resume", "RUN"]], ids=" ".join)
def test_other_images_are_refused_before_anything_is_made(star, there, trained, no_codes, command):
    run = edited(trained, there / "run")
    grow(Path("pics"))
    before = sorted(there.rglob("*"))
    result = star(*(str(run) if word == "RUN" else word for word in command))
    again = "--data pics to measure what is there on purpose"
    assert refused(result, "pics is not the data that", "16 test images, fingerprint", "the run's: 16")
    assert (again in result[2]) == (command[0] != "train")
    assert sorted(there.rglob("*")) == before


@pytest.mark.parametrize("command", [*COMMANDS, ["train", "--resume", "RUN"]], ids=" ".join)
def test_a_folder_that_is_missing_is_named(star, tmp_path, trained, no_codes, command):
    run = edited(trained, tmp_path / "run")
    result = star(*(str(run) if word == "RUN" else word for word in command))
    assert refused(result, "was trained on pics, and there is no such file or folder here")
    assert ("or give --data PATH" in result[2]) == (command[0] != "train")


def test_data_given_by_name_are_measured_as_they_are(star, there, trained):
    run = edited(trained, there / "run")
    grow(Path("pics"))
    shown = ["--layers", "1", "--at", "9", "--formats", "png", "--out", "m"]
    assert star("attn-maps", run, "--data", "pics", *shown)[0] == 0
    # and what needs none of the data does not ask for them
    shutil.rmtree("pics")
    assert star("attn-maps", run, "digits/3", *shown)[0] == 0
    assert star("sample", run, "--each", "1", "--out", "s")[0] == 0


def test_other_codes_of_the_same_images_are_worth_one_note(there, trained):
    run, said = edited(trained, there / "run", change=other_codes), []
    options = {"tokenizer": run / "tokenizer.safetensors", "on_message": said.append}
    prepare_run_data(open_model(run), None, **options)
    notes = [text for text in said if text.startswith("note: pics holds the images that")]
    assert len(notes) == 1 and "other codes" in notes[0]


def test_runs_of_earlier_releases_are_known_by_their_codes(there, trained, no_codes, monkeypatch):
    own = edited(trained, there / "own", change=forget)
    with pytest.raises(AssertionError, match="tokenised before"):  # there is no other way to know
        open_run_data(open_model(own), None, tokenizer=own / "tokenizer.safetensors")
    assert len(open_run_data(open_model(own), None, make_codes=False).splits["test"]) == 16
    monkeypatch.undo()
    os.chdir(there)
    options = {"tokenizer": own / "tokenizer.safetensors"}
    assert open_run_data(open_model(own), None, **options).name == "pics"

    def older(content):
        forget(content)
        other_codes(content)

    other = edited(trained, there / "other", change=older)
    for call in (open_run_data, prepare_run_data):
        with pytest.raises(UserError, match="found: test codes of other hashes; the run's: test codes"):
            call(open_model(other), None, **options)


def test_other_classes_tell_without_any_code(there, trained, no_codes):
    run = edited(trained, there / "run", change=forget)
    for split in ("train", "test"):
        Path("pics", split, "zero").rename(Path("pics", split, "two"))
    for call in (open_run_data, prepare_run_data):
        with pytest.raises(UserError, match="found: classes one, two; the run's: classes one, zero"):
            call(open_model(run), None)


def test_code_stores_are_compared_too(there, trained, tokenizer_file):
    run = edited(trained, there / "run", data="codes")
    tokenize(open_source("pics"), load_tokenizer(tokenizer_file), Path("codes"))
    assert len(prepare_run_data(open_model(run), None).stores["test"]) == 16
    assert len(open_run_data(open_model(run), None)["test"]) == 16
    manifest = Path("codes/test/manifest.json")
    changed = json.loads(manifest.read_text())
    changed["source"] |= {"fingerprint": "f" * 64, "images": 99}
    manifest.write_text(json.dumps(changed))
    for call in (open_run_data, prepare_run_data):
        with pytest.raises(UserError, match="codes is not the data.*99 test images, fingerprint ffff"):
            call(open_model(run), None)
    assert len(open_run_data(open_model(run), "codes")["test"]) == 16
    shutil.rmtree("codes/test")
    with pytest.raises(UserError, match="found: no test split; the run's: 16 test images"):
        open_run_data(open_model(run), None)


def own_data(name, record, classes=("0", "1"), **options) -> OwnData:
    return OwnData(name=name, record=record, path=Path("c.pt"), class_names=classes, **options)


def test_built_in_sources_are_always_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = own_data("digits", {"train": {"codes.npy": "x", "fingerprint": "y"}})
    own.require()
    own.check_source(open_source("digits"))
    assert own.check_stores({"train": fake_store()}) is None and not own.needs_codes
    (tmp_path / "digits/train").mkdir(parents=True)
    (tmp_path / "digits/train/manifest.json").write_text("{}")  # code stores of that name go first
    with pytest.raises(UserError, match="digits is not the data that c.pt was trained on"):
        own.check_stores({"train": fake_store()})


def test_a_record_that_is_none_is_refused():
    with pytest.raises(UserError, match="c.pt is broken: its data are"):
        own_data("pics", {"train": 3})


def test_class_names_are_the_same_in_both_unicode_forms(digit_folder, tmp_path):
    shutil.copytree(digit_folder, tmp_path / "pics")
    for split in ("train", "test"):
        (tmp_path / "pics" / split / "zero").rename(tmp_path / "pics" / split / "ze\u0301ro")
    source = open_source(tmp_path / "pics")
    own_data("pics", {}, classes=("one", "z\u00e9ro")).check_source(source)
    with pytest.raises(UserError, match="found: classes one, .*; the run's: classes one, zero"):
        own_data("pics", {}, classes=CLASSES).check_source(source)


def test_a_resumed_run_needs_its_own_codes(there, trained, star):
    run = edited(trained, there / "run", change=other_codes)
    assert refused(star("train", "--resume", run), "was trained on other codes than", "(test split)")
    stores = open_splits(next(Path(os.environ["STAR_CACHE"]).glob("codes/pics-*")))
    assert np.asarray(stores["test"].codes).shape == (16, 1, 64)
