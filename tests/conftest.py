"""Shared fixtures: the command line, a cache of our own, a folder of real images, a tokenizer."""

import os
import signal
import sys

import pytest

from star.base.threads import thread_settings

# Before torch is imported: tests run beside other jobs, and beside each other, a thread each.
os.environ.update(thread_settings(threads=1 if "PYTEST_XDIST_WORKER" in os.environ else None))

from helpers import TINY

from cli.main import main

# What a shell runs in its background ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory):
    """train/ and test/ with two classes of real scans: 48 + 16 PNG files of 32 x 32 pixels."""
    from star.images.open import open_source

    root = tmp_path_factory.mktemp("images")
    source = open_source("digits")
    for split, each in (("train", 24), ("test", 8)):
        part = source.splits[split]
        for label, name in ((0, "zero"), (1, "one")):
            folder = root / split / name
            folder.mkdir(parents=True)
            chosen = (part.labels == label).nonzero()[0][:each]
            for index in chosen:
                part.load(int(index)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """A tokenizer of the small shape with random weights: real code, no training time."""
    import torch

    from star.base.randomness import torch_generator
    from star.tokenizer.file import save_tokenizer
    from star.tokenizer.model import VQModel
    from star.tokenizer.shape import vq_preset

    model = VQModel(vq_preset("small"))
    generator = torch_generator(0, "test tokenizer")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            torch.nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
    path = tmp_path_factory.mktemp("tokenizer") / "random.safetensors"
    save_tokenizer(model, path, {"name": "random"})
    return path


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache folder."""
    patch = pytest.MonkeyPatch()
    patch.setenv("STAR_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture
def star(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["star", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory, digit_folder, tokenizer_file):
    """A run folder made by the command line, shared by the tests; none changes it."""
    run = tmp_path_factory.mktemp("runs") / "star"
    command = ["train", "--data", digit_folder, "--tokenizer", tokenizer_file, "--run", run, *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["star", *map(str, command)])
        with pytest.raises(SystemExit) as end:
            main()
    assert not end.value.code
    return run


@pytest.fixture(scope="session")
def stores(tmp_path_factory, digit_folder, tokenizer_file):
    """Code stores of the small folder: train/, val/, test/; no test changes them."""
    from star.codes.encode import tokenize
    from star.images.open import open_source
    from star.tokenizer.file import load_tokenizer

    out = tmp_path_factory.mktemp("stores") / "codes"
    tokenize(open_source(digit_folder), load_tokenizer(tokenizer_file), out)
    return out
