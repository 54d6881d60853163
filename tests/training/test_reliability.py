"""What a long run relies on: killed saves, full disks, loader workers, golden losses, old formats."""

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fresh import exit_code
from helpers import GOLDEN, fake_store, small_model
from make_golden_run import TERMS, run_rows, small_trainer
from small_runs import CPU, rows, small_stores, timeless, tiny

from star.base.errors import UserError
from star.runs.checkpoint import load_checkpoint
from star.runs.folder import RunFolder
from star.training.checkpoint import MODEL_RUN, load_model, open_model
from star.training.export import export_model
from star.training.inspect import describe
from star.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


# A training run of 12 steps that saves every 3 and kills itself at one stage of its third save.
def killed(stage, run):
    saves = 0
    real_save, real_replace = torch.save, os.replace

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def save(content, path):
        nonlocal saves
        saves += 1
        if saves == 3 and stage == "before":
            die()
        real_save(content, path)
        if saves == 3 and stage == "half-written":
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
            die()

    def replace(source, target):
        third = saves == 3 and str(target).endswith(".pt")
        newest = str(target).endswith("ckpt.pt")
        if third and stage == ("before the second rename" if newest else "before the rename"):
            die()
        real_replace(source, target)
        if third and stage == ("after" if newest else "between the renames"):
            die()

    torch.save, os.replace = save, replace
    Trainer(tiny(save_every=3), small_stores(), run, CPU).fit()


