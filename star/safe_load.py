"""Read ``.pt`` files without ever running code from them.

Everything goes through ``torch.load(weights_only=True)``. Only one extra class is allowed,
``argparse.Namespace`` (LlamaGen stores its arguments in one; rebuilding it sets attributes and calls
nothing). A file that asks for anything else is refused by name.
"""

import argparse
import re
from pathlib import Path

import torch

from star.errors import UserError

__all__ = ["load_torch_file", "strip_prefixes"]

# torch.compile and DDP/FSDP wrappers leave these in front of every key
WRAPPER_PREFIXES = ("_orig_mod.", "module.")


def load_torch_file(path: Path | str, device: torch.device | str = "cpu") -> dict:
    """The dictionary stored in a ``.pt`` or ``.pth`` file.

    Its tensors on the CPU are parts of the file, mapped, and take no memory until they are read: copy
    what is to be kept, since a file that is overwritten in place changes them (one that is replaced or
    removed does not).

    Raises ``UserError`` if the file is missing, empty, truncated, of another format, not a
    dictionary, or holds objects that would run code.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a .pt file (a run folder holds ckpt.pt)")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = _mapped(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types here; all mean "not readable"
        raise UserError(_explain(path, error)) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a dictionary of weights")
    return content


def _mapped(path: Path, **options: object) -> object:
    """``torch.load`` with the file mapped, or read where it cannot be: an old layout, a file system."""
    try:
        return torch.load(path, mmap=True, **options)
    except RuntimeError:
        return torch.load(path, **options)  # a broken file says so again


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    unsafe = re.search(
        r"GLOBAL (\S+) was not an allowed|unsupported (?:global|class)\S* (\S+)", text, re.IGNORECASE
    )
    if unsafe:
        name = next(name for name in unsafe.groups() if name).rstrip(".,")
        return (
            f"{path} is refused: it holds an object that could run code ({name}); only weights are read"
        )
    reason = re.sub(r"\s+", " ", text).split(". ")[0][:160] or type(error).__name__
    return f"cannot read {path} as a checkpoint, it is truncated or of another format ({reason})"


def strip_prefixes(weights: dict) -> dict:
    """State dict with wrapper prefixes (``_orig_mod.``, ``module.``) taken off every key."""
    stripped = {}
    for key, value in weights.items():
        while key.startswith(WRAPPER_PREFIXES):
            key = key[len(next(p for p in WRAPPER_PREFIXES if key.startswith(p))) :]
        stripped[key] = value
    return stripped
