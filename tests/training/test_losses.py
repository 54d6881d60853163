"""Each loss against a loop written from the paper's equation."""

import itertools

import numpy as np
import pytest
import torch
from reference import losses as reference

from star.model.head import next_token_nll
from star.training.losses import _pairs, ar_loss, mim_loss, step_loss, view_loss

# float32 sums of a few hundred terms of order 1, against float64 loops
TOLERANCE = {"rtol": 2e-5, "atol": 1e-6}


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def tensor(array):
    return torch.from_numpy(array).float()


def test_ar_loss(rng):
    logits, tokens = rng.normal(size=(3, 5, 7)), rng.integers(0, 7, (3, 5))
    # an output layer that is the identity gives its input as logits
    found = ar_loss(next_token_nll(tensor(logits), torch.eye(7), torch.from_numpy(tokens)))
    np.testing.assert_allclose(found, reference.ar(logits, tokens), **TOLERANCE)


def test_mim_loss(rng):
    student, teacher = rng.normal(size=(2, 4, 5, 6))
    np.testing.assert_allclose(
        mim_loss(tensor(student), tensor(teacher)), reference.mim(student, teacher), **TOLERANCE
    )
    np.testing.assert_allclose(
        mim_loss(tensor(student), tensor(teacher), "l2"),
        np.mean((student - teacher) ** 2),
        **TOLERANCE,
    )


OPTIONS = list(
    itertools.product(("infonce", "ratio"), (True, False), ("mean", "sum"), (0.2, 1.0), (0, 2))
)


@pytest.mark.parametrize(("form", "normalize", "reduction", "temperature", "first_image"), OPTIONS)
def test_contrastive_losses(rng, form, normalize, reduction, temperature, first_image):
    z = rng.normal(size=(3, 2, 4, 5))
    h = rng.normal(size=(3 + first_image, 2, 4, 5))
    options = {
        "form": form,
        "normalize": normalize,
        "reduction": reduction,
        "temperature": temperature,
        "first_image": first_image,
    }
    for kind, loss in (("step", step_loss), ("view", view_loss)):
        expected = reference.contrast(z, h, kind=kind, **options)
        np.testing.assert_allclose(loss(tensor(z), tensor(h), **options), expected, **TOLERANCE)


def test_printed_reduction_counts_24_step_terms_and_8_view_terms_an_image(rng):
    z, h = tensor(rng.normal(size=(3, 2, 4, 5))), tensor(rng.normal(size=(3, 2, 4, 5)))
    for loss, pairs in ((step_loss, 24), (view_loss, 8)):
        mean = loss(z, h, temperature=0.2, reduction="mean")
        total = loss(z, h, temperature=0.2, reduction="sum")
        torch.testing.assert_close(total, pairs * mean)


def test_a_perfect_match_is_the_lowest_loss(rng):
    h = tensor(np.repeat(rng.normal(size=(4, 1, 1, 16)), 2, axis=1).repeat(3, axis=2))
    matched = step_loss(h, h, temperature=0.1)
    shuffled = step_loss(h.roll(1, 0), h, temperature=0.1)
    assert matched < 0.1 < shuffled


def test_no_gradient_reaches_the_teachers_side(rng):
    z = tensor(rng.normal(size=(2, 2, 3, 4))).requires_grad_()
    h = tensor(rng.normal(size=(2, 2, 3, 4))).requires_grad_()
    (step_loss(z, h, temperature=0.2) + view_loss(z, h, temperature=0.2)).backward()
    flat = z.flatten(0, 1)
    mim_loss(flat, h.flatten(0, 1)).backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    assert h.grad is None


@pytest.mark.parametrize("count", [2, 3, 5])
def test_pairs_are_all_ordered_pairs(count):
    first, second = _pairs(count, torch.device("cpu"))
    found = list(zip(first.tolist(), second.tolist(), strict=True))
    assert found == list(itertools.permutations(range(count), 2))
