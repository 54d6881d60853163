"""The one exception type that a user is meant to see.

Library code raises ``UserError`` when the caller gave something that cannot work: the message is one
line that says what was given, what was expected and what to do. The command line prints it and exits
with code 2. Everything that must hold whatever the user does is an ``assert`` instead.
"""

from collections.abc import Iterable

__all__ = ["UserError", "listed", "require_choice"]


class UserError(ValueError):
    """A mistake in what the user gave: one clear line, no traceback, exit code 2."""


def require_choice(what: str, value: object, choices: Iterable[object]) -> None:
    """Raise ``UserError`` unless ``value`` is one of ``choices``, naming all of them."""
    choices = list(choices)
    if value not in choices:
        valid = ", ".join(str(choice) for choice in choices)
        raise UserError(f"{what} is {value!r}; expected one of: {valid}")


def listed(names: Iterable[object], most: int = 8) -> str:
    """The first names for a message, and dots for the others."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")
