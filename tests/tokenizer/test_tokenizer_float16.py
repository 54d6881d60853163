"""Training a tokenizer in float16: the scaled losses learn what float32 learns, and overflow is met."""

import dataclasses
import math

import pytest
import torch
from helpers import TINY_VQ, small_pictures

from star.base.device import resolve_precision
from star.base.errors import UserError
from star.base.loss_scale import FIRST, LossScale
from star.images.views import scaled
from star.tokenizer.config import TokenizerConfig
from star.tokenizer.discriminator import adaptive_weight
from star.tokenizer.learner import TokenizerLearner

SMALL_VQ = dataclasses.replace(TINY_VQ, decoder_blocks=1)
# The weights stand for large images: each of a megapixel's elements gets as little gradient.
FAINT = 1e-6
CONFIG = TokenizerConfig(
    max_steps=40, batch_size=4, warmup_steps=0, revive_every=0, precision="fp16", shape=SMALL_VQ,
    l1_weight=FAINT, l2_weight=FAINT, codebook_weight=FAINT, commitment_weight=FAINT,
)  # fmt: skip
GAN = dataclasses.replace(
    CONFIG, disc_weight=FAINT, disc_start=0, disc_channels=4, disc_layers=1, disc_adaptive=False
)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return scaled(small_pictures())[:4]


def gradients(config: TokenizerConfig, pictures, scale: float | None = None):
    """The learner after a step, and both networks' gradients in it as vectors (after unscaling)."""
    learner = TokenizerLearner(config)
    if scale is not None:
        learner.loss_scale.value = learner.critic_loss_scale.value = scale
    learner.update(pictures, 0)
    networks = [part for part in (learner.model.decoder, learner.critic) if part is not None]
    return learner, [
        torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None])
        for part in networks
    ]


def test_scaled_float16_gradients_are_those_of_float32_where_unscaled_ones_vanish(pictures):
    _, exact = gradients(dataclasses.replace(GAN, precision="fp32"), pictures)
    _, found = gradients(GAN, pictures)
    _, bare = gradients(GAN, pictures, scale=1.0)
    for name, a, b, c in zip(("generator", "critic"), exact, found, bare, strict=True):
        # Eleven bits, through some thirty layers.
        assert (b - a).norm() < 0.02 * a.norm(), name
        assert (c - a).norm() > 0.9 * a.norm(), name


def test_scaled_float16_trains_as_float32_and_unscaled_float16_does_not(pictures):
    moved, start = {}, TokenizerLearner(CONFIG).model.decoder.conv_in.weight.detach().clone()
    for name, config in (("fp32", dataclasses.replace(CONFIG, precision="fp32")), ("fp16", CONFIG)):
        learner = TokenizerLearner(config)
        rows = [learner.update(pictures, step) for step in range(3)]
        moved[name] = learner.model.decoder.conv_in.weight.detach() - start
        assert ("loss_scale" in rows[0]) == (name == "fp16")
    bare = TokenizerLearner(CONFIG)
    bare.loss_scale.value = 1.0
    for step in range(3):
        bare.update(pictures, step)
    moved["bare"] = bare.model.decoder.conv_in.weight.detach() - start
    length = moved["fp32"].norm()
    # AdamW divides by each gradient's own size, which makes the rounding of the smallest ones visible.
    assert (moved["fp16"] - moved["fp32"]).norm() < 0.1 * length
    assert (moved["bare"] - moved["fp32"]).norm() > 0.9 * length


def test_the_adaptive_weight_does_not_depend_on_the_scale(pictures):
    def factor(scale: float, precision: str) -> float:
        config = dataclasses.replace(
            GAN,
            disc_adaptive=True,
            disc_weight=1.0,
            precision=precision,
            l1_weight=3e-7,
            l2_weight=3e-7,
        )
        learner = TokenizerLearner(config)
        learner.loss_scale.value = scale
        found = []
        original = learner._adversarial

        def watched(terms, pixels, drawn_BCHW):
            total = original(terms, pixels, drawn_BCHW)
            found.append(float((total / terms["gen"]).detach()))
            return total

        learner._adversarial = watched
        learner.update(pictures, 0)
        return found[0]

    exact = factor(1.0, "fp32")
    assert exact > 0
    for scale in (2.0**10, 2.0**14):
        assert factor(scale, "fp16") == pytest.approx(exact, rel=0.02)
    assert factor(1.0, "fp16") == 0, "the reconstruction's gradient has vanished"


def test_the_adaptive_weight_of_gradients_that_are_not_finite_is_none():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    plain, adversarial = (weight**2).sum(), (weight * torch.tensor([0.0, 2.0])).sum()
    for scale in (1.0, 2.0**16):
        found = adaptive_weight(plain, adversarial, weight, scale)
        assert float(found) == pytest.approx(10 / 2.0001, rel=1e-6)
    for a, b in ((plain * math.inf, adversarial), (plain, adversarial * math.inf)):
        assert math.isnan(adaptive_weight(a, b, weight, 2.0**16))


