"""Settings: fields with their help, plain dictionaries and dataclasses, TOML and JSON files."""

import dataclasses
import json
import tomllib
from dataclasses import field
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from star.base.errors import UserError
from star.base.record import Record

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["check_fields", "config_from_dict", "config_to_dict", "option", "read_settings"]

Config = TypeVar("Config", bound="DataclassInstance")


def option(
    default: Any,
    text: str,
    *,
    said: str | None = None,
    flag: str | None = None,
    panel: str | None = None,
    argument: str | None = None,
) -> Any:
    """A field of a configuration or a request with the text that ``--help`` shows for it.

    default: ``dataclasses.MISSING`` where it must be given. said: what the default amounts to, where
    its value does not say it. flag: the option's name, where it is not the field's. panel: the heading
    it stands under. argument: the field is a command's argument, shown by this name.
    """
    more = {"said": said, "flag": flag, "panel": panel, "argument": argument}
    return field(default=default, metadata={"help": text, **more})


def check_fields(settings: Config) -> Config:
    """``settings`` with a path for every text given as one, and a text for every path given as one.

    Raises ``UserError`` unless every field of the dataclass then has a value of its annotated type:
    what the command line checks while it parses is checked here for who calls from Python.
    """
    hints = get_type_hints(type(settings))
    changes: Record = {}
    for item in dataclasses.fields(settings):
        value = _path_or_text(getattr(settings, item.name), hints[item.name])
        _check(item.name, value, hints[item.name])
        changes[item.name] = value
    return dataclasses.replace(settings, **changes)


def _path_or_text(value: Any, kind: Any) -> Any:
    """A text where a path is wanted as a path, and a path where a text is wanted as a text."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for one in kinds:
        if get_origin(one) is list and isinstance(value, list | tuple):
            return [_path_or_text(part, get_args(one)[0]) for part in value]
    if isinstance(value, Path) and Path not in kinds and str in kinds:
        return str(value)
    if isinstance(value, str) and str not in kinds and Path in kinds:
        return Path(value)
    return value


def _is_a(value: object, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_is_a(value, part) for part in inner)
    if origin is list:
        return isinstance(value, list) and all(_is_a(part, inner[0]) for part in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _kind(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of: " + ", ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in sorted(inner, key=lambda part: part is not NoneType))
    if origin is list:
        return f"a list, each {_kind(inner[0])}"
    return "None" if kind is NoneType else f"a value of type {kind.__name__}"


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
    _check(name, value, kind)
    return value


def _check(name: str, value: object, kind: Any) -> None:
    if not _is_a(value, kind):
        raise UserError(f"{name} is {value!r}; expected {_kind(kind)}")
