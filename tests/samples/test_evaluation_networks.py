"""Networks of an evaluation beside torch-fidelity's own numbers, and references in ADM's layout."""

import numpy as np
import pytest
import torch
from inception_weights import lively_inception

from probes.samples.evaluation import Extras, evaluate
from probes.samples.extraction import extract, extract_reference, stored_reference
from probes.samples.images import open_reference, open_samples
from probes.samples.inception import load_inception
from star.base.errors import UserError

COUNT = 12


def pictures(count, seed):
    """Smooth coloured images, uint8 (N, 24, 24, 3)."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=rng).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear")
    return smooth.to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Inception with random weights, samples and a reference, and what it says of them."""
    root = tmp_path_factory.mktemp("inception")
    torch.save(lively_inception(), root / "random.pth")
    np.savez(root / "samples.npz", arr_0=pictures(COUNT, 0))
    np.savez(root / "reference.npz", arr_0=pictures(COUNT, 1))
    network = load_inception(root / "random.pth")
    samples = extract(network, open_samples(root / "samples.npz"))
    images = open_reference(str(root / "reference.npz"), (24, 24))
    reference = extract_reference(network, images)
    return root, network, samples, reference


class Listed(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, images_NHWC):
        self.images = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.mark.slow
def test_numbers_are_torch_fidelity_s(judged):
    import torch_fidelity

    root, network, samples, reference = judged
    theirs = torch_fidelity.calculate_metrics(
        input1=Listed(pictures(COUNT, 0)), input2=Listed(pictures(COUNT, 1)), cuda=False, cache=False,
        feature_extractor_weights_path=str(root / "random.pth"), verbose=False, batch_size=COUNT,
        save_cpu_ram=True, feature_extractor="inception-v3-compat", feature_layer_prc="2048",
        isc=True, isc_splits=1, samples_shuffle=False, fid=True, kid=True,
        kid_subsets=1, kid_subset_size=COUNT, prc=True,
    )  # fmt: skip
    numbers = evaluate(network, samples, reference, Extras(kid=True, resamples=2)).numbers
    for name, their_name in {
        "FID": "frechet_inception_distance",
        "IS": "inception_score_mean",
        "precision": "precision",
        "recall": "recall",
    }.items():
        # Theirs takes roots of the eigenvalues of a product of singular covariances: half the digits.
        assert numbers[name].value == pytest.approx(theirs[their_name], rel=1e-5), name
    # One subset of all images in theirs, with float32 features as here.
    kid = theirs["kernel_inception_distance_mean"]
    assert numbers["KID"].value == pytest.approx(kid, rel=1e-3)


def test_spatial_features_are_flattened_channels_last(judged):
    """(row, column, channel): a stored mean of another order would give another sFID in silence."""
    _, _, samples, _ = judged
    assert samples.spatial_NS.shape == (COUNT, 17 * 17 * 7) and samples.pool_ND.shape == (COUNT, 2048)
    assert samples.logits_NC.shape == (COUNT, 1008)
    weights = lively_inception()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    # The same network up to its block Mixed_6d, layer by layer, in a shell of its own.
    shell = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    original = torch.load
    try:
        torch.load = lambda *_, **__: weights
        shell.__init__("x", ["2048"], "unread")
    finally:
        torch.load = original
    images = torch.from_numpy(pictures(COUNT, 0)[:2]).permute(0, 3, 1, 2).float()
    x = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    x = (x - 128) / 128
    for name in (
        "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1",
        "Conv2d_4a_3x3", "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b",
        "Mixed_6c",
    ):  # fmt: skip
        x = getattr(shell, name)(x)
    branch = shell.Mixed_6d.branch1x1(x)
    for image, row, column, channel in [(0, 0, 0, 0), (0, 0, 0, 6), (0, 0, 1, 0), (1, 16, 3, 5)]:
        place = (row * 17 + column) * 7 + channel
        expected = branch[image, channel, row, column].item()
        assert samples.spatial_NS[image, place] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_a_reference_in_adm_s_layout(judged, tmp_path):
    """Stored statistics take the place of the images' own; neighbours need the images."""
    _, network, samples, of_images = judged
    stored = {
        "mu": samples.pool_ND.mean(0), "sigma": np.cov(samples.pool_ND, rowvar=False),
        "mu_s": samples.spatial_NS.mean(0), "sigma_s": np.cov(samples.spatial_NS, rowvar=False),
    }  # fmt: skip
    np.savez(tmp_path / "statistics.npz", **stored)
    reference = stored_reference(tmp_path / "statistics.npz")
    found = evaluate(network, samples, reference, Extras(resamples=2, kid=True))
    scale = stored["sigma"].trace() + stored["sigma_s"].trace()
    assert found.numbers["FID"].value == pytest.approx(0, abs=1e-6 * scale)
    assert found.numbers["sFID"].value == pytest.approx(0, abs=1e-6 * scale)
    assert set(found.numbers) == {"FID", "sFID", "IS"} and "no images" in found.missing[0]

    # Channels first, the trap: the same numbers in another order are no longer at distance 0.
    swapped = samples.spatial_NS.reshape(COUNT, 17 * 17, 7).transpose(0, 2, 1).reshape(COUNT, -1)
    trap = {**stored, "mu_s": swapped.mean(0), "sigma_s": np.cov(swapped, rowvar=False)}
    np.savez(tmp_path / "trap.npz", **trap)
    wrong = evaluate(network, samples, stored_reference(tmp_path / "trap.npz"), Extras(resamples=2))
    assert wrong.numbers["sFID"].value > 0.1 * np.trace(stored["sigma_s"])

    np.savez(tmp_path / "both.npz", arr_0=pictures(COUNT, 1), **stored)
    images = open_reference(str(tmp_path / "both.npz"), (24, 24))
    both = extract_reference(network, images, stored=stored_reference(tmp_path / "both.npz"))
    numbers = evaluate(network, samples, both, Extras(resamples=2)).numbers
    assert numbers["FID"].value == pytest.approx(0, abs=1e-6 * scale)
    assert both.stored and both.kept_MD.shape == of_images.kept_MD.shape
    assert "recall" in numbers


def test_statistics_of_another_network_are_refused(tmp_path):
    for arrays, message in (
        ({"mu": np.zeros(2048)}, "one of mu and sigma"),
        ({"mu": np.zeros(64), "sigma": np.eye(64)}, "of Inception's features"),
        ({"mu": np.full(2048, np.nan), "sigma": np.eye(2048)}, "not finite"),
        ({"other": np.zeros(3)}, "neither mu and sigma nor images"),
    ):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(UserError, match=message):
            stored_reference(tmp_path / "x.npz")


def test_what_was_found_of_a_reference_is_kept(judged, tmp_path, monkeypatch):
    """The second time the network sees no image; a file cut short is made again."""
    from star.tokenizer.file import cache_folder

    root, network, _, before = judged
    images = open_reference(str(root / "reference.npz"), (24, 24))
    asked = []
    again = extract_reference(network, images, on_progress=lambda what, *_: asked.append(what))
    assert "reference" not in asked and np.array_equal(again.kept_MD, before.kept_MD)
    for path in (cache_folder() / "references").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    third = extract_reference(network, images, on_progress=lambda what, *_: asked.append(what))
    assert "reference" in asked and np.array_equal(third.kept_MD, before.kept_MD)
