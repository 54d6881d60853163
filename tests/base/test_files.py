"""Files and result tables appear whole or not at all."""

import json

import pandas as pd
import pytest

from probes.results import Result, provenance, read_result, write_result
from star.base.errors import UserError
from star.base.files import publish_file, publish_folder, sha256_file, write_json


def test_publish_replaces_only_on_success(tmp_path):
    path = tmp_path / "sub" / "file.txt"
    with publish_file(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(RuntimeError), publish_file(path) as temporary:
        temporary.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_publish_folder_moves_whole(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "a").write_text("x")
    (tmp_path / "final").mkdir()
    publish_folder(work, tmp_path / "final")
    assert (tmp_path / "final" / "a").read_text() == "x" and not work.exists()


def test_write_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "f") == expected


def test_results_round_trip_with_provenance(tmp_path):
    table = pd.DataFrame({"layer": [1, 2], "control": ["none", "none"], "accuracy": [0.25, 1 / 3]})
    write_result(Result(table, provenance(measurement="test", seed=3)), tmp_path / "r.csv")
    back = read_result(tmp_path / "r")
    assert list(back.table.columns) == ["layer", "control", "accuracy"]
    assert back.table["control"].tolist() == ["none", "none"]
    assert back.table["accuracy"].tolist() == pytest.approx([0.25, 1 / 3], rel=1e-5)
    assert back.info["seed"] == 3 and "torch" in back.info["versions"] and back.info["command"]
    (tmp_path / "r.json").unlink()
    with pytest.raises(UserError, match="cannot read the result"):
        read_result(tmp_path / "r.csv")
