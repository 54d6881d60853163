"""What long work calls on its way: the types of callbacks, and those that do nothing."""

from collections.abc import Callable

from star.base.record import Record

__all__ = [
    "Message", "OnRow", "OnStep", "Progress", "ShouldStop", "StageProgress", "never", "nothing",
]  # fmt: skip

Progress = Callable[[int, int], None]  # (done, total)
StageProgress = Callable[[str, int, int], None]  # (what is being done, done, total)
Message = Callable[[str], None]  # one sentence
OnStep = Callable[[int], None]  # steps done
OnRow = Callable[[Record], None]  # a row of metrics
ShouldStop = Callable[[], bool]  # whether to end early


def nothing(*given: object) -> None:
    """The callback of who wants to hear nothing."""


def never() -> bool:
    """The ``ShouldStop`` of who wants all of it."""
    return False
