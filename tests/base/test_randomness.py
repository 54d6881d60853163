"""Randomness is a function of its arguments; dropout keeps expectations and names its places."""

import numpy as np
import pytest
import torch

from star.base.randomness import generator, torch_generator
from star.model.dropout import Dropout


def test_streams_are_functions_of_seed_purpose_and_counters():
    first = generator(1, "mask", 2).random(5)
    assert np.array_equal(first, generator(1, "mask", 2).random(5))
    for other in (generator(2, "mask", 2), generator(1, "views", 2), generator(1, "mask", 3)):
        assert not np.array_equal(first, other.random(5))
    draws = [torch.rand(3, generator=torch_generator(1, "init", n)) for n in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_no_global_state_is_touched():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(2), np.random.rand(2)  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    generator(0, "x").random(10)
    Dropout(probability=0.5, seed=0, step=0)(torch.ones(100), 0, 0)
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])  # noqa: NPY002


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(probability):
    x = torch.ones(200_000)
    y = Dropout(probability=probability, seed=0, step=1)(x, 2, 1)
    dropped = float((y == 0).float().mean())
    # probability rounded to 1/256, plus five standard errors of a share of 200,000
    assert abs(dropped - probability) < 1 / 512 + 5 * 0.5 / 200_000**0.5
    rounded = round(256 * probability) / 256
    assert torch.allclose(y[y > 0], torch.tensor(1 / (1 - rounded)))


def test_dropout_masks_differ_by_every_part_of_their_key():
    x = torch.ones(64)
    base = {"probability": 0.5, "seed": 0, "step": 0, "rank": 0}
    masks = [Dropout(**base)(x, 0, 0), Dropout(**base)(x, 1, 0), Dropout(**base)(x, 0, 1)]
    masks += [Dropout(**{**base, key: 1})(x, 0, 0) for key in ("seed", "step", "rank")]
    for i, first in enumerate(masks):
        for second in masks[:i]:
            assert not torch.equal(first, second)
    assert torch.equal(masks[0], Dropout(**base)(x, 0, 0))


def test_dropout_zero_is_the_identity_and_gradients_follow_the_mask():
    x = torch.randn(50, requires_grad=True)
    assert Dropout(probability=0.0, seed=0, step=0)(x, 0, 0) is x
    y = Dropout(probability=0.5, seed=0, step=0)(x, 0, 0)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
