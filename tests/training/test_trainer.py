"""The trainer: it learns, resumes exactly, shares data between objectives, and stops in time."""

import dataclasses
import math
import os

import numpy as np
import pytest
import torch
from helpers import fake_store
from small_runs import CPU, rows, small_stores, timeless, tiny

from star.base.device import deterministic
from star.base.errors import UserError
from star.model.attention import choose_kernel
from star.runs.checkpoint import load_checkpoint
from star.training.batches import TrainLoader, plain_batches
from star.training.checkpoint import DISPENSABLE, MODEL_RUN
from star.training.config import ObjectiveConfig
from star.training.learner import Learner
from star.training.likelihood import image_nll
from star.training.trainer import Trainer


@pytest.fixture
def stores():
    return small_stores()


def test_training_learns_and_reports_every_term(stores, tmp_path):
    result = Trainer(tiny(max_steps=60), stores, tmp_path, CPU).fit()
    found = rows(tmp_path)
    assert result.finished and len(found) == 60
    assert found[-1]["ar"] < 0.7 * found[0]["ar"]
    expected = {
        "step", "loss", "ar", "mim", "step_contrast", "view_contrast", "lr", "grad_norm",
        "sequences_per_second", "peak_memory_bytes", "val_nll", "val_nll_student",
    }  # fmt: skip
    assert set(found[-1]) == expected
    assert found[-1]["val_nll"] < math.log(11)
    cfg = tiny().objective
    total = found[7]["ar"] + cfg.mim_weight * found[7]["mim"] + cfg.contrast_weight / 2 * (
        found[7]["step_contrast"] + found[7]["view_contrast"]
    )  # fmt: skip
    assert found[7]["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
def test_a_tiny_set_is_overfitted(tmp_path):
    store = fake_store(images=8, views=2, classes=4)
    config = tiny(
        objective=ObjectiveConfig(ema_decay=0.9).baseline(),
        max_steps=250,
        dropout=0.0,
        class_dropout=0.0,
        log_every=250,
    )
    Trainer(config, {"train": store}, tmp_path, CPU).fit()
    assert rows(tmp_path)[-1]["ar"] < 0.5  # log 11 = 2.4 at the start; views differ by noise


def test_resume_is_exact(stores, tmp_path):
    config = tiny()
    Trainer(config, stores, tmp_path / "straight", CPU).fit()
    Trainer(config, stores, tmp_path / "parts", CPU).fit(stop_after=7)
    assert load_checkpoint(tmp_path / "parts" / "ckpt.pt", kind=MODEL_RUN)["step"] == 7
    result = Trainer.resume(tmp_path / "parts", stores, CPU).fit()
    assert result.finished and result.step == 12
    straight, parts = (
        load_checkpoint(tmp_path / name / "ckpt.pt", kind=MODEL_RUN) for name in ("straight", "parts")
    )
    for part in ("student", "teacher", "projector"):
        for key, value in straight[part].items():
            assert torch.equal(value, parts[part][key]), (part, key)
    for index, state in straight["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, parts["optimizer"]["state"][index][key])
    assert straight["teacher_updates"] == parts["teacher_updates"] == 12
    assert [timeless(row) for row in rows(tmp_path / "parts")] == [
        timeless(row) for row in rows(tmp_path / "straight")
    ]


def test_rows_beyond_the_checkpoint_are_cut_on_resume(stores, tmp_path):
    Trainer(tiny(), stores, tmp_path, CPU).fit(stop_after=7)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 1.0}\n{"step": 9, "lo')
    Trainer.resume(tmp_path, stores, CPU).fit(stop_after=8)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 9))


def test_resume_refuses_other_data_and_missing_state(stores, tmp_path):
    Trainer(tiny(), stores, tmp_path, CPU).fit(stop_after=2)
    other = {"train": fake_store(seed=3), "val": stores["val"]}
    with pytest.raises(UserError, match="trained on other codes"):
        Trainer.resume(tmp_path, other, CPU)
    path = tmp_path / "step-000000002.pt"
    content = torch.load(path, weights_only=True)
    content["projector"] = None
    torch.save(content, path)
    with pytest.raises(UserError, match="missing 0.weight"):
        Trainer.resume(tmp_path, stores, CPU)


