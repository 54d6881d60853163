"""One optimiser step in other ways of computing it: compiled, recomputed, in half precision."""

import math
import shutil

import pytest
import torch
from helpers import fake_store
from small_runs import CPU, tiny

from star.base.errors import UserError
from star.base.loss_scale import GROWTH_STEPS, LossScale
from star.training.batches import TrainLoader
from star.training.learner import Learner


def updates(count: int = 3, scale: float | None = None, **settings):
    """Losses and gradient norms of the first steps, and the learner after them."""
    config = tiny(**settings)
    loader = TrainLoader(fake_store(), config)
    learner = Learner(config, CPU)
    if scale is not None:
        learner.loss_scale.value = scale
    return [learner.update(loader.batch(step), step).row() for step in range(count)], learner


def same(found: list[dict], expected: list[dict], rel: float) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(a == pytest.approx(b, rel=rel) for a, b in pairs)


@pytest.mark.parametrize("objective", ["star", "ar"])
def test_recomputed_activations_change_nothing(objective):
    settings = {"dropout": 0.3}
    if objective == "ar":
        settings["objective"] = tiny().objective.baseline()
    expected, plain = updates(**settings)
    found, recomputed = updates(checkpoint_activations=True, **settings)
    assert found == expected, "the same operations on the same numbers, dropout included"
    for a, b in zip(plain.student.parameters(), recomputed.student.parameters(), strict=True):
        assert torch.equal(a, b)


def kept_bytes(checkpoint_activations: bool) -> int:
    """Bytes that autograd keeps of one step's forward pass."""
    config = tiny(checkpoint_activations=checkpoint_activations, dropout=0.1)
    learner, batch = Learner(config, CPU), TrainLoader(fake_store(), config).batch(0)
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in learner.student.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens = batch.tokens_BMT.flatten(0, 1)
        out = learner.student(
            tokens[:, :-1],
            batch.labels_B.repeat_interleave(2),
            masked_Sn=None,
            dropout=None,
            targets_ST=tokens,
            last=True,
            steps_K=batch.steps_K,
        )
    assert out.nll.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def test_recomputing_keeps_less_for_the_backward_pass():
    assert kept_bytes(True) < 0.6 * kept_bytes(False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_compiled_blocks_compute_the_same_step():
    expected, _ = updates(2, dropout=0.1)
    found, learner = updates(2, dropout=0.1, compile=True)
    # The same formulas with their float32 operations fused.
    assert same(found, expected, rel=1e-4)
    first = learner.student.model.layers[0]
    assert first._compiled_call_impl is not None
    torch._dynamo.reset()


def test_float16_trains_close_to_float32_and_scales_its_loss():
    expected, _ = updates(3)
    found, learner = updates(3, scale=2.0**10, precision="fp16")
    assert [row.pop("loss_scale") for row in found] == [2.0**10] * 3
    # float16 keeps eleven bits; L_MIM is a small difference of large numbers.
    assert same(found, expected, rel=0.02)
    assert learner.teacher.updates == 3


def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale():
    config = tiny(precision="fp16")
    learner, loader = Learner(config, CPU), TrainLoader(fake_store(), config)
    learner.loss_scale.value = 2.0**40
    before = [p.detach().clone() for p in learner.student.parameters()]
    update = learner.update(loader.batch(0), 0)
    assert update.grad_norm is None and update.loss_scale == learner.loss_scale.value == 2.0**39
    assert "grad_norm" not in update.row()
    assert all(torch.equal(a, b) for a, b in zip(learner.student.parameters(), before, strict=True))
    assert learner.teacher.updates == 0
    for step in range(1, 40):
        if learner.update(loader.batch(step), step).grad_norm is not None:
            break
    assert step < 39 and learner.teacher.updates == 1


def test_float16_that_overflows_at_scale_one_has_diverged():
    config = tiny(precision="fp16")
    learner, loader = Learner(config, CPU), TrainLoader(fake_store(), config)
    learner.loss_scale.value = 1.0
    # Gradients overflow while the losses stay finite.
    learner.student.model.output.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match="the gradient norm is .* at step 1; stopped before the update"):
        learner.update(loader.batch(0), 0)


def test_the_loss_scale_follows_torchs_schedule(monkeypatch):
    monkeypatch.setattr("star.base.loss_scale.GROWTH_STEPS", 5)
    ours = LossScale(enabled=True)
    torchs = torch.amp.GradScaler("cpu", growth_interval=5)
    weight = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    torchs.scale(weight.sum())
    for step in range(40):
        finite = step not in (3, 4, 12, 25)
        weight.grad = torch.full((3,), 2.0 if finite else math.inf)
        mine = [weight.grad.clone()]
        assert ours.value == torchs.get_scale()
        ours.unscale(mine)
        torchs.unscale_(optimizer)
        assert torch.equal(mine[0], weight.grad)
        torchs.step(optimizer)
        torchs.update()
        ours.update(finite)
    assert torch.amp.GradScaler("cpu").get_growth_interval() == GROWTH_STEPS
    other = LossScale(enabled=True)
    other.load_state_dict(ours.state_dict())
    assert (other.value, other.good_steps) == (ours.value, ours.good_steps)


def test_the_device_is_waited_for_once_a_step(monkeypatch):
    """Losses, norm and the vote to stop are read together; everything else stays on the device."""
    config = tiny(accumulate=2, objective=tiny().objective.baseline())
    learner, loader = Learner(config, CPU), TrainLoader(fake_store(), config)
    learner.update(loader.batch(0), 0)
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)

        def counted(tensor, *arguments, real=real, name=name):
            reads.append(name)
            return real(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    update = learner.update(loader.batch(1), 1, stop=True)
    monkeypatch.undo()
    assert reads == ["tolist"]
    assert update.stop and set(update.losses) == {"ar", "loss"} and math.isfinite(update.grad_norm)
    assert not learner.update(loader.batch(2), 2).stop
