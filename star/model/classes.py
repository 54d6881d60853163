"""The classes of a model as a user names them: by name, by number, and the null class.

A name goes before a number: with classes called 1 to 12, ``10`` is the class of that name. The null
class, which stands for no class, comes after the last one and is called ``null``; a few foreign models
have none.
"""

import re
import unicodedata
from collections.abc import Sequence

from star.base.errors import UserError, listed
from star.model.config import ModelConfig

__all__ = ["class_numbers", "class_words", "null_label", "one_class", "parse_classes"]

NULL = "null"
FIRST = 10  # classes that are taken where none is named


def null_label(config: ModelConfig, what: str, instead: str = "") -> int:
    """Number of the null class, which ``what`` conditions on.

    Raises ``UserError`` if the model has none; ``instead`` says what to do then.
    """
    if not config.null_class:
        raise UserError(
            f"{what} needs the null class, and this model has none (its class table has "
            f"{config.class_rows} rows for {config.num_classes} classes)"
            + (f": {instead}" if instead else "")
        )
    return config.num_classes


def class_numbers(count: int, null_class: bool = True) -> str:
    """The numbers that a class can have, for messages."""
    return f"0 to {count - 1}" + (f", or {count} for the null class" if null_class else "")


def parse_classes(
    text: str | None,
    count: int,
    names: Sequence[str] | None = None,
    *,
    null_class: bool = True,
) -> list[int]:
    """``"zebra"``, ``"3"`` or ``"ant,1,null"`` as numbers of ``count`` classes; the first ten if None.

    Each part is a class's name (exactly, in any Unicode form; names may hold commas), else its number,
    or the null class by ``null`` or its number, ``count``. Raises ``UserError`` for anything else, for
    a name that two classes have, and for the null class where there is none.
    """
    if text is None:
        return list(range(min(FIRST, count)))
    numbered: dict[str, list[int]] = {}
    for number, name in enumerate(names or ()):
        numbered.setdefault(_normal(name), []).append(number)
    parts, found = text.split(","), []
    while parts:
        # The longest run of parts that is a name: "crane, bird" is not "crane" and "bird".
        for taken in range(len(parts), 0, -1):
            joined = _normal(",".join(parts[:taken]))
            if joined in numbered:
                break
        found.append(_number(joined, numbered, count, null_class, text))
        parts = parts[taken:]
    return found


def one_class(
    text: str | None, count: int, names: Sequence[str] | None = None, *, null_class: bool = True
) -> int | None:
    """As ``parse_classes``, for one class; None if ``text`` is None."""
    if text is None:
        return None
    found = parse_classes(text, count, names, null_class=null_class)
    if len(found) > 1:
        raise UserError(f"class is {text!r}; expected one class")
    return found[0]


def class_words(label: int, count: int, names: Sequence[str] | None = None) -> str:
    """``class 3 (zebra)``, or ``class 9, called '10'`` where the name looks like another's number."""
    if label == count:
        return "null class"
    name = names[label] if names is not None and label < len(names) else str(label)
    if name == str(label):
        return f"class {label}"
    return f"class {label}, called {name!r}" if _is_number(name) else f"class {label} ({name})"


def _number(part: str, numbered: dict[str, list[int]], count: int, null_class: bool, text: str) -> int:
    """The class that one part of what was given means; ``numbered``: numbers by name."""
    if part in numbered:
        if len(numbered[part]) > 1:
            several = " and ".join(map(str, numbered[part]))
            raise UserError(f"classes {several} are all called {part!r}; give the number")
        return numbered[part][0]
    if part == NULL or part == str(count):
        if not null_class:
            raise UserError(f"class {part} is the null class, and this model has none")
        return count
    if not _is_number(part):
        unknown = "" if part == _normal(text) else f", and no class is called {part!r}"
        some = f", or a name such as {listed(numbered, 4)}" if numbered else ""
        raise UserError(f"class is {text!r}{unknown}; expected a number or numbers such as 0,1,7{some}")
    label = int(part)
    if not 0 <= label < count:
        raise UserError(f"class {label} does not exist; expected {class_numbers(count, null_class)}")
    return label


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,18}", text) is not None


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()
