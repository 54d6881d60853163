"""What the processes agree on: patience where it is meant, gradients held once, the chosen device."""

import dataclasses
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from fresh import in_two
from helpers import fake_store
from small_runs import CPU, tiny
from two_processes import one_of_two

from probes.linear.predictions import streamed
from star.parallel import processes as distributed
from star.training.batches import TrainLoader
from star.training.learner import Learner
from star.training.trainer import Trainer

SHORT = timedelta(seconds=3)


def wait_long_then_hang(rank, folder):
    """Collectives, but for the patient ones, are given as little time as on cards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(distributed.TIMEOUTS, "cpu", SHORT)
        patch.setattr(distributed, "leave", dist.destroy_process_group)  # after a hang alone
        # What has hung keeps its threads.
        with one_of_two(rank, f"{folder}/rendezvous", sharded=True):
            with distributed.main_first():
                if rank == 0:
                    time.sleep(1.3 * SHORT.total_seconds())
            assert distributed.any_process(rank == 1, CPU)
            if rank == 1:
                with pytest.raises(RuntimeError, match="(?i)timed out|timeout"):
                    distributed.mean_over_processes(torch.zeros(3))
                (folder / "gave up").touch()
            begun = time.monotonic()
            while not (folder / "gave up").exists() and time.monotonic() - begun < 300:
                time.sleep(0.05)


@pytest.mark.slow
def test_others_wait_for_rank_0_longer_than_for_a_collective_that_hangs(tmp_path):
    begun = time.monotonic()
    in_two(wait_long_then_hang, tmp_path)
    assert (tmp_path / "gave up").exists()
    assert time.monotonic() - begun < 300, "within its own time, not days"


@pytest.fixture
def barriers(monkeypatch):
    """Which groups were waited on, in order, by a process that takes itself for one of two."""
    waited = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "_patient", "patient")
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "barrier", lambda group="default": waited.append(group))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: waited.append("destroyed"))
    return waited


@pytest.mark.parametrize(("mine", "order"), [(0, ["work", "patient"]), (1, ["patient", "work"])])
def test_rank_0_goes_first_and_the_others_wait_with_patience(monkeypatch, barriers, mine, order):
    monkeypatch.setattr(dist, "get_rank", lambda: mine)
    with distributed.main_first():
        barriers.append("work")
    assert barriers == order
    with distributed.alone(), distributed.main_first():
        distributed.wait_for_all()
    assert barriers == order


def test_all_leave_together_however_long_one_still_draws(barriers):
    distributed.leave()
    assert barriers == ["patient", "default", "destroyed"] and distributed._patient is None


def test_all_wait_for_a_checkpoint_and_for_the_slowest_share_of_a_pass(tmp_path, monkeypatch):
    seen = []
    run = tmp_path / "run"
    monkeypatch.setattr("star.runs.loop.wait_for_all", lambda: seen.append((run / "ckpt.pt").exists()))
    Trainer(tiny(max_steps=2, save_every=2), {"train": fake_store()}, run, CPU).fit()
    assert seen == [True]
    monkeypatch.setattr("probes.linear.predictions.wait_for_all", lambda: seen.append("pass"))
    passed = streamed(lambda part, images, views: len(images), "test", 5000)
    assert [done for done, *_ in passed] == [2048, 4096, 5000]
    assert seen == [True, "pass"]


def test_on_cards_sums_wait_for_minutes_and_waiting_is_gloos(monkeypatch):
    """What the groups would be told; the card is a pretence."""
    told = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.append(("set", device)))
    monkeypatch.setattr(dist, "init_process_group", lambda *a, **k: told.append((a, k)))
    monkeypatch.setattr(dist, "new_group", lambda *a, **k: told.append((a, k)))
    assert distributed.join("cuda") == torch.device("cuda:1")
    device, (backend, options), (_, waiting) = told
    assert device == ("set", torch.device("cuda:1")) and backend == ("nccl",)
    assert options["timeout"] == timedelta(minutes=10) and options["device_id"] == device[1]
    assert (options["rank"], options["world_size"]) == (3, 4)
    assert waiting == {"backend": "gloo", "timeout": timedelta(days=7)}
    told.clear()
    assert distributed.join("cpu") == CPU
    (backend, options), (_, waiting) = told
    assert backend == ("gloo",) and options["device_id"] is None
    assert options["timeout"] == waiting["timeout"] == timedelta(days=7)


def hold_and_cut(rank, folder):
    """DDP's gradients; then FSDP2 on a machine that seems to have an accelerator."""
    with one_of_two(rank, f"{folder}/rendezvous", sharded=True), pytest.MonkeyPatch.context() as patch:
        config = tiny(max_steps=3).fitted_to(grid=3, vocab_size=11, num_classes=4)
        learner, loader = Learner(config, CPU), TrainLoader(fake_store(), config, rank, 2)
        for step in range(3):  # torch orders the buckets anew after the first
            learner.update(loader.batch(step), step)
        gradients = [parameter.grad for parameter in learner.student.parameters()]
        held = {g.untyped_storage().data_ptr(): g.untyped_storage().nbytes() for g in gradients}
        # One bucket, which is what is sent, and all gradients are places in it.
        assert len(held) == 1 and sum(held.values()) == sum(g.nbytes for g in gradients)
        patch.setattr(torch._C, "_get_accelerator", lambda: torch.device("cuda"))
        learner = Learner(dataclasses.replace(config, shard=True), CPU)
        for model in (learner.student.model, learner.teacher.model):
            for weight in (model.output.weight, model.layers[0].feed_forward.w1.weight):
                assert weight.device_mesh.device_type == "cpu" and weight.to_local().device == CPU
        assert learner.update(loader.batch(0), 0).grad_norm > 0
    (folder / f"done-{rank}").touch()


@pytest.mark.slow
def test_gradients_are_held_once_and_sharding_stays_on_the_chosen_device(tmp_path):
    in_two(hold_and_cut, tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 2
