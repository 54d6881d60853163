"""The tokenizers that come with the package, and which one is taken."""

import tomllib

import numpy as np
import pytest
import torch
from helpers import ROOT

from star.base.errors import UserError
from star.codes.open import tokenize_source
from star.images.open import load_image, open_source
from star.images.views import center_crop, to_model_range
from star.tokenizer.file import (
    SHIPPED,
    load_tokenizer,
    save_tokenizer,
    shipped_tokenizer_path,
    tokenizer_sha256,
)
from star.tokenizer.quality import evaluate_tokenizer, image_psnr
from star.training.inspect import describe


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer()


@pytest.fixture(scope="module")
def digits():
    return load_tokenizer("digits")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_small_and_part_of_the_package(name):
    path = shipped_tokenizer_path(name)
    assert path.stat().st_size <= 4_000_000
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert any(path in (ROOT / "star").glob(glob) for glob in settings["package-data"]["star"])


def test_its_card_says_what_it_saw_and_how_well_it_does(shipped):
    card = shipped.card
    assert shipped.name == "cifar10" and shipped.config.stride == 4
    assert card["command"].startswith("star train-tokenizer ")
    assert "47500 images" in card["data"] and card["measured_on"].endswith("test, 10000 images")
    assert {"steps", "seed", "sizes", "batch_size", "lr", "psnr", "ssim", "patch_fd"} <= set(card)
    assert card["psnr"] > 20 and 0.5 < card["ssim"] < 1
    assert shipped.config.codebook_size * 0.9 < card["codes_used"] <= shipped.config.codebook_size


def test_the_digits_one_saw_the_training_split_and_redraws_the_test_digits(digits):
    card = digits.card
    assert digits.name == "digits" and digits.config.stride == 4
    assert card["command"].startswith("star train-tokenizer digits ")
    assert "train, 1297 images" in card["data"] and card["measured_on"].endswith("test, 360 images")
    part = open_source("digits").splits["test"]
    pixels = np.stack([np.asarray(part.load(index)) for index in range(len(part))])
    measured = evaluate_tokenizer(digits, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert measured["psnr"] == pytest.approx(card["psnr"], abs=0.01)
    assert measured["codes_used"] == pytest.approx(card["codes_used"], abs=1)
    assert measured["psnr"] > 28.5  # what 280 steps on the user's machine gave


@pytest.mark.parametrize("size", [4, 32, 36, 64, 256])
def test_it_redraws_photographs_of_any_size_that_its_stride_divides(shipped, size):
    """Floors 1 dB or more below what was measured when it was trained."""
    least = {4: 8, 32: 21, 36: 21.5, 64: 22, 256: 22}[size]
    for name in ("china.jpg", "flower.jpg"):
        images = to_model_range(np.asarray(center_crop(load_image(name), size))[None])
        indices = shipped.encode(images)
        assert indices.shape == (1, size // 4, size // 4)
        assert image_psnr(images, shipped.decode(indices).clamp(-1, 1)).item() > least, name


def test_tokenizers_by_name(shipped, digits, tmp_path, monkeypatch):
    same = tokenizer_sha256(shipped)
    assert tokenizer_sha256(load_tokenizer("cifar10")) == same == describe("cifar10")["sha256"]
    assert tokenizer_sha256(digits) == describe("digits")["sha256"] != same
    with pytest.raises(UserError, match="no such file: elsewhere"):
        load_tokenizer("elsewhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10" / "train").mkdir(parents=True)  # images of that name are no tokenizer
    assert tokenizer_sha256(load_tokenizer("cifar10")) == same
    save_tokenizer(shipped, tmp_path / "digits" / "tokenizer.safetensors", {"name": "mine"})
    assert load_tokenizer("digits").name == "mine"  # what the user has here goes first


def test_a_source_without_a_tokenizer_gets_the_shipped_one_at_its_size(tmp_path, shipped):
    said = []
    data = tokenize_source("photos", tmp_path / "codes", on_message=said.append)
    store = data.stores["train"]
    assert store.grid == 8 and store.tokenizer_sha256 == tokenizer_sha256(shipped)
    assert "tokenised at 32 pixels" in said[0]
    data = tokenize_source("photos", tmp_path / "larger", size=64)
    assert data.stores["train"].grid == 16


def test_digits_are_tokenised_with_their_own(tmp_path, digits):
    assert open_source("digits").default_views == "affine"
    data = tokenize_source("digits", tmp_path / "codes", views="plain")
    assert tokenizer_sha256(data.tokenizer) == tokenizer_sha256(digits)
