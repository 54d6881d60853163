"""Mistakes of the user, command by command: one line that says what to do, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import GOLDEN, ROOT, TINY, cli, refused, small_model
from PIL import Image

from star.base.errors import UserError
from star.model.sampler import generate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "star: no such command 'trian'. Did you mean 'train'?; see star --help"),
        (["--bogus"], "star: no such option: --bogus; see star --help"),
        (
            ["train", "--lrr", "1"],
            "star train: no such option: --lrr (Possible options: --layers, --lr",
        ),
        (["train", "--lr", "abc"], "star train: invalid value for '--lr'"),
        (["train", "--lr", "abc"], "'abc'"),
        (["train", "--lr"], "star train: option '--lr' requires an argument; see star train --help"),
        (["train", "--objective", "x"], "'x' is not one of 'star', 'ar'"),
        (["train", "extra"], "unexpected extra argument"),
        (["train", "--nproc", "two"], "star train: invalid value for '--nproc'"),
        (
            ["bench", "sample", "--runs", "1"],
            "(Possible options: --rounds); see star bench sample --help",
        ),
        (["bench", "smaple"], "star bench: no such command 'smaple'"),
        (["codes", "export", "--bogus"], "--bogus; see star codes export --help"),
        (["token-invariance"], "star token-invariance: missing argument 'image'"),
    ],
)
def test_a_mistake_of_usage_is_one_line_with_a_hint(star, tmp_path, arguments, message):
    assert refused(star(*arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_star_alone_shows_the_help_and_short_options_work(star):
    assert star()[0] == 0 and "Commands" in star()[1]
    assert star("train", "-h")[1] == star("train", "--help")[1] != ""
    code, out, _ = star("--version")
    assert code == 0 and out.startswith("star-autoregressive ") and out.count("\n") == 1


def test_a_wish_to_stop_is_one_line_everywhere(star, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("star.training.inspect.describe", interrupt)
    assert star("inspect", "x") == (130, "", "Interrupted.\n")


@pytest.mark.slow
def test_ctrl_c_outside_training_is_one_line(tmp_path):
    command = [sys.executable, "-m", "cli.main", "reproduce", "digits", "--out", str(tmp_path / "r")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "STAR_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "cache").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    # Interrupted in the middle of an import, Python ends by the signal; shells show 130 for both.
    assert process.returncode in (130, -signal.SIGINT) and err == "Interrupted.\n"


@pytest.mark.slow
def test_several_processes_refuse_with_one_line():
    done = cli("train", "--nproc", 2, "--data", "nowhere", timeout=300)
    assert refused((done.returncode, done.stdout, done.stderr), "no such file or folder: nowhere")


@pytest.mark.parametrize(
    "options", [["--lr", "1"], ["--preset", "B"], ["--objective", "star"], ["--run", "x"]]
)
def test_resume_refuses_what_it_would_ignore(star, trained, options):
    assert refused(star("train", "--resume", trained, *options), "--resume takes all settings from")


@pytest.mark.parametrize("edit", [("lr", 0.5), ("objective", "views", 3)])
def test_an_edited_config_is_no_silent_wish(star, trained, tmp_path, edit):
    run = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    *tables, key, value = edit
    table = config[tables[0]] if tables else config
    table[key], before = value, table[key]
    (run / "config.json").write_text(json.dumps(config))
    name = ".".join([*tables, key])
    result = star("train", "--resume", run)
    assert refused(result, f"{name} is {value}, not {before};", "delete config.json", "--config")
    assert json.loads((run / "config.json").read_text()) == config
    (run / "config.json").unlink()
    code, out, err = star("train", "--resume", run)
    assert code == 0 and "finished" in out, err
    assert (run / "config.json").read_text() == (trained / "config.json").read_text()


def test_a_part_can_be_left_behind_only_on_resume(star, trained, tmp_path):
    assert refused(
        star("train", "--without", "optimizer"), "--without has an effect only with --resume"
    )
    run = shutil.copytree(trained, tmp_path / "run")
    content = torch.load(run / "ckpt.pt", weights_only=True)
    del content["optimizer"]
    for path in run.glob("*.pt"):
        path.unlink()
    torch.save(content, run / "ckpt.pt")
    assert refused(star("train", "--resume", run), "has no optimizer", "--without optimizer")
    code, out, err = star("train", "--resume", run, "--without", "optimizer,projector")
    assert code == 0 and "finished" in out, err


def test_an_export_does_not_replace_the_checkpoint_it_comes_from(star, trained):
    before = (trained / "ckpt.pt").read_bytes()
    assert refused(star("export", trained, trained / "ckpt.pt"), "is the checkpoint itself")
    assert (trained / "ckpt.pt").read_bytes() == before


def test_options_of_the_dry_run_belong_to_it(star, trained):
    assert refused(star("train", "--tflops", "1"), "--tflops has an effect only with --dry-run")
    code, out, err = star("train", "--resume", trained, "--dry-run")
    assert code == 0 and "2 layers, 2 heads, width 32" in out, err


@pytest.mark.parametrize(("option", "said"), [("--heads", 4), ("--grid", 4)])
def test_a_shape_that_contradicts_the_file_is_refused(star, trained, tokenizer_file, option, said):
    golden, name = GOLDEN / "llamagen_gpt_tiny.pt", option.strip("-")
    assert refused(star("inspect", golden, option, 2), f"{name} is 2; {golden} says {said}: leave")
    assert refused(star("inspect", golden, option, 0), f"{name} is 0; expected at least 1")
    assert star("inspect", golden, option, said)[0] == 0
    for command in (("sample", trained), ("inspect", trained), ("inspect", tokenizer_file)):
        assert refused(star(*command, option, 2), f"leave {option} out")


def test_a_bad_image_can_be_skipped_and_every_later_command_finds_the_codes(
    star, tmp_path, digit_folder, tokenizer_file
):
    shutil.copytree(digit_folder, tmp_path / "images")
    (tmp_path / "images" / "train" / "one" / "text.jpg").write_text("I am no picture")
    options = ("--data", "images", "--tokenizer", tokenizer_file, "--run", "r", *TINY)
    assert refused(star("train", *options), "text.jpg", "remove it or pass --skip-bad")
    code, _, err = star("train", *options, "--skip-bad", "--stop-after", 2)
    assert code == 0, err
    assert star("train", "--resume", "r")[0] == 0
    assert star("probe", "r", "--steps", 1)[0] == 0


@pytest.mark.parametrize("command", ["train", "reproduce"])
def test_a_cache_that_cannot_be_written_is_refused_before_the_work(
    star, tmp_path, monkeypatch, command
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "file" / "cache"))
    assert refused(star(command), "file/cache: Not a directory", "set STAR_CACHE")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_chain_refuses_a_source_before_it_writes(star, tmp_path, digit_folder, stores):
    assert refused(star("reproduce", "photos"), "photos has no val split; the figures need train, val")
    assert refused(star("reproduce", stores), "holds codes only; the figures need images")
    options = ("reproduce", digit_folder, "--out", "r", "--batch-size")
    assert refused(star(*options, 100), "batch_size is 100; ", "has only 46 training images")
    shutil.copytree(digit_folder / "train", tmp_path / "lone" / "train")
    assert refused(star("reproduce", "lone"), "lone has no test split")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "r").exists()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "plan.json").write_text("{garbled")
    assert refused(star(*options, 4), "r/plan.json is not valid JSON")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "--layer", ""], "layer is ''; expected all, a number or numbers such as 2,4,6"),
        (["attn-maps", "--layers", ""], "layer is ''"),
        (["attn-maps", "--at", ""], "steps are ''; expected numbers such as 12,40,64"),
        (["attn-maps", "--at", "3", "--steps", "2"], "--at 3 and --steps 2 both name the steps"),
    ],
)
def test_empty_and_contradicting_choices_are_refused(star, trained, arguments, message):
    command, *options = arguments
    assert refused(star(command, trained, *options), message)


def test_a_layer_named_twice_is_one_and_every_file_written_is_named(star, trained, tmp_path):
    code, out, err = star("probe", trained, "--layer", "1,1", "--steps", "2", "--out", "p")
    assert code == 0, err
    (said,) = [line for line in out.splitlines() if line.startswith("written to p: ")]
    named = set(said.removeprefix("written to p: ").split(", "))
    assert named == {path.name for path in (tmp_path / "p").iterdir()}
    assert "probe-logreg-layer-1-teacher-steps-2.csv" in named


def test_an_image_of_too_many_pixels_is_one_line(tmp_path, tokenizer_file):
    Image.new("1", (10_001, 10_000)).save(tmp_path / "vast.png")
    done = cli("token-invariance", tmp_path / "vast.png", "--tokenizer", tokenizer_file)
    assert refused((done.returncode, done.stdout, done.stderr), "10001 x 10000 pixels; at most 100")


def test_labels_are_whole_numbers():
    with pytest.raises(UserError, match="labels are float32; expected whole numbers"):
        generate(small_model(), [3.5], seeds=[0])


def test_more_steps_than_a_picture_shows_are_refused_before_the_work(star, trained, tmp_path):
    result = star("attn-maps", trained, "--steps", "17", "--out", "maps")
    assert refused(result, "17 steps were asked for; one picture shows up to 16", "--at 12,40,64")
    assert list(tmp_path.iterdir()) == []


def test_the_option_that_was_given_is_the_one_that_is_blamed(star, trained, tmp_path):
    assert refused(star("watch", "nope"), "there is no run in nope")
    assert refused(star("bench", "loader", "--images", "0"), "images is 0; expected at least a batch")
    code, out, err = star("train", "--dry-run", "--tflops", "0")
    assert refused((code, out, err), "tflops is 0.0") and not out, "nothing before the refusal"
    code, out, err = star("export", trained, "x.safetensors")
    assert refused((code, out, err), "x.safetensors does not end in .pt") and not out
    assert list(tmp_path.iterdir()) == []