@pytest.mark.parametrize("part", DISPENSABLE)
def test_a_run_goes_on_without_a_part_only_when_told(stores, tmp_path, part):
    Trainer(tiny(), stores, tmp_path, CPU).fit(stop_after=3)
    path = tmp_path / "step-000000003.pt"
    content = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in content.items() if name != part}, path)
    with pytest.raises(UserError, match=f"has no {part}"):
        Trainer.resume(tmp_path, stores, CPU)
    trainer = Trainer.resume(tmp_path, stores, CPU, without=[part])
    learner = trainer.learner
    for name in {"student", "teacher", "projector"} - {part}:
        for key, value in learner.parts()[name].state_dict().items():
            assert torch.equal(value, content[name][key])
    if part == "teacher":
        assert learner.teacher.updates == 0
        for a, b in zip(
            learner.teacher.model.parameters(), learner.student.model.parameters(), strict=True
        ):
            assert torch.equal(a, b)
    assert bool(learner.optimizer.state) == (part != "optimizer")
    assert trainer.fit().finished


def test_one_run_at_a_time_in_a_folder(stores, tmp_path):
    refusals = []

    def intrude(step: int) -> None:
        if step == 2:
            for start in (
                lambda: Trainer(tiny(seed=1), stores, tmp_path, CPU).fit(),
                lambda: Trainer.resume(tmp_path, stores, CPU),
            ):
                with pytest.raises(UserError, match="another process is training in"):
                    start()
                refusals.append(step)

    Trainer(tiny(save_every=1), stores, tmp_path, CPU).fit(on_step=intrude, stop_after=4)
    assert refusals == [2, 2] and [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    assert Trainer.resume(tmp_path, stores, CPU).fit().finished


def test_start_or_resume_refuses_other_settings(stores, tmp_path):
    Trainer(tiny(), stores, tmp_path, CPU).fit(stop_after=2)
    assert Trainer.start_or_resume(tiny(), stores, tmp_path, CPU).step == 2
    with pytest.raises(UserError, match="other settings"):
        Trainer.start_or_resume(tiny(lr=0.5), stores, tmp_path, CPU)


def test_both_objectives_see_identical_sequences_and_start_from_the_same_weights(stores, tmp_path):
    star, plain = tiny(), tiny(objective=tiny().objective.baseline())
    a, b = (Trainer(config, stores, tmp_path, CPU) for config in (star, plain))
    for key, value in a.learner.student.model.state_dict().items():
        assert torch.equal(value, b.learner.student.model.state_dict()[key])
    for step in (0, 1, 5):
        first, second = a.loader.batch(step), b.loader.batch(step)
        for name in ("tokens_BMT", "labels_B", "dropped_BM"):
            assert torch.equal(getattr(first, name), getattr(second, name))
        assert first.masked_BMn.any() and not second.masked_BMn.any()


def test_an_epoch_visits_every_image_once_with_distinct_views():
    store, config = fake_store(images=25, views=4), tiny()
    loader = TrainLoader(store, config)
    seen = np.concatenate([loader.image_indices(step) for step in range(3)])
    assert len(seen) == len(set(seen)) == 24, "25 images, batches of 8: one is left out an epoch"
    second = np.concatenate([loader.image_indices(step) for step in range(3, 6)])
    assert not np.array_equal(seen, second)
    marked = fake_store(images=25, views=4)
    marked.codes = np.broadcast_to(np.arange(4)[None, :, None], (25, 4, 9)).astype(np.uint16)
    views = TrainLoader(marked, config).batch(0).tokens_BMT[:, :, 0]
    assert (views[:, 0] != views[:, 1]).all()
    assert len(np.unique(views.numpy())) == 4


def test_batches_do_not_depend_on_the_number_of_processes():
    store, config = fake_store(), tiny()
    whole = TrainLoader(store, config).batch(3)
    halves = [TrainLoader(store, config, rank, 2).batch(3) for rank in range(2)]
    for name in ("tokens_BMT", "labels_B", "dropped_BM", "masked_BMn"):
        joined = torch.cat([getattr(half, name) for half in halves])
        assert torch.equal(joined, getattr(whole, name)), name
    assert torch.equal(halves[0].steps_K, whole.steps_K)


def test_the_loader_says_what_does_not_fit():
    with pytest.raises(UserError, match="has 1 views an image; 2 distinct ones"):
        TrainLoader(fake_store(views=1), tiny())
    with pytest.raises(UserError, match="batch_size is 30; .* only 24 images"):
        TrainLoader(fake_store(), tiny(batch_size=30))
    with pytest.raises(UserError, match="not a multiple of the 3 processes"):
        TrainLoader(fake_store(), tiny(), 0, 3)


def test_only_matrices_are_decayed(stores, tmp_path):
    trainer = Trainer(tiny(), stores, tmp_path, CPU)
    decayed, others = trainer.learner.optimizer.param_groups
    assert decayed["weight_decay"] == 0.05 and others["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in others["params"])
    count = len(decayed["params"]) + len(others["params"])
    assert count == len(list(trainer.learner.student.parameters()))


def test_a_loss_that_is_not_finite_stops_before_the_update(stores, tmp_path):
    trainer = Trainer(tiny(), stores, tmp_path, CPU)
    trainer.fit(stop_after=5)
    saved = (tmp_path / "ckpt.pt").read_bytes()
    trainer.learner.student.model.output.weight.data[0, 0] = float("nan")
    before = trainer.learner.student.model.tok_embeddings.weight.detach().clone()
    with pytest.raises(UserError, match="loss term 'ar' is nan at step 6; stopped before the update"):
        trainer.fit()
    assert torch.equal(trainer.learner.student.model.tok_embeddings.weight, before)
    assert (tmp_path / "ckpt.pt").read_bytes() == saved


def test_a_request_to_stop_saves_and_leaves(stores, tmp_path):
    trainer = Trainer(tiny(), stores, tmp_path, CPU)
    result = trainer.fit(should_stop=lambda: trainer.step >= 3)
    assert not result.finished and result.step == 3
    assert load_checkpoint(tmp_path / "ckpt.pt", kind=MODEL_RUN)["step"] == 3


def test_validation_nll_against_a_loop(stores):
    from helpers import small_model

    model, store = small_model(), stores["val"]
    found = image_nll(model, store, batch_size=3)
    for i in range(len(store)):
        tokens = torch.from_numpy(store.codes[i, 0].astype(np.int64))
        logits = model(tokens[None, :-1], torch.tensor([store.labels[i]])).logits[0]
        expected = -sum(logits[t].log_softmax(-1)[tokens[t]] for t in range(9)) / 9
        assert found[i] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_plain_batches_cover_the_store_or_its_first_images(stores):
    store = stores["train"]
    tokens = torch.cat([tokens for tokens, _ in plain_batches(store, 7, "cpu")])
    assert torch.equal(tokens, torch.from_numpy(store.codes[:, 0].astype(np.int64)))
    assert sum(len(labels) for _, labels in plain_batches(store, 7, "cpu", range(3, 13))) == 10


@pytest.mark.parametrize("mim", [False, True])
def test_accumulated_parts_equal_the_whole_batch(stores, tmp_path, mim):
    objective = ObjectiveConfig(contrast_weight=0.0) if mim else ObjectiveConfig().baseline()
    whole = tiny(objective=objective, dropout=0.0, lr=1e-3)
    parts = dataclasses.replace(whole, accumulate=4)
    for name, config in (("whole", whole), ("parts", parts)):
        Trainer(config, stores, tmp_path / name, CPU).fit()
    a, b = (load_checkpoint(tmp_path / name / "ckpt.pt", kind=MODEL_RUN) for name in ("whole", "parts"))
    for key, value in a["student"].items():
        # The same float32 sums in another order, twelve steps of AdamW at 1e-3.
        assert (b["student"][key] - value).abs().max() < 2e-5, key
    for first, second in zip(rows(tmp_path / "whole"), rows(tmp_path / "parts"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)


def test_accumulation_is_refused_where_it_would_change_the_loss():
    with pytest.raises(UserError, match="accumulate is 2; the contrastive losses .* whole batch"):
        tiny(accumulate=2)
    with pytest.raises(UserError, match="accumulate is 3; expected a divisor of batch_size 8"):
        tiny(accumulate=3, objective=ObjectiveConfig().baseline())


def test_deterministic_runs_update_under_torchs_switch_and_give_it_back(stores, tmp_path, monkeypatch):
    seen = []
    real = Learner.update

    def watched(*arguments, **options):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return real(*arguments, **options)

    monkeypatch.setattr(Learner, "update", watched)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    Trainer(tiny(), stores, tmp_path / "plain", CPU).fit(stop_after=2)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    Trainer(tiny(deterministic=True), stores, tmp_path / "exact", CPU).fit(stop_after=2)
    assert seen == [False, False, True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_deterministic_runs_on_gpus_take_the_kernel_that_adds_in_order():
    half = torch.bfloat16
    assert choose_kernel(torch.device("cuda"), half, 256) == "fused"
    with deterministic(True):
        assert choose_kernel(torch.device("cuda"), half, 256) == "explicit"
        assert choose_kernel(CPU, torch.float32, 256) == "fused", "CPUs need no other"
    assert choose_kernel(torch.device("cuda"), half, 256) == "fused"
