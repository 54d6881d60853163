"""The output layer in parts: the same likelihoods and gradients, and no more memory than promised."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import fake_store, small_model
from small_runs import CPU, tiny

from star.model.head import BYTES_A_LOGIT, PART_BYTES, head_bytes, next_token_nll
from star.training.batches import TrainLoader
from star.training.learner import Learner
from star.training.objective import compute_losses


def problem(rows=(3, 7), width=5, vocab=11):
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(*rows, width, generator=rng).requires_grad_()
    weight = torch.randn(vocab, width, generator=rng).requires_grad_()
    return hidden, weight, torch.randint(0, vocab, rows, generator=rng)


def gradients(hidden, weight, tokens):
    factors = torch.arange(1.0, 1 + tokens.numel()).view_as(tokens)  # another one a position
    return torch.autograd.grad(
        (next_token_nll(hidden, weight, tokens) * factors).sum(), (hidden, weight)
    )


@pytest.mark.parametrize("part", [1, 2, 20, 21])
def test_parts_give_the_same_likelihood_and_gradients(monkeypatch, part):
    hidden, weight, tokens = problem()
    expected = -(hidden @ weight.T).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(next_token_nll(hidden, weight, tokens), expected)
    whole = gradients(hidden, weight, tokens)
    monkeypatch.setattr("star.model.head.PART_BYTES", part * BYTES_A_LOGIT * len(weight))
    torch.testing.assert_close(next_token_nll(hidden, weight, tokens), expected)
    for found, wanted in zip(gradients(hidden, weight, tokens), whole, strict=True):
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(next_token_nll(hidden, weight, tokens), expected)


def test_parts_follow_autocast_forwards_and_backwards(monkeypatch):
    hidden, weight, tokens = problem()
    exact = gradients(hidden, weight, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        whole = gradients(hidden, weight, tokens)
        monkeypatch.setattr("star.model.head.PART_BYTES", 4 * BYTES_A_LOGIT * len(weight))
        parts = gradients(hidden, weight, tokens)
    for found, wanted, of_float32 in zip(parts, whole, exact, strict=True):
        assert not torch.allclose(wanted, of_float32, rtol=1e-5, atol=1e-5), (
            "the products were bfloat16"
        )
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def saved_bytes(function) -> int:
    """Bytes of distinct storages that autograd keeps of ``function()``."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept.values())


def test_no_logits_are_kept_in_parts(monkeypatch):
    hidden, weight, tokens = problem(rows=(8, 64), width=4, vocab=500)
    logits = 4 * tokens.numel() * len(weight)
    assert saved_bytes(lambda: next_token_nll(hidden, weight, tokens)) >= logits
    monkeypatch.setattr("star.model.head.PART_BYTES", 16 * BYTES_A_LOGIT * len(weight))
    few = saved_bytes(lambda: next_token_nll(hidden, weight, tokens))
    assert few <= hidden.nbytes + weight.nbytes + tokens.nbytes < logits / 10


def test_bytes_of_the_head_are_bounded():
    assert head_bytes(1000, 256) == 1000 * 256 * 12
    assert head_bytes(512 * 256, 16384) <= PART_BYTES
    assert head_bytes(1, 1 << 30) == 12 << 30  # one position at least


def test_the_model_gives_the_likelihood_of_its_logits():
    model = small_model()
    tokens, labels = torch.randint(0, 11, (2, 9)), torch.tensor([1, 3])
    both = model(tokens[:, :-1], labels, targets_BN=tokens)
    expected = F.cross_entropy(both.logits.transpose(1, 2), tokens, reduction="none")
    torch.testing.assert_close(both.nll, expected)
    alone = model(tokens[:, :-1], labels, targets_BN=tokens, with_logits=False)
    assert alone.logits is None and torch.equal(alone.nll, both.nll)
    assert model(tokens, labels).nll is None


@pytest.mark.parametrize("student_pass", ["one", "two"])
def test_a_step_uses_the_output_layer_once_and_keeps_no_logits(monkeypatch, student_pass):
    config = tiny(objective=replace(tiny().objective, student_pass=student_pass))
    learner, batch = Learner(config, CPU), TrainLoader(fake_store(), config).batch(0)
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return next_token_nll(*arguments)

    monkeypatch.setattr("star.model.transformer.next_token_nll", counted)
    model = learner.student.model
    monkeypatch.setattr(model.output, "forward", lambda x: pytest.fail("logits were made"))
    compute_losses(learner.student, learner.teacher, batch, config.objective)
    assert len(calls) == 1
