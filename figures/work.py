"""How a study is done: who hears of its progress and findings, and whether files are written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

__all__ = ["Rows", "Said", "Work"]


@dataclass(frozen=True)
class Rows:
    """A small table for people: texts in ``columns``, the first left-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


Said = str | Rows


def _nothing(*_: object) -> None:
    """Report to nobody."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How a study is done: who hears of it, and whether its files are written.

    stage(name, done, total): progress of a named stage. say: a line or a table, as soon as it is known.
    """

    stage: Callable[[str, int, int], None] = _nothing
    say: Callable[[Said], None] = _nothing
    writes: bool = False

    def progress(self, name: str) -> Callable[[int, int], None]:
        """Progress (done, total) of the stage called ``name``."""
        return partial(self.stage, name)
