"""Two gloo processes compute what one computes: losses, gradients, negatives, batch-norm moments."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fresh import in_two
from helpers import TINY, cli, fake_store, small_model
from small_runs import CPU, rows, small_stores, tiny
from two_processes import one_of_two

from star.base.randomness import torch_generator
from star.runs.checkpoint import load_checkpoint
from star.training.batches import TrainLoader
from star.training.checkpoint import MODEL_RUN
from star.training.config import ObjectiveConfig, TrainConfig
from star.training.learner import Learner
from star.training.objective import compute_losses
from star.training.student import Student
from star.training.teacher import Teacher
from star.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def losses_and_gradients(objective: ObjectiveConfig, rank: int, world: int):
    """Mean terms and mean gradients over all processes, from the first batch of this one."""
    config = TrainConfig(objective=objective, batch_size=8)
    student = Student(small_model(seed=1), objective)
    student.projector.initialize(torch_generator(0, "projector"))
    teacher = Teacher(small_model(seed=2), decay=0.9, warmup=False)
    batch = TrainLoader(fake_store(), config, rank, world).batch(0)
    total, terms = compute_losses(student, teacher, batch, objective)
    total.backward()
    values = [total.detach(), *(term.detach() for term in terms.values())]
    values += [parameter.grad for parameter in student.parameters()]
    if world > 1:
        for value in values:
            dist.all_reduce(value)
            value /= world
    return values


def work(rank: int, folder: str, objective: ObjectiveConfig):
    with one_of_two(rank, f"{folder}/rendezvous"):
        values = losses_and_gradients(objective, rank, 2)
        if rank == 0:
            torch.save(values, f"{folder}/values.pt")


@pytest.mark.parametrize("negatives", ["global", "local"])
def test_two_processes_equal_one(tmp_path, negatives):
    objective = ObjectiveConfig(contrast_steps=3, contrast_layer=2, negatives=negatives)
    in_two(work, str(tmp_path), objective)
    two = torch.load(tmp_path / "values.pt", weights_only=True)
    one = losses_and_gradients(objective, 0, 1)
    # The same float32 sums in another order; the gradients pass through three batch norms.
    equal = [torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(two, one, strict=True)]
    if negatives == "global":
        assert all(equal), np.flatnonzero(~np.array(equal))
    else:
        # Half as many negatives: L_AR and L_MIM agree, the contrast must not.
        assert equal[1:5] == [True, True, False, False]
        easier = dataclasses.replace(objective, negatives="global")
        assert two[3] < losses_and_gradients(easier, 0, 1)[3]


def train(rank: int, folder: Path, run: str, config: TrainConfig, stop_after: int | None = None):
    """One of two processes of a training run in ``folder / run``."""
    with one_of_two(rank, f"{folder}/rendezvous-{run}-{stop_after}", sharded=config.shard):
        in_one(folder, run, config, stop_after)


def in_one(folder, run, config, stop_after=None):
    Trainer.start_or_resume(config, small_stores(), folder / run, CPU).fit(stop_after=stop_after)


def test_training_in_two_processes_equals_one_also_when_their_number_changes(tmp_path):
    config = tiny(dropout=0.0, lr=1e-3)
    in_one(tmp_path, "one", config)
    in_two(train, tmp_path, "two", config)
    in_two(train, tmp_path, "mixed", config, 4)
    in_one(tmp_path, "mixed", config, 8)
    in_two(train, tmp_path, "mixed", config)
    expected = rows(tmp_path / "one")
    for run in ("two", "mixed"):
        found = rows(tmp_path / run)
        assert [row["step"] for row in found] == list(range(1, 13))
        for a, b in zip(found, expected, strict=True):
            for name in ("loss", "ar", "mim", "step_contrast", "view_contrast", "grad_norm"):
                # The same float32 sums in another order; 2e-5 was seen (in L_MIM, a small difference).
                assert a[name] == pytest.approx(b[name], rel=2e-4, abs=1e-6), (run, a["step"], name)
        assert found[-1]["val_nll"] == pytest.approx(expected[-1]["val_nll"], rel=1e-5)
        one, other = (
            load_checkpoint(tmp_path / name / "ckpt.pt", kind=MODEL_RUN) for name in ("one", run)
        )
        assert other["step"] == 12 and other["teacher_updates"] == 12
        for key, value in one["teacher"].items():
            assert (other["teacher"][key] - value).abs().max() < 1e-5, (run, key)
    first = rows(tmp_path / "two")[0]
    assert first["loss"] == pytest.approx(expected[0]["loss"], rel=1e-6), "before any update: equal"


def test_sharded_training_equals_copied_training_and_either_resumes_the_other(tmp_path):
    config = tiny(dropout=0.1, lr=1e-3, max_steps=6, validate_every=1, log_every=1)
    sharded = dataclasses.replace(config, shard=True, checkpoint_activations=True)
    in_two(train, tmp_path, "copied", config)
    in_two(train, tmp_path, "sharded", sharded)
    in_two(train, tmp_path, "mixed", sharded, 3)
    in_one(tmp_path, "mixed", sharded, 4)  # one process: nothing to cut
    in_two(train, tmp_path, "mixed", sharded)
    expected = rows(tmp_path / "copied")
    copied = load_checkpoint(tmp_path / "copied" / "ckpt.pt", kind=MODEL_RUN)
    found = rows(tmp_path / "sharded")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for a, b in zip(found, expected, strict=True):
        for name in ("loss", "ar", "mim", "step_contrast", "view_contrast", "grad_norm", "val_nll"):
            # The same sums by other collectives.
            assert a.get(name) == pytest.approx(b.get(name), rel=1e-5), (a["step"], name)
    other = load_checkpoint(tmp_path / "sharded" / "ckpt.pt", kind=MODEL_RUN)
    for part in ("student", "teacher", "projector"):
        for key, value in copied[part].items():
            assert type(other[part][key]) is torch.Tensor
            # A hundredth of one update of 1e-3: AdamW blows up the rounding of tiny gradients.
            assert (other[part][key] - value).abs().max() < 1e-5, (part, key)
    for index, moments in copied["optimizer"]["state"].items():
        for name, value in moments.items():
            torch.testing.assert_close(other["optimizer"]["state"][index][name], value)
    mixed = rows(tmp_path / "mixed")
    assert [row["step"] for row in mixed] == [1, 2, 3, 4, 5, 6]
    assert mixed[2]["val_nll"] == pytest.approx(expected[2]["val_nll"], rel=1e-6)
    # One process drops other elements than two at step 4, so this says only that it goes on well.
    assert mixed[5]["val_nll"] == pytest.approx(expected[5]["val_nll"], rel=0.05)


def test_sharded_blocks_gather_half_the_bytes_in_bfloat16_and_learn_the_same(tmp_path):
    config = tiny(dropout=0.0, lr=1e-3, max_steps=4, precision="bf16")
    in_two(train, tmp_path, "copied", config)
    in_two(train, tmp_path, "sharded", dataclasses.replace(config, shard=True))
    for a, b in zip(rows(tmp_path / "sharded"), rows(tmp_path / "copied"), strict=True):
        for name in ("loss", "ar", "mim", "step_contrast", "view_contrast"):
            # Norms are rounded to bfloat16 with the block that they belong to.
            assert a[name] == pytest.approx(b[name], rel=2e-2), (a["step"], name)
    kept = load_checkpoint(tmp_path / "sharded" / "ckpt.pt", kind=MODEL_RUN)["student"]
    assert {value.dtype for value in kept.values()} == {torch.float32}, "what is kept is not rounded"


def gathered_dtypes(rank: int, folder: str):
    """The dtypes in which a sharded block and the rest of the model compute."""
    with one_of_two(rank, f"{folder}/rendezvous-dtypes", sharded=True):
        learner = Learner(tiny(precision="bf16", shard=True), CPU)
        model, seen = learner.student.model, {}

        def note(name):
            def hook(module, arguments):
                seen[name] = str(next(module.parameters()).dtype), str(arguments[0].dtype)

            return hook

        model.layers[0].attention_norm.register_forward_pre_hook(note("block"))
        model.norm.register_forward_pre_hook(note("rest"))
        learner.update(TrainLoader(fake_store(), learner.config, rank, 2).batch(0), 0)
        if rank == 0:
            (Path(folder) / "dtypes").write_text(f"{seen['block']} {seen['rest']}")


def test_only_the_weights_of_blocks_travel_in_bfloat16(tmp_path):
    in_two(gathered_dtypes, str(tmp_path))
    half, single = "torch.bfloat16", "torch.float32"
    assert (tmp_path / "dtypes").read_text() == f"{(half, single)} {(single, single)}"


def test_the_command_line_starts_processes_and_passes_their_errors_on(
    tmp_path, digit_folder, tokenizer_file
):
    data = ("--data", digit_folder, "--tokenizer", tokenizer_file, "--nproc", 2, *TINY)
    done = cli("train", *data, "--run", tmp_path / "run", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "processes 2" in done.stdout and done.stdout.count("finished") == 1
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]
    refused = cli("train", *data, "--run", tmp_path / "bad", "--batch-size", 5, timeout=300)
    assert refused.returncode == 2
    assert "batch_size 5 is not a multiple of the 2 processes" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "bad").exists()


DIES = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from star.parallel import processes as distributed
from star.training.trainer import Trainer
from small_runs import small_stores, tiny

device = distributed.join("cpu")
def die(step):
    if distributed.rank() == 1 and step == 3:
        raise RuntimeError("rank 1 has had enough")
Trainer(tiny(max_steps=100000), small_stores(), Path(sys.argv[1]), device).fit(on_step=die)
"""


def test_a_process_that_dies_ends_the_others_with_its_error_shown(tmp_path):
    (tmp_path / "dies.py").write_text(DIES)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "dies.py"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode != 0 and "rank 1 has had enough" in done.stderr
