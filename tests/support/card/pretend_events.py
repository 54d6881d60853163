"""What the pretended card counts: reads and copies, each with the line of our code that made it."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from pretend_rules import TRANSFERS, flat, moved_indices, what_is_read

__all__ = ["Counted", "Event", "events_of", "our_line"]

ROOT = Path(__file__).parents[3]
OURS = tuple(f"{ROOT / folder}/" for folder in ("star", "probes", "figures", "viz", "cli"))


class Event(NamedTuple):
    """A ``read`` or a ``copy``: of what, and where."""

    kind: str
    what: str
    where: str


class Counted(list[Event]):
    """Events; printed as a table by place."""

    def of(self, kind: str) -> int:
        return sum(event.kind == kind for event in self)

    def __str__(self) -> str:
        counted = sorted(
            Counter(self).items(), key=lambda item: (item[0].kind, -item[1], item[0].where)
        )
        return "\n".join(f"{n:5}  {e.kind}  {e.what:16}  {e.where}" for e, n in counted) or "nothing"


def our_line() -> str:
    """File and line of the innermost frame that is code of ours."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"


def events_of(
    func, args: tuple, kwargs: dict, *, ours: type, wanted: bool
) -> Iterator[tuple[str, str]]:
    """(kind, what) of one operation; ``wanted``: its result is to be on the card."""
    if func in TRANSFERS:
        yield from _of_transfer(func, args, kwargs, ours, wanted)
        return
    for _ in moved_indices(func, args, ours):
        yield "copy", "index"
    what = what_is_read(func, args, kwargs, ours)
    if what is not None:
        yield "read", what


def _of_transfer(func, args, kwargs, ours, wanted) -> Iterator[tuple[str, str]]:
    if func is torch.ops.aten._to_copy.default:
        waits, pairs = not kwargs.get("non_blocking"), [(wanted, args[0])]
    else:
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        pairs = [(isinstance(a, ours), b) for a, b in zip(flat(args[0]), flat(args[1]), strict=True)]
    for onto_card, source in pairs:
        if isinstance(source, ours) and not onto_card:
            yield ("read", "cpu") if waits else ("copy", "cpu, not awaited")
        elif onto_card and source.device.type == "cpu" and (waits or not source.is_pinned()):
            yield "copy", "blocking" if waits else "unpinned"
