"""Read files of weights without ever running code from them: PyTorch's and safetensors.

PyTorch's go through ``torch.load(weights_only=True)``, those of pickle protocols 3 to 5 through
``star.safe_pickle``. Beside tensors both know plain Python data and the names of
``star.safe_globals``; a file that asks for anything else is refused by name.
"""

import re
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
    protocol = _protocol(path)
    try:
        if protocol > 2:
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


def _protocol(path: Path) -> int:
    """The pickle protocol of a checkpoint in today's layout, a zip; 2 for everything else.

    Raises ``UserError`` for what ``torch.load`` would read in a way of its own. The zip is read as
    there: another reader might see other entries.
    """
    with open(path, "rb") as file:
        start = file.read(4)
        if start[:1] == b"\x80" and start[1:2] > b"\x02":
            raise UserError(
                f"{path} is a pickle of protocol {start[1]} outside of a zip file, which is not read; "
                "save its weights again with torch.save"
            )
        if start != b"PK\x03\x04":
            return 2
        file.seek(0)
        try:
            archive = torch._C.PyTorchFileReader(file)
            names = archive.get_all_records()
            start = archive.get_record("data.pkl")[:2]
        except (RuntimeError, ValueError):
            return 2  # torch.load will say what is wrong
    if "constants.pkl" in names:
        raise UserError(f"{path} is a TorchScript program; expected weights (a saved state dict)")
    return start[1] if start[:1] == b"\x80" else 2


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"<[\w-]+ (?:\w+ )?'?([\w.]+)", text)
    if isinstance(error, NotPlainError) or refused:
        name = text if isinstance(error, NotPlainError) else refused.group(1)
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
