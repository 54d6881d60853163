"""SIGINT and SIGTERM as a request to stop at the next step; a second one stops at once."""

import signal
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """While active, remembers the first signal in ``received``; a second SIGINT raises.

    A SIGTERM that follows a SIGINT is torchrun passing the same wish on.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
