"""Fill the maps of files in the folders' pages anew, from the modules' docstrings: run this file.

A map lies between ``<!-- map PACKAGE -->`` and ``<!-- end of map -->``; ``tests/test_pages.py`` says
when one is behind.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Rooms in the order of their imports; others come after them.
ORDER = (
    "base", "parallel", "runs", "images", "model", "tokenizer", "classifier", "codes", "training",
    "stats", "reading", "linear", "attention", "tokens", "samples", "likelihood", "representation",
    "ablation", "attribution", "speed", "watching", "doctor", "requests", "said", "studies", "commands",
    "terminal",
)  # fmt: skip
MAP = re.compile(r"(<!-- map (\w+) -->\n).*?(<!-- end of map -->)", re.DOTALL)


def first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    match = re.match(r"(.*?[.?])(?= [A-Z]|$)", first)
    return (match[1] if match else first).rstrip(":.").replace("``", "`")


def lines(folder: Path, room: Path) -> Iterator[str]:
    for path in sorted(room.glob("*.py")):
        if path.name != "__init__.py":
            yield f"- [`{path.name}`]({path.relative_to(folder).as_posix()}): {first_sentence(path)}"


def map_of(folder: Path) -> Iterator[str]:
    beside = list(lines(folder, folder))
    yield from [*beside, ""] if beside else []
    rooms = sorted(path.parent for path in folder.rglob("__init__.py") if path.parent != folder)
    for room in sorted(rooms, key=lambda room: ORDER.index(room.name) if room.name in ORDER else 99):
        yield from [f"**{room.name}/**: {first_sentence(room / '__init__.py')}", ""]
        yield from [*lines(folder, room), ""]


if __name__ == "__main__":
    for page in ROOT.glob("*/README.md"):
        old = page.read_text(encoding="utf-8")
        new = MAP.sub(lambda m: m[1] + "\n".join(map_of(ROOT / m[2])) + "\n" + m[3], old)
        page.write_text(new, encoding="utf-8")
