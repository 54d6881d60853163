"""Settings: fields with their help, plain dictionaries and dataclasses, TOML and JSON files."""

import dataclasses
import json
import tomllib
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from star.base.errors import UserError
from star.base.record import Record

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["config_from_dict", "config_to_dict", "option", "read_settings"]

Config = TypeVar("Config", bound="DataclassInstance")
Default = TypeVar("Default")


def option(default: Default, text: str) -> Default:
    """A field of a configuration with the text that ``--help`` shows for it."""
    held: Default = field(default=default, metadata={"help": text})
    return held


def read_settings(path: Path | str) -> Record:
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


def config_to_dict(config: "DataclassInstance") -> Record:
    """Nested plain dictionary of a configuration, ready for JSON."""
    return dataclasses.asdict(config)


def config_from_dict(values: Record, base: Config) -> Config:
    """Build settings from a nested dictionary (JSON or TOML), over ``base``.

    Raises ``UserError`` on an unknown key (listing the valid ones) or a value of the wrong type.
    """
    return _replace(base, values, prefix="")


def _replace(base: Config, values: Record, prefix: str) -> Config:
    fields = {f.name: f for f in dataclasses.fields(base)}
    changes: Record = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"unknown setting {prefix}{key}; expected one of: {', '.join(fields)}")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current) and not isinstance(current, type):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{key} must be a table of settings, got {value!r}")
            changes[key] = _replace(current, value, prefix=f"{prefix}{key}.")
        else:
            changes[key] = _coerce(f"{prefix}{key}", value, type(current))
    return dataclasses.replace(base, **changes)


def _coerce(name: str, value: object, kind: type) -> object:
    if kind is tuple and type(value) is list:  # JSON and TOML have no tuples
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{name} is {value!r}; expected a value of type {kind.__name__}")
    return value
