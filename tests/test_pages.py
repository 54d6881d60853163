"""The pages: every module stands in its folder's map by its first line, and links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("star", "probes", "viz", "figures", "cli")
PAGES = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *(ROOT / name / "README.md" for name in PACKAGES),
]
ENTRY = re.compile(r"^- \[`(.+?)`\]\((.+?)\): (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")


def first_line(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "`").rstrip(".")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_of_a_folder_has_every_module_by_its_first_line(package):
    folder = ROOT / package
    page = (folder / "README.md").read_text(encoding="utf-8")
    said = {place: text for _, place, text in ENTRY.findall(page)}
    found = {
        path.relative_to(folder).as_posix(): first_line(path)
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert set(said) == set(found)
    for place, text in found.items():
        assert text.startswith(said[place].rstrip(".")), f"{place}: the map says {said[place]!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    for place, _ in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / place).exists(), f"{page.name} links to {place}"


def test_the_first_page_is_short_and_holds_the_test_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 160
    assert re.search(r"&& pytest$", text, re.MULTILINE)
