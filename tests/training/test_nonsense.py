"""Files edited by hand to nonsense, and numbers beyond any machine: one line, no traceback."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import TINY, refused, small_model

from star.base.errors import UserError
from star.codes.store import StoreWriter
from star.model.config import ModelConfig
from star.model.sampler import generate
from star.model.transformer import build_model
from star.tokenizer.file import load_tokenizer, save_tokenizer
from star.training.config import preset
from star.training.estimate import require_training_memory


def edited(trained, tmp_path, **changes):
    """A copy of the run whose newest checkpoint has some entries replaced."""
    run = shutil.copytree(trained, tmp_path / "edited")
    for path in run.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        content.update(changes)
        path.unlink()
        torch.save(content, path)
    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, "its config is a NoneType, not a dict"),
        ({"config": {"model": {"layers": 2, "heads": 2, "width": 1 << 17, "num_classes": 2}}},
         "does not fit the model"),
        ({"config": {"model": {"norm_eps": 0.0}}}, "norm_eps is 0.0; expected a number > 0"),
        ({"teacher": [1]}, "its teacher is a list, not a dict"),
        ({"teacher": {"norm.weight": 1}}, "norm.weight is a int, not a tensor"),
        ({"tokenizer": 3}, "its tokenizer is a int, not a dict"),
        ({"class_names": ["a"]}, "names 1 classes, its model has 2"),
        ({"step": "4"}, "its step is a str, not a int"),
        ({"version": "x"}, "checkpoint version 'x'"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_nonsense_is_named(star, trained, tmp_path, changes, message):
    run = edited(trained, tmp_path, **changes)
    assert refused(star("inspect", run), message)
    assert refused(star("sample", run, "--each", "1"), message)


@pytest.mark.parametrize(
    "optimizer", [{}, {"state": 3, "param_groups": 4}, {"state": {}, "param_groups": []}]
)
def test_an_optimizer_of_nonsense_is_named(star, trained, tmp_path, optimizer):
    run = edited(trained, tmp_path, optimizer=optimizer)
    assert refused(star("train", "--resume", run), "its optimizer is not this model's")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_counts": ["a", "b"]}, "class_counts holds 'a'; expected only int"),
        ({"class_names": [1, 2]}, "class_names holds 1; expected only str"),
        ({"grid": -8}, "grid is -8; expected at least 1"),
        ({"images": 0}, "images is 0; expected at least 1"),
    ],
)
def test_a_manifest_of_nonsense_is_named(star, stores, tmp_path, changes, message):
    edit_manifest(shutil.copytree(stores, tmp_path / "codes") / "train", changes)
    for command in (
        ["inspect", "codes"],
        ["tokenize", "--verify", "codes"],
        ["train", "--data", "codes"],
    ):
        assert refused(star(*command), message)


def test_codes_beyond_the_codebook_stop_the_training(star, stores, tmp_path):
    for split in ("train", "val", "test"):
        edit_manifest(shutil.copytree(stores / split, tmp_path / "codes" / split), {"vocab_size": 8})
    result = star("train", "--data", "codes", "--run", "r", *TINY)
    assert refused(result, "has code ", "expected 0 to 7: remove the whole folder")


def edit_manifest(store, changes):
    path = store / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tokenizer_that_is_not_finite_is_refused(star, tokenizer_file, tmp_path, value):
    weights = safetensors.torch.load_file(tokenizer_file)
    weights["decoder.conv_out.bias"][0] = value
    torch.save(weights, tmp_path / "broken.pt")
    for name in ("broken.pt", "broken.safetensors"):
        if name.endswith("safetensors"):
            model = load_tokenizer(tokenizer_file)
            model.decoder.conv_out.bias.data[0] = value
            save_tokenizer(model, tmp_path / name, {})
        result = star("token-invariance", "china.jpg", "--tokenizer", name)
        assert refused(result, "decoder.conv_out.bias holds values that are not finite")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--norm-eps", "nan"], "norm_eps is nan; expected a number > 0"),
        (["--rope-base", "nan"], "rope_base is nan; expected a number > 0"),
        (["--rope-base", "0"], "rope_base is 0.0; expected a number > 0"),
        (["--layers", "1000000000"], "layers is 1000000000; expected 1 to 1,000"),
        (["--width", "100000000000"], "width is 100000000000; expected 1 to 262,144"),
        (["--width", "262144", "--layers", "500"], "GiB; cpu has"),
        (["--projector-layers", "1000000"], "projector_layers is 1000000; expected 1 to 100"),
        (["--workers", "1000000"], "workers is 1000000; expected at most 1000"),
        (["--device", "mps"], "device is 'mps'; expected auto, cpu, cuda or cuda:N"),
        (["--device", "meta"], "device is 'meta'"),
        (["--device", "meta", "--dry-run"], "device is 'meta'"),
    ],
)
def test_numbers_beyond_any_machine_are_refused(star, stores, tmp_path, options, message):
    options = ["--data", stores, "--run", "r", "--device", "cpu", *options]
    assert refused(star("train", *options), message)
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_pictures_have_a_bound(star, trained, tokenizer_file, tmp_path):
    assert refused(
        star("sample", trained, "--each", "100000000000"), "expected 1 to 100 images a class"
    )
    options = ("--tokenizer", tokenizer_file, "--size", "100000000000")
    assert refused(star("token-invariance", "china.jpg", *options), "at most 4096 pixels")


def test_memory_is_asked_for_before_it_is_taken():
    huge = ModelConfig(layers=1000, width=1 << 18, heads=64)
    with pytest.raises(UserError, match="a model of .* parameters would take .* GiB; cpu has"):
        build_model(huge)
    with pytest.raises(UserError, match="training .* parameters .* would take .* GiB; cpu has"):
        config = dataclasses.replace(preset("tiny"), model=huge)
        require_training_memory(config, torch.device("cpu"), 1)
    sharded = dataclasses.replace(config, shard=True)
    require_training_memory(sharded, torch.device("cpu"), 1 << 40)
    model = small_model()
    model.config = dataclasses.replace(model.config, layers=1000, grid=1024)
    with pytest.raises(UserError, match="the cache of 1,000 images would take"):
        generate(model, [0] * 1000, seeds=range(1000))


def test_an_allocation_that_fails_is_one_line(star, monkeypatch):
    def full(*arguments, **options):
        raise MemoryError("Unable to allocate 7.28 TiB for an array")

    monkeypatch.setattr("star.training.inspect.describe", full)
    assert refused(star("inspect", "x"), "out of memory (Unable to allocate 7.28 TiB")


@pytest.mark.parametrize("name", ["channels", "decoder_blocks", "codebook_size"])
def test_a_tokenizer_beyond_any_machine_is_refused(star, tokenizer_file, tmp_path, name):
    model = load_tokenizer(tokenizer_file)
    metadata = {"config": json.dumps(dataclasses.asdict(model.config) | {name: 10**9})}
    path = tmp_path / "huge.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(tokenizer_file), path, metadata=metadata)
    result = star("token-invariance", "china.jpg", "--tokenizer", path)
    assert refused(result, f"tokenizer {name} is 1000000000; expected a whole number, 1 to")


@pytest.mark.parametrize("work", ["3", "[]", '{"train": 3, "val": 4, "test": 5}'])
def test_a_work_folder_of_nonsense_is_started_afresh(star, stores, digit_folder, tokenizer_file, work):
    partial = Path(shutil.copytree(stores, "codes.partial"))
    (partial / "work.json").write_text(work)
    code, out, err = star("tokenize", digit_folder, "codes", "--tokenizer", tokenizer_file)
    assert code == 0 and "starting afresh" in out, (out, err)


@pytest.mark.parametrize("progress", ["3", "{}", '{"shape": [46, 10, 64], "done": "x"}'])
def test_progress_of_nonsense_is_started_afresh(stores, tmp_path, progress):
    folder = shutil.copytree(stores / "train", tmp_path / "train")
    (folder / "progress.json").write_text(progress)
    assert StoreWriter(folder, images=46, views=10, tokens=64).done == 0


@pytest.mark.parametrize("source", [None, 3, "x"])
def test_a_store_of_nonsense_is_not_taken_for_ours(
    star, stores, tmp_path, digit_folder, tokenizer_file, source
):
    edit_manifest(shutil.copytree(stores, tmp_path / "codes") / "train", {"source": source})
    result = star("tokenize", digit_folder, "codes", "--tokenizer", tokenizer_file)
    assert refused(result, "codes exists and was made with another", "choose another folder or remove")
