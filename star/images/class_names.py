"""Classes as a source names them, to labels; two Unicode forms of one name are one class.

A Mac writes é as e and an accent, Linux as one character: train may come from one and val from the
other. Names are compared in Unicode's form NFC (https://unicode.org/reports/tr15/) and kept as train
writes them.
"""

import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from star.base.errors import UserError, listed

__all__ = ["ClassNames", "same_name"]


def same_name(name: str) -> str:
    """The form in which names are compared."""
    return unicodedata.normalize("NFC", name)


class ClassNames:
    """Numbers and names of classes as a data set's images give them, to labels.

    Names are numbered in sorted order, those of train; numbers stay as they are and are named by
    ``known``, or else by themselves. ``notes`` says where few of the classes have training images.
    """

    def __init__(self, source: str, train: Iterable[Any], known: list[str] | None = None) -> None:
        self.source = source
        train = list(train)
        self.by_name = any(isinstance(value, str) for value in train)
        if self.by_name:
            self.names = tuple(sorted({str(value) for value in train}))
        else:
            count = max(train, default=-1) + 1 if known is None else len(known)
            self.names = tuple(known or map(str, range(count)))
        if len(self.names) < 2:
            raise UserError(f"{source} has one class ({listed(self.names)}); expected at least two")
        there = len(set(train))
        self.notes = []
        if not self.by_name and 2 * there < len(self.names):
            self.notes.append(
                f"{source}: labels go up to {len(self.names) - 1}, so there are {len(self.names):,} "
                f"classes; {there} of them have training images"
            )
        self._places: dict[str, int] = {}
        if self.by_name:
            self._number_names()

    def _number_names(self) -> None:
        for place, name in enumerate(self.names):
            other = self._places.setdefault(same_name(name), place)
            if other != place:
                raise UserError(
                    f"{self.source} has two classes of one name in two Unicode forms: "
                    f"{self.names[other]!a} and {name!a}; rename one, or put their images "
                    "together"
                )

    def unknown(self, values: Iterable[Any]) -> list[Any]:
        """The classes among ``values`` that train has not, sorted."""
        values = set(values)
        if self.by_name:
            return sorted(n for n in map(str, values) if same_name(n) not in self._places)
        odd = [value for value in values if isinstance(value, str) or not 0 <= value < len(self.names)]
        return sorted(odd, key=lambda value: (isinstance(value, str), value))

    def labels(self, split: str, values: list[Any]) -> np.ndarray:
        """Labels (N,) int64; raises ``UserError`` for a class that train has not."""
        unknown = self.unknown(values)
        if unknown:
            known = listed(self.names) if self.by_name else f"0 to {len(self.names) - 1}"
            raise UserError(
                f"{self.source}: {split} has classes that train has not: {listed(unknown)}; "
                f"expected {known}"
            )
        if self.by_name:
            values = [self._places[same_name(str(value))] for value in values]
        return np.array(values, dtype=np.int64)
