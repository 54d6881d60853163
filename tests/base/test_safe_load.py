"""Files are read without running code: NumPy's data come back, everything else is refused by name."""

import collections
import io
import os
import pickle
import types
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from star.base.errors import UserError
from star.base.torch_files import load_safetensors, load_torch_file


def saved(path: Path, value) -> Path:
    torch.save({"weight": torch.arange(3.0), "value": value}, path)
    return path


def loaded(path: Path, value):
    content = load_torch_file(saved(path, value))
    assert torch.equal(content["weight"], torch.arange(3.0))
    return content["value"]


NUMBERS = {
    "float64": np.float64(2.25),
    "int64": np.int64(-3),
    "bool": np.bool_(True),
    "half": np.float16(0.5),
    "complex": np.complex128(1 + 2j),
    "text": np.str_("héron"),
    "time": np.datetime64("2020-02-29T01:02:03"),
    "array": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "strided": np.arange(12).reshape(3, 4)[::2, 1::2],
    "swapped": np.arange(3, dtype=">i4"),
    "texts": np.array(["a", "bcd"]),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "point": np.array(7),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numpy_data_beside_weights_come_back(tmp_path, name):
    value = NUMBERS[name]
    found = loaded(tmp_path / "x.pt", value)
    assert np.array_equal(found, value) and np.shape(found) == np.shape(value)
    kinds = [np.asarray(array).dtype.newbyteorder("=") for array in (found, value)]
    assert kinds[0] == kinds[1]


def test_random_states_and_plain_objects_come_back(tmp_path):
    path = tmp_path / "x.pt"
    kind, keys, *rest = np.random.RandomState(5).get_state()
    found = loaded(path, (kind, keys, *rest))
    assert found[0] == kind and np.array_equal(found[1], keys) and list(found[2:]) == rest
    state = np.random.default_rng(5).bit_generator.state
    assert loaded(path, state) == state
    for generator in (np.random.default_rng(5), np.random.RandomState(5)):
        loaded(path, generator)  # of no use to a reader of weights, and no reason to refuse
    assert vars(loaded(path, Namespace(a=1, b=np.int64(2)))) == {"a": 1, "b": 2}
    assert vars(loaded(path, types.SimpleNamespace(c="x"))) == {"c": "x"}
    history = collections.defaultdict(list, {"loss": [1.0, 0.5]})
    assert loaded(path, history) == {"loss": [1.0, 0.5]}
    assert loaded(path, torch.__version__) == str(torch.__version__)
    plain = [torch.float16, torch.Size([2, 3]), torch.device("cpu"), 2**70, b"raw", b"", None, 1.5]
    assert loaded(path, plain) == plain
    half = loaded(path, torch.ones(2, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.tolist() == [1, 1]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_newer_pickle_protocol_is_refused_with_what_to_do(tmp_path, protocol, zipped):
    path, options = tmp_path / "x.pt", {"_use_new_zipfile_serialization": zipped}
    torch.save({"weight": torch.arange(3.0)}, path, pickle_protocol=protocol, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=f"of protocol {protocol}; protocol 2 is read.*save its"):
            load_torch_file(path)


class Runs:
    def __init__(self, call, *given):
        self.reduced = call, given

    def __reduce__(self):
        return self.reduced


REFUSED = {
    "pathlib.PosixPath": lambda marker: Path("/data/runs"),
    "posix.system": lambda marker: Runs(os.system, f"touch {marker}"),
    "posix.mkdir": lambda marker: Runs(os.mkdir, str(marker)),
    "eval": lambda marker: Runs(eval, f"open({str(marker)!r}, 'w')"),
    "getattr": lambda marker: Runs(getattr, {}, "keys"),
    "numpy.ndarray of objects": lambda marker: np.array([{}, []], dtype=object),
    "numpy.dtype 'V8'": lambda marker: np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
    "test_safe_load.Runs": lambda marker: Runs,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_class_and_nothing_runs(tmp_path, name):
    marker = tmp_path / "pwned"
    path = saved(tmp_path / "x.pt", REFUSED[name](marker))
    with pytest.raises(UserError) as refusal:
        load_torch_file(path)
    assert f"{name})" in str(refusal.value) and "\n" not in str(refusal.value)
    assert "could run code" in str(refusal.value)
    assert not marker.exists()


def test_a_file_cannot_change_what_reads_it(tmp_path):
    """BUILD sets attributes of whatever it is given; the next file must be read as before."""

    class Forged(pickle._Pickler):
        def save(self, value, save_persistent_id=True):
            if value is FORGED:
                super().save(value.target)
                super().save((None, {"__setstate__": len, "__init__": len, "build": len}))
                self.write(pickle.BUILD)
                return None
            return super().save(value, save_persistent_id)

    for target in (Namespace, np.dtype, np.ndarray):
        FORGED = types.SimpleNamespace(target=target)
        forger = types.ModuleType("forger")
        forger.Pickler, forger.dump = Forged, pickle.dump
        torch.save({"value": FORGED}, tmp_path / "x.pt", pickle_module=forger)
        with pytest.raises(UserError):
            load_torch_file(tmp_path / "x.pt")
        assert vars(loaded(tmp_path / "y.pt", Namespace(a=1))) == {"a": 1}
        assert np.array_equal(loaded(tmp_path / "y.pt", np.arange(3)), [0, 1, 2])


def test_files_in_no_layout_that_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/version", "3\n")
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"script/{name}", pickle.dumps({}, protocol=2))
    with pytest.raises(UserError, match="script.pt is a TorchScript program"):
        load_torch_file(tmp_path / "script.pt")
    for name, content in (("empty", b""), ("text", b"hello" * 9), ("cut", b"\x10" + bytes(7) + b"{")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError, match="as safetensors, it is truncated or of another format"):
            load_safetensors(path)
    with pytest.raises(UserError, match="no such file"):
        load_safetensors(tmp_path / "missing.safetensors")


def test_weights_of_the_old_layout_are_still_read(tmp_path):
    buffer = io.BytesIO()
    content = {"weight": torch.arange(3.0), "epoch": np.int64(3)}
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "old.pt").write_bytes(buffer.getvalue())
    found = load_torch_file(tmp_path / "old.pt")
    assert found["epoch"] == 3 and torch.equal(found["weight"], content["weight"])
