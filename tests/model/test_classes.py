"""Classes by name, by number, and the null class: a name goes first, whatever it looks like."""

import shutil

import numpy as np
import pytest
import torch
from helpers import refused

from star.base.errors import UserError
from star.model.classes import class_words, one_class, parse_classes

NUMBERED = tuple(sorted(map(str, range(1, 13))))  # 1, 10, 11, 12, 2, .., 9
ANIMALS = ("ant", "crane, bird", "crane", "bird", "caf\u00e9", "zebra")
NFD = "cafe\u0301"


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        ("10", NUMBERED, [1]),
        ("12", NUMBERED, [3]),  # a class of this name: not the null class, number 12
        ("9,1", NUMBERED, [11, 0]),
        ("0", NUMBERED, [0]),  # no name, so a number
        ("null", NUMBERED, [12]),
        ("ant", ANIMALS, [0]),
        ("zebra,ant", ANIMALS, [5, 0]),
        ("zebra, ant", ANIMALS, [5, 0]),
        ("crane, bird", ANIMALS, [1]),  # one class, whose name has a comma
        ("ant,crane, bird,2", ANIMALS, [0, 1, 2]),
        ("crane,bird", ANIMALS, [2, 3]),
        (NFD, ANIMALS, [4]),
        ("caf\u00e9", (NFD, "x"), [0]),
        ("6", ANIMALS, [6]),
        ("null,3", ANIMALS, [6, 3]),
        ("null", ("null", "x"), [0]),
        ("2", ("null", "x"), [2]),
        ("7,0", None, [7, 0]),
        ("8,null", None, [8, 8]),
        (None, None, [0, 1, 2, 3, 4, 5, 6, 7]),
        (None, NUMBERED, list(range(10))),
        ("007", ("7", "007", "x", "y", "z", "a", "b", "c"), [1]),
    ],
)
def test_what_is_given_names_these_classes(text, names, expected):
    assert parse_classes(text, 8 if names is None else len(names), names) == expected


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("cat", ANIMALS, "class is 'cat'; expected .* 0,1,7, or a name such as ant, crane, bird"),
        ("Ant", ANIMALS, "class is 'Ant'"),
        ("ant,cat", ANIMALS, "class is 'ant,cat', and no class is called 'cat'"),
        ("x", None, "class is 'x'; expected a number or numbers such as 0,1,7$"),
        ("", ANIMALS, "class is ''"),
        ("1,,2", ANIMALS, "no class is called ''"),
        ("7", ANIMALS, "class 7 does not exist; expected 0 to 5, or 6 for the null class"),
        ("-1", ANIMALS, "class -1 does not exist"),
        ("13", NUMBERED, "class 13 does not exist; expected 0 to 11"),
        ("9" * 5000, ANIMALS, "class is '999"),
        ("1_0", None, "class is '1_0'"),
        ("crane", ("crane", "x", "crane"), "classes 0 and 2 are all called 'crane'; give the number"),
    ],
)  # fmt: skip
def test_what_names_no_class_is_refused_in_one_line(text, names, message):
    with pytest.raises(UserError, match=message) as refusal:
        parse_classes(text, 8 if names is None else len(names), names)
    assert "\n" not in str(refusal.value)


def test_a_model_without_a_null_class():
    assert parse_classes("5,0", 6, ANIMALS, null_class=False) == [5, 0]
    for text in ("6", "null"):
        with pytest.raises(UserError, match=f"class {text} is the null class, and this model has none"):
            parse_classes(text, 6, ANIMALS, null_class=False)
    with pytest.raises(UserError, match="class 7 does not exist; expected 0 to 5$"):
        parse_classes("7", 6, ANIMALS, null_class=False)


def test_one_class():
    assert one_class("crane, bird", 6, ANIMALS) == 1 and one_class(None, 6, ANIMALS) is None
    with pytest.raises(UserError, match="class is 'ant,zebra'; expected one class"):
        one_class("ant,zebra", 6, ANIMALS)


def test_words_for_a_class():
    assert class_words(1, 12, NUMBERED) == "class 1, called '10'"
    assert class_words(0, 6, ANIMALS) == "class 0 (ant)"
    assert class_words(6, 6, ANIMALS) == "null class"
    assert class_words(3, 6) == class_words(3, 6, ("0", "1", "2", "3")) == "class 3"


@pytest.fixture(scope="module")
def numbered(tmp_path_factory, trained):
    """The small run with its two classes called 1 and 2."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("numbered") / "run")
    content = torch.load(run / "ckpt.pt", weights_only=True)
    (run / "ckpt.pt").unlink()
    torch.save({**content, "class_names": ["1", "2"]}, run / "ckpt.pt")
    return run


def test_commands_take_names_and_say_which_class_it_is(star, numbered):
    code, out, err = star("sample", numbered, "--each", "1", "--class", "1,2,null", "--out", "s")
    assert code == 0, err
    assert "sampled: class 0, called '1'; class 1, called '2'; null class" in out
    assert np.load("s/samples-teacher.npz")["labels"].tolist() == [0, 1, 2]
    shown = ["--layers", "1", "--at", "9", "--formats", "png", "--out", "m"]
    code, out, err = star("attn-maps", numbered, "digits/3", "--class", "2", *shown)
    assert code == 0 and "the model is shown the class 1, called '2'" in out, err
    code, out, err = star("attn-maps", numbered, "--sample", "1", "--class", "1", *shown)
    assert code == 0 and "sample of class 0, called '1', seed 0" in out, err
    few = ["--step", "9", "--points", "2", "--draws", "0", "--out", "a"]
    code, out, err = star("attribute", numbered, "digits/3", "--class", "2", *few)
    assert code == 0 and "the model is shown the class 1, called '2'" in out, err


def test_commands_refuse_other_names(star, numbered, trained):
    for command in (("sample",), ("attn-maps",), ("attribute",)):
        result = star(*command, numbered, "--class", "three")
        assert refused(result, "class is 'three'", "or a name such as 1, 2")
    assert refused(star("attn-maps", trained, "--class", "one,zero"), "expected one class")
