"""One model and one run on either device: weights of a seed, half precision, changing the device."""

import math

import pytest
import torch
from helpers import SMALL, fake_store, small_model
from pretend import PretendedCuda
from pretend_runs import OBJECTIVES, stores
from small_runs import CPU, tiny

from star.base.randomness import torch_generator
from star.model.decoder import decoder, in_precision
from star.model.transformer import build_model
from star.runs.checkpoint import load_checkpoint
from star.training.batches import TrainLoader
from star.training.checkpoint import MODEL_RUN, load_model
from star.training.learner import Learner
from star.training.trainer import Trainer


def test_a_seed_gives_the_same_model_on_every_device(monkeypatch):
    expected = build_model(SMALL, torch_generator(3, "init"))
    asked = []
    monkeypatch.setattr(
        "star.model.transformer.require_memory", lambda what, size, place: asked.append(place)
    )
    with PretendedCuda() as card:
        found = build_model(SMALL, torch_generator(3, "init"), card.device)
        assert [str(place) for place in asked] == ["cuda:0", "cpu"], "it is made on the CPU"
        empty = build_model(SMALL, device=card.device)
        assert [str(place) for place in asked[2:]] == ["cuda:0"] * 2, "memory to be loaded into is not"
        for model in (found, empty):
            assert all(value.is_cuda for value in model.state_dict().values()) and model.rotary.is_cuda
            assert torch.equal(model.rotary.cpu(), expected.rotary)
        for name, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name].cpu(), value), name


@pytest.mark.parametrize("precision", ["auto", "fp16"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_on_the_card_is_close_to_float32(name, precision):
    config = tiny(dropout=0.0, **OBJECTIVES[name])
    loader = TrainLoader(fake_store(), config)
    expected = [Learner(config, CPU).update(loader.batch(0), 0).losses]
    with PretendedCuda() as card:
        half = tiny(dropout=0.0, precision=precision, **OBJECTIVES[name])
        learner = Learner(half, card.device)
        assert learner.precision is (torch.bfloat16 if precision == "auto" else torch.float16)
        learner.loss_scale.value = 2.0**10 if learner.loss_scale.enabled else 1.0
        found = [learner.update(loader.batch(step), step).losses for step in range(3)]
    assert all(math.isfinite(value) for row in found for value in row.values())
    # bfloat16 keeps eight bits; L_MIM is a small difference of large numbers.
    for term, value in expected[0].items():
        assert found[0][term] == pytest.approx(value, rel=0.1 if term == "mim" else 0.02), term
    assert found[2]["ar"] < found[0]["ar"] or name != "ar"


def test_sampling_in_bfloat16_reads_the_same_logits_from_a_graph():
    def logits(device):
        model = in_precision(small_model(device=device), torch.bfloat16)
        assert model.output.weight.dtype is torch.bfloat16
        tokens = (torch.arange(2 * 9) % 11).view(2, 9).to(device)
        decode, found = decoder(model, 2), []
        with torch.no_grad():
            for t in range(9):
                labels = torch.tensor([0, 4], device=device) if t == 0 else None
                found.append(decode(tokens[:, :t][:, -1:], labels).cpu())
        return torch.stack(found)

    expected = logits(CPU)
    with PretendedCuda() as card:
        found = logits(card.device)
        assert [event.what for event in card.events].count("capture") == 1
    # Eight bits of weights and states, by other kernels; the logits' spread is 1.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_a_run_goes_on_on_another_device(tmp_path):
    config = tiny(dropout=0.0, max_steps=6, save_every=2, validate_every=6)
    Trainer(config, stores(), tmp_path / "cpu", CPU).fit()
    with PretendedCuda() as card:
        Trainer(config, stores(), tmp_path / "both", card.device).fit(stop_after=2)
    Trainer.resume(tmp_path / "both", stores(), CPU).fit(stop_after=4)
    with PretendedCuda() as card:
        Trainer.resume(tmp_path / "both", stores(), card.device).fit()
    assert not next(load_model(tmp_path / "both").parameters()).is_cuda
    expected, found = (
        load_checkpoint(tmp_path / name / "ckpt.pt", kind=MODEL_RUN) for name in ("cpu", "both")
    )
    for part in ("student", "teacher", "projector"):
        for key, value in expected[part].items():
            assert torch.equal(found[part][key], value), (part, key)
    for index, state in expected["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(found["optimizer"]["state"][index][key], value)
