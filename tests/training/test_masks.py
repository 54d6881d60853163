"""Token masks: exact counts, never the class, and no route around a masked token."""

import numpy as np
import pytest
import torch
from helpers import small_model

from star.training.batches import draw_steps, draw_token_masks


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.25, 16), (0.5, 32), (0.99, 62)])
def test_exactly_the_rounded_share_is_masked_in_every_sequence(ratio, count):
    masked = draw_token_masks(50, 64, ratio, np.random.default_rng(0))
    assert masked.shape == (50, 63), "the T - 1 input image tokens: the class is not among them"
    assert (masked.sum(axis=1) == count).all()


def test_every_token_is_masked_equally_often_and_sequences_differ():
    masked = draw_token_masks(8000, 16, 0.2, np.random.default_rng(1))
    # 3 of 15 tokens: share 0.2, standard error sqrt(0.2 * 0.8 / 8000) = 0.0045; five of them
    np.testing.assert_allclose(masked.mean(axis=0), 0.2, atol=0.0225)
    assert len(np.unique(masked, axis=0)) > 400


@pytest.mark.parametrize("mask_self", [False, True])
def test_a_masked_token_is_read_nowhere_but_at_its_own_position(mask_self):
    model = small_model()
    tokens, labels = torch.randint(0, 11, (1, 8)), torch.tensor([2])
    for j in range(8):
        masked = torch.zeros(1, 8, dtype=torch.bool)
        masked[0, j] = True
        changed = tokens.clone()
        changed[0, j] = (changed[0, j] + 1) % 11
        options = {"masked_Bn": masked, "mask_self": mask_self}
        before = model(tokens, labels, **options).logits
        after = model(changed, labels, **options).logits
        same = (before == after).all(-1)[0]
        # Position j + 1 holds token j in its residual stream, hidden or not.
        assert same.tolist() == [position != j + 1 for position in range(9)]


def test_mask_self_hides_a_token_from_its_own_attention():
    model = small_model()
    tokens, labels = torch.randint(0, 11, (1, 8)), torch.tensor([2])
    masked = torch.zeros(1, 8, dtype=torch.bool)
    masked[0, 3] = True
    for mask_self in (False, True):
        rows = model(
            tokens, labels, masked_Bn=masked, mask_self=mask_self, capture=["layers.2.attention"]
        ).captured["layers.2.attention"]
        assert (rows[..., 4] > 0).any(dim=1)[0].tolist() == [n == 4 and not mask_self for n in range(9)]
        torch.testing.assert_close(rows.sum(-1), torch.ones(1, 2, 9))
        assert (rows[..., 0] > 0).all(), "the class is never masked"


def test_steps_are_distinct_sorted_and_within_bounds():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        steps = draw_steps(9, 4, 3, rng)
        assert len(set(steps)) == 4 and list(steps) == sorted(steps)
        seen |= set(steps.tolist())
    assert seen == set(range(3, 10))
