"""One step of a tokenizer's training: terms, codes, revival, discriminator, LPIPS."""

import contextlib
import dataclasses
import math

import pytest
import torch
from helpers import TINY_VQ, small_pictures
from reference.fill import fill_

from star.base.errors import UserError
from star.base.randomness import torch_generator
from star.images.views import scaled
from star.tokenizer.config import TokenizerConfig, tokenizer_preset
from star.tokenizer.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator,
    hinge_generator,
)
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.learner import TokenizerLearner, new_tokenizer
from star.tokenizer.losses import reconstruct
from star.tokenizer.model import VQModel
from star.tokenizer.perceptual import load_lpips
from star.tokenizer.quality import evaluate_tokenizer
from star.tokenizer.revival import revive_codes

QUICK = TokenizerConfig(
    max_steps=40, batch_size=16, warmup_steps=5, revive_every=5, precision="fp32", shape=TINY_VQ
)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return scaled(small_pictures())


def learn(pictures, config=QUICK, steps=None, **options):
    """The learner after its steps on random batches, and what each step returned."""
    learner = TokenizerLearner(config, **options)
    rows = []
    for step in range(steps or config.max_steps):
        picks = torch.randint(64, (config.batch_size,), generator=torch_generator(0, "picks", step))
        rows.append(learner.update(pictures[picks], step))
    return learner, rows


@pytest.fixture(scope="module")
def quick(pictures):
    return learn(pictures)


