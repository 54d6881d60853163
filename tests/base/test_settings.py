"""Settings and requests: the values of their fields, checked for who calls from Python."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from star.base.errors import UserError
from star.base.settings import check_fields, config_from_dict, option


@dataclass(frozen=True, kw_only=True)
class Asked:
    paths: list[Path] | None = option(None, "Files.")
    count: int = option(3, "How many.")
    scale: float = option(1.5, "How large.")
    name: str | None = option(None, "What.", said="the newest")
    way: Literal["one", "other"] = option("one", "Which.")
    quick: bool = option(False, "Whether.")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"paths": [Path("a"), "b"], "count": 1, "scale": 2, "name": "x", "way": "other", "quick": True},
        {"paths": ("a",)},
    ],
)
def test_values_of_the_annotated_types_pass(values):
    expected = {**values, "paths": [Path(path) for path in values["paths"]]} if values else values
    assert check_fields(Asked(**values)) == Asked(**expected)


def test_a_path_is_taken_for_a_text_and_a_text_for_a_path():
    found = check_fields(Asked(paths=["a"], name=Path("b") / "c"))
    assert found.paths == [Path("a")] and found.name == str(Path("b") / "c")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"paths": "a"}, "paths is 'a'; expected None or a list, each a value of type Path"),
        ({"paths": [1]}, r"paths is \[1\]; expected None or a list, each a value of type Path"),
        ({"count": "3"}, "count is '3'; expected a value of type int"),
        ({"count": True}, "count is True; expected a value of type int"),
        ({"scale": False}, "scale is False; expected a value of type float"),
        ({"name": 3}, "name is 3; expected None or a value of type str"),
        ({"way": "third"}, "way is 'third'; expected one of: one, other"),
        ({"quick": 1}, "quick is 1; expected a value of type bool"),
    ],
)
def test_other_values_are_named_with_what_was_expected(values, message):
    with pytest.raises(UserError, match=message):
        check_fields(Asked(**values))


def test_a_file_of_settings_is_checked_in_the_same_way():
    assert config_from_dict({"count": 4, "scale": 2}, Asked()) == Asked(count=4, scale=2.0)
    with pytest.raises(UserError, match="count is 4.0; expected a value of type int"):
        config_from_dict({"count": 4.0}, Asked())
    with pytest.raises(UserError, match="quick is 0; expected a value of type bool"):
        config_from_dict({"quick": 0}, Asked())
