"""Read settings from a TOML or JSON file into a plain dictionary."""

import json
import tomllib
from pathlib import Path

from star.base.errors import UserError

__all__ = ["read_settings"]


def read_settings(path: Path | str) -> dict:
    """Content of a ``.toml`` or ``.json`` file; ``UserError`` if it is missing or does not parse."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise UserError(f"cannot read settings from {path}: {error.strerror}") from error
    except ValueError as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise UserError(f"{path} is not valid {kind}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}; expected a table of settings")
    return values
