"""Two gloo processes compute what one computes: losses, gradients, negatives, batch-norm moments."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import fake_store, small_model

from star.batches import TrainLoader
from star.config import ObjectiveConfig, TrainConfig
from star.objective import compute_losses
from star.randomness import torch_generator
from star.student import Student
from star.teacher import Teacher


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
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    values = losses_and_gradients(objective, rank, 2)
    if rank == 0:
        torch.save(values, f"{folder}/values.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("negatives", ["global", "local"])
def test_two_processes_equal_one(tmp_path, negatives):
    objective = ObjectiveConfig(contrast_steps=3, contrast_layer=2, negatives=negatives)
    torch.multiprocessing.spawn(work, (str(tmp_path), objective), nprocs=2)
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
