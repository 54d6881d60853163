"""The wheel, installed into a fresh virtual environment far from the checkout, is the whole program."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGES = ("star", "probes", "viz", "figures", "cli")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", ".*")
LIBRARIES = sorted({path for path in sys.path if path.endswith(("site-packages", "dist-packages"))})
IMPORT_ALL = """
import importlib, json, sys
found = {name: importlib.import_module(name).__file__ for name in json.loads(sys.argv[1])}
from star.tokenizer.file import load_tokenizer
found["default tokenizer"] = load_tokenizer().config.codebook_size
print(json.dumps(found))
"""


def module(path: str) -> str:
    """Name of the module in a file, as ``star.model`` for star/model/__init__.py."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the wheel is made of, and of the tests: a build writes beside its source."""
    copy = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=NOT_SOURCE)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, source):
    """The wheel, without a registry: the test extra has what builds it."""
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", out, source)
    (made,) = out.iterdir()
    return made


def command(*words, **environment) -> str:
    """Standard output of a command that knows nothing of the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    done = subprocess.run(list(map(str, words)), cwd="/", env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*words) -> str:
    return command(sys.executable, "-m", "pip", *words)


def test_the_wheel_holds_all_modules_and_all_they_read_and_no_test(source, wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {str(path.relative_to(source)) for name in PACKAGES for path in (source / name).rglob("*")}
    modules = {name for name in files if name.endswith(".py")}
    assert {name for name in held if name.endswith(".py")} == modules
    assert modules >= {f"{name}/__init__.py" for name in PACKAGES}
    read = {name for name in files if name.endswith((".safetensors", ".json", ".typed"))}
    assert read >= {
        "star/tokenizers/cifar10.safetensors", "star/classifiers/cifar10.safetensors",
        "probes/doctor/self_test.json",
    }  # fmt: skip
    assert held - modules == read


@pytest.mark.slow
def test_an_installed_wheel_imports_every_module_and_has_its_tokenizer(wheel, tmp_path):
    command(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    installed = Path(command(python, "-c", query).strip())
    # The libraries that it needs are those of the running environment; our own packages come first.
    (installed / "running.pth").write_text("\n".join(LIBRARIES))
    names = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    modules = json.dumps([module(name) for name in names])
    found = json.loads(command(python, "-c", IMPORT_ALL, modules, STAR_CACHE=str(tmp_path / "cache")))
    assert found.pop("default tokenizer") == 1024
    assert len(found) == len(names) > 100
    for name, path in found.items():
        assert Path(path).is_relative_to(installed), f"{name} comes from {path}"
    assert command(python.parent / "star", "--help").count("Usage: star ") == 1
