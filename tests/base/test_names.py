"""Names as text: bytes that are no UTF-8, names beyond ASCII or very long, in files and in slugs."""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from probes.reading.example import Subject
from probes.results import Result, read_result, write_result
from star.base.errors import UserError
from star.base.files import plain_path, publish_file
from star.base.names import shown, shown_values, slug
from star.images.open import load_image, open_source

LATIN = os.fsdecode(b"caf\xe9")  # as an old archive leaves it


def save_images(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.full((8, 8, 3), 20 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cat 1", "cat 1"),
        ("café 猫 \U0001f408", "café 猫 \U0001f408"),
        (LATIN, "caf\\xe9"),
        ("\udce7\udc8c\udcab", "猫"),  # as an ASCII locale reads it
        ("\ud800", "\\xed\\xa0\\x80"),  # half of a pair
        ("a\nb\t\x1b[31m\x7f\u2028", "a\\nb\\t\\x1b[31m\\x7f\\u2028"),
        ("back\\slash 100 % $x$ [red]", "back\\slash 100 % $x$ [red]"),
    ],
)
def test_a_name_is_shown_as_one_line_of_text(name, text):
    assert shown(name) == text
    assert shown(text) == text
    assert shown_values({name: [name, (1, name)]}) == {text: [text, [1, text]]}


