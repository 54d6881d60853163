"""PSNR, SSIM, Fréchet distances and patches against their definitions, and Inception's weights."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import TINY_VQ, small_pictures
from inception_weights import random_inception
from reference.fill import fill_

from probes.samples.inception import load_inception
from probes.stats.frechet import Moments, frechet_distance
from probes.tokens.reconstruction import patches, reconstruction_report
from star.base.errors import UserError
from star.images.views import scaled
from star.tokenizer.model import VQModel, to_uint8
from star.tokenizer.quality import evaluate_tokenizer, image_psnr, image_ssim


@pytest.fixture(scope="module")
def tiny() -> VQModel:
    return fill_(VQModel(TINY_VQ)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return small_pictures()


def test_evaluation_matches_the_definitions(tiny, pictures):
    images_NCHW = scaled(pictures)
    drawn_NCHW = tiny(images_NCHW).clamp(-1, 1).double()
    psnr = [
        10 * math.log10(4 / (drawn_NCHW[i] - images_NCHW[i]).pow(2).mean().item()) for i in range(64)
    ]
    counts = torch.unique(tiny.encode(images_NCHW), return_counts=True)[1].double()
    share = counts / counts.sum()
    values = evaluate_tokenizer(tiny, pictures, batch_size=10)
    assert values["psnr"] == pytest.approx(sum(psnr) / 64, abs=1e-4)
    assert values["codes_used"] == len(counts)
    assert values["perplexity"] == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-9)
    json.dumps(values, allow_nan=False)
    with pytest.raises(UserError, match="no images"):
        evaluate_tokenizer(tiny, pictures[:0])


@pytest.mark.parametrize("side", [16, 8])
def test_ssim_against_loops(side):
    """Window by window in float64; 1e-9: two orders of the same few hundred additions."""
    rng = np.random.default_rng(0)
    one = rng.uniform(-1, 1, (3, side, side))
    other = np.clip(one + rng.normal(0, 0.3, one.shape), -1, 1)
    window = 11 if side == 16 else 7
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    found = []
    for channel in range(3):
        for top in range(side - window + 1):
            for left in range(side - window + 1):
                x = one[channel, top : top + window, left : left + window]
                y = other[channel, top : top + window, left : left + window]
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                shared = (weights * (x - mx) * (y - my)).sum()
                found.append(
                    (2 * mx * my + c1) * (2 * shared + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
                )
    images = torch.from_numpy(np.stack([one, other, one]))
    others = torch.from_numpy(np.stack([other, other, one]))
    ssim = image_ssim(images, others)
    assert float(ssim[0]) == pytest.approx(np.mean(found), rel=1e-9)
    assert ssim[1:].tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_a_perfect_copy_has_100_decibels():
    image = torch.zeros(1, 3, 4, 4)
    assert image_psnr(image, image).item() == pytest.approx(100)
    assert image_psnr(image, image + 0.2).item() == pytest.approx(20, abs=1e-5)  # 10 log10(4 / 0.04)


def test_frechet_distance_against_the_general_root():
    """scipy's root of the product of both covariances; 1e-6: that root loses half the digits."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    one = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    other = rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6)) + 0.5
    a, b = Moments(), Moments()
    for part in np.array_split(one, 7):
        a.add(part)
    b.add(other)
    np.testing.assert_allclose(a.mean, one.mean(0), rtol=1e-12)
    np.testing.assert_allclose(a.cov, np.cov(one.T), rtol=1e-10)
    root = sqrtm(np.cov(one.T) @ np.cov(other.T)).real
    apart = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected = apart + np.trace(np.cov(one.T) + np.cov(other.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_two_normals_by_hand():
    """On a line: (m1 - m2)^2 + (s1 - s2)^2."""
    one, other = Moments(), Moments()
    one.add(np.array([[0.0], [2.0]]))  # mean 1, variance 2
    other.add(np.array([[1.0], [9.0]]))  # mean 5, variance 32
    assert frechet_distance(one, other) == pytest.approx(16 + (2**0.5 - 32**0.5) ** 2)


def test_patches_against_loops(pictures):
    images = torch.nn.functional.interpolate(pictures[:2], size=(19, 24))  # 3 rows are left over
    rows = []
    for image in images.double() / 127.5 - 1:
        for top in (0, 8):
            for left in (0, 8, 16):
                rows.append(image[:, top : top + 8, left : left + 8].reshape(-1))
    np.testing.assert_allclose(patches(images), torch.stack(rows).numpy(), atol=1e-6)


def test_the_report_puts_these_together(tiny, pictures):
    found = reconstruction_report(tiny, pictures, batch_size=24, inception=lambda x: patches(x)[:, :5])
    numbers = found.numbers()
    assert numbers == {**evaluate_tokenizer(tiny, pictures), **_distances(tiny, pictures)}
    table = found.table().set_index("measure")
    assert table.loc["psnr", "low"] < numbers["psnr"] < table.loc["psnr", "high"]
    assert np.isnan(table.loc["patch_fd", "low"])
    assert "rfid" not in reconstruction_report(tiny, pictures[:4]).numbers()


def _distances(model, pictures):
    drawn = to_uint8(model(scaled(pictures))).permute(0, 3, 1, 2)
    found = {}
    for name, width in (("patch_fd", 192), ("rfid", 5)):
        one, other = Moments(), Moments()
        one.add(patches(pictures)[:, :width])
        other.add(patches(drawn)[:, :width])
        found[name] = pytest.approx(frechet_distance(one, other), rel=1e-6)
    return found


def test_a_blurrier_copy_is_farther(pictures):
    real = Moments()
    real.add(patches(pictures))
    distances = []
    for kernel in (1, 3, 5):
        blurred = torch.nn.functional.avg_pool2d(pictures.float(), kernel, 1, kernel // 2)
        cloud = Moments()
        cloud.add(patches(blurred.round().to(torch.uint8)))
        distances.append(frechet_distance(real, cloud))
    assert distances[0] == pytest.approx(0, abs=1e-9) and distances[1] < distances[2]


def test_inception_is_read_safely_and_by_its_name(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.raises(UserError, match="no such file"):
        load_inception(tmp_path / "nothing.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not torch-fidelity's Inception"):
        load_inception(tmp_path / "other.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights-00000000.pth")
    with pytest.raises(UserError, match="damaged"):
        load_inception(tmp_path / "weights-00000000.pth")

    class Evil:
        def __reduce__(self):
            return print, ("unpickled",)

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="could run code"):
        load_inception(tmp_path / "evil.pth")

    weights = random_inception()
    torch.save(weights, tmp_path / "random.pth")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features = load_inception(tmp_path / "random.pth").pool(images)
    assert features.shape == (2, 2048) and features.dtype == np.float64
    theirs = FeatureExtractorInceptionV3("x", ["2048"], str(tmp_path / "random.pth"))
    np.testing.assert_allclose(features, theirs(images)[0].double().numpy(), rtol=1e-6)
