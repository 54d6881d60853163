"""Checkpoints of any run: one ``.pt`` that loads with ``weights_only=True``, published atomically."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Generic

import torch

from star.base.errors import UserError
from star.base.files import publish_file
from star.base.record import Record
from star.base.settings import Config
from star.base.torch_files import load_torch_file

__all__ = ["VERSION", "CheckpointKind", "load_checkpoint", "save_checkpoint"]

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointKind(Generic[Config]):
    """What one command's checkpoints hold: its name, its parts with their types, default settings.

    A run of this kind can be resumed without the parts ``dispensable``. ``foreign`` is said of files
    that are none of its.
    """

    format: str
    command: str
    parts: dict[str, type | UnionType]
    settings: Config
    dispensable: tuple[str, ...] = ()
    foreign: str = ""


def save_checkpoint(path: Path, content: Record, kind: CheckpointKind[Any]) -> None:
    """Write one checkpoint; ``path`` keeps its old content until the new one is whole on disk."""
    with publish_file(path) as temporary:
        torch.save({"format": kind.format, "version": VERSION, **content}, temporary)


def load_checkpoint(
    path: Path | str,
    device: torch.device | str = "cpu",
    without: Collection[str] = (),
    *,
    kind: CheckpointKind[Any],
) -> Record:
    """Our own checkpoint's content; ``UserError`` for any other file or a newer version.

    ``without`` names parts that are left out, whether they are there and whole or not.
    """
    content = load_torch_file(path, device)
    if content.get("format") != kind.format:
        raise UserError(f"{path} is not a checkpoint of {kind.command}{kind.foreign}")
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise UserError(f"{path} has checkpoint version {version!r}; this release reads 1 to {VERSION}")
    for name in without:
        content.pop(name, None)
    for name, type_ in kind.parts.items():
        if name in without:
            continue
        if name not in content:
            advice = f" (--without {name} resumes without it)" if name in kind.dispensable else ""
            raise UserError(f"{path} has no {name}; it was cut or written by another program{advice}")
        if not isinstance(content[name], type_):
            raise UserError(
                f"{path} is broken: its {name} is a {type(content[name]).__name__}, not a "
                f"{getattr(type_, '__name__', type_)}"
            )
    return content
