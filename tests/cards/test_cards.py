"""Commands asked for CUDA devices that are not there, too few or too small: one line, nothing begun."""

from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, refused

from star.base.device import parse_device, require_devices, resolve_device
from star.base.errors import UserError

OTHERS = TINY[: TINY.index("--device")]


@pytest.fixture
def cards(monkeypatch):
    """A machine with so many CUDA devices of so many GiB, as far as anybody asks."""

    def pretend(count: int, gib: float = 80.0) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        properties = SimpleNamespace(total_memory=int(gib * 2**30))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    monkeypatch.setattr(
        "torch.distributed.run.main", lambda arguments: pytest.fail("processes were started")
    )
    return pretend


def test_devices_that_are_there_and_that_are_not(cards):
    cards(2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(
        UserError,
        match=r"^device is 'cuda:2'; this machine has 2 CUDA devices \(cuda:0 to cuda:1\)$",
    ):
        resolve_device("cuda:2")
    cards(0)
    assert resolve_device("auto") == torch.device("cpu") == parse_device("auto")
    for name in ("cuda", "cuda:9"):
        with pytest.raises(UserError, match=f"device is '{name}'; this machine has 0 CUDA devices"):
            resolve_device(name)


def test_every_process_needs_a_device_of_its_own(cards):
    cards(2)
    for name, processes in (("cuda", 2), ("auto", 1), ("cuda:1", 1), ("cpu", 64)):
        require_devices(name, processes)
    for name in ("cuda", "auto"):
        with pytest.raises(UserError, match="3 processes need a CUDA device each; this machine has 2"):
            require_devices(name, 3)
    with pytest.raises(UserError, match="'cuda:1', one CUDA device; 2 processes take one each"):
        require_devices("cuda:1", 2)
    cards(0)
    require_devices("auto", 3)  # on the CPU


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--run", "run", *OTHERS),
        ("train-tokenizer", "digits"),
        ("train-classifier", "digits"),
        ("tokenize", "photos", "out"),
        ("codebook",),
        ("token-invariance", "photos"),
        ("reproduce", "digits"),
        ("bench", "step"),
        ("bench", "attention"),
        ("bench", "tokenize"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
@pytest.mark.parametrize(
    ("count", "device", "message"),
    [
        (0, "cuda", "device is 'cuda'; this machine has 0 CUDA devices"),
        (2, "cuda:9", "device is 'cuda:9'; this machine has 2 CUDA devices"),
    ],
)
def test_a_device_that_is_not_there_is_refused(star, cards, tmp_path, command, count, device, message):
    cards(count)
    assert refused(star(*command, "--device", device), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["probe", "sample", "attn-maps", "ablate", "attribute"])
def test_a_device_that_is_not_there_is_refused_beside_a_checkpoint(star, cards, trained, command):
    cards(0)
    assert refused(star(command, trained, "--device", "cuda"), "this machine has 0 CUDA devices")
    cards(1)
    assert refused(star(command, trained, "--device", "cuda:9"), "this machine has 1 CUDA devices")


def test_a_run_is_not_resumed_on_a_device_that_is_not_there(star, cards, trained):
    cards(0)
    before = sorted(path.name for path in trained.iterdir())
    assert refused(star("train", "--resume", trained, "--device", "cuda"), "has 0 CUDA devices")
    assert sorted(path.name for path in trained.iterdir()) == before


@pytest.mark.parametrize("command", ["train", "probe"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--device", "cuda", "--nproc", "9"),
            "9 processes need a CUDA device each; this machine has 8",
        ),
        (("--nproc", "16"), "16 processes need a CUDA device each; this machine has 8"),
        (("--device", "cuda:3", "--nproc", "2"), "device is 'cuda:3', one CUDA device; 2 processes"),
        (("--device", "cuda:8", "--nproc", "2"), "device is 'cuda:8'; this machine has 8 CUDA devices"),
    ],
)
def test_more_processes_than_devices_are_refused_before_one_starts(
    star, cards, tmp_path, command, options, message
):
    cards(8)
    assert refused(star(command, *options), message)
    assert list(tmp_path.iterdir()) == []


def test_torchrun_with_more_processes_than_devices_is_refused(star, cards, monkeypatch, tmp_path):
    cards(2)
    ranks = {"RANK": "0", "WORLD_SIZE": "6", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert refused(star("train"), "3 processes need a CUDA device each; this machine has 2")
    assert list(tmp_path.iterdir()) == []


def test_a_card_too_small_is_refused_with_what_it_needs_and_has(star, cards, tmp_path):
    """Before codes are made: XL's blocks alone take 20 bytes a weight, its projector 16."""
    cards(1, gib=8)
    options = ("--preset", "XL", "--device", "cuda", "--data", "photos")
    result = star("train", *options)
    blocks = 36 * (4 * 1280**2 + 3 * 1280 * 3584 + 2 * 1280) + 1280 * (1 + 1 + 2 + 1)
    projector = 4 * 1280**2 + 16 * 1280**2 + 4 * 1280**2 + 2 * 5120 * 2
    gib = (20 * blocks + 16 * projector) / 2**30
    assert refused(result, f"would take {gib:.1f} GiB; cuda has 8.0 GiB")
    assert list(tmp_path.iterdir()) == []


def test_a_model_too_large_for_the_card_is_refused(star, cards, trained, tmp_path):
    cards(1, gib=0.0001)
    result = star("sample", trained, "--device", "cuda:0", "--out", "pictures")
    assert refused(result, "a model of", "would take 0.0 GiB; cuda:0 has 0.0 GiB")
    assert list(tmp_path.iterdir()) == []


def test_a_card_that_fills_up_says_so_in_one_line(star, monkeypatch):
    said = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 7.79 GiB"

    def full(*_, **__):
        raise torch.OutOfMemoryError(f"{said}\nSee documentation for Memory Management")

    monkeypatch.setattr("star.base.device.resolve_device", full)
    assert refused(star("reproduce", "digits"), said)