def test_slugs_are_what_they_were_and_distinct_where_letters_are_lost():
    kept = {
        "ST-AR": "st-ar",
        "flower.jpg": "flower.jpg",
        "12,40": "12-40",
        "AR runs/a_1": "ar-runs-a-1",
    }
    assert {name: slug(name) for name in kept} == kept
    names = ["猫", "狗", "café", "cafe", "cafè", LATIN, "", "!", "x" * 60, "x" * 61, "x" * 48]
    found = [slug(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(one and one.isascii() and len(one) <= 48 for one in found)
    assert slug(os.fsdecode("猫".encode())) == slug("猫")


def test_names_of_one_command_that_differ_only_in_case_or_signs_get_different_slugs():
    names = ["AR a_b", "AR a-b", "AR A-B", "ST-AR"]
    found = [slug(name, among=names) for name in names]
    assert len(set(found)) == 4 and found[3] == "st-ar"
    assert all(one.startswith("ar-a-b-") for one in found[:3])
    assert [slug(name) for name in names] == ["ar-a-b", "ar-a-b", "ar-a-b", "st-ar"]


def test_a_picture_s_file_is_named_after_the_end_of_the_image_s_path():
    def named(name):
        return Subject(name, None, 0, None, "").slug

    assert named("flower.jpg") == "flower-jpg" and named("digits/17") == "digits-17"
    assert named("/a" + "/long" * 30 + "/Cat.png").endswith("-long-cat-png")
    assert len(named("/a" + "/long" * 30 + "/Cat.png")) <= 80
    assert len({named("test/猫/0.jpg"), named("test/狗/0.jpg"), named("test/0.jpg")}) == 3


@pytest.fixture
def latin_folder(tmp_path):
    """train/ with a class and an image whose names are no UTF-8."""
    root = tmp_path / "data"
    save_images(root / "train" / LATIN, 4)
    save_images(root / "train" / "cat", 4)
    os.rename(root / "train" / "cat" / "0.png", root / "train" / "cat" / f"{LATIN}.png")
    return root


def test_classes_and_images_are_called_by_text_and_still_found(latin_folder):
    source = open_source(latin_folder)
    assert source.class_names == (r"caf\xe9", "cat")
    every = [(split, place) for split in source.splits.values() for place in range(len(split))]
    called = {split.name(place) for split, place in every}
    assert r"train/cat/caf\xe9.png" in called and r"train/caf\xe9/0.png" in called
    assert all(split.load(place).size == (8, 8) for split, place in every)


def test_two_classes_that_are_written_alike_are_refused(latin_folder):
    save_images(latin_folder / "train" / r"caf\xe9", 2)
    with pytest.raises(UserError, match=r"data has two classes that are both written caf\\xe9; rename"):
        open_source(latin_folder)


def test_an_image_that_cannot_be_read_is_named_in_one_line(star, latin_folder):
    (latin_folder / "train" / "cat" / f"{LATIN}.png").write_bytes(b"no image")
    code, _, err = star("tokenize", latin_folder, "out", "--tokenizer", "cifar10", "--size", "8")
    assert code == 2 and err.startswith("Error: cannot decode ") and err.count("\n") == 1
    assert r"cat/caf\xe9.png (" in err


def test_stores_tokenizers_and_results_in_folders_of_any_name(latin_folder, tokenizer_file, tmp_path):
    from star.codes.encode import tokenize
    from star.codes.store import open_codes
    from star.tokenizer.file import load_tokenizer, save_tokenizer, tokenizer_sha256

    there = tmp_path / LATIN / "猫"
    first = load_tokenizer(tokenizer_file)
    for name in (f"{LATIN}.safetensors", "plain.safetensors"):
        save_tokenizer(first, there / name, {})
        assert tokenizer_sha256(load_tokenizer(there / name)) == tokenizer_sha256(first)
    assert load_tokenizer(there / f"{LATIN}.safetensors").name == "random"
    tokenize(open_source(latin_folder), first, there / "codes", size=8)
    manifest = (there / "codes" / "train" / "manifest.json").read_bytes()
    assert json.loads(manifest)["class_names"] == [r"caf\xe9", "cat"]
    assert open_codes(there / "codes" / "train").class_names == (r"caf\xe9", "cat")
    assert sorted(entry.name for entry in there.iterdir()) == sorted(
        ["codes", f"{LATIN}.safetensors", "plain.safetensors"]
    )


def test_a_parquet_file_of_any_name_is_read(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    save_images(tmp_path / "images", 4)
    content = [(tmp_path / "images" / f"{number}.png").read_bytes() for number in range(4)]
    table = arrow.table({"image": content, "label": ["猫", "狗"] * 2})
    parquet.write_table(table, tmp_path / "plain")
    (tmp_path / "plain").rename(tmp_path / f"{LATIN}.parquet")
    source = open_source(tmp_path / f"{LATIN}.parquet")
    assert (source.name, source.class_names) == (r"caf\xe9", ("狗", "猫"))
    assert source.splits["train"].name(0).startswith(r"caf\xe9.parquet/")
    assert source.splits["train"].load(0).size == (8, 8)


def test_a_file_s_name_may_be_as_long_as_names_can_be(tmp_path):
    for name in ("x" * 251 + ".csv", "猫" * 83 + ".csv"):
        with publish_file(tmp_path / name) as temporary:
            temporary.write_bytes(b"1")
        assert (tmp_path / name).read_bytes() == b"1"


def test_a_plain_path_is_the_path_itself_wherever_it_can_be(tmp_path):
    with plain_path(tmp_path / "猫.pt") as plain:
        assert plain == tmp_path / "猫.pt"
    (tmp_path / LATIN).mkdir()
    for name in (f"{LATIN}.pt", "plain.pt"):
        (tmp_path / LATIN / name).write_bytes(name.encode(errors="surrogateescape"))
        with plain_path(tmp_path / LATIN / name) as plain:
            assert str(plain).encode() and plain.suffix == ".pt"
            assert plain.read_bytes() == name.encode(errors="surrogateescape")
        assert not plain.exists()


def test_an_image_of_any_name_is_loaded_and_a_result_of_it_read_back(tmp_path):
    import pandas as pd

    path = tmp_path / f"{LATIN}.png"
    Image.new("RGB", (4, 4)).save(path)
    assert load_image(path).size == (4, 4)
    table = pd.DataFrame(
        {"class": [0, 1, 2], "name": ["猫", 'a, "b"', "100 % $x$"], "value": [1.0, 2, 3]}
    )
    csv, info = write_result(
        Result(table, {"image": str(path), "also": [LATIN, "猫"]}), tmp_path / "猫"
    )
    assert "猫" in csv.read_bytes().decode("utf-8")
    found = read_result(csv)
    assert list(found.table["name"]) == ["猫", 'a, "b"', "100 % $x$"]
    assert found.info == {"image": f"{tmp_path}/caf\\xe9.png", "also": [r"caf\xe9", "猫"]}
    assert "\\udce9" not in info.read_bytes().decode("ascii")


TEXT_FILES = {"open", "read_text", "write_text", "read_csv", "to_csv"}


def without_encoding(path):
    """Lines of a source file that open a text file and leave its encoding to the locale."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        of_module = isinstance(node.func, ast.Attribute) and name == "open"  # Image.open, os.open
        if name not in TEXT_FILES or of_module:
            continue
        modes = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
        binary = name == "open" and modes and "b" in str(modes[0])
        if not binary and "encoding" not in {keyword.arg for keyword in node.keywords}:
            yield node.lineno


def test_every_text_file_is_utf8_under_every_locale():
    packages = ("star", "probes", "viz", "figures", "cli")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    left = {str(Path(path).relative_to(ROOT)): list(without_encoding(path)) for path in files}
    assert {name: lines for name, lines in left.items() if lines} == {}
