"""The tokenizer that comes with the package, the one trained on the digits, and which one is taken."""

import tomllib
from dataclasses import replace

import numpy as np
import pytest
from helpers import ROOT

import star.tokenizer.digits as digits
from star.base.errors import UserError
from star.codes.open import open_tokenizer, tokenize_source
from star.images.open import load_image, open_source
from star.images.views import center_crop, to_model_range
from star.tokenizer.file import load_tokenizer, save_tokenizer, shipped_tokenizer_path, tokenizer_sha256
from star.tokenizer.quality import image_psnr
from star.training.inspect import describe


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer()


def test_the_shipped_file_is_small_and_part_of_the_package():
    path = shipped_tokenizer_path()
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


@pytest.mark.parametrize("size", [4, 32, 36, 64, 256])
def test_it_redraws_photographs_of_any_size_that_its_stride_divides(shipped, size):
    """Floors 1 dB or more below what was measured when it was trained."""
    least = {4: 8, 32: 21, 36: 21.5, 64: 22, 256: 22}[size]
    for name in ("china.jpg", "flower.jpg"):
        images = to_model_range(np.asarray(center_crop(load_image(name), size))[None])
        indices = shipped.encode(images)
        assert indices.shape == (1, size // 4, size // 4)
        assert image_psnr(images, shipped.decode(indices).clamp(-1, 1)).item() > least, name


def test_tokenizers_by_name(shipped, tmp_path, monkeypatch):
    same = tokenizer_sha256(shipped)
    assert tokenizer_sha256(open_tokenizer()) == same
    assert tokenizer_sha256(open_tokenizer("cifar10")) == same
    assert tokenizer_sha256(load_tokenizer("cifar10")) == same == describe("cifar10")["sha256"]
    monkeypatch.setenv("STAR_CACHE", str(tmp_path))
    save_tokenizer(shipped, digits.digits_tokenizer_path(), {"name": "pretended"})
    assert open_tokenizer("digits").name == "pretended"
    with pytest.raises(UserError, match="no such file: elsewhere"):
        open_tokenizer("elsewhere")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10" / "train").mkdir(parents=True)  # images of that name are no tokenizer
    assert tokenizer_sha256(open_tokenizer("cifar10")) == same
    folder = tmp_path / "digits"
    save_tokenizer(shipped, folder / "tokenizer.safetensors", {"name": "mine"})
    assert open_tokenizer("digits").name == "mine"  # what the user has here goes first


def test_a_source_without_a_tokenizer_gets_the_shipped_one_at_its_size(tmp_path, shipped):
    said = []
    data = tokenize_source("photos", tmp_path / "codes", on_message=said.append)
    store = data.stores["train"]
    assert store.grid == 8 and store.tokenizer_sha256 == tokenizer_sha256(shipped)
    assert "tokenised at 32 pixels" in said[0]
    data = tokenize_source("photos", tmp_path / "larger", size=64)
    assert data.stores["train"].grid == 16


# ---- the digits tokenizer ------------------------------------------------------------------------


@pytest.fixture
def quick_recipe(monkeypatch, tmp_path):
    """Three steps on plain views; the real recipe is measured by its card."""
    monkeypatch.setenv("STAR_CACHE", str(tmp_path))
    monkeypatch.setattr(digits, "RECIPE", replace(digits.RECIPE, max_steps=3, batch_size=4))
    monkeypatch.setattr(digits, "VIEWS", "plain")


def test_digits_tokenizer_is_trained_once_and_kept(tmp_path, quick_recipe):
    steps = []
    model, path = digits.digits_tokenizer(lambda step, total: steps.append((step, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert path.parent == tmp_path
    assert path.stat().st_size < 4_000_000
    assert model.name == "digits"
    expected = {"data", "steps", "seed", "psnr", "codes_used", "perplexity", "seconds", "versions"}
    assert expected <= set(model.card)
    assert "1297" in model.card["data"]
    again, _ = digits.digits_tokenizer(lambda *line: steps.append(line))
    assert len(steps) == 3
    assert tokenizer_sha256(again) == tokenizer_sha256(model)


def test_the_digits_tokenizer_of_earlier_releases_is_found():
    """Its name is of the recipe: what is in a cache today is not trained again."""
    assert digits.digits_tokenizer_path().name == "digits-f67edc40.safetensors"


@pytest.mark.parametrize(
    ("changed", "same"),
    [({"lr": 1.0}, False), ({"seed": 1}, False), ({"keep": 9}, True), ({"sizes": (8,)}, True)],
)
def test_its_name_tells_what_it_was_trained_with(monkeypatch, changed, same):
    before = digits.digits_tokenizer_path()
    monkeypatch.setattr(digits, "RECIPE", replace(digits.RECIPE, **changed))
    assert (digits.digits_tokenizer_path() == before) is same


def test_digits_are_tokenised_with_their_own(quick_recipe):
    assert open_source("digits").default_views == "affine"
    data = tokenize_source("digits", views="plain")
    assert data.tokenizer.name == "digits"


def test_a_changed_recipe_is_another_file(monkeypatch):
    before = digits.digits_tokenizer_path()
    monkeypatch.setattr(digits, "RECIPE", replace(digits.RECIPE, save_every=7))
    assert digits.digits_tokenizer_path() == before  # this changes no weight
    monkeypatch.setattr(digits, "RECIPE", replace(digits.RECIPE, lr=1e-3))
    assert digits.digits_tokenizer_path() != before
