"""Which releases run here, and whether they can be imported: what is installed may still be broken."""

import importlib
import importlib.util
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import star
from probes.doctor.lines import FAIL, NOTE, OK, Line, reason
from star.base.versions import PACKAGE, installed_version

__all__ = ["PACKAGES", "Package", "minimums", "package_line", "program_lines"]

SECTION = "versions"
SLOW = 0.5  # seconds of an import that are worth saying


@dataclass(frozen=True)
class Package:
    """A distribution, the module that it brings, and what it is for if star can do without."""

    name: str
    module: str
    purpose: str = ""


# Each after those that it imports, so that the first line that is wrong says why.
PACKAGES = (
    Package("numpy", "numpy"),
    Package("torch", "torch"),
    Package("torchvision", "torchvision"),
    Package("scipy", "scipy"),
    Package("scikit-learn", "sklearn"),
    Package("captum", "captum"),
    Package("pandas", "pandas"),
    Package("pillow", "PIL"),
    Package("safetensors", "safetensors"),
    Package("matplotlib", "matplotlib"),
    Package("seaborn", "seaborn"),
    Package("torch-fidelity", "torch_fidelity"),
    Package("typer", "typer"),
    Package("rich", "rich"),
    Package("pyarrow", "pyarrow", "parquet shards"),
    Package("lpips", "lpips", "star train-tokenizer --lpips-weight"),
    Package("tensorboard", "tensorboard", "star train --track tensorboard"),
    Package("wandb", "wandb", "star train --track wandb"),
    Package("timm", "timm", "its encoders as a yardstick"),
)


def program_lines() -> Iterator[Line]:
    """This package, where it runs from, and Python: known without importing anything."""
    root = Path(star.__file__).resolve().parent.parent
    commit = _commit(root)
    yield Line(SECTION, PACKAGE, OK, f"{installed_version()}, runs from {root}{commit}")
    python = f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"
    yield Line(SECTION, "Python", OK, python)


def package_line(
    package: Package,
    minimum: str = "",
    *,
    version: Callable[[str], str] = installed_version,
    load: Callable[[str], ModuleType] = importlib.import_module,
) -> Line:
    """The release of ``package``, which is imported; ``minimum`` is the least one that star takes."""
    install = f"pip install {package.name}"
    if not _is_there(package.module):
        if package.purpose:
            return Line(SECTION, package.name, OK, f"not installed: {install} ({package.purpose})")
        return Line(SECTION, package.name, FAIL, "not installed", install)
    wrong = NOTE if package.purpose else FAIL
    start = time.perf_counter()
    try:
        module = load(package.module)
    except (Exception, SystemExit) as error:
        lost = f" (without it: no {package.purpose})" if package.purpose else ""
        value = f"{version(package.name)}, cannot be imported ({reason(error)})"
        advice = f"mend what is wrong above, or pip install --force-reinstall {package.name}{lost}"
        return Line(SECTION, package.name, wrong, value, advice)
    seconds = time.perf_counter() - start
    number = getattr(module, "__version__", None) or version(package.name)
    value = number + _more(module) + (f"; imported in {seconds:.1f} s" if seconds >= SLOW else "")
    if minimum and _release(number) < _release(minimum):
        value += f"; star needs {minimum}"
        return Line(SECTION, package.name, wrong, value, f'pip install "{package.name}>={minimum}"')
    return Line(SECTION, package.name, OK, value)


def minimums() -> Mapping[str, str]:
    """Least release of each package that the installed star asks for; none if it is not installed."""
    try:
        requirements = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line) for line in requirements)
    return {match[1].lower(): match[2] for match in found if match}


def _is_there(module: str) -> bool:
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except ValueError:  # a module without a specification: something stands in its place
        return True


def _more(module: ModuleType) -> str:
    """What torch was built for."""
    if module.__name__ != "torch":
        return ""
    if module.version.hip:
        return f", ROCm {module.version.hip}"
    if not module.version.cuda:
        return ", built for CPUs alone"
    return f", built for CUDA {module.version.cuda}, cuDNN {module.backends.cudnn.version()}"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _commit(root: Path) -> str:
    """The commit of a checkout, for a release number says little about one."""
    if not ((root / ".git").exists() and (root / "pyproject.toml").is_file()):
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""
