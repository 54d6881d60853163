"""Read files of weights without ever running code from them: PyTorch's and safetensors.

PyTorch's go through ``torch.load(weights_only=True)``. Beside tensors it knows plain Python data and
the names of ``star.base.safe_globals``; a file that asks for anything else is refused by name.
"""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from star.base.errors import UserError
from star.base.files import plain_path
from star.base.record import Record
from star.base.safe_globals import ALLOWED, NotPlainError

__all__ = ["load_safetensors", "load_torch_file"]

LFS_POINTER = b"version https://git-lfs"  # how the text begins that stands in for a large file


def load_torch_file(path: Path | str, device: torch.device | str = "cpu") -> Record:
    """The dictionary stored in a ``.pt`` or ``.pth`` file.

    Its tensors on the CPU are parts of the file, mapped, and take no memory until they are read: copy
    what is to be kept, since a file that is overwritten in place changes them (one that is replaced or
    removed does not).

    Raises ``UserError`` if the file is missing, empty, truncated, of another format, not a
    dictionary, or holds objects that could run code.
    """
    path = _file(path)
    _require_readable(path)
    try:
        named: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (stand_in, name) for name, stand_in in ALLOWED.items()
        ]
        with torch.serialization.safe_globals(named):
            content = _mapped(path, device)
    except Exception as error:  # torch raises half a dozen types here; all mean "not readable"
        raise UserError(_explain(path, error)) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a dictionary of weights")
    return content


def _mapped(path: Path, device: torch.device | str) -> object:
    """``torch.load`` with the file mapped, or read where it cannot be: an old layout, a file system."""
    try:
        return torch.load(path, map_location=device, mmap=True, weights_only=True)
    except RuntimeError:
        # A broken file says so again.
        return torch.load(path, map_location=device, weights_only=True)


def load_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a ``.safetensors`` file; ``UserError`` if it is missing or none."""
    path = _file(path)
    try:
        with plain_path(path) as plain, safetensors.safe_open(plain, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return weights, file.metadata() or {}
    except Exception as error:  # of several types, by the library's release
        raise UserError(
            f"cannot read {path} as safetensors, it is truncated or of another format"
        ) from error


def _file(path: Path | str) -> Path:
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a .pt file (a run folder holds ckpt.pt)")
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(
                f"{path} is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
            )
    return path


def _require_readable(path: Path) -> None:
    """Raise ``UserError``, with what to do, for pickles and programs that torch's reader refuses."""
    start, names = _start(path)
    if "constants.pkl" in names:
        raise UserError(f"{path} is a TorchScript program; expected weights (a saved state dict)")
    if start[:1] == b"\x80" and start[1:2] > b"\x02":
        raise UserError(
            f"{path} is a pickle of protocol {start[1]}; protocol 2 is read, which torch.save writes "
            "unless told otherwise: save its weights again"
        )


def _start(path: Path) -> tuple[bytes, set[str]]:
    """The first two bytes of the pickle in ``path``, and the names in the zip around it, if any."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return file.read(2), set()
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name: name for name in archive.namelist()}
            with archive.open(names["data.pkl"]) as file:
                return file.read(2), set(names)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError):
        return b"", set()  # torch.load will say what is wrong


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"<[\w-]+ (?:\w+ )?'?([\w.]+)", text)
    name = text if isinstance(error, NotPlainError) else refused and refused[1]
    if name:
        return (
            f"{path} is refused: it holds an object that could run code ({name}); only weights and "
            "plain data are read"
        )
    if "DTensor" in text:
        return (
            f"{path} holds sharded weights (DTensor), one process's part of a model; save the gathered "
            "state dict"
        )
    # What PyTorch says before and after is advice.
    text = text.rpartition("WeightsUnpickler error: ")[2].partition("Check the documentation")[0]
    reason = re.sub(r"\s+", " ", text).strip().split(". ")[0][:160] or type(error).__name__
    return f"cannot read {path} as a checkpoint, it is truncated or of another format ({reason})"
