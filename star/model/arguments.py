"""What a foreign checkpoint says of its model: arguments as a Namespace or a dictionary, by any name.

Trainers keep the settings of a run under ``args``, ``hyper_parameters``, ``config`` and the like, flat
or in tables; safetensors keeps texts. What is said is believed, and held against the weights: two
entries that contradict each other, or a number that is none, are refused.
"""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from star.base.errors import UserError
from star.base.record import Record

__all__ = ["Arguments"]

ENTRIES = (
    "args", "hyper_parameters", "hparams", "config", "cfg", "model_args", "model_config", "arguments",
    "opt", "options", "params", "gpt_config", "metadata",
)  # fmt: skip
DEPTH = 4  # tables inside tables that are read


class Arguments:
    """The settings found in a loaded file: its entries, and the tables inside them, the outer first."""

    def __init__(self, content: Record, path: Path) -> None:
        self.path = path
        self._tables = {name: _table(content[name]) for name in ENTRIES if name in content}

    def text(self, name: str) -> str | None:
        """The text called ``name``, or None."""
        values = (value for table in self._tables.values() for value in _values(table, name))
        return next((value for value in values if isinstance(value, str)), None)

    def number(self, name: str) -> float | None:
        """The number called ``name``, or None; a text that is a number counts as one.

        Raises ``UserError`` for another value, and if two entries say two numbers.
        """
        said: tuple[str, float] | None = None
        for entry, table in self._tables.items():
            numbers = {self._number(entry, name, value) for value in _values(table, name)}
            if len(numbers) != 1:  # nothing, or one of several parts of a program: who knows which
                continue
            number = numbers.pop()
            if said is not None and said[1] != number:
                raise UserError(
                    f"{self.path} contradicts itself: {name} is {said[1]:g} in its {said[0]} and "
                    f"{number:g} in its {entry}"
                )
            said = said or (entry, number)
        return None if said is None else said[1]

    def whole(self, name: str) -> int | None:
        """The whole number of at least 1 called ``name``, or None; ``UserError`` for another number."""
        number = self.number(name)
        if number is not None and (number != int(number) or number < 1):
            raise UserError(
                f"{self.path} says {name} {number:g}; expected a whole number of at least 1"
            )
        return None if number is None else int(number)

    def _number(self, entry: str, name: str, value: Any) -> float:
        if isinstance(value, list | tuple) and value and all(part == value[0] for part in value):
            value = value[0]  # (256, 256)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{self.path} says {name} {value!r} in its {entry}; expected a number")
        return number


def _table(value: object) -> Record:
    """The settings in a Namespace or a dictionary; {} for anything else."""
    if isinstance(value, Namespace):
        return vars(value)
    return value if isinstance(value, dict) else {}


def _values(table: Record, name: str) -> list[Any]:
    """What ``table`` says of ``name``, else the tables in it, the outer first; without None."""
    level = [table]
    for _ in range(DEPTH):
        found = [one[name] for one in level if one.get(name) is not None]
        if found:
            return found
        level = [inner for one in level for value in one.values() if (inner := _table(value))]
    return []
