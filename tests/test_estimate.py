"""The dry run's estimate against what a small model really keeps, computes and stores."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from star.config import ModelConfig, preset
from star.dropout import Dropout
from star.estimate import activation_bytes, estimate, forward_flops
from star.randomness import torch_generator
from star.student import Student
from star.transformer import build_model

SEQUENCES = 8


def config(dropout=0.0, **changes):
    model = ModelConfig(**{"layers": 2, "heads": 2, "width": 64, "vocab_size": 50, **changes})
    return dataclasses.replace(preset("tiny"), model=model, dropout=dropout)


def forward(cfg):
    model = build_model(cfg.model, torch_generator(0, "init"))
    tokens = torch.zeros(SEQUENCES, cfg.model.tokens, dtype=torch.long)
    labels = torch.zeros(SEQUENCES, dtype=torch.long)
    dropout = Dropout(probability=cfg.dropout, seed=0, step=0) if cfg.dropout else None
    return model, lambda: F.cross_entropy(
        model(tokens[:, :-1], labels, dropout=dropout).logits.flatten(0, 1), tokens.flatten()
    )


@pytest.mark.parametrize(
    ("dropout", "changes"), [(0.0, {}), (0.1, {}), (0.0, {"vocab_size": 2000}), (0.0, {"width": 256})]
)
def test_activation_memory_is_what_autograd_keeps(dropout, changes):
    cfg = config(dropout, **changes)
    model, run = forward(cfg)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    # Small tables and row statistics are left out of the estimate.
    assert activation_bytes(cfg, SEQUENCES, half=False) == pytest.approx(measured, rel=0.05)


def test_flops_are_those_a_counter_sees():
    cfg = config(vocab_size=300)
    _, run = forward(cfg)
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        run()
    assert forward_flops(cfg, SEQUENCES, True) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_parameters_and_their_memory():
    cfg = config()
    student = Student(build_model(cfg.model), cfg.objective)
    found = estimate(cfg, 1, half=False)
    count = sum(parameter.numel() for parameter in student.parameters())
    assert found.parameters + found.projector_parameters == count
    assert found.weights == found.gradients == found.optimizer // 2 == 4 * count
    assert found.memory == 16 * count + found.teacher + found.activations


def test_more_processes_share_the_activations_and_the_baseline_needs_less():
    cfg = config()
    one, two = estimate(cfg, 1, True), estimate(cfg, 2, True)
    assert two.activations == one.activations // 2 and two.flops == one.flops
    plain = estimate(dataclasses.replace(cfg, objective=cfg.objective.baseline()), 1, True)
    # Teacher forward: a third of forward and backward, less the logits; plus the projector.
    assert 1.2 < one.flops / plain.flops < 1.4


def test_xl_is_estimated_without_being_allocated():
    found = estimate(preset("XL"), 8, half=True)
    assert round(found.parameters / 1e6) == 775
    assert found.teacher == 4 * found.parameters


def test_sharding_divides_the_weights_and_recomputing_leaves_the_inputs_of_the_blocks():
    cfg = config(layers=4)
    plain = estimate(cfg, 2, half=True)
    sharded = estimate(dataclasses.replace(cfg, shard=True), 2, half=True)
    for part in ("weights", "gradients", "optimizer", "teacher"):
        assert getattr(sharded, part) == getattr(plain, part) // 2
    assert sharded.activations == plain.activations
    again = dataclasses.replace(cfg, checkpoint_activations=True)
    deeper = dataclasses.replace(again, model=dataclasses.replace(cfg.model, layers=6))
    rows = SEQUENCES * cfg.model.tokens
    more = activation_bytes(deeper, SEQUENCES, True) - activation_bytes(again, SEQUENCES, True)
    assert more == 2 * rows * 4 * cfg.model.width
    assert estimate(again, 2, True).flops == plain.flops + forward_flops(cfg, 64, True)