STAGES = {
    "before": 6,
    "half-written": 6,
    "before the rename": 6,
    "between the renames": 9,
    "before the second rename": 9,
    "after": 9,
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run = tmp_path_factory.mktemp("straight")
    Trainer(tiny(save_every=3), small_stores(), run, CPU).fit()
    return run


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_at_any_stage_of_a_save_loses_at_most_the_steps_since_the_last(
    tmp_path, stage, straight
):
    assert exit_code(killed, stage, tmp_path) == -signal.SIGKILL
    for path in [*tmp_path.glob("step-*.pt"), tmp_path / "ckpt.pt"]:
        assert load_checkpoint(path, kind=MODEL_RUN)["step"] % 3 == 0, (
            "every visible checkpoint is whole"
        )
    trainer = Trainer.resume(tmp_path, small_stores(), CPU)
    assert trainer.step == STAGES[stage]
    trainer.fit()
    assert not list(tmp_path.glob(".*")), "what the killed save left is gone"
    assert [timeless(row) for row in rows(tmp_path)] == [timeless(row) for row in rows(straight)]
    a, b = (load_checkpoint(run / "ckpt.pt", kind=MODEL_RUN) for run in (tmp_path, straight))
    for part in ("student", "teacher", "projector"):
        assert all(torch.equal(a[part][key], value) for key, value in b[part].items())


def test_the_newest_checkpoints_are_kept_and_ckpt_is_the_newest(straight):
    assert [path.name for path in RunFolder(straight, kind=MODEL_RUN).checkpoints()] == [
        "step-000000009.pt",
        "step-000000012.pt",
    ]
    assert load_checkpoint(straight / "ckpt.pt", kind=MODEL_RUN)["step"] == 12
    with pytest.raises(UserError, match="keep is 1; expected at least 2"):
        tiny(keep=1)


def test_an_unreadable_newest_checkpoint_is_named_and_never_silently_passed_over(tmp_path, straight):
    run = shutil.copytree(straight, tmp_path / "run")
    newest = run / "step-000000012.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    advice = "step-000000012.pt as a checkpoint.*; delete it to go on from step-000000009.pt"
    with pytest.raises(UserError, match=advice):
        Trainer.resume(run, small_stores(), CPU)
    newest.unlink()
    trainer = Trainer.resume(run, small_stores(), CPU)
    assert trainer.step == 9
    trainer.fit()
    assert [timeless(row) for row in rows(run)] == [timeless(row) for row in rows(straight)]


def test_a_file_system_without_hard_links_is_copied_to(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    small_trainer(tmp_path).fit(stop_after=1)
    assert load_checkpoint(tmp_path / "ckpt.pt", kind=MODEL_RUN)["step"] == 1


def filling_the_disk(run, said):
    """Train with room for files of 5000 bytes; what is printed goes into the file ``said``."""
    trainer = small_trainer(run)
    with open(said, "w") as file, contextlib.redirect_stdout(file):
        trainer.fit(stop_after=2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            trainer.fit()
        except UserError as error:
            print(error)
            sys.exit(2)


def test_a_full_disk_leaves_the_old_checkpoints_and_one_clear_error(tmp_path):
    run, said = tmp_path / "run", tmp_path / "said"
    assert exit_code(filling_the_disk, run, said) == 2
    line = said.read_text()
    assert "cannot save the checkpoint of step 4" in line and "earlier ones" in line
    assert line.count("\n") == 1
    assert [path.name for path in sorted(run.glob("*.pt"))] == ["ckpt.pt", "step-000000002.pt"]
    assert load_checkpoint(run / "ckpt.pt", kind=MODEL_RUN)["step"] == 2
    assert not list(run.glob(".*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000, "only the child was limited"


def test_resume_is_exact_with_loader_workers_and_between_their_numbers(tmp_path, straight):
    Trainer(tiny(save_every=3, workers=2), small_stores(), tmp_path, CPU).fit(stop_after=5)
    Trainer.resume(tmp_path, small_stores(), CPU).fit()
    assert [timeless(row) for row in rows(tmp_path)] == [timeless(row) for row in rows(straight)]
    a, b = (load_checkpoint(run / "ckpt.pt", kind=MODEL_RUN) for run in (tmp_path, straight))
    for part in ("student", "teacher"):
        assert all(torch.equal(a[part][key], value) for key, value in b[part].items())
    for index, state in b["optimizer"]["state"].items():
        assert all(torch.equal(a["optimizer"]["state"][index][key], state[key]) for key in state)


def test_a_request_to_stop_during_validation_is_heard(tmp_path):
    calls = []

    def stop():
        calls.append(1)
        return len(calls) > 6  # the sixth step validates

    many = {**small_stores(), "val": fake_store(images=600, views=1, seed=5)}  # three batches
    result = Trainer(tiny(), many, tmp_path, CPU).fit(should_stop=stop)
    assert result.step == 6 and load_checkpoint(tmp_path / "ckpt.pt", kind=MODEL_RUN)["step"] == 6
    assert "val_nll" not in rows(tmp_path)[-1]


def test_golden_losses_of_the_tiny_preset():
    header, *lines = (GOLDEN / "run.txt").read_text().splitlines()
    assert header.split() == ["step", *TERMS]
    found = run_rows()
    assert len(found) == len(lines) == 20
    for row, line in zip(found, lines, strict=True):
        step, *values = line.split()
        assert row["step"] == int(step)
        for term, value in zip(TERMS, values, strict=True):
            # Other CPUs sum in another order; 20 steps of AdamW enlarge float32 rounding a hundredfold.
            assert row[term] == pytest.approx(float(value), rel=2e-3), (step, term)


@pytest.mark.parametrize("version", [1])
def test_checkpoints_of_every_format_version_stay_loadable(tmp_path, version):
    path = GOLDEN / f"checkpoint_v{version}.pt"
    loaded = open_model(path)
    assert loaded.step == 2 and loaded.model.config.width == 8 and loaded.objective_name == "ST-AR"
    (tmp_path / "ckpt.pt").write_bytes(path.read_bytes())
    trainer = Trainer.resume(tmp_path, {"train": fake_store(images=8)}, CPU)
    assert trainer.fit().step == 4


def test_unreadable_state_is_an_error_that_names_it(tmp_path):
    small_trainer(tmp_path).fit(stop_after=2)
    path = RunFolder(tmp_path, kind=MODEL_RUN).checkpoints()[-1]
    for missing in ("optimizer", "teacher", "data", "step"):
        content = torch.load(path, weights_only=True)
        del content[missing]
        broken = tmp_path / missing
        broken.mkdir()
        torch.save(content, broken / "ckpt.pt")
        with pytest.raises(UserError, match=f"has no {missing}"):
            Trainer.resume(broken, {"train": fake_store(images=8)}, CPU)
    with pytest.raises(UserError, match="holds no checkpoint"):
        Trainer.resume(tmp_path / "nothing", {"train": fake_store(images=8)}, CPU)


@pytest.mark.parametrize("weights", ["teacher", "student"])
def test_exported_llamagen_files_load_back_equal(tmp_path, weights):
    loaded = open_model(GOLDEN / "checkpoint_v1.pt", weights=weights)
    path = export_model(loaded, tmp_path / "c2i.pt", "llamagen")
    back = load_model(path)
    assert back.config == loaded.model.config
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in back.state_dict().items())
    content = torch.load(GOLDEN / "checkpoint_v1.pt", weights_only=True)
    assert all(torch.equal(value, content[weights][key]) for key, value in state.items())


def test_exported_safetensors_hold_the_transformer_alone(tmp_path):
    loaded = open_model(GOLDEN / "checkpoint_v1.pt")
    path = export_model(loaded, tmp_path / "model.safetensors", "safetensors")
    weights = safetensors.torch.load_file(path)
    assert set(weights) == set(loaded.model.state_dict())
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["config"])["width"] == 8
    for wrong, form in (("x.safetensors", "llamagen"), ("x.pt", "safetensors")):
        with pytest.raises(UserError, match="does not end in"):
            export_model(loaded, tmp_path / wrong, form)


def test_inspect_says_what_is_there(tmp_path, tokenizer_file):
    small_trainer(tmp_path / "run").fit(stop_after=2)
    run = describe(tmp_path / "run")
    assert run["kind"] == "run" and run["checkpoints"] == ["step-000000002.pt"]
    assert run["newest"]["step"] == 2 and run["newest"]["projector"] is True
    checkpoint = describe(tmp_path / "run" / "ckpt.pt")
    assert checkpoint["format_version"] == 1 and checkpoint["model"]["width"] == 8
    assert describe(GOLDEN / "llamagen_gpt_tiny.pt")["model"]["vocab_size"] == 48
    assert describe(tokenizer_file)["stride"] == 4
    json.dumps([run, checkpoint])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a run folder nor a code store"):
        describe(tmp_path / "empty")
    with pytest.raises(UserError, match="no such file or folder"):
        describe(tmp_path / "nothing")
    torch.save(small_model().norm.state_dict(), tmp_path / "other.pt")
    with pytest.raises(UserError, match="neither a checkpoint of star train nor a LlamaGen one"):
        describe(tmp_path / "other.pt")