def test_an_overflow_leaves_that_network_alone_and_halves_its_scale(pictures):
    learner = TokenizerLearner(GAN)
    learner.update(pictures, 0)
    learner.loss_scale.value = 2.0**60
    state = {key: value.clone() for key, value in learner.model.state_dict().items()}
    critic = learner.critic.blocks[0].weight.detach().clone()
    row = learner.update(pictures, 1)
    assert row["loss_scale"] == learner.loss_scale.value == 2.0**59
    assert all(torch.equal(state[key], value) for key, value in learner.model.state_dict().items())
    assert not torch.equal(learner.critic.blocks[0].weight, critic)
    assert learner.critic_loss_scale.value == FIRST
    learner.loss_scale.value, learner.critic_loss_scale.value = FIRST, 2.0**60
    critic, before = learner.critic.blocks[0].weight.detach().clone(), learner.model.state_dict()
    codes = before["quantize.embedding.weight"].clone()
    learner.update(pictures, 2)
    assert learner.critic_loss_scale.value == 2.0**59 and learner.loss_scale.value == FIRST
    assert torch.equal(learner.critic.blocks[0].weight, critic)
    assert not torch.equal(learner.model.quantize.embedding.weight, codes)


def test_an_adaptive_weight_that_overflowed_skips_the_step_and_reports_no_loss(pictures):
    learner = TokenizerLearner(dataclasses.replace(GAN, disc_adaptive=True))
    learner.loss_scale.value = 2.0**60
    row = learner.update(pictures, 0)
    assert "loss" not in row and math.isfinite(row["l1"]) and row["loss_scale"] == 2.0**59
    assert not learner.optimizer.state and learner.critic_optimizer.state


def test_codes_are_revived_before_the_first_step_that_is_taken(pictures):
    """AdamW has no moments yet: every step so far has overflowed."""
    config = dataclasses.replace(CONFIG, revive_every=2)
    learner = TokenizerLearner(config)
    learner.loss_scale.value = 2.0**60
    learner.update(pictures[:1], 0)
    before = learner.model.quantize.embedding.weight.detach().clone()
    dead_V = learner.chosen_V == 0
    learner.update(pictures[:1], 1)
    assert not learner.optimizer.state and dead_V.any() and learner.chosen_V.sum() == 0
    changed_V = (learner.model.quantize.embedding.weight != before).any(1)
    assert changed_V.any() and not (changed_V & ~dead_V).any()


@pytest.mark.parametrize("scale", [1.0, FIRST])
def test_what_a_lower_scale_cannot_help_stops_the_run(pictures, scale):
    learner = TokenizerLearner(CONFIG)
    learner.loss_scale.value = scale
    images = pictures if scale == 1.0 else torch.full_like(pictures, math.nan)
    learner.model.decoder.conv_out.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="not finite at step 1"):
        learner.update(images, 0)
    assert not learner.optimizer.state


def test_a_run_goes_on_from_its_scales_and_from_checkpoints_without_any(pictures):
    learner = TokenizerLearner(GAN)
    learner.loss_scale.value = 2.0**60
    learner.update(pictures, 0)
    learner.critic_loss_scale.good_steps = 7
    state = learner.state_dict()
    resumed = TokenizerLearner(GAN)
    resumed.load_state_dict(state)
    assert resumed.loss_scale.state_dict() == {"value": 2.0**59, "good_steps": 0}
    assert resumed.critic_loss_scale.state_dict() == {"value": FIRST, "good_steps": 7}
    older = {key: value for key, value in state.items() if "loss_scale" not in key}
    resumed = TokenizerLearner(GAN)
    resumed.load_state_dict(older)
    assert resumed.loss_scale.value == resumed.critic_loss_scale.value == FIRST


def test_a_run_that_did_not_scale_its_loss_begins_to_on_a_card_that_needs_it():
    for state in (None, LossScale(enabled=False).state_dict()):
        scale = LossScale(enabled=True)
        scale.load_state_dict(state)
        assert scale.value == FIRST


def test_auto_takes_float16_on_a_card_without_bfloat16_and_the_tokenizer_scales_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert resolve_precision("auto", torch.device("cuda")) is torch.float16
    monkeypatch.setattr(
        "star.tokenizer.learner.resolve_precision",
        lambda name, device: resolve_precision(name, torch.device("cuda")),
    )
    learner = TokenizerLearner(dataclasses.replace(GAN, precision="auto"))
    assert learner.loss_scale.value == learner.critic_loss_scale.value == FIRST
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    learner = TokenizerLearner(dataclasses.replace(GAN, precision="auto"))
    assert learner.precision is torch.float32 and not learner.loss_scale.enabled
