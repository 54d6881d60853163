"""The dry run's estimate against what a small model really keeps, computes and stores."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import fake_store, small_model
from live_memory import LiveMemory
from torch.utils.flop_counter import FlopCounterMode

from star.base.device import autocast
from star.base.randomness import torch_generator
from star.model.config import ModelConfig
from star.model.dropout import Dropout
from star.model.head import head_bytes, next_token_nll
from star.model.transformer import build_model
from star.training import estimate as sizes
from star.training.batches import TrainLoader
from star.training.config import ObjectiveConfig, preset
from star.training.estimate import (
    estimate,
    forward_flops,
    images_at_once,
    kept_bytes,
)
from star.training.likelihood import token_nll
from star.training.objective import compute_losses
from star.training.student import Student
from star.training.teacher import Teacher

SEQUENCES = 8
CPU = torch.device("cpu")
STAR = ObjectiveConfig(contrast_steps=3)
AR = STAR.baseline()


def config(objective=AR, **changes):
    named = {key: changes.pop(key) for key in ("dropout", "checkpoint_activations") if key in changes}
    model = ModelConfig(**{"layers": 2, "heads": 2, "width": 64, "vocab_size": 50, **changes})
    return dataclasses.replace(
        preset("tiny"), model=model, objective=objective, batch_size=SEQUENCES // 2,
        **{"dropout": 0.0, **named},
    )  # fmt: skip


def losses(cfg, half=False):
    """The student, and a function that computes the losses of a first batch."""
    model = build_model(cfg.model, torch_generator(0, "init"))
    student = Student(model, cfg.objective, recompute=cfg.checkpoint_activations)
    teacher = Teacher(model, decay=0.9, warmup=False)
    store = fake_store(grid=cfg.model.grid, vocab=cfg.model.vocab_size)
    batch = TrainLoader(store, cfg).batch(0)
    dropout = Dropout(probability=cfg.dropout, seed=0, step=0) if cfg.dropout else None

    def run():
        with autocast(CPU, torch.bfloat16 if half else torch.float32):
            return compute_losses(student, teacher, batch, cfg.objective, dropout)[0]

    return student, run


def saved_bytes(student, run) -> int:
    """Bytes of the distinct storages that autograd saves, parameters and buffers excluded."""
    own = {
        tensor.untyped_storage().data_ptr() for tensor in (*student.parameters(), *student.buffers())
    }
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.fixture
def fused(monkeypatch):
    """Attention as on a GPU, also in half precision."""
    monkeypatch.setattr("star.model.transformer.choose_kernel", lambda *_: "fused")


def _log_softmax(cfg) -> int:
    """What is kept of the head: a third of its peak."""
    return head_bytes(SEQUENCES * cfg.model.tokens, cfg.model.vocab_size) // 3


CASES = {
    "plain": {},
    "wide": {"width": 256},
    "deep": {"layers": 5, "heads": 4},
    "many codes": {"vocab_size": 2000},
    "grouped heads": {"heads": 4, "kv_heads": 2},
    "dropout": {"dropout": 0.1},
    "masked": {"objective": dataclasses.replace(AR, mask_ratio=0.25)},
    "L_MIM": {"objective": dataclasses.replace(AR, mim_weight=1.0)},
    "L_MIM as L2": {"objective": dataclasses.replace(AR, mim_weight=1.0, mim_distance="l2")},
    "contrast": {"objective": dataclasses.replace(STAR, mim_weight=0.0)},
    "a deeper projector": {"objective": dataclasses.replace(STAR, projector_layers=5)},
    "ST-AR": {"objective": STAR, "dropout": 0.1},
    "two passes": {"objective": dataclasses.replace(STAR, student_pass="two")},
}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_kept_memory_is_what_autograd_keeps(fused, case, half):
    cfg = config(**CASES[case])
    expected = kept_bytes(cfg, SEQUENCES, half) + _log_softmax(cfg)
    # Token indices, a row's norm and the contrast's logits are left out.
    assert saved_bytes(*losses(cfg, half)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("objective", [AR, STAR], ids=["AR", "ST-AR"])
def test_kept_memory_where_blocks_are_recomputed(fused, objective, half):
    """Their inputs are held by the recomputation, not by autograd: so what is alive is counted."""
    cfg = config(objective, checkpoint_activations=True, layers=5)
    _, run = losses(cfg, half)
    with LiveMemory() as memory:
        total = run()
    assert total.requires_grad
    # No block is at work now, and autocast has dropped its copies of the blocks' weights.
    one, none = (dataclasses.replace(cfg.model, layers=layers) for layers in (6, 5))
    plain = [config(objective, layers=model.layers) for model in (one, none)]
    at_work = kept_bytes(plain[0], SEQUENCES, half) - kept_bytes(plain[1], SEQUENCES, half)
    others = 4 * sizes.HALF * (one.parameters - none.parameters - 2 * 64) if half else 0
    expected = kept_bytes(cfg, SEQUENCES, half) - at_work - others + _log_softmax(cfg)
    # The mask of the tokens, which the recomputation also holds, is left out.
    assert memory.now == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_the_heads_bytes_are_the_peak_of_its_cross_entropy(half):
    """By hand: log-softmax, its gradient and that of the logits, 4 bytes each, 12 a logit."""
    cfg = config(vocab_size=512)
    rows, vocab = SEQUENCES * cfg.model.tokens, cfg.model.vocab_size
    head = torch.nn.Linear(8, vocab, bias=False)
    hidden_STD = torch.zeros(SEQUENCES, cfg.model.tokens, 8, requires_grad=True)
    tokens_ST = torch.zeros(SEQUENCES, cfg.model.tokens, dtype=torch.long)

    def loss():
        with autocast(CPU, torch.bfloat16 if half else torch.float32):
            return next_token_nll(hidden_STD, head.weight, tokens_ST).mean()

    with LiveMemory(at_least=rows * vocab) as memory:
        loss().backward()
    assert head_bytes(rows, vocab) == 12 * rows * vocab == memory.peak


def test_b_and_xl_at_64_sequences_keep_what_an_audit_counted():
    """GiB of saved tensors in bfloat16, counted once on the real sizes without allocating them.

    A gibibyte of them was the log-softmax, which is no longer kept: the head takes its rows in parts.
    """
    for size, saved in (("B", 9.892), ("XL", 45.667)):
        cfg = preset(size)
        assert kept_bytes(cfg, 64, True) / 2**30 == pytest.approx(saved - 1, abs=0.01)
        assert head_bytes(64 * cfg.model.tokens, cfg.model.vocab_size) <= 2**30


def test_flops_are_those_a_counter_sees():
    cfg = config(vocab_size=300)
    model = build_model(cfg.model, torch_generator(0, "init"))
    tokens = torch.zeros(SEQUENCES, cfg.model.tokens, dtype=torch.long)
    labels = torch.zeros(SEQUENCES, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        logits = model(tokens[:, :-1], labels).logits
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert forward_flops(cfg, SEQUENCES, True) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_parameters_and_their_memory():
    cfg = config(STAR)
    student = Student(build_model(cfg.model), cfg.objective)
    found = estimate(cfg, 1, half=False)
    count = sum(parameter.numel() for parameter in student.parameters())
    assert found.parameters + found.projector_parameters == count
    assert found.weights == found.gradients == found.optimizer // 2 == 4 * count
    assert found.memory == 16 * count + found.teacher + found.activations + found.head


def test_more_processes_share_the_activations_and_the_baseline_needs_less():
    cfg = config(STAR)
    one, two = estimate(cfg, 1, True), estimate(cfg, 2, True)
    # Copies of the weights for autocast are not shared.
    copies = sizes.HALF * sizes._matrices(cfg)
    assert two.activations - copies == (one.activations - copies) // 2 and two.flops == one.flops
    assert two.head == one.head // 2
    parts = dataclasses.replace(cfg, objective=AR, accumulate=4)
    whole = dataclasses.replace(parts, accumulate=1)
    assert estimate(parts, 1, False).head == estimate(whole, 1, False).head // 4
    assert estimate(parts, 1, False).activations < estimate(whole, 1, False).activations / 3.9
    plain = estimate(dataclasses.replace(cfg, objective=cfg.objective.baseline()), 1, True)
    # Teacher forward: a third of forward and backward, less the logits; plus the projector.
    assert 1.2 < one.flops / plain.flops < 1.4


def test_xl_is_estimated_without_being_allocated():
    found = estimate(preset("XL"), 8, half=True)
    assert round(found.parameters / 1e6) == 775
    assert found.teacher == 4 * found.parameters


def test_sharding_divides_the_weights_and_recomputing_leaves_the_inputs_of_the_blocks():
    cfg = config(STAR, layers=4)
    plain = estimate(cfg, 2, half=True)
    sharded = estimate(dataclasses.replace(cfg, shard=True), 2, half=True)
    for part in ("weights", "gradients", "optimizer", "teacher"):
        assert getattr(sharded, part) == getattr(plain, part) // 2
    assert sharded.activations == plain.activations
    again = dataclasses.replace(cfg, checkpoint_activations=True)
    deeper = dataclasses.replace(again, model=dataclasses.replace(cfg.model, layers=6))
    rows = SEQUENCES * cfg.model.tokens
    more = kept_bytes(deeper, SEQUENCES, False) - kept_bytes(again, SEQUENCES, False)
    assert more == 2 * rows * 4 * cfg.model.width
    assert estimate(again, 2, True).flops == plain.flops + forward_flops(cfg, SEQUENCES, True)


def test_a_measuring_pass_is_of_as_many_images_as_fit():
    tiny, large = preset("tiny").model, preset("XL").model
    assert images_at_once(tiny, 256, with_logits=True) == 256
    # 16 bytes a logit, 256 x 16,384 of them an image: 64 MiB.
    assert images_at_once(large, 256, with_logits=True) == 64
    assert images_at_once(large, 10, with_logits=True) == 10
    # Three tensors of 3,584 and three of 1,280 channels in float32, of 256 tokens.
    assert images_at_once(large, 1000, with_logits=False) == 2**32 // (256 * 12 * (3584 + 1280))
    giant = dataclasses.replace(large, grid=1000)
    assert images_at_once(giant, 256, with_logits=True) == 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_likelihood_of_many_images_stays_within_its_bytes(monkeypatch, precision):
    store = fake_store(images=40, vocab=512)
    model = small_model(ModelConfig(layers=1, heads=2, width=16, grid=3, vocab_size=512, num_classes=4))
    at_once = token_nll(model, store, precision=precision)
    most = 7 * 16 * 512 * 9
    monkeypatch.setattr("star.model.head.PART_BYTES", most)
    monkeypatch.setattr(sizes, "MOST_BYTES", most)
    with LiveMemory(at_least=512 * 9) as memory:
        in_parts = token_nll(model, store, precision=precision)
    assert memory.peak <= most
    np.testing.assert_allclose(in_parts, at_once, rtol=1e-5 if precision is torch.float32 else 0.02)
