"""The VQ tokenizer: parity with LlamaGen's numbers, nearest codes by brute force, refused inputs."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.fill import fill_

import star.tokenizer.model
from star.base.errors import UserError
from star.tokenizer.model import VQModel, to_uint8
from star.tokenizer.shape import VQConfig, vq_preset

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = VQConfig(
    channels=32,
    multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=1,
    z_channels=16,
    codebook_size=24,
    codebook_dim=4,
)


@pytest.fixture(scope="module")
def tiny() -> VQModel:
    return fill_(VQModel(TINY)).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["vq16", "vq8"])
def test_golden_numbers_and_keys_of_llamagen(name):
    with torch.device("meta"):  # fill_ sets every weight, so there is nothing to initialise
        model = VQModel(dataclasses.replace(vq_preset(name), codebook_size=512))
    model = fill_(model.to_empty(device="cpu")).eval().requires_grad_(False)
    keys = [f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items()]
    assert keys == (GOLDEN / f"llamagen_{name}_keys.txt").read_text().splitlines()

    golden = {
        key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"llamagen_{name}.npz").items()
    }
    z_BEgg = model.encode_features(golden["image"])
    codes_BEgg, indices_Bgg = model.quantize(z_BEgg)
    drawn_BCHW = model.decode(golden["codes"])
    # float32 sums in another order over some 40 layers; values are of order 1
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(z_BEgg, golden["z"], **close)
    torch.testing.assert_close(codes_BEgg, golden["quant"], **close)
    torch.testing.assert_close(drawn_BCHW, golden["decoded"], **close)
    assert torch.equal(indices_Bgg, golden["indices"])
    assert torch.equal(model.encode(golden["image"]), golden["indices"])


def _nearest_by_hand(vector: list[float], codes: list[list[float]]) -> int:
    def unit(values):
        norm = math.sqrt(sum(value * value for value in values))
        return [value / norm for value in values]

    vector = unit(vector)
    distances = [sum((a - b) ** 2 for a, b in zip(vector, unit(code), strict=True)) for code in codes]
    return distances.index(min(distances))


@pytest.mark.parametrize("elements", [2**24, 100])
def test_nearest_code_is_the_brute_force_one(tiny, monkeypatch, elements):
    monkeypatch.setattr(
        star.tokenizer.model, "SIMILARITY_ELEMENTS", elements
    )  # 100: four vectors at a time
    rng = np.random.default_rng(0)
    # vectors of very different lengths: only the direction may count
    z = rng.normal(size=(2, 4, 3, 5)) * rng.uniform(0.01, 100, size=(2, 1, 3, 5))
    codes_BEgg, indices_Bgg = tiny.quantize(torch.from_numpy(z).float())
    codes = tiny.quantize.embedding.weight.double()
    expected = [
        [[_nearest_by_hand(z[b, :, i, j].tolist(), codes.tolist()) for j in range(5)] for i in range(3)]
        for b in range(2)
    ]
    assert indices_Bgg.dtype == torch.int64
    assert indices_Bgg.tolist() == expected
    unit_VE = codes / codes.norm(dim=1, keepdim=True)
    torch.testing.assert_close(codes_BEgg.double(), unit_VE[indices_Bgg].permute(0, 3, 1, 2))


def test_tokens_do_not_depend_on_the_callers_autocast(tiny):
    z_BEgg = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = tiny.quantize(z_BEgg)[1]
    assert torch.equal(inside, tiny.quantize(z_BEgg)[1])


def test_quantize_passes_gradient_to_the_codebook_only():
    model = fill_(VQModel(TINY))
    z_BEgg = torch.randn(1, 4, 3, 3, requires_grad=True)
    codes_BEgg, _ = model.quantize(z_BEgg)
    codes_BEgg.square().sum().backward()
    assert z_BEgg.grad is None
    assert model.quantize.embedding.weight.grad is not None


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 14), (2, 2), (10, 4)])
def test_any_size_that_the_stride_divides(tiny, height, width):
    images_BCHW = torch.rand(3, 3, height, width) * 2 - 1
    indices_Bgg = tiny.encode(images_BCHW)
    assert indices_Bgg.shape == (3, height // 2, width // 2)
    assert indices_Bgg.dtype == torch.int64
    assert tiny.decode(indices_Bgg).shape == images_BCHW.shape
    # an image's tokens do not depend on the batch it is in
    assert torch.equal(tiny.encode(images_BCHW[1:2]), indices_Bgg[1:2])
    torch.testing.assert_close(tiny(images_BCHW), tiny.decode(indices_Bgg))


def test_an_empty_batch_gives_no_tokens(tiny):
    indices_Bgg = tiny.encode(torch.zeros(0, 3, 8, 8))
    assert indices_Bgg.shape == (0, 4, 4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 7, 8), "7 x 8 pixels.*multiples of 2"),
        (torch.zeros(1, 3, 8, 9), "8 x 9 pixels.*multiples of 2"),
        (torch.zeros(1, 3, 0, 8), "0 x 8 pixels"),
        (torch.zeros(1, 1, 8, 8), r"\(1, 1, 8, 8\); expected \(B, 3, H, W\)"),
        (torch.zeros(3, 8, 8), r"\(3, 8, 8\); expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8; expected a float tensor"),
        (np.zeros((1, 3, 8, 8)), "ndarray; expected a float tensor"),
    ],
)
def test_unfit_images_are_refused(tiny, images, message):
    with pytest.raises(UserError, match=message):
        tiny.encode(images)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.full((1, 4, 4), 24), "from 24 to 24; the codebook has entries 0 to 23"),
        (torch.full((1, 4, 4), -1), "from -1 to -1"),
        (torch.zeros(1, 16, dtype=torch.int64), r"\(1, 16\); expected \(B, g, g\)"),
        (torch.zeros(1, 4, 4), "float32; expected an integer tensor"),
        ([[0]], "list; expected an integer tensor"),
    ],
)
def test_unfit_indices_are_refused(tiny, indices, message):
    with pytest.raises(UserError, match=message):
        tiny.decode(indices)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_indices_of_any_integer_type(tiny, dtype):
    indices_Bgg = torch.arange(18).view(2, 3, 3)
    assert torch.equal(tiny.decode(indices_Bgg.to(dtype)), tiny.decode(indices_Bgg))


def test_to_uint8_is_llamagens_and_inverts_the_scaling():
    values = torch.arange(256).float()
    images_BCHW = (values / 127.5 - 1).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    pixels_BHWC = to_uint8(images_BCHW)
    assert pixels_BHWC.shape == (1, 16, 16, 3)
    assert pixels_BHWC[0, :, :, 1].flatten().tolist() == list(range(256))
    edge = torch.tensor([-9.0, -1.0, 0.0, 0.9 / 127.5, 1.0, 9.0]).view(1, 1, 1, 6)
    # 0.5 at -1 and 128.9 are truncated, 255.5 and beyond are clamped
    assert to_uint8(edge).flatten().tolist() == [0, 0, 128, 128, 255, 255]


def test_presets():
    assert vq_preset("vq16").stride == 16
    assert vq_preset("vq8").stride == 8
    small = VQModel(vq_preset("small"))
    assert small.name == "small"
    assert small.config.stride == 4
    assert sum(parameter.numel() for parameter in small.parameters()) <= 1_000_000
    assert small.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 8)
    with pytest.raises(UserError, match="vq16, vq8, small"):
        vq_preset("vq32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 48}, "multiple of 32"),
        ({"channels": 0}, "channels is 0"),
        ({"multipliers": ()}, "empty"),
        ({"multipliers": (1, 0)}, r"multipliers\[1\] is 0"),
        ({"codebook_size": 2.5}, "codebook_size is 2.5"),
        ({"encoder_blocks": True}, "encoder_blocks is True"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        VQConfig(**change)
