"""Read files of weights without ever running code from them: PyTorch's and safetensors.

PyTorch's go through ``torch.load(weights_only=True)``, those of pickle protocols 3 to 5 through
``star.safe_pickle``. Beside tensors both know plain Python data and the names of
``star.safe_globals``; a file that asks for anything else is refused by name.
"""

import re
import zipfile
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from star import safe_pickle
from star.errors import UserError
from star.safe_globals import ALLOWED, NotPlainError

__all__ = ["load_safetensors", "load_torch_file"]


def load_torch_file(path: Path | str, device: torch.device | str = "cpu") -> dict:
    """The dictionary stored in a ``.pt`` or ``.pth`` file.

    Raises ``UserError`` if the file is missing, empty, truncated, of another format, not a
    dictionary, or holds objects that could run code.
    """
    path = _file(path)
    try:
        if _pickle_protocol(path) > 2:
            content = torch.load(
                path, map_location=device, weights_only=False, pickle_module=safe_pickle
            )
        else:
            named = [(stand_in, name) for name, stand_in in ALLOWED.items()]
            with torch.serialization.safe_globals(named):
                content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises half a dozen types here; all mean "not readable"
        raise UserError(_explain(path, error)) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a dictionary of weights")
    return content


def load_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a ``.safetensors`` file; ``UserError`` if it is missing or none."""
    path = _file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
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
    return path


def _pickle_protocol(path: Path) -> int:
    """The protocol of a checkpoint in today's layout, a zip that is no TorchScript; 0 for others."""
    if not zipfile.is_zipfile(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        data = [name for name in names if name.endswith("/data.pkl")]
        if len(data) != 1 or any(name.endswith("/constants.pkl") for name in names):
            return 0
        with archive.open(data[0]) as file:
            start = file.read(2)
    return start[1] if len(start) == 2 and start[0] == 0x80 else 0


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"<[\w-]+ (?:\w+ )?'?([\w.]+)", text)
    if isinstance(error, NotPlainError) or refused:
        name = text if isinstance(error, NotPlainError) else refused.group(1)
        return (
            f"{path} is refused: it holds an object that could run code ({name}); only weights and "
            "plain data are read"
        )
    reason = re.sub(r"\s+", " ", text).split(". ")[0][:160] or type(error).__name__
    return f"cannot read {path} as a checkpoint, it is truncated or of another format ({reason})"
