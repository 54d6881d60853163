"""Sampling: golden greedy tokens, cached = uncached, filters, seeds, an untouched model."""

import copy

import numpy as np
import pytest
import torch
from helpers import GOLDEN, small_model

from star.base.errors import UserError
from star.model.sampler import _draw, filter_logits, generate, guide
from star.training.checkpoint import load_model


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_golden_greedy_tokens(scale):
    with np.load(GOLDEN / "llamagen_gpt_tiny.npz") as golden:
        labels, expected = golden["gen_cls"], golden[f"greedy_cfg{scale}"]
    model = load_model(GOLDEN / "llamagen_gpt_tiny.pt")
    found = generate(model, labels, seeds=range(3), cfg_scale=scale, greedy=True)
    np.testing.assert_array_equal(found.numpy(), expected)


def uncached(model, labels, seeds, cfg_scale, interval=-1):
    """The same sampling with a full forward pass for every token."""
    from star.base.randomness import generator

    null = torch.full_like(labels, model.config.num_classes)
    tokens = torch.empty(len(labels), 0, dtype=torch.long)
    uniform = np.stack([generator(seed, "sample").random(model.config.tokens) for seed in seeds])
    for t in range(model.config.tokens):
        cond = model(tokens, labels).logits[:, -1]
        uncond = model(tokens, null).logits[:, -1]
        guided = interval < 0 or t <= interval + 1
        logits = uncond + (cfg_scale if guided else 1.0) * (cond - uncond)
        cumulative = logits.double().softmax(-1).cumsum(-1)
        drawn = (cumulative <= torch.from_numpy(uniform[:, t : t + 1])).sum(-1)
        tokens = torch.cat([tokens, drawn.clamp_max(logits.shape[-1] - 1)[:, None]], dim=1)
    return tokens


@pytest.mark.parametrize(("scale", "interval"), [(1.0, -1), (2.0, -1), (3.0, 2)])
def test_cached_sampling_equals_uncached(scale, interval):
    model, labels = small_model(), torch.tensor([0, 1, 2, 3])
    found = generate(model, labels, seeds=[5, 6, 7, 8], cfg_scale=scale, cfg_interval=interval)
    assert torch.equal(found, uncached(model, labels, [5, 6, 7, 8], scale, interval))


def test_an_image_depends_on_its_own_seed_not_on_its_batch():
    model = small_model()
    together = generate(model, [0, 1, 2], seeds=[3, 4, 5])
    assert torch.equal(generate(model, [1], seeds=[4])[0], together[1])
    assert not torch.equal(generate(model, [1], seeds=[9])[0], together[1])


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_an_image_goes_on_from_its_own_tokens_as_it_did(scale, count):
    model, labels, seeds = small_model(), [0, 1, 2], [3, 4, 5]
    whole = generate(model, labels, seeds=seeds, cfg_scale=scale)
    begun = whole[:, :count]
    again = generate(model, labels, seeds=seeds, cfg_scale=scale, prefix_BK=begun)
    assert torch.equal(again, whole)


def test_a_prefix_is_kept_and_what_follows_depends_on_it():
    model, labels, seeds = small_model(), torch.tensor([0, 1]), [3, 4]
    prefix = torch.tensor([[7, 1, 0], [2, 10, 5]], dtype=torch.int32)
    found = generate(model, labels, seeds=seeds, cfg_scale=1, greedy=True, prefix_BK=prefix)
    tokens = prefix.long()
    for _ in range(6):  # a full forward pass for every token
        tokens = torch.cat([tokens, model(tokens, labels).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, tokens)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (torch.zeros(3, dtype=torch.long), r"shape \(3,\); expected \(3, K\), K at most 9"),
        (torch.zeros(2, 4, dtype=torch.long), r"shape \(2, 4\); expected \(3, K\)"),
        (torch.zeros(3, 10, dtype=torch.long), r"shape \(3, 10\); expected \(3, K\), K at most 9"),
        (torch.full((3, 2), 11), "code 11; expected 0 to 10"),
        (torch.full((3, 2), -1), "code -1; expected 0 to 10"),
        (torch.zeros(3, 2), "float32; expected whole numbers"),
        (torch.zeros(3, 2, dtype=torch.bool), "bool; expected whole numbers"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused(prefix, message):
    with pytest.raises(UserError, match=message):
        generate(small_model(), [0, 1, 2], seeds=range(3), prefix_BK=prefix)


def test_sampling_leaves_the_model_as_it_was():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tokens, labels = torch.randint(0, 11, (2, 9)), torch.tensor([0, 1])
    logits = model(tokens, labels).logits
    generate(model, [0, 1], seeds=[0, 1])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {name for name, _ in model.named_buffers()} == set(buffers)
    assert torch.equal(model(tokens, labels).logits, logits)


def test_top_k_keeps_ties_and_top_p_the_smallest_sufficient_set():
    logits = torch.tensor([[3.0, 2.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    kept = filter_logits(logits, 2, 1.0).isfinite()
    assert kept.tolist() == [[True, True, True, False], [False, False, True, True]]
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    for top_p, count in ((0.4, 1), (0.5, 2), (0.79, 2), (0.81, 3), (0.0001, 1), (1.0, 4)):
        assert int(filter_logits(probabilities.log(), 0, top_p).isfinite().sum()) == count


def test_draws_follow_the_distribution_and_never_an_excluded_token():
    logits = torch.tensor([0.1, 0.6, 0.3]).log().repeat(20000, 1)
    logits[:, 2] = float("-inf")
    uniform = torch.from_numpy(np.random.default_rng(0).random(20000))
    drawn = _draw(logits, uniform)
    share = (drawn == 0).double().mean()
    # 1/7 with standard error 0.0025; four of them
    assert abs(float(share) - 1 / 7) < 0.01
    assert not (drawn == 2).any()
    assert _draw(logits[:2], torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)).tolist() == [0, 1]


def test_guidance_formula():
    cond, uncond = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 3.0]])
    torch.testing.assert_close(guide(cond, uncond, 3.0), torch.tensor([[2.0, 0.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [5]}, "label 5 does not exist; expected 0 to 3, or 4"),
        ({"labels": [-1]}, "label -1"),
        ({"labels": []}, "B at least 1"),
        ({"seeds": [1, 2]}, "2 seeds were given for 1 labels"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"cfg_scale": -1.0}, "cfg_scale is -1.0"),
    ],
)
def test_bad_sampling_parameters_are_refused(options, message):
    values = {"labels": [0], "seeds": [0], **options}
    with pytest.raises(UserError, match=message):
        generate(small_model(), values.pop("labels"), **values)