def test_training_lowers_the_loss(quick, pictures):
    learner, rows = quick
    assert set(rows[0]) == {"loss", "l1", "l2", "codebook", "commitment", "codes_used"}
    first, last = (sum(row["l2"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last < 0.5 * first
    untrained = evaluate_tokenizer(fill_(VQModel(TINY_VQ)), pictures)
    assert evaluate_tokenizer(learner.model, pictures)["psnr"] > untrained["psnr"] + 3


def test_terms_are_those_of_the_formula(pictures):
    """The first step's terms, element by element; 1e-5: float32 sums of 3,072 elements."""
    config = dataclasses.replace(QUICK, l1_weight=0.7, l2_weight=0.3, commitment_weight=0.5)
    learner = TokenizerLearner(config)
    found = learner.update(pictures[:4], 0)
    model = TokenizerLearner(config).model  # the same weights, before the update
    z_BEgg = torch.nn.functional.normalize(model.encode_features(pictures[:4]), dim=1).detach()
    revive_codes(model, z_BEgg, torch.ones(32, dtype=torch.bool), config.seed, 0)
    codes, pixels = 0.0, model(pictures[:4]).double()
    chosen_BEgg, _ = model.quantize(z_BEgg)
    for b in range(4):
        for row in range(4):
            for column in range(4):
                apart = z_BEgg[b, :, row, column] - chosen_BEgg[b, :, row, column]
                codes += float(apart.detach().square().sum())
    codes /= z_BEgg.numel()
    errors = pixels.detach() - pictures[:4].double()
    expected = {"l1": errors.abs().mean(), "l2": errors.square().mean()}
    for name, value in {**expected, "codebook": codes, "commitment": codes}.items():
        assert found[name] == pytest.approx(float(value), rel=1e-5), name
    total = 0.7 * expected["l1"] + 0.3 * expected["l2"] + 1.0 * codes + 0.5 * codes
    assert found["loss"] == pytest.approx(float(total), rel=1e-5)


def test_the_gradient_goes_straight_through_the_code(pictures):
    """d loss / d z is what it would be if z itself had been decoded where the code was."""
    model = fill_(VQModel(TINY_VQ))
    z_BEgg = torch.nn.functional.normalize(model.encode_features(pictures[:2]), dim=1).detach()
    z_BEgg.requires_grad_(True)
    drawn_BCHW, codes_BEgg, _ = reconstruct(model, z_BEgg, contextlib.nullcontext)
    drawn_BCHW.square().sum().backward()
    at_code = codes_BEgg.detach().clone().requires_grad_(True)
    model.decode_codes(at_code).square().sum().backward()
    torch.testing.assert_close(z_BEgg.grad, at_code.grad, rtol=1e-4, atol=1e-5)


def test_training_is_a_function_of_the_seed_and_leaves_global_randomness_alone(pictures):
    state = torch.get_rng_state()
    first, _ = learn(pictures, steps=6)
    again, _ = learn(pictures, steps=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert tokenizer_sha256(first.model) == tokenizer_sha256(again.model)
    other, _ = learn(pictures, dataclasses.replace(QUICK, seed=1), steps=6)
    assert tokenizer_sha256(other.model) != tokenizer_sha256(first.model)


@pytest.mark.parametrize("adversarial", [False, True])
def test_a_learner_goes_on_from_its_state(pictures, adversarial):
    """Also through the optimisers' moments, the counts of a revival, and the discriminator."""
    config = dataclasses.replace(QUICK, disc_weight=0.5 * adversarial, disc_start=3, disc_channels=8)
    config = dataclasses.replace(config, disc_layers=1)
    whole = TokenizerLearner(config)
    half = TokenizerLearner(config)
    rows = [whole.update(pictures[step : step + 8], step) for step in range(9)]
    for step in range(5):
        half.update(pictures[step : step + 8], step)
    resumed = TokenizerLearner(config)
    resumed.load_state_dict(half.state_dict())
    for step in range(5, 9):
        assert resumed.update(pictures[step : step + 8], step) == rows[step]
    assert ("disc" in rows[-1]) == adversarial and "disc" not in rows[2]
    assert tokenizer_sha256(resumed.model) == tokenizer_sha256(whole.model)


@pytest.mark.parametrize("good", [0, 2])
def test_a_loss_that_is_not_finite_stops_before_the_update(pictures, good):
    learner = TokenizerLearner(QUICK)
    for step in range(good):
        learner.update(pictures[:8], step)
    before = {key: value.clone() for key, value in learner.model.encoder.state_dict().items()}
    with pytest.raises(UserError, match=f"not finite at step {good + 1}"):
        learner.update(torch.full((8, 3, 8, 8), math.nan), good)
    for key, value in learner.model.encoder.state_dict().items():
        assert torch.equal(value, before[key]), key


# ---- codes ---------------------------------------------------------------------------------------


def test_revival_moves_dead_codes_onto_badly_represented_vectors():
    model = fill_(VQModel(TINY_VQ))
    weight = model.quantize.embedding.weight
    with torch.no_grad():
        weight[:] = torch.tensor([1.0, 0, 0, 0])  # every code in the same direction
    before = weight.detach().clone()
    z_BEgg = torch.zeros(1, 4, 4, 4)
    z_BEgg[0, 0] = 1.0  # represented already
    z_BEgg[0, :, 1, 2] = torch.tensor([0, 1.0, 0, 0])
    z_BEgg[0, :, 3, 0] = torch.tensor([0, 0, -1.0, 0])
    dead_V = torch.zeros(32, dtype=torch.bool)
    dead_V[[4, 20]] = True
    revive_codes(model, z_BEgg, dead_V, seed=0, step=0)
    assert torch.equal(weight[~dead_V], before[~dead_V])
    revived = {tuple(code) for code in weight[dead_V].tolist()}
    assert revived == {(0, 1.0, 0, 0), (0, 0, -1.0, 0)}


def test_revival_keeps_more_codes_in_use(pictures):
    used = {}
    for every in (0, 5):
        _, rows = learn(pictures, dataclasses.replace(QUICK, max_steps=30, revive_every=every))
        used[every] = sum(row["codes_used"] for row in rows[-5:])
    assert used[5] > used[0]


def test_first_codes_are_encoder_outputs(pictures):
    model = new_tokenizer(TINY_VQ, 0)
    z_BEgg = torch.nn.functional.normalize(model.encode_features(pictures[:8]), dim=1).detach()
    revive_codes(model, z_BEgg, torch.ones(32, dtype=torch.bool), seed=0, step=0)
    vectors_NE = z_BEgg.permute(0, 2, 3, 1).reshape(-1, 4)
    codes_VE = model.quantize.embedding.weight.detach()
    for code_E in codes_VE:
        assert (code_E == vectors_NE).all(dim=1).any()
    assert len(codes_VE.unique(dim=0)) == len(codes_VE)


# ---- discriminator and LPIPS ---------------------------------------------------------------------


def test_hinge_losses_against_loops():
    rng = torch.Generator().manual_seed(0)
    real, drawn = (2 * torch.randn(3, 1, 2, 2, generator=rng) for _ in range(2))
    of_real = [max(0.0, 1 - value) for value in real.flatten().tolist()]
    of_drawn = [max(0.0, 1 + value) for value in drawn.flatten().tolist()]
    expected = 0.5 * (sum(of_real) / 12 + sum(of_drawn) / 12)
    assert float(hinge_discriminator(real, drawn)) == pytest.approx(expected, rel=1e-6)
    assert float(hinge_generator(drawn)) == pytest.approx(-sum(drawn.flatten().tolist()) / 12, rel=1e-5)


def test_the_discriminator_has_the_published_layout():
    """LlamaGen's PatchGAN (64 channels, 3 layers): 2,765,633 weights, 30 x 30 patches of 256 pixels."""
    critic = PatchDiscriminator().initialise(torch_generator(0, "critic"))
    assert sum(parameter.numel() for parameter in critic.parameters()) == 2_765_633
    with torch.no_grad():
        assert critic(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
        assert critic(torch.zeros(2, 3, 24, 24)).shape == (2, 1, 1, 1)
    assert PatchDiscriminator.smallest(3) == 24


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    plain, adversarial = (weight**2).sum(), (weight * torch.tensor([0.0, 2.0])).sum()
    assert float(adaptive_weight(plain, adversarial, weight)) == pytest.approx(10 / 2.0001, rel=1e-6)
    assert float(adaptive_weight(plain, 0 * adversarial, weight)) == 1e4


GAN = dataclasses.replace(
    QUICK, max_steps=60, disc_weight=0.5, disc_start=3, disc_channels=16, disc_layers=1
)


def test_the_discriminator_learns_to_tell_images_from_others(pictures):
    learner = TokenizerLearner(GAN)
    blurred = pictures.mean(dim=(2, 3), keepdim=True).expand_as(pictures).contiguous()
    losses = [float(learner._teach_critic(pictures, blurred, step)) for step in range(40)]
    assert losses[0] > 0.8  # at first it cannot tell
    assert max(losses[-5:]) < 0.3


def test_the_discriminator_is_heard_after_its_warm_up(pictures):
    learner, rows = learn(pictures, GAN, steps=6)
    assert ["gen" in row and "disc" in row for row in rows] == [False] * 3 + [True] * 3
    plain, _ = learn(pictures, dataclasses.replace(GAN, disc_weight=0.0), steps=6)
    assert tokenizer_sha256(plain.model) != tokenizer_sha256(learner.model)
    early, _ = learn(pictures, GAN, steps=3)
    same, _ = learn(pictures, dataclasses.replace(GAN, disc_weight=0.0), steps=3)
    assert tokenizer_sha256(early.model) == tokenizer_sha256(same.model)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """VGG-16's convolutions with random weights, under torchvision's names."""
    vgg = pytest.importorskip("torchvision").models.vgg16(weights=None)
    weights = {key: value for key, value in vgg.state_dict().items() if key.startswith("features.")}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(weights, path)
    return path


def test_lpips_is_a_distance_and_a_loss(pictures, vgg_file):
    pytest.importorskip("lpips", reason="LPIPS is optional: pip install lpips")
    big = torch.nn.functional.interpolate(pictures[:3], size=32)
    distance = load_lpips(vgg_file)
    with torch.no_grad():
        assert float(distance(big, big).abs().max()) == 0
        near, far = (float(distance(big, big + step).mean()) for step in (0.05, 0.5))
        assert 0 < near < far
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    config = dataclasses.replace(QUICK, lpips_weight=1.0)
    learner = TokenizerLearner(config, lpips_vgg=vgg_file)
    row = learner.update(big, 0)
    rest = row["l1"] + row["l2"] + row["codebook"] + 0.25 * row["commitment"]
    assert row["loss"] == pytest.approx(rest + row["lpips"], rel=1e-5)


def test_lpips_refusals(tmp_path, vgg_file):
    with pytest.raises(UserError, match="--lpips-vgg"):
        TokenizerLearner(dataclasses.replace(QUICK, lpips_weight=1.0))
    with pytest.raises(UserError, match="no such file"):
        load_lpips(tmp_path / "nothing.pth")
    pytest.importorskip("lpips", reason="LPIPS is optional: pip install lpips")
    weights = torch.load(vgg_file, weights_only=True)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"has no features\.0\.weight"):
        load_lpips(tmp_path / "other.pth")
    torch.save(weights | {"features.0.weight": torch.zeros(1)}, tmp_path / "shapes.pth")
    with pytest.raises(UserError, match="shapes differ"):
        load_lpips(tmp_path / "shapes.pth")


# ---- settings ------------------------------------------------------------------------------------


def test_bad_settings_are_refused():
    for change in (
        {"max_steps": 0}, {"lr": 0.0}, {"lr": math.nan}, {"revive_until": 2.0}, {"seed": -1},
        {"keep": 1}, {"views": "tiles"}, {"precision": "fp8"}, {"mosaic": 1.5}, {"sizes": (30,)},
    ):  # fmt: skip
        with pytest.raises(UserError, match=next(iter(change))):
            TokenizerConfig(**change)


def test_presets_are_whole_recipes():
    small, large = tokenizer_preset("small"), tokenizer_preset("vq16")
    assert small.shape.stride == 4 and not small.adversarial
    assert large.shape.stride == 16 and large.sizes == (256,) and large.adversarial
    assert (large.lr, large.batch_size, large.disc_start, large.disc_weight) == (1e-4, 128, 20_000, 0.5)
    with pytest.raises(UserError, match="small"):
        tokenizer_preset("vq4")
