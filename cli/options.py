"""Command-line options made from dataclass fields, so that each setting is described in one place.

``with_options`` gives a command one option for every field of the dataclasses named, with the field's
help text and type. An option not given is absent from the dictionary the command receives, so the
order default < preset < file < command line holds.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable

import typer

__all__ = ["with_options"]


def with_options(*classes: type, skip: tuple[str, ...] = (), panels: dict[type, str] | None = None):
    """Decorate ``command(..., given: dict[type, dict])`` with the options of ``classes``.

    ``given`` maps each class to the fields set on the command line. ``skip`` names fields that get no
    option here; ``panels`` maps a class to its heading in ``--help``.
    """

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "given"]
        annotations = {p.name: p.annotation for p in own}
        owners: dict[str, type] = {}
        extra = []
        for cls in classes:
            hints = typing.get_type_hints(cls)
            for field in dataclasses.fields(cls):
                if field.name in skip or "help" not in field.metadata:
                    continue
                owners[field.name] = cls
                kind = hints[field.name] | None
                option = typer.Option(
                    None,
                    _flag(field.name, hints[field.name]),
                    help=field.metadata["help"],
                    rich_help_panel=(panels or {}).get(cls),
                    show_default=str(field.default),
                )
                annotations[field.name] = kind
                extra.append(
                    inspect.Parameter(
                        field.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind
                    )
                )

        @functools.wraps(command)
        def run(**values):
            given: dict[type, dict] = {cls: {} for cls in classes}
            for name, cls in owners.items():
                value = values.pop(name)
                if value is not None:
                    given[cls][name] = value
            return command(**values, given=given)

        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = inspect.Signature([*keyword_only, *extra])
        run.__annotations__ = annotations
        del run.__wrapped__  # typer would look through it at the undecorated signature
        return run

    return decorate


def _flag(name: str, kind: object) -> str:
    flag = "--" + name.replace("_", "-")
    return f"{flag}/--no-{flag[2:]}" if kind is bool else flag
