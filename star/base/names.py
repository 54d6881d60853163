"""Names of files and classes as text: for screens, tables and pictures, and as parts of file names.

A file's name is bytes. Python keeps those that are no UTF-8 (an old archive, another locale) as lone
surrogates, by which the file is found again and which no terminal, font or text file takes.
"""

import hashlib
import re
from collections.abc import Iterable

__all__ = ["shown", "shown_values", "slug"]

# Control characters and line separators: in a line they would break it or steer the terminal.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MOST = 48  # letters of a slug
_HASH = 7


def shown(name: str) -> str:
    r"""``name`` as one line of text: ``caf\xe9`` with a byte that is no UTF-8, ``\n`` and the like.

    The same file has the same text under every locale: its bytes are read as UTF-8 where they are.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        try:
            held = name.encode(errors="surrogateescape")
        except UnicodeEncodeError:  # half of a pair, which stands for no byte
            held = name.encode(errors="surrogatepass")
        name = held.decode(errors="backslashreplace")
    if name.isprintable():
        return name
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


def shown_values(value: object) -> object:
    """``value`` with every text in it, keys too, as ``shown``; it may be nested as in JSON."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict):
        return {shown_values(key): shown_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [shown_values(entry) for entry in value]
    return value


def slug(name: str, *, among: Iterable[str] = (), keep: str = ".", most: int | None = _MOST) -> str:
    """``name`` as part of a file's name: small ASCII letters, digits and ``keep``, hyphens between.

    A hash follows where other names would become the same: beyond ASCII, cut at ``most`` letters, with
    nothing left, or where another name ``among`` those of the same command does.
    """
    plain = _plain(name, keep)
    lost = not name.isascii() or not plain or (most is not None and len(plain) > most)
    if not lost and all(other == name or _plain(other, keep) != plain for other in among):
        return plain
    digest = hashlib.sha256(shown(name).encode()).hexdigest()[:_HASH]
    start = plain if most is None else plain[: most - _HASH - 1]
    return f"{start.strip('-')}-{digest}".strip("-")


def _plain(name: str, keep: str) -> str:
    return re.sub(f"[^a-z0-9{re.escape(keep)}]+", "-", name.lower()).strip("-")
