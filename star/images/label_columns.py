"""Which column of parquet shards holds the images, which the labels, and what a label's value means."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.base.errors import UserError, listed
from star.base.record import Record

__all__ = ["Columns", "choose_columns", "label_values"]

_IMAGES = ("image", "img")
_LABELS = ("label", "labels")
# Words of a column's name that may mean its class: cls, fine_label, target, class_id.
_LABEL_WORDS = {"label", "labels", "cls", "class", "classes", "target", "targets", "category"}
_LABEL_TYPES = ("int", "uint", "float", "double", "halffloat", "bool", "string", "large_string",
                "string_view", "dictionary")  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Names of the image and the label column (None: no labels), and of the classes where known."""

    image: str
    label: str | None
    classes: list[str] | None


def choose_columns(
    path: Path, types: Mapping[str, str], features: Record, asked: str | None, *, labels: bool
) -> Columns:
    """The columns of the shard at ``path``, by what Hugging Face's ``features`` call them, or by name.

    ``types`` maps each column to its Arrow type; ``asked`` names the label column. ``UserError`` where
    there is no such column, or several could be meant; without ``labels``, the label is None then.
    """
    image = _image(path, types, features)
    try:
        label = _label(path, types, features, image) if asked is None else asked
    except UserError:
        if labels:
            raise
        return Columns(image, None, None)
    if label not in types:
        raise UserError(f"{path} has no column {label} (--label-column); found: {listed(types, 20)}")
    if asked is not None and not types[asked].startswith(_LABEL_TYPES):
        raise UserError(
            f"{path}: {asked} (--label-column) holds {types[asked]}; expected whole numbers or names"
        )
    if types[label] == "bool":
        return Columns(image, label, ["False", "True"])
    names = features.get(label, {}).get("names")
    if isinstance(names, dict):  # {"0": "cat"} in old files
        names = [names[key] for key in sorted(names, key=int)]
    return Columns(image, label, [str(name) for name in names] if names else None)


def _image(path: Path, types: Mapping[str, str], features: Record) -> str:
    typed = _typed(types, features, "Image")
    named = [name for name in _IMAGES if name in types]
    if not named and len(typed) != 1:
        raise UserError(
            f"{path} has {'several columns' if typed else 'no column'} of images; expected "
            f"{' or '.join(_IMAGES)}; found: {listed(types, 20)}"
        )
    return (named or typed)[0]


def _label(path: Path, types: Mapping[str, str], features: Record, image: str) -> str:
    named = [name for name in _LABELS if name in types]
    if named:
        return named[0]
    found = _typed(types, features, "ClassLabel") or [
        name for name, kind in types.items() if name != image and _may_be_label(name, kind)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{path} has several columns that may be the labels: {listed(found, 20)}; choose one: star "
            "tokenize SOURCE OUT --label-column NAME (other commands take OUT as their data)"
        )
    raise UserError(
        f"{path} has no column of labels; expected {' or '.join(_LABELS)}, cls, class or target; "
        f"found: {listed(types, 20)}; choose one: star tokenize SOURCE OUT --label-column NAME"
    )


def _typed(types: Mapping[str, str], features: Record, kind: str) -> list[str]:
    return [n for n, feature in features.items() if feature.get("_type") == kind and n in types]


def _may_be_label(name: str, kind: str) -> bool:
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return kind.startswith(_LABEL_TYPES) and bool(_LABEL_WORDS & set(words))


def label_values(values: Sequence[Any], where: str) -> list[int | str | None]:
    """Labels as whole numbers or names; 1.0, as pandas writes labels beside a gap, is 1.

    None (and not a number) where there is none. Raises ``UserError``, with ``where``, for other values.
    """
    found = []
    for value in values:
        if type(value) is bool:
            value = int(value)
        elif type(value) is float and math.isnan(value):
            value = None
        elif type(value) is float and value.is_integer():
            value = int(value)
        if value is not None and type(value) not in (int, str):
            raise UserError(f"{where} holds {value!r}; expected whole numbers or names")
        found.append(value)
    return found
