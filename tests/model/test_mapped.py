"""Checkpoints are mapped, not read into memory, and nothing that lives on is a part of the file."""

import gc
from pathlib import Path

import pytest
import torch
from helpers import TINY_VQ, fake_store, small_pictures
from reference.fill import fill_
from small_runs import CPU, tiny

from star.base.torch_files import load_torch_file
from star.images.views import scaled
from star.runs.checkpoint import load_checkpoint, save_checkpoint
from star.tokenizer.config import TokenizerConfig
from star.tokenizer.file import load_tokenizer, tokenizer_sha256
from star.tokenizer.learner import TokenizerLearner
from star.tokenizer.model import VQModel
from star.training.checkpoint import MODEL_RUN
from star.training.trainer import Trainer

MAPS = Path("/proc/self/maps")
pytestmark = pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's list of mapped files")


def mapped(path: Path) -> bool:
    """Whether this process maps the file, or has mapped a file of its name that is gone."""
    gc.collect()
    return str(path.resolve()) in MAPS.read_text()


def test_tensors_are_parts_of_the_file_until_they_go(tmp_path):
    path, weights = tmp_path / "weights.pt", torch.arange(5000.0)
    torch.save({"weights": weights, "step": 3}, path)
    content = load_torch_file(path)
    assert mapped(path) and torch.equal(content["weights"], weights) and content["step"] == 3
    content["weights"] += 1  # a copy of the pages: the file stays
    assert torch.equal(load_torch_file(path)["weights"], weights)
    del content
    assert not mapped(path)
    assert load_torch_file(path, "meta")["weights"].is_meta


def test_a_file_that_is_replaced_or_removed_changes_nothing_that_was_read(tmp_path):
    path = tmp_path / "ckpt.pt"
    named = ("config", "student", "teacher", "optimizer", "tokenizer", "data")
    parts = {name: {} for name in named} | {"step": 1, "teacher_updates": 1}
    parts |= {"projector": None, "class_names": []}
    save_checkpoint(path, parts | {"student": {"w": torch.ones(5000)}}, kind=MODEL_RUN)
    old = load_checkpoint(path, kind=MODEL_RUN)
    save_checkpoint(
        path, parts | {"student": {"w": torch.zeros(5000)}}, kind=MODEL_RUN
    )  # published by a rename
    assert (
        old["student"]["w"].sum() == 5000
        and load_checkpoint(path, kind=MODEL_RUN)["student"]["w"].sum() == 0
    )
    path.unlink()
    assert old["student"]["w"].sum() == 5000


@pytest.mark.parametrize("why", ["old layout", "file system"])
def test_what_cannot_be_mapped_is_read(tmp_path, monkeypatch, why):
    path, weights = tmp_path / "weights.pt", torch.arange(5000.0)
    torch.save({"weights": weights}, path, _use_new_zipfile_serialization=why != "old layout")
    if why == "file system":

        def fail(*_, **__):
            raise RuntimeError("unable to mmap 20000 bytes from file: No such device (19)")

        monkeypatch.setattr(torch.UntypedStorage, "from_file", fail)
    content = load_torch_file(path)
    assert torch.equal(content["weights"], weights) and not mapped(path)


def test_a_resumed_run_holds_no_part_of_its_checkpoint(tmp_path):
    config, stores, run = tiny(max_steps=4, save_every=2), {"train": fake_store()}, tmp_path / "run"
    Trainer(config, stores, run, CPU).fit(stop_after=2)
    resumed = Trainer.resume(run, stores, CPU)
    files = sorted(run.glob("*.pt"))
    assert len(files) == 2 and not any(mapped(path) for path in files)
    content = load_checkpoint(run / "ckpt.pt", kind=MODEL_RUN)
    moments = resumed.learner.optimizer.state_dict()["state"]
    assert len(moments) == len(content["optimizer"]["state"]) > 0
    for index, values in content["optimizer"]["state"].items():
        assert all(torch.equal(moments[index][name], value) for name, value in values.items())


def test_a_resumed_tokenizer_run_holds_no_part_of_its_checkpoint(tmp_path):
    config = TokenizerConfig(
        max_steps=4, batch_size=4, precision="fp32", shape=TINY_VQ, disc_weight=0.5, disc_start=0,
        disc_channels=4, disc_layers=1,
    )  # fmt: skip
    learner, path = TokenizerLearner(config), tmp_path / "ckpt.pt"
    learner.update(scaled(small_pictures())[:4], 0)
    torch.save(learner.state_dict(), path)
    resumed = TokenizerLearner(config)
    resumed.load_state_dict(load_torch_file(path))
    assert not mapped(path)
    for name in ("optimizer", "critic_optimizer"):
        one, other = (getattr(each, name).state_dict()["state"] for each in (learner, resumed))
        for index, values in one.items():
            assert all(torch.equal(other[index][key], value) for key, value in values.items())


def test_a_tokenizer_does_not_change_with_its_file(tmp_path):
    path, model = tmp_path / "vq.pt", fill_(VQModel(TINY_VQ))
    torch.save({"model": model.state_dict()}, path)
    loaded = load_tokenizer(path)
    assert not mapped(path)
    before = tokenizer_sha256(loaded)
    path.write_bytes(bytes(path.stat().st_size))
    assert tokenizer_sha256(loaded) == before
