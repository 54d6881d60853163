"""Loading and saving: every LlamaGen layout, key errors on both sides, unsafe and broken files."""

import argparse
import os
import pickle

import pytest
import torch
from helpers import GOLDEN, SMALL, small_model

from star.base.errors import UserError
from star.base.settings import config_to_dict
from star.model.config import ModelConfig
from star.model.transformer import build_model
from star.runs.checkpoint import load_checkpoint, save_checkpoint
from star.training.checkpoint import MODEL_RUN, load_model, newest_checkpoint, open_model
from star.training.config import preset


@pytest.fixture(scope="module")
def published():
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(GOLDEN / "llamagen_gpt_tiny.pt", weights_only=True)


def same(model, weights):
    return all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())


LAYOUTS = {
    "model": lambda w, a: {"model": w, "args": a},
    "module": lambda w, a: {"module": w, "args": a},
    "state_dict": lambda w, a: {"state_dict": w, "args": a},
    "compiled": lambda w, a: {"model": {"_orig_mod." + k: v for k, v in w.items()}, "args": a},
    "ddp": lambda w, a: {"model": {"module._orig_mod." + k: v for k, v in w.items()}, "args": a},
    "freqs": lambda w, a: {"model": {**w, "freqs_cis": torch.zeros(17, 8, 2)}, "args": a},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llamagen_layouts(published, tmp_path, layout):
    path = tmp_path / "c2i.pt"
    torch.save(LAYOUTS[layout](published["model"], published["args"]), path)
    loaded = open_model(path)
    assert same(loaded.model, published["model"])
    assert (loaded.model.config.heads, loaded.model.config.grid) == (4, 4)
    assert "LlamaGen checkpoint" in loaded.description


def test_bare_weights_need_heads_and_grid(published, tmp_path):
    path = tmp_path / "bare.pt"
    torch.save(dict(published["model"]), path)
    with pytest.raises(UserError, match="how many heads its width 64 has; give --heads"):
        load_model(path)
    with pytest.raises(UserError, match="does not say its token grid; give --grid"):
        load_model(path, heads=4)
    assert same(load_model(path, heads=4, grid=4), published["model"])


def test_heads_come_from_the_size_table_when_arguments_do_not_say(tmp_path):
    config = ModelConfig(layers=12, heads=12, width=768, grid=2, vocab_size=8, num_classes=2)
    model = build_model(config)
    for parameter in model.parameters():
        parameter.data.zero_()
    path = tmp_path / "b.pt"
    torch.save(model.state_dict(), path)
    assert load_model(path, grid=2).config.heads == 12
    torch.save(
        {"model": model.state_dict(), "args": argparse.Namespace(gpt_model="GPT-B", image_size=32,
                                                                 downsample_size=16)},
        path,
    )  # fmt: skip
    assert load_model(path).config == config


def test_an_ema_entry_is_the_teacher(published, tmp_path):
    ema = {key: value + 1 for key, value in published["model"].items()}
    path = tmp_path / "ema.pt"
    torch.save({"model": published["model"], "ema": ema, "args": published["args"]}, path)
    assert same(load_model(path), ema)
    assert same(load_model(path, weights="student"), published["model"])


def test_grouped_heads_are_found_in_the_shapes(tmp_path):
    config = ModelConfig(layers=1, heads=4, kv_heads=2, width=32, grid=2, vocab_size=8, num_classes=2)
    model = small_model(config)
    path = tmp_path / "gqa.pt"
    torch.save({"model": model.state_dict()}, path)
    assert load_model(path, heads=4, grid=2).config == config


def test_key_differences_are_reported_on_both_sides(published, tmp_path):
    weights = dict(published["model"])
    weights["layers.0.extra"] = torch.zeros(1)
    del weights["norm.weight"]
    weights["output.weight"] = torch.zeros(3, 64)
    path = tmp_path / "odd.pt"
    torch.save({"model": weights, "args": published["args"]}, path)
    with pytest.raises(UserError) as error:
        load_model(path)
    for part in ("missing norm.weight", "unexpected layers.0.extra", "output.weight has shape (3, 64)"):
        assert part in str(error.value)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_holds_code_is_refused_and_the_code_does_not_run(tmp_path, zipped):
    path, marker = tmp_path / "evil.pt", tmp_path / "pwned"
    content = {"model": {}, "args": Malicious(marker)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=r"refused.*could run code .*mkdir"):
        load_model(path)
    assert not marker.exists()


def test_files_that_are_no_checkpoint(tmp_path, published):
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "missing.pt")
    with pytest.raises(UserError, match="is a folder"):
        load_model(tmp_path)
    for name, content in (
        ("empty.pt", b""),
        ("text.pt", b"hello, I am text"),
        ("zip.pt", b"PK\x03\x04"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="truncated or of another format"):
            load_model(tmp_path / name)
    whole = (GOLDEN / "llamagen_gpt_tiny.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or of another format"):
        load_model(tmp_path / "cut.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        load_model(tmp_path / "list.pt")
    torch.save({"encoder.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"neither a checkpoint of star train nor a LlamaGen one"):
        load_model(tmp_path / "other.pt")
    with pytest.raises(UserError, match="cannot be resumed"):
        load_checkpoint(GOLDEN / "llamagen_gpt_tiny.pt", kind=MODEL_RUN)


def ours(step=3):
    model = small_model()
    config = preset("tiny")
    return {
        "step": step,
        "config": {**config_to_dict(config), "model": vars(SMALL)},
        "student": model.state_dict(),
        "teacher": {key: value + 1 for key, value in model.state_dict().items()},
        "class_names": ["a", "b", "c", "d"],
        "tokenizer": {"sha256": "0" * 64, "name": "fake"},
        "teacher_updates": step,
        "projector": None,
        "optimizer": {},
        "data": {},
    }


def test_our_checkpoint_round_trip(tmp_path):
    content = ours()
    save_checkpoint(tmp_path / "ckpt.pt", content, kind=MODEL_RUN)
    for weights in ("teacher", "student"):
        loaded = open_model(tmp_path, weights=weights)
        assert same(loaded.model, content[weights])
        assert loaded.weights == weights and loaded.step == 3
        assert loaded.class_names == ("a", "b", "c", "d")
        assert not any(p.requires_grad for p in loaded.model.parameters())
    with pytest.raises(UserError, match="weights is 'best'"):
        load_model(tmp_path, weights="best")


def test_a_newer_format_version_is_refused(tmp_path):
    torch.save({"format": "star", "version": 99}, tmp_path / "new.pt")
    with pytest.raises(UserError, match="version 99"):
        load_checkpoint(tmp_path / "new.pt", kind=MODEL_RUN)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "ckpt.pt"
    save_checkpoint(path, ours(step=1), kind=MODEL_RUN)
    before = path.read_bytes()

    def fail(content, target):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, ours(step=2), kind=MODEL_RUN)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ckpt.pt"]


def test_newest_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"no run with a ckpt.pt"):
        newest_checkpoint(tmp_path)
    for age, name in ((100, "old"), (10, "new"), (50, "middle")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "ckpt.pt"
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert newest_checkpoint(tmp_path).parent.name == "new"
