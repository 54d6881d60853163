"""Every command's library path on the pretended card gives the numbers that the CPU gives."""

import dataclasses
import functools

import numpy as np
import pandas as pd
import pretend_probes  # noqa: F401, registers its runs
import pytest
import torch
from pretend import PretendedCuda
from pretend_runs import RUNS

from probes.linear.attentive import train_attentive


class ThisProcess:
    """Stands for a pool of one process: the card is pretended in this one alone."""

    def __init__(self, processes: int = 1) -> None:
        self.Pool = ThisProcess

    def __enter__(self) -> "ThisProcess":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def apply(self, function, arguments):
        return function(*arguments)


CPU = torch.device("cpu")
SETTINGS = {
    "probes.speed.step.get_context": lambda method: ThisProcess(),
    "probes.speed.attention.get_context": lambda method: ThisProcess(),
    # Batches of one size: sums in another order may turn the nearest of two codes around.
    "star.codes.encode._CALL_BYTES": {"cpu": 8 << 20, "cuda": 8 << 20},
    # Operations cost more with the card's tensors: as many as show the path.
    "probes.linear.pixels.SIDE": 3,  # one pixel a cell of the fake stores
    "probes.linear.protocols.STRENGTHS": (0.1, 1.0),
    "probes.linear.logreg.TOLERANCE": 1e-2,
    "probes.linear.protocols.train_attentive": functools.partial(train_attentive, epochs=3),
}


def difference(a, b, at: str = "") -> str | None:
    """Where two results are not equal to the last bit (NaN equals NaN); tensors may be anywhere."""
    if isinstance(a, torch.Tensor):
        return difference(a.detach().cpu().numpy(), b.detach().cpu().numpy(), at)
    if isinstance(a, pd.DataFrame):
        a, b = a.to_dict("list"), b.to_dict("list")
    if dataclasses.is_dataclass(a):
        a, b = vars(a), vars(b)
    if isinstance(a, dict):
        parts = [(key, value, b.get(key)) for key, value in a.items()]
        if a.keys() != b.keys():
            return f"{at}: {sorted(a)} against {sorted(b)}"
    elif isinstance(a, (list, tuple)):
        parts = [(place, *pair) for place, pair in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, np.ndarray):
        equal = np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        return None if equal else f"{at}: {a} against {b}"
    else:
        return None if a == b or (a != a and b != b) else f"{at}: {a} against {b}"
    found = (difference(*pair, f"{at}/{key}") for key, *pair in parts)
    return next((text for text in found if text is not None), None)


@pytest.mark.parametrize("name", RUNS)
def test_the_card_gives_the_numbers_of_the_cpu(name, tmp_path, monkeypatch):
    for setting, value in SETTINGS.items():
        monkeypatch.setattr(setting, value)
    folders = [tmp_path / device for device in ("cpu", "card")]
    for folder in folders:
        folder.mkdir()
    expected = RUNS[name](CPU, folders[0])
    with PretendedCuda() as card:
        found = RUNS[name](card.device, folders[1])
        assert card.events.of("copy"), "something was moved to the card"
        assert difference(expected, found) is None
