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
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
    "sign",
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
        help="Tokenizer file, or one of the package's own: cifar10 or digits.  "
        "\\[default: digits for digits, else cifar10]",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of each process.  \\[default: as many as it may use cores]"),
]


def with_options(
    *defaults: "DataclassInstance | type[DataclassInstance]",
    skip: tuple[str, ...] = (),
    panels: dict[type, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate ``command(..., given: dict[type, dict])`` with an option for every field.

    ``given`` maps each class to the fields set on the command line; a field that several classes have
    is one option for all of them. ``defaults`` holds each class, or an instance whose values ``--help``
    shows; ``skip`` names fields that get no option here; ``panels`` maps a class to its heading. What a
    class declares itself comes before what it inherits, arguments before options; what the command
    declares before ``given`` stands before them all, what it declares after it behind. A field
    without a default must be given.
    """
    panels = panels or {}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in inspect.signature(command).parameters.values()
        ]
        place = [p.name for p in own].index("given")
        before, after = own[:place], own[place + 1 :]
        annotations = {p.name: p.annotation for p in before + after}
        owners: dict[str, list[type]] = {}
        extra = []
        for shown in defaults:
            cls = _class(shown)
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
        def run(**values: Any) -> None:
            given: dict[type, dict] = {_class(shown): {} for shown in defaults}
            for name, classes in owners.items():
                value = values.pop(name)
                if value is not None:
                    for cls in classes:
                        given[cls][name] = value
            command(**values, given=given)

        sign(run, inspect.Signature([*before, *extra, *after]), annotations)
        del run.__wrapped__  # typer would look through it at the undecorated signature
        return run

    return decorate


def sign(
    command: Callable[..., None], signature: inspect.Signature, annotations: dict[str, Any]
) -> None:
    """Let ``command`` show this signature, which typer makes its options of."""
    vars(command)["__signature__"] = signature
    command.__annotations__ = annotations


def _class(shown: object) -> type:
    return shown if isinstance(shown, type) else type(shown)


def _in_order(cls: type) -> list[dataclasses.Field]:
    """A class's fields: its own before those it inherits, arguments before options."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base).get("__annotations__", {})}
    fields = sorted(dataclasses.fields(cls), key=lambda field: field.name in inherited)
    return sorted(fields, key=lambda field: not field.metadata.get("argument"))


def _parameter(field: dataclasses.Field, kind: object, shown: object, panel: str | None) -> object:
    """The typer parameter of a field (``star.base.settings.option``)."""
    about = field.metadata
    default = getattr(shown, field.name, ...)  # ...: it must be given
    flag = about.get("flag") or _flag(field.name, kind)
    switch = kind is bool and "/" not in flag  # it can only be turned on
    said = about.get("said") or ("" if switch or default in (None, ...) else default)
    text = about["help"] + (f"  \\[default: {said}]" if said != "" else "")
    none = ... if default is ... else None
    if about.get("argument"):
        return typer.Argument(none, metavar=about["argument"], help=text, show_default=False)
    panel = about.get("panel") or panel
    return typer.Option(none, flag, help=text, rich_help_panel=panel, show_default=False)


def _flag(name: str, kind: object) -> str:
    flag = "--" + name.replace("_", "-")
    return f"{flag}/--no-{flag[2:]}" if kind is bool else flag
