"""Samples at scale: the same tokens for any request, number of processes and after a kill."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from fresh import exit_code, in_two
from helpers import SMALL, TINY_VQ, small_model
from PIL import Image
from two_processes import one_of_two

from star.base.errors import UserError
from star.codes import sample as engine
from star.codes.sample import SampleOptions, sample_labels, write_samples
from star.codes.store import open_codes
from star.model.sampler import _strength
from star.tokenizer.model import VQModel

CONFIG = dataclasses.replace(SMALL, vocab_size=TINY_VQ.codebook_size)
FACTS = {"checkpoint": "a", "tokenizer_sha256": "b"}
NAMES = ["ant", "bee", "cat", "dog"]


def write(out, count=5, *, images=False, say=lambda line: None, chosen=(0, 1, 2, 3), **options):
    torch.manual_seed(0)
    return write_samples(
        small_model(CONFIG),
        VQModel(TINY_VQ).eval(),
        out,
        SampleOptions(**{"count": count, "batch_size": 4, **options}),
        chosen=list(chosen),
        facts=FACTS,
        class_names=NAMES,
        images=images,
        on_message=say,
    )


def tokens(out):
    with np.load(out, allow_pickle=False) as file:
        return file["tokens"]


def test_any_request_gives_the_same_samples(tmp_path):
    for count in (1, 3, 16):
        write(tmp_path / f"{count}.npz", count)
    full = tokens(tmp_path / "16.npz")
    assert len(np.unique(full, axis=0)) == 16
    np.testing.assert_array_equal(tokens(tmp_path / "1.npz"), full[:1])
    np.testing.assert_array_equal(tokens(tmp_path / "3.npz"), full[:3])


def test_what_is_written(tmp_path):
    out = tmp_path / "s.npz"
    assert write(out, 6, images=True)[0] == out
    with np.load(out, allow_pickle=False) as file:
        pixels, labels, codes = file["arr_0"], file["labels"], file["tokens"]
    assert pixels.dtype == np.uint8 and pixels.shape == (6, 6, 6, 3)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]
    store = open_codes(tmp_path / "s-codes" / "train")
    store.verify()
    np.testing.assert_array_equal(store.codes[:, 0], codes)
    np.testing.assert_array_equal(store.labels, labels)
    assert store.class_names == tuple(NAMES) and store.tokenizer_sha256 == "b"
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "s-images" / "000005.png")), pixels[5])
    facts = json.loads((tmp_path / "s.json").read_text())
    assert facts["sampling"]["cfg_scale"] == 2.0 and facts["checkpoint"] == "a"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "s-codes",
        "s-images",
        "s.json",
        "s.npz",
    ]


def test_goes_on_after_the_end_of_any_batch(tmp_path, monkeypatch):
    write(tmp_path / "whole.npz", 11)
    whole, calls, said = engine.generate, [], []

    def interrupted(*given, **options):
        calls.append(options["seeds"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*given, **options)

    monkeypatch.setattr(engine, "generate", interrupted)
    out = tmp_path / "s.npz"
    with pytest.raises(KeyboardInterrupt):
        write(out, 11, say=said.append)
    assert "the same command goes on" in said[0] and not out.exists()
    write(out, 11)
    assert [seeds.start for seeds in calls] == [0, 4, 4, 8]  # the finished one is not made again
    np.testing.assert_array_equal(tokens(out), tokens(tmp_path / "whole.npz"))
    said.clear()
    write(out, 11, say=said.append)
    assert len(calls) == 4 and "already complete" in said[0]


def killed_in_the_second_batch(folder):
    torch.set_num_threads(1)
    whole = engine.generate

    def dying(*given, **options):
        if options["seeds"].start == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*given, **options)

    engine.generate = dying
    write(folder / "s.npz", 11)


@pytest.mark.slow
def test_a_kill_loses_a_batch(tmp_path):
    assert exit_code(killed_in_the_second_batch, tmp_path) == -signal.SIGKILL
    kept = [path.name for path in (tmp_path / "s.npz.partial").glob("batch-*.npz")]
    assert kept == ["batch-000000000.npz"] and not (tmp_path / "s.npz").exists()
    write(tmp_path / "s.npz", 11)
    write(tmp_path / "whole.npz", 11)
    assert (tmp_path / "s.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_guidance_needs_the_null_class(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "CONFIG", dataclasses.replace(CONFIG, null_class=False))
    with pytest.raises(UserError, match="needs the null class.*give --cfg-scale 1"):
        write(tmp_path / "s.npz")
    assert not list(tmp_path.iterdir())
    write(tmp_path / "s.npz", cfg_scale=1.0)


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    out = tmp_path / "s.npz"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_write_npz", full)
        with pytest.raises(UserError, match=r"No space left.*the same command goes on"):
            write(out, 5)
    assert not out.exists() and len(list((tmp_path / "s.npz.partial").glob("batch-*.npz"))) == 2
    write(out, 5)
    assert len(tokens(out)) == 5


def in_a_process(rank, folder):
    torch.set_num_threads(1)
    with one_of_two(rank, f"{folder}/rendezvous"):
        write(folder / "two.npz", 11)


@pytest.mark.slow
def test_two_processes_give_the_same(tmp_path):
    in_two(in_a_process, tmp_path)
    write(tmp_path / "one.npz", 11)
    np.testing.assert_array_equal(tokens(tmp_path / "two.npz"), tokens(tmp_path / "one.npz"))


def test_classes():
    options = SampleOptions(count=400, balance="random", seed=7)
    drawn = sample_labels(options, [1, 3], 0, 400)
    assert set(drawn) == {1, 3} and 150 < (drawn == 1).sum() < 250
    np.testing.assert_array_equal(sample_labels(options, [1, 3], 10, 20), drawn[10:20])


def test_linear_guidance():
    assert [_strength(3.0, "linear", t, 4) for t in range(4)] == [1.5, 2.0, 2.5, 3.0]
    assert _strength(3.0, "constant", 0, 4) == 3.0


def test_refusals(tmp_path):
    out = tmp_path / "s.npz"
    for options, message in (
        ({"count": 0}, "count is 0; expected at least 1"),
        ({"cfg_schedule": "steep"}, "cfg_schedule is 'steep'; expected one of: constant, linear"),
        ({"balance": "some"}, "classes is 'some'"),
        ({"chosen": [4]}, "the null class has no label"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ):
        with pytest.raises(UserError, match=message):
            write(out, **options)
    write(tmp_path / "t.npz")
    with pytest.raises(UserError, match="is not of these samples"):
        write(tmp_path / "t.npz", seed=1)
    (tmp_path / "u.npz").write_text("mine")
    with pytest.raises(UserError, match="is not of these samples"):
        write(tmp_path / "u.npz")
    assert (tmp_path / "u.npz").read_text() == "mine"
