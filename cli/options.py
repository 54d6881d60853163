"""Options that several commands share, and options made from dataclass fields: each described once.

``with_options`` gives a command one option for every field of the dataclasses named, with the field's
help text and type. An option not given is absent from the dictionary the command receives, so the
order default < preset < file < command line holds.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "Checkpoint",
    "Data",
    "Device",
    "Grid",
    "Heads",
    "RunTokenizer",
    "SourceTokenizer",
    "Threads",
    "Weights",
    "with_options",
]

# What a command asks of a checkpoint: parameters annotated with these, None by default where optional.
Checkpoint = Annotated[
    Path | None, typer.Argument(help="Checkpoint or run folder.  \\[default: the newest run]")
]
Weights = Annotated[Literal["teacher", "student"], typer.Option(help="EMA teacher or student.")]
Heads = Annotated[int | None, typer.Option(help="Heads of a LlamaGen checkpoint that does not say.")]
Grid = Annotated[int | None, typer.Option(help="Grid of a LlamaGen checkpoint that does not say.")]
Data = Annotated[str | None, typer.Option(help="Source or code stores.  \\[default: the run's own]")]
RunTokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", help="Tokenizer file.  \\[default: the run's own]"),
]
SourceTokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Tokenizer file, cifar10 (the package's own) or digits.  "
        "\\[default: digits for digits, else cifar10]",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of each process.  \\[default: as many as it may use cores]"),
]


def with_options(*defaults: object, skip: tuple[str, ...] = (), panels: dict[type, str] | None = None):
    """Decorate ``command(..., given: dict[type, dict])`` with an option for every field.

    ``given`` maps each class to the fields set on the command line; a field that several classes have
    is one option for all of them. ``defaults`` holds an instance of each class, whose values ``--help``
    shows; ``skip`` names fields that get no option here; ``panels`` maps a class to its heading. What a
    class declares itself comes before what it inherits, arguments before options.
    """
    panels = panels or {}

    def decorate(command: Callable) -> Callable:
        own = [p for p in inspect.signature(command).parameters.values() if p.name != "given"]
        annotations = {p.name: p.annotation for p in own}
        owners: dict[str, list[type]] = {}
        extra = []
        for shown in defaults:
            cls = type(shown)
            hints = typing.get_type_hints(cls)
            for field in _in_order(cls):
                if field.name in skip or "help" not in field.metadata:
                    continue
                owners.setdefault(field.name, []).append(cls)
                if field.name in annotations:
                    continue
                annotations[field.name] = hints[field.name] | None
                parameter = _parameter(field, hints[field.name], shown, panels.get(cls))
                extra.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=parameter,
                        annotation=annotations[field.name],
                    )
                )

        @functools.wraps(command)
        def run(**values):
            given: dict[type, dict] = {type(shown): {} for shown in defaults}
            for name, classes in owners.items():
                value = values.pop(name)
                if value is not None:
                    for cls in classes:
                        given[cls][name] = value
            return command(**values, given=given)

        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = inspect.Signature([*keyword_only, *extra])
        run.__annotations__ = annotations
        del run.__wrapped__  # typer would look through it at the undecorated signature
        return run

    return decorate


def _in_order(cls: type) -> list[dataclasses.Field]:
    """A class's fields: its own before those it inherits, arguments before options."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base).get("__annotations__", {})}
    fields = sorted(dataclasses.fields(cls), key=lambda field: field.name in inherited)
    return sorted(fields, key=lambda field: not field.metadata.get("argument"))


def _parameter(field: dataclasses.Field, kind: object, shown: object, panel: str | None):
    """The typer parameter of a field (``star.base.settings.option``)."""
    about = field.metadata
    default = getattr(shown, field.name)
    flag = about.get("flag") or _flag(field.name, kind)
    switch = kind is bool and "/" not in flag  # it can only be turned on
    said = about.get("said") or ("" if default is None or switch else default)
    text = about["help"] + (f"  \\[default: {said}]" if said != "" else "")
    if about.get("argument"):
        return typer.Argument(None, metavar=about["argument"], help=text, show_default=False)
    panel = about.get("panel") or panel
    return typer.Option(None, flag, help=text, rich_help_panel=panel, show_default=False)


def _flag(name: str, kind: object) -> str:
    flag = "--" + name.replace("_", "-")
    return f"{flag}/--no-{flag[2:]}" if kind is bool else flag
