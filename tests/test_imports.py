"""Imports go in one direction, and starting the command line or ``import star`` loads nothing heavy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Packages, and their rooms: each may import those named with it and nothing else of ours.
MAY_IMPORT = {
    "star": set(),
    "probes": {"star"},
    "viz": {"star", "probes"},
    "figures": {"star", "probes", "viz"},
    "cli": {"star", "probes", "viz", "figures"},
}
BEFORE_CODES = {"base", "parallel", "runs", "images", "model"}
BEFORE_FINDINGS = {"stats", "reading", "linear", "attention", "tokens", "samples", "likelihood"}
ROOMS = {
    "star": {
        "base": set(),
        "parallel": {"base"},
        "runs": {"base", "parallel"},
        "images": {"base", "parallel"},
        "model": {"base", "parallel"},
        "tokenizer": BEFORE_CODES,
        "classifier": {*BEFORE_CODES, "tokenizer"},
        "codes": {*BEFORE_CODES, "tokenizer", "classifier"},
        "training": {*BEFORE_CODES, "tokenizer", "classifier", "codes"},
    },
    "probes": {
        "stats": set(),
        "reading": {"stats"},
        "linear": {"stats", "reading"},
        "attention": {"stats", "reading"},
        "tokens": {"stats", "reading"},
        "samples": {"stats", "reading"},
        "likelihood": {"stats", "reading"},
        "representation": BEFORE_FINDINGS,
        "ablation": BEFORE_FINDINGS,
        "attribution": BEFORE_FINDINGS,
        "speed": BEFORE_FINDINGS,
        "watching": {*BEFORE_FINDINGS, "representation", "ablation", "attribution", "speed"},
        "doctor": set(),
    },
    "viz": {"base": set(), "linear": {"base"}, "attention": {"base", "linear"}, "tokens": {"base"}},
}
MOST_MODULES = 20  # of one folder, besides __init__.py
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def imported_modules(path):
    """As ``imported``, with ``from a import b`` as a.b too: b may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    yield from imported(path)


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
            assert top != "star" or module.startswith("star.base."), f"viz imports {module}"
        if package == "probes":
            assert module != "star.training.trainer", "probes import the trainer"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_in_one_direction(package):
    rooms = ROOMS[package]
    found = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert found == set(rooms)
    alone = {path.stem for path in (ROOT / package).glob("*.py")}
    for room, before in rooms.items():
        for path in (ROOT / package / room).rglob("*.py"):
            for module in imported(path):
                parts = module.split(".")
                if parts[0] != package or len(parts) == 1 or parts[1] == room:
                    continue
                free = parts[1] in alone and package != "star"  # modules beside the rooms, as results
                assert parts[1] in before or free, f"{path.relative_to(ROOT)} imports {module}"


def test_what_lies_beside_the_rooms_that_import_it_imports_none_of_them():
    """probes.results is read by every room, so it may read none."""
    assert not [name for name in imported(ROOT / "probes" / "results.py") if name.startswith("probes.")]


def test_no_two_modules_import_each_other():
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    needs = {name: {m for m in imported_modules(path) if m in names} for name, path in names.items()}
    for name, others in needs.items():
        for other in others - {name}:
            assert name not in needs[other], f"{name} and {other} import each other"


def test_no_folder_is_crowded():
    for package in MAY_IMPORT:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(modules) <= MOST_MODULES, (folder.relative_to(ROOT), len(modules))


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


def test_the_data_loader_loads_no_model():
    assert not modules_after("import star.training.batches") & {"star.model.transformer"}


def test_an_unknown_name_lists_the_known_ones():
    import star

    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has: load_model"):
        star.nothing  # noqa: B018


def test_the_command_line_starts_without_torch():
    loaded = modules_after("import cli.main")
    assert not loaded & {"torch", "numpy", "pandas", "matplotlib", "sklearn"}


OPENED = """
import figures.studies.probing, figures.studies.measures, figures.studies.token_invariance
import figures.studies.attention_stats, figures.studies.attention_maps
import star.training.trainer
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
