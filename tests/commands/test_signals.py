"""SIGINT and SIGTERM in the middle of sampling, probing and tokenising: 130 and 143, nothing torn."""

import os
import signal

import pytest

from star.model.step import SingleSteps
from star.model.transformer import Transformer
from star.tokenizer.model import VQModel

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture
def interrupted(monkeypatch):
    """Let the nth call of a method receive a signal first; the handlers are put back afterwards."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def arrange(owner: type, method: str, number: int, nth: int) -> None:
        real, calls = getattr(owner, method), []

        def call(*arguments, **options):
            calls.append(None)
            if len(calls) == nth:
                os.kill(os.getpid(), number)
            return real(*arguments, **options)

        monkeypatch.setattr(owner, method, call)

    yield arrange
    signal.signal(signal.SIGTERM, before[0])
    signal.signal(signal.SIGINT, before[1])


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("command", "owner", "method", "nth"),
    [
        (("sample", "--each", 1), SingleSteps, "__call__", 20),
        (("probe", "--out", "p"), Transformer, "forward", 2),
    ],
    ids=["sample", "probe"],
)
def test_a_model_at_work(star, trained, tmp_path, interrupted, number, command, owner, method, nth):
    before = files(trained)
    interrupted(owner, method, number, nth)
    code, _, err = star(command[0], trained, *command[1:], "--device", "cpu")
    assert code == CODES[number], err
    assert "Traceback" not in err
    assert files(trained) == before
    # A probe keeps what it has done in a work folder, to go on from; nothing else is left.
    left = [path for path in files(tmp_path) if not path.is_relative_to("p")]
    left += [path for path in (tmp_path / "p").glob("*") if path.suffix != ".work"]
    assert left == []


@pytest.mark.parametrize("number", CODES)
def test_a_tokenizer_at_work_leaves_its_progress_and_goes_on(
    star, digit_folder, tokenizer_file, tmp_path, interrupted, number
):
    command = ("tokenize", digit_folder, "codes", "--tokenizer", tokenizer_file, "--device", "cpu")
    interrupted(VQModel, "encode", number, 3)
    code, _, err = star(*command)
    assert code == CODES[number], err
    assert "Traceback" not in err and not (tmp_path / "codes").exists()
    code, _, err = star(*command)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "codes").iterdir()} >= {"train", "test"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
