"""Two gloo processes probe as one does: the heads of a bank, whole atlases, and the study."""

import numpy as np
import pandas as pd
import pytest
import torch
from fresh import in_two
from helpers import small_model
from probing import GROUPS, STEPS, atlas_of, blob_task, config, label_sets, trained
from two_processes import one_of_two

from figures.studies import probing as study
from figures.work import Work
from probes.linear import mae, pixels
from probes.linear.mae import MaeConfig
from probes.results import read_result, write_result

pytestmark = pytest.mark.slow
UNEVEN = MaeConfig(base_lrs=(20.0, 102.4), epochs=5, warmup_epochs=2, batch_size=15)
PROTOCOLS = ("mae", "ridge", "knn")


def one_atlas(folder, name, **options):
    """An atlas with one pixel a cell in its pixel control."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "SIDE", 3)
        return atlas_of(folder, config=config(name), **options)


def work(rank, folder, run):
    """One of two processes."""
    with one_of_two(rank, str(folder / "rendezvous")):
        mine = folder / str(rank)
        mine.mkdir()
        mae.PIECE = 588  # so small that the number of pieces could follow a process's share
        source, splits = blob_task(GROUPS)
        bank = trained(source, label_sets(splits), UNEVEN)
        assert all((images % 2 == rank).all() for images, _ in source.calls)
        torch.save(bank.state(), mine / "bank.pt")
        for name in PROTOCOLS:
            atlas = one_atlas(mine, name, work=folder / "work")
            write_result(atlas.result, mine / f"{name}.csv")
            np.save(mine / f"{name}.npy", atlas.predicted_SLKN)
        broken = small_model()
        broken.layers[2].attention.wo.weight.data[:] = float("nan")
        found = one_atlas(mine, "ridge", model=broken).broken
        assert found == [f"layer 3 at step {step}" for step in STEPS]
        ask(rank, folder, run)


def ask(rank, folder, run):
    """Both ask the same; the first writes and speaks."""
    request = study.Request(ckpts=[run], steps=2, protocol="ridge", device="cpu", out=folder / "study")
    said = []
    answer = study.run(request, Work(say=said.append, writes=True))
    assert bool(said) == (rank == 0) and said[len(said) - len(answer.said) :] == answer.said
    assert len(answer.written) == (11 if rank == 0 else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    """What two processes left: a folder each."""
    path = tmp_path_factory.mktemp("two")
    in_two(work, path, trained)
    return path


def test_unequal_shares_train_the_heads_of_one(folder):
    source, splits = blob_task(GROUPS)
    one = trained(source, label_sets(splits), UNEVEN)
    shares = {int((images % 2 == 0).sum()) for images, _ in source.calls}
    assert min(shares) < 7 and max(shares) > 8, "of 15 images"
    two = [torch.load(folder / str(rank) / "bank.pt", weights_only=True) for rank in range(2)]
    for name, value in one.state().items():
        assert torch.equal(two[0][name], two[1][name])
        # The same float32 sums in another order, over 15 steps.
        torch.testing.assert_close(two[0][name], value, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_atlas_is_that_of_one(folder, tmp_path, name):
    one = one_atlas(tmp_path, name)
    results = [read_result(folder / str(rank) / f"{name}.csv") for rank in range(2)]
    pd.testing.assert_frame_equal(results[0].table, results[1].table)
    table, expected = results[0].table, one.result.table
    places = ["layer", "step", "protocol", "control", "seed", "split", "n"]
    pd.testing.assert_frame_equal(table[places], expected[places])
    # Sums over images are added up in another order (float32), so an image that lies on a border may
    # change sides: one of the 24.
    for column, images in (("accuracy", 24), ("low", 24), ("high", 24), ("val_accuracy", 16)):
        np.testing.assert_allclose(
            table[column], expected[column], atol=1.01 / images, rtol=0, equal_nan=True
        )
    predicted = [np.load(folder / str(rank) / f"{name}.npy") for rank in range(2)]
    np.testing.assert_array_equal(*predicted)
    assert (predicted[0] == one.predicted_SLKN).mean() > 0.98
    assert results[0].info["processes"] == 2 and one.result.info["processes"] == 1


def test_an_arm_is_kept_once_for_both(folder):
    assert len(list((folder / "work").glob("*/model-seed-0.npz"))) == len(PROTOCOLS)
    assert not list((folder / "work").glob("*/*.pt"))


def test_the_study_is_written_once(folder):
    """Of two processes the first writes: tables, predictions, three pictures twice; no work is left."""
    names = [path.name for path in (folder / "study").iterdir()]
    assert len(names) == 11 and not [name for name in names if name.endswith(".work")]
    found = read_result(folder / "study" / "probe-ridge-layer-1-teacher-steps-2.csv")
    assert found.info["processes"] == 2 and found.info["complete"]
