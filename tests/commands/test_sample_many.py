"""``star sample --count``: many samples from the command line, in one process and in two."""

import json

import numpy as np
import pytest
from helpers import cli, refused


def test_many_samples_are_written_once_and_read_by_a_probe(star, trained, tmp_path):
    ask = ("sample", trained, "--count", "10", "--batch-size", "4", "--out", "s.npz")
    code, out, err = star(*ask)
    assert code == 0 and "written to .: s.npz, s.json, s-codes" in out, err
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert file["arr_0"].shape == (10, 32, 32, 3) and file["arr_0"].dtype == np.uint8
        assert file["labels"].tolist() == [0, 1] * 5
    plan = json.loads((tmp_path / "s.json").read_text())
    assert plan["sampling"]["cfg_scale"] == 2.0 and plan["checkpoint_step"] == 4
    assert "already complete" in star(*ask)[1]
    assert refused(star(*ask, "--seed", "1"), "s.npz exists and is not of these samples")
    code, _, err = star("attention-stats", trained, "--data", "s-codes", "--images", "4", "--out", "a")
    assert code == 0, err


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(star, trained, tmp_path):
    ask = ("--count", "10", "--batch-size", "4", "--greedy", "--device", "cpu")
    assert star("sample", trained, *ask, "--out", "one.npz")[0] == 0
    done = cli("sample", trained, *ask, "--nproc", "2", "--out", "two.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_options_of_the_other_kind_are_refused(star, trained):
    assert refused(star("sample", trained, "--images"), "need --count")
    assert refused(star("sample", trained, "--count", "4", "--each", "2"), "--each is of the grid")
    assert refused(star("sample", trained, "--count", "0"), "count is 0; expected at least 1")
    assert refused(star("sample", trained, "--count", "4", "--out", "s.png"), "ends in .npz")


def test_a_setting_out_of_range_is_refused_before_anything_is_written(star, trained, tmp_path):
    before = sorted(tmp_path.iterdir())
    for option, value, message in (
        ("--top-p", "7", "top_p is 7.0; expected 0 < top_p <= 1"),
        ("--temperature", "0", "temperature is 0.0"),
        ("--top-k", "-1", "top_k is -1"),
        ("--cfg-scale", "nan", "cfg_scale is nan"),
    ):
        line = ("sample", trained, "--count", "4", option, value, "--out", "z.npz")
        assert refused(star(*line), message)
    assert sorted(tmp_path.iterdir()) == before
