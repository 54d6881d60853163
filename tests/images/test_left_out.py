"""What a source leaves out is said once, stands in every manifest, and changes nothing else."""

import json

import pytest
from layouts import in_folder, pictures, split_of

from cli.commands.train_tokenizer import _prepared
from probes.linear.splits import probe_splits
from probes.tokens.images import picture_split
from star.codes.open import tokenize_source
from star.codes.store import same_images
from star.images.open import open_source
from star.tokenizer.config import TokenizerConfig

SPLITS = [
    "set: its test/ has no labels and is left out",
    "set: no test split; val is valid, whole, and train is not cut",
]
SAID = "left out of set: images of test/ without labels: 2, hidden: 1, not an image (.txt): 1"


@pytest.fixture
def folder(tmp_path):
    files = split_of("train", each=6) | split_of("valid") | pictures("test/0.png", "test/1.png")
    return in_folder(tmp_path / "set", files | {"train/ant/a.txt": b"x", "train/.b": b"x"})


def test_it_is_said_once_and_stands_in_the_manifests(folder, tmp_path, tokenizer_file):
    def run(out):
        said = []
        options = {"tokenizer": tokenizer_file, "size": 8, "views": "plain", "on_message": said.append}
        return tokenize_source(folder, tmp_path / out, **options).stores, said

    stores, said = run("out")
    assert said == [*SPLITS, SAID] and set(stores) == {"train", "val"}
    for store in stores.values():
        assert store.manifest["source"]["left_out"] == {
            "images of test/ without labels": 2, "hidden": 1, "not an image (.txt)": 1,
        }  # fmt: skip
    assert run("out")[1] == [f"{tmp_path / 'out'} is already complete"]
    (folder / "train" / "ant" / "more.heic").write_bytes(b"x")
    again, said = run("out")
    assert len(said) == 2 and "not an image (.heic): 1" in said[1], "new beside stores that stay"
    assert again["train"].manifest == stores["train"].manifest
    manifest = tmp_path / "out" / "train" / "manifest.json"
    old = json.loads(manifest.read_text())
    del old["source"]["left_out"]
    manifest.write_text(json.dumps(old))
    assert len(run("out")[1]) == 2, "stores of an earlier version stay usable"


def test_it_does_not_make_other_images(folder, tmp_path, tokenizer_file):
    options = {"tokenizer": tokenizer_file, "size": 8, "views": "plain"}
    before = tokenize_source(folder, tmp_path / "before", **options).stores
    marks = [split.fingerprint() for split in open_source(folder).splits.values()]
    in_folder(folder, pictures("extra/0.png") | {"notes.md": b"x"})
    assert [split.fingerprint() for split in open_source(folder).splits.values()] == marks
    after = tokenize_source(folder, tmp_path / "after", **options).stores
    one, two = (stores["val"].manifest["source"] for stores in (before, after))
    assert one != two and same_images(one, two)
    assert not same_images(one, {**two, "fingerprint": "0" * 64})
    assert not same_images(one, None) and same_images(None, None)
    assert probe_splits(before).describe() == probe_splits(after).describe()


def test_other_commands_that_open_images_say_it(folder, tmp_path, capsys):
    said = []
    _, name = picture_split(str(folder), on_message=said.append)
    assert name == "val" and said == [SAID.replace("set", str(folder), 1)]
    picture_split(str(folder / "train"), on_message=said.append)
    assert said[1:] == [f"left out of {folder / 'train'}: hidden: 1, not an image (.txt): 1"]
    settings = TokenizerConfig(data=str(folder), sizes=(8,), batch_size=2, max_steps=1)
    _prepared(settings, tmp_path / "run", None, "cpu")
    assert capsys.readouterr().out.splitlines()[0] == SAID


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_data_set_saved_by_datasets_is_told_how_to_become_parquet(star, tmp_path, dictionary):
    parts = ("train/", "test/") if dictionary else ("",)
    files = {"dataset_dict.json": b"{}"} if dictionary else {}
    for part in parts:
        files |= {
            f"{part}{name}": b"{}" for name in ("dataset_info.json", "state.json", "data-0.arrow")
        }
    root = in_folder(tmp_path / "saved", files)
    one = 'dataset["train"]' if dictionary else "dataset"
    advice = f'dataset = datasets.load_from_disk("saved"); {one}.to_parquet("DIR/train.parquet")'
    for command in (
        ("tokenize", "saved", "out"),
        ("train-tokenizer", "saved"),
        ("token-invariance", "saved"),
    ):
        code, _, err = star(*command)
        assert code == 2 and len(err.splitlines()) == 1 and advice in err
    code, _, err = star("tokenize", root / parts[0] / "data-0.arrow", "out")
    assert code == 2 and "datasets.Dataset.from_file(" in err and 'dataset.to_parquet("DIR' in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]


def test_a_saved_split_inside_is_told_too(tmp_path):
    files = {f"train/{name}": b"{}" for name in ("dataset_info.json", "state.json", "data-0.arrow")}
    with pytest.raises(ValueError, match=r'dataset\["train"\]\.to_parquet'):
        open_source(in_folder(tmp_path / "saved", files))
