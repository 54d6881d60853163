"""Device, precision and the exactness of float32, with devices that only pretend to be there."""

import json

import numpy as np
import pytest
import torch
from helpers import TINY_VQ
from reference.fill import fill_

from probes.representation.encoders import Encoder, encode_pooled
from probes.samples.inception import load_inception
from star.base.device import exact_float32
from star.codes.encode import tokenize
from star.images.open import open_source
from star.tokenizer.model import VQModel, encode_images

BACKENDS = torch.backends
SETTINGS = {
    "all": BACKENDS,
    "cudnn": BACKENDS.cudnn,
    "cudnn.conv": BACKENDS.cudnn.conv,
    "cuda.matmul": BACKENDS.cuda.matmul,
    "mkldnn.conv": BACKENDS.mkldnn.conv,
    "mkldnn.matmul": BACKENDS.mkldnn.matmul,
}


def settings() -> dict[str, str]:
    return {name: place.fp32_precision for name, place in SETTINGS.items()}


@pytest.fixture
def untouched():
    """torch's own settings in the test, and after it."""

    def reset():
        BACKENDS.fp32_precision = BACKENDS.cudnn.fp32_precision = "none"
        BACKENDS.mkldnn.conv.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        BACKENDS.cudnn.allow_tf32 = True

    reset()
    yield
    reset()


@pytest.mark.parametrize(
    ("given", "within"),
    [
        ({}, "tf32"),  # torch's default for convolutions
        ({"all": "tf32"}, "tf32"),
        ({"all": "bf16"}, "bf16"),
        ({"cudnn": "tf32"}, "tf32"),
        ({"cudnn.conv": "tf32", "cuda.matmul": "tf32"}, "tf32"),
        ({"mkldnn.conv": "bf16", "mkldnn.matmul": "bf16"}, "bf16"),
        ({"all": "ieee"}, "ieee"),
    ],
)
def test_float32_is_exact_in_the_block_and_the_settings_are_back_after_it(untouched, given, within):
    for name, value in given.items():
        SETTINGS[name].fp32_precision = value
    before = settings()
    assert within in before.values()
    with exact_float32(), exact_float32():
        assert set(settings().values()) == {"ieee"}
    assert settings() == before
    with pytest.raises(RuntimeError, match="stop"), exact_float32():
        raise RuntimeError("stop")
    assert settings() == before


def test_the_old_switches_are_obeyed_and_can_be_read_again_afterwards(untouched):
    BACKENDS.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("high")
    with exact_float32():
        assert set(settings().values()) == {"ieee"}
    assert BACKENDS.cudnn.allow_tf32 is False and BACKENDS.cuda.matmul.allow_tf32 is True
    assert torch.get_float32_matmul_precision() == "high"
    BACKENDS.cudnn.allow_tf32 = True
    with exact_float32():
        assert BACKENDS.cudnn.conv.fp32_precision == "ieee"
    assert BACKENDS.cudnn.allow_tf32 is True and BACKENDS.cudnn.conv.fp32_precision == "tf32"


def test_what_was_only_inherited_still_follows_its_parent_afterwards(untouched):
    BACKENDS.cudnn.conv.fp32_precision = "none"
    BACKENDS.fp32_precision = "tf32"
    with exact_float32():
        pass
    assert settings()["cudnn"] == settings()["cudnn.conv"] == "tf32"
    BACKENDS.fp32_precision = "ieee"
    assert set(settings().values()) == {"ieee"}


@pytest.fixture
def seen_by_convolutions(monkeypatch):
    """What cuDNN and cuBLAS would be told, at every convolution of a tokenizer."""
    seen = []
    forward = torch.nn.Conv2d.forward

    def watched(self, hidden):
        seen.append((BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cuda.matmul.fp32_precision))
        return forward(self, hidden)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched)
    return seen


def test_codes_and_what_is_drawn_of_them_are_made_in_exact_float32(untouched, seen_by_convolutions):
    torch.set_float32_matmul_precision("high")
    model = fill_(VQModel(TINY_VQ)).eval()
    with torch.no_grad():
        model.encode_features(torch.zeros(1, 3, 8, 8))
    assert set(seen_by_convolutions) == {("tf32", "tf32")}, "the bare network: the caller's business"
    for made in (
        lambda: model.encode(torch.zeros(1, 3, 8, 8)),
        lambda: model.decode(torch.zeros(1, 2, 2, dtype=torch.long)),
        lambda: model(torch.zeros(1, 3, 8, 8)),
        lambda: encode_images(model, np.zeros((2, 8, 8, 3), dtype=np.uint8)),
    ):
        seen_by_convolutions.clear()
        made()
        assert set(seen_by_convolutions) == {("ieee", "ieee")}
    assert torch.get_float32_matmul_precision() == "high"


def test_a_store_says_that_no_code_was_rounded_and_older_ones_still_serve(
    untouched, tmp_path, seen_by_convolutions
):
    model = fill_(VQModel(TINY_VQ)).eval()
    source, options = open_source("photos"), {"size": 8, "views": "plain"}
    notes: list[str] = []
    store = tokenize(source, model, tmp_path / "out", **options)["train"]
    assert set(seen_by_convolutions) == {("ieee", "ieee")}
    assert store.manifest["tf32"] is False and store.manifest["precision"] == "float32"
    older = {key: value for key, value in store.manifest.items() if key != "tf32"}
    (store.path / "manifest.json").write_text(json.dumps(older))
    again = tokenize(source, model, tmp_path / "out", **options, on_message=notes.append)
    assert "already complete" in notes[0] and "tf32" not in again["train"].manifest


class Pooled(torch.nn.Module):
    """(N, 2) of images; wrapped: features and logits, with a branch, as torch-fidelity's Inception."""

    def __init__(self, *_, wrapped: bool = True):
        super().__init__()
        self.wrapped, self.conv = wrapped, torch.nn.Conv2d(3, 2, 3)
        self.Mixed_6d = torch.nn.Module()
        self.Mixed_6d.branch1x1 = torch.nn.Identity()

    def forward(self, images_BCHW):
        pooled = self.Mixed_6d.branch1x1(self.conv(images_BCHW.float())).mean((2, 3))
        return (pooled, pooled) if self.wrapped else pooled


def test_features_of_other_networks_are_exact_too(
    untouched, tmp_path, monkeypatch, seen_by_convolutions
):
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    network = Pooled(wrapped=False).requires_grad_(False)
    assert encode_pooled(Encoder("pooled", network, (8, 8), ""), images).shape == (2, 2)
    monkeypatch.setattr(
        "torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3", Pooled
    )
    torch.save({}, tmp_path / "weights.pth")
    network = load_inception(tmp_path / "weights.pth")
    assert network.pool(torch.from_numpy(images).permute(0, 3, 1, 2)).shape == (2, 2)
    assert seen_by_convolutions == [("ieee", "ieee")] * 2
