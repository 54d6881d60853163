"""One finding of the doctor, and how a check that breaks becomes a finding too.

Whatever is found is shown to strangers: the home folder is called ~, and no control characters, line
breaks or passwords in addresses pass.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["FAIL", "NOTE", "OK", "REPORT", "Line", "checked", "one", "presentable", "reason", "size"]

OK, NOTE, FAIL = "ok", "note", "FAIL"  # right, to note, wrong
REPORT = "this check could not be made: mend what is wrong above, or report it with all of this"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
MOST = 200  # characters of a reason


@dataclass(frozen=True)
class Line:
    """One finding; ``advice`` says what to do about what is not right."""

    section: str
    name: str
    status: str
    value: str
    advice: str = ""

    def __post_init__(self) -> None:
        assert self.status in (OK, NOTE, FAIL), self.status
        assert self.status == OK or self.advice, f"{self.name} is not right, and no advice"


def checked(
    section: str, name: str, check: Callable[[], Iterable[Line]], advice: str = REPORT
) -> Iterator[Line]:
    """The lines of ``check``, presentable; if it raises, those before and a FAIL line ``name``."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for line in check():
                found.append(line)
        except (Exception, SystemExit) as error:  # a broken package may end the program on import
            found.append(Line(section, name, FAIL, reason(error), advice))
    for line in found:
        yield replace(line, value=presentable(line.value), advice=presentable(line.advice))


def one(check: Callable[[], Line]) -> Callable[[], list[Line]]:
    """A check of one line, as ``checked`` takes it."""
    return lambda: [check()]


def reason(error: BaseException) -> str:
    """The first line of an error, or its type where it has none."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    kind = type(error).__name__
    return f"{kind}: {text}"[:MOST] if text else kind


def presentable(text: str, home: str | None = None) -> str:
    """``text`` in one line without the path of ``home`` (default: the user's) and without passwords."""
    for folder in _homes() if home is None else [home]:
        if len(Path(folder).parts) > 1:  # a home that is / names nobody
            text = re.sub(rf"(?<!\w){re.escape(folder)}(?![\w-])", "~", text)
    text = re.sub(r"(?<=://)[^/@\s]+@", "", text)
    text = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
    return " ".join(text.split())


def _homes() -> list[str]:
    with contextlib.suppress(RuntimeError, OSError):  # a user whom the system does not know
        home = Path.home()
        return list(dict.fromkeys([str(home), str(home.resolve())]))
    return []


def size(count: float) -> str:
    """Bytes for people: 3.1 GiB."""
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.3g} {UNITS[power]}"
