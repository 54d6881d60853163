"""Imports go in one direction, and starting the command line or ``import star`` loads nothing heavy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "star": set(),
    "probes": {"star"},
    "viz": {"probes"},
    "figures": {"star", "probes", "viz"},
    "cli": {"star", "probes", "viz", "figures"},
}
# The rooms of star: each may import those before it in a line that leads to it.
ROOMS = {
    "base": set(),
    "parallel": {"base"},
    "runs": {"base", "parallel"},
    "images": {"base", "parallel"},
    "model": {"base", "parallel"},
    "tokenizer": {"base", "parallel", "runs", "images", "model"},
    "codes": {"base", "parallel", "runs", "images", "model", "tokenizer"},
    "training": {"base", "parallel", "runs", "images", "model", "tokenizer", "codes"},
}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_backward_import(path):
    package = path.relative_to(ROOT).parts[0]
    for module in imported(path):
        top = module.split(".")[0]
        if top in MAY_IMPORT and top != package:
            assert top in MAY_IMPORT[package], f"{package} imports {module}"
        if package == "viz":
            assert top not in ("torch", "torchvision"), f"viz imports {module}"
            assert top != "probes" or module == "probes.results", f"viz imports {module}"
        if package == "probes":
            assert module != "star.training.trainer", "probes import the trainer"


def room_of(module: str) -> str | None:
    """The room of a module such as star.model.transformer; None outside of star's rooms."""
    parts = module.split(".")
    return parts[1] if parts[0] == "star" and len(parts) > 2 else None


def test_rooms_import_in_one_direction_and_none_is_crowded():
    found = {path.name for path in (ROOT / "star").iterdir() if (path / "__init__.py").is_file()}
    assert found == set(ROOMS)
    for room, before in ROOMS.items():
        files = list((ROOT / "star" / room).glob("*.py"))
        assert 2 < len(files) <= 21, (room, len(files))
        for path in files:
            others = {room_of(module) for module in imported(path)} - {None, room}
            assert others <= before, f"{path.relative_to(ROOT)} imports {others - before}"
    alone = [path.name for path in (ROOT / "star").glob("*.py")]
    assert alone == ["__init__.py"]


def modules_after(code):
    script = f"{code}\nimport sys\nprint(' '.join(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    return set(done.stdout.split())


def test_import_star_is_lazy_and_its_names_resolve():
    light = modules_after("import star; assert 'load_model' in dir(star)")
    assert not light & {"torch", "numpy", "pandas"}
    used = modules_after(
        "import star; star.load_model, star.generate, star.load_tokenizer, star.preset"
    )
    assert "torch" in used


def test_an_unknown_name_lists_the_known_ones():
    import star

    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has: load_model"):
        star.nothing  # noqa: B018


def test_the_command_line_starts_without_torch():
    loaded = modules_after("import cli.main")
    assert not loaded & {"torch", "numpy", "pandas", "matplotlib", "sklearn"}


OPENED = """
import cli.probe_run, cli.attn_maps_run, cli.token_invariance_run, star.training.trainer
from star.training.config import preset
from star.tokenizer.file import load_tokenizer
from star.model.transformer import build_model

load_tokenizer()
build_model(preset("tiny").model)
"""


def test_what_few_commands_need_is_not_loaded_for_all():
    loaded = modules_after(OPENED)
    assert "torch" in loaded
    slow = {"torchvision", "torch._dynamo", "torch.distributed.fsdp", "sympy", "sklearn", "captum"}
    assert not loaded & slow
