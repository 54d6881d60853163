"""The self-test: a device computes what is known, and what it computes is compared.

Tolerances are absolute, on numbers of order 1. float32 differs between machines by the order of sums
(1e-6 here); 1e-4 is far beyond that and still finds TF32's rounding (0.002). Half precision is a rough
test: bfloat16 gave 0.02 on a CPU, float16 0.002.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from probes.doctor.folders import writable
from probes.doctor.lines import FAIL, OK, REPORT, Line, checked, size

__all__ = ["FILE", "TOLERANCES", "read_kept", "self_test"]

FILE = Path(__file__).parent / "self_test.json"  # written by tests/support/make_self_test.py
TOLERANCES = {"draws": 1e-5, "float32": 1e-4, "bfloat16": 0.1, "float16": 0.02, "losses": 1e-3}
DISTRUST = (
    "results of this device cannot be trusted: try --device cpu, another torch or driver, and report it"
)
SEED = "runs of other machines cannot be repeated here: report it with the versions"
FILES = "files of this release are damaged: install it again"
SAVING = "a run could not be kept there: see the lines on folders, or set STAR_CACHE to another disk"
NETWORK = "--nproc does not work here: the host's name must have an address (or set GLOO_SOCKET_IFNAME)"
Result = tuple[bool, str]  # whether it came out right, and what came out


def read_kept() -> dict:
    """The numbers that must come out: ``draws``, ``logits``, ``greedy``, ``losses``, ``indices``."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def self_test(
    device: str,
    folders: Callable[[], Iterable[Path]],
    read: Callable[[], Mapping] = read_kept,
) -> Iterator[Line]:
    """Lines of every test on ``device``, each with its time; none stops the others.

    The checkpoint goes into the first of ``folders`` that is there and can be written to. ``read``
    gives the numbers that must come out.
    """
    tests: dict[str, tuple[Callable[[], Result], str]] = {
        "random numbers": (lambda: _draws(read()), SEED),
        "logits": (lambda: _logits(device, read(), "float32"), DISTRUST),
        "half precision": (lambda: _half(device, read()), DISTRUST),
        "greedy tokens": (lambda: _greedy(device, read()), DISTRUST),
        "training steps": (lambda: _steps(device, read()), DISTRUST),
        "checkpoint": (lambda: _checkpoint(device, folders()), SAVING),
        "tokenizer": (lambda: _tokenizer(device, read()), f"{DISTRUST}; or {FILES}"),
    }
    if device == "cpu":
        tests["gloo"] = (_gloo, NETWORK)
    section = f"self-test on {device}"
    for name, (test, advice) in tests.items():
        broken = advice if name in ("checkpoint", "gloo") else REPORT  # others raise for other reasons
        yield from checked(section, name, partial(_lines, section, name, test, advice), broken)


def _lines(section: str, name: str, test: Callable[[], Result], advice: str) -> Iterator[Line]:
    start = time.perf_counter()
    right, value = test()
    value = f"{value} ({time.perf_counter() - start:.2f} s)"
    yield Line(section, name, OK, value) if right else Line(section, name, FAIL, value, advice)


def _compared(found: Any, expected: Any, tolerance: float) -> Result:
    """Whether numbers of the same nesting differ by ``tolerance`` at most; NaN never does."""
    import torch

    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    if found.shape != expected.shape:
        return False, f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    difference = float((found.double() - expected.double()).abs().max())
    return difference <= tolerance, f"largest difference {difference:.1e}, allowed {tolerance:g}"


def _equal(what: str, found: list, expected: list) -> Result:
    """Whether whole numbers are the same, and how many are."""
    import numpy as np

    one, other = np.asarray(found), np.asarray(expected)
    if one.shape != other.shape:
        return False, f"shape {one.shape}, expected {other.shape}"
    same = int((one == other).sum())
    return same == other.size, f"{same} of {other.size} {what} as expected"


def _draws(kept: Mapping) -> Result:
    from probes.doctor.trial import draws

    found = draws()
    whole, text = _equal("of NumPy", found["numpy"], kept["draws"]["numpy"])
    close, more = _compared(found["torch"], kept["draws"]["torch"], TOLERANCES["draws"])
    return whole and close, f"{text}; of torch: {more}"


def _logits(device: str, kept: Mapping, precision: str) -> Result:
    import torch

    from probes.doctor.trial import logits, trial_model
    from star.base.device import autocast

    model = trial_model(device)
    with autocast(torch.device(device), getattr(torch, precision)):
        found = logits(model)
    return _compared(found, kept["logits"], TOLERANCES[precision])


def _half(device: str, kept: Mapping) -> Result:
    """In bfloat16, or in what ``auto`` takes on a card without it."""
    import torch

    from star.base.device import resolve_precision

    precision = "bfloat16"
    if device != "cpu":
        precision = str(resolve_precision("auto", torch.device(device))).removeprefix("torch.")
    if precision == "float32":
        return True, "not tested: this card has no units for it"
    right, value = _logits(device, kept, precision)
    return right, f"{precision}: {value}"


def _greedy(device: str, kept: Mapping) -> Result:
    from probes.doctor.trial import greedy, trial_model

    return _equal("tokens", greedy(trial_model(device)), kept["greedy"])


def _steps(device: str, kept: Mapping) -> Result:
    import torch

    from probes.doctor.trial import losses

    found = [[step[name] for name in kept["losses"][0]] for step in losses(torch.device(device))]
    expected = [list(step.values()) for step in kept["losses"]]
    right, value = _compared(found, expected, TOLERANCES["losses"])
    return right, f"losses {found[0][0]:.4f}, {found[1][0]:.4f}: {value}"


def _checkpoint(device: str, folders: Iterable[Path]) -> Result:
    import torch

    from probes.doctor.trial import saved_and_loaded

    folder = next((folder for folder in folders if folder.is_dir() and not writable(folder)), None)
    if folder is None:
        return False, "no folder can be written to"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".star-doctor-") as temporary:
        path = Path(temporary) / "ckpt.pt"
        same = saved_and_loaded(torch.device(device), path)
        what = f"{size(path.stat().st_size)} saved in {folder}"
        return same, f"{what} and loaded, {'equal' if same else 'not equal'}"


def _tokenizer(device: str, kept: Mapping) -> Result:
    from probes.doctor.trial import image
    from star.tokenizer.file import load_tokenizer

    found = load_tokenizer(device=device).encode(image().to(device)).flatten().tolist()
    return _equal("indices", found, kept["indices"])


def _gloo() -> Result:
    """A sum over one process, in a group that nothing else sees."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_gloo_available()):
        return True, "not tested: this torch has no gloo"
    gloo: Any = dist  # whose stubs leave these out
    group = gloo.ProcessGroupGloo(gloo.HashStore(), 0, 1, timedelta(seconds=10))
    numbers = torch.arange(3.0)
    group.allreduce([numbers]).wait()
    return numbers.tolist() == [0, 1, 2], "a sum over one process"
