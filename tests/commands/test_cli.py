"""The command line as a user meets it: what it writes, what it prints, and how it refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import GOLDEN, ROOT, TINY, refused


def test_help_names_every_command(star):
    code, out, _ = star("--help")
    assert code == 0
    for name in (
        "reproduce", "train", "watch", "plot", "probe", "attn-maps", "attention-stats", "attribute",
        "ablate", "token-invariance", "codebook", "nll", "evaluate", "exposure", "train-tokenizer",
        "codes", "train-classifier",
        "bench", "sample", "tokenize", "inspect", "export", "doctor",
    ):  # fmt: skip
        assert f" {name} " in out


def test_train_help_has_an_option_for_every_field_of_the_objective(star, monkeypatch):
    from dataclasses import fields

    from star.training.config import ObjectiveConfig

    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = star("train", "--help")
    flat = out.replace("\n", " ")
    for field in fields(ObjectiveConfig):
        assert "--" + field.name.replace("_", "-") in flat, field.name


def test_train_writes_a_run_that_says_what_it_is(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "metrics.jsonl", "ckpt.pt", "tokenizer.safetensors"} <= names
    config = json.loads((trained / "config.json").read_text())
    assert config["model"]["layers"] == 2 and config["model"]["num_classes"] == 2
    assert config["objective"]["mask_ratio"] == 0.25
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and "val_nll" in rows[-1]


def test_a_saved_config_reproduces_the_run(star, trained, tmp_path, tokenizer_file):
    again = tmp_path / "again"
    code, _out, err = star(
        "train", "--config", trained / "config.json", "--tokenizer", tokenizer_file, "--run", again
    )
    assert code == 0, err
    a, b = (torch.load(run / "ckpt.pt", weights_only=True) for run in (trained, again))
    assert all(torch.equal(a["teacher"][key], b["teacher"][key]) for key in a["teacher"])


def test_stop_and_resume_equal_one_run(star, trained, tmp_path, digit_folder, tokenizer_file):
    run = tmp_path / "parts"
    data = ("--data", digit_folder, "--tokenizer", tokenizer_file)
    code, out, err = star("train", *data, "--run", run, *TINY, "--stop-after", 2)
    assert code == 0 and f"star train --resume {run}" in out.replace("\n", ""), (out, err)
    code, out, err = star("train", "--resume", run)
    assert code == 0 and "finished" in out, (out, err)
    a, b = (torch.load(folder / "ckpt.pt", weights_only=True) for folder in (trained, run))
    assert all(torch.equal(a["student"][key], b["student"][key]) for key in a["student"])
    assert refused(star("train", "--resume", run, "--lr", "1"), "--resume takes all settings")
    behind = star("train", "--resume", run, "--stop-after", 3)
    assert refused(behind, "stop_after is 3, but the run is at step 4 already")


def test_the_baseline_trains_and_refuses_options_it_does_not_use(
    star, tmp_path, digit_folder, tokenizer_file
):
    data = ("--data", digit_folder, "--tokenizer", tokenizer_file)
    code, _out, err = star("train", "--objective", "ar", *data, "--run", tmp_path / "ar", *TINY)
    assert code == 0, err
    row = json.loads((tmp_path / "ar" / "metrics.jsonl").read_text().splitlines()[0])
    assert "mim" not in row and row["loss"] == row["ar"]
    assert refused(
        star("train", "--objective", "ar", "--mask-ratio", "0.5"), "uses none of: --mask-ratio"
    )


def test_attention_maps_of_the_first_test_image_a_photograph_and_codes(star, trained, tmp_path):
    code, out, err = star("attn-maps", trained)
    assert code == 0 and "the model is shown the class" in out, (out, err)
    code, out, err = star(
        "attn-maps", trained, "flower.jpg", "--layers", "2", "--steps", "3", "--out", "maps"
    )
    assert code == 0 and "from 640 x 427" in out and "null class" in out, (out, err)
    assert (tmp_path / "maps" / "attn-maps-flower-jpg-teacher.png").stat().st_size > 5000
    np.save(tmp_path / "codes.npy", np.arange(16))
    golden = GOLDEN / "llamagen_gpt_tiny.pt"
    code, out, err = star("attn-maps", golden, "--codes", "codes.npy", "--class", "3", "--out", "g")
    assert code == 0 and "no tokenizer: the picture is left grey" in out, (out, err)
    assert (tmp_path / "g" / "attn-maps-codes-npy-teacher.pdf").exists()


def test_attention_map_refusals(star, trained, tmp_path):
    golden = GOLDEN / "llamagen_gpt_tiny.pt"
    assert refused(star("attn-maps", golden), "name an image, or give --codes")
    assert refused(star("attn-maps", golden, "flower.jpg"), "give --tokenizer")
    assert refused(star("attn-maps", trained, "--layers", "3"), "layer 3 does not exist")
    assert refused(star("attn-maps", trained, "--at", "65"), "step 65 does not exist")
    wrong = "head is 9; expected mean, max, all, rollout or 1 to 2"
    assert refused(star("attn-maps", trained, "--head", "9"), wrong)
    assert refused(star("attn-maps", trained, "missing.png"), "no such image")
    assert refused(star("attn-maps", trained, "--class", "5"), "class 5 does not exist")
    np.save(tmp_path / "short.npy", np.arange(3))
    assert refused(star("attn-maps", trained, "--codes", "short.npy"), "does not hold 64 integers")
    (tmp_path / "text.npy").write_text("no array")
    assert refused(star("attn-maps", trained, "--codes", "text.npy"), "cannot read text.npy")


def test_token_invariance_on_a_photograph(star, tmp_path, tokenizer_file):
    code, out, err = star("token-invariance", "china.jpg", "--tokenizer", tokenizer_file)
    assert code == 0 and "of 64 indices change when shifted by 1 px" in out, (out, err)
    table = pd.read_csv(tmp_path / "token-invariance" / "tokens-china.csv")
    assert len(table) == 64
    assert (table["changed"] == (table["index"] != table["view_index"])).all()
    code, out, _ = star("token-invariance", "china.jpg", "--tokenizer", tokenizer_file, "--shift", "0")
    assert "0 of 64 indices change" in out and "100.0 % unchanged" in out


def test_token_invariance_refusals(star, tmp_path, tokenizer_file):
    options = ("--tokenizer", tokenizer_file)
    (tmp_path / "text.jpg").write_text("I am no picture")
    assert refused(star("token-invariance", "text.jpg", *options), "text.jpg")
    (tmp_path / "empty.png").touch()
    assert refused(star("token-invariance", "empty.png", *options), "empty.png")
    assert refused(star("token-invariance", "nothing.png", *options), "no such image")
    assert refused(star("token-invariance", "china.jpg", *options, "--size", "33"), "multiple of")
    assert not (tmp_path / "token-invariance").exists()


def test_sample_writes_a_grid_and_the_codes(star, trained, tmp_path):
    options = ("--each", "2", "--class", "0,1,2", "--seed", "5", "--out", "s")
    code, _out, err = star("sample", trained, *options)
    assert code == 0, err
    with np.load(tmp_path / "s" / "samples-teacher.npz") as first:
        assert first["arr_0"].shape == (6, 32, 32, 3) and first["arr_0"].dtype == np.uint8
        assert first["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        tokens = first["tokens"]
    star("sample", trained, *options)
    with np.load(tmp_path / "s" / "samples-teacher.npz") as again:
        assert np.array_equal(again["tokens"], tokens)
    assert refused(star("sample", trained, "--class", "7"), "class 7 does not exist")
    assert refused(star("sample", trained, "--temperature", "0"), "temperature is 0.0")


def test_tokenize_verify_and_train_from_the_stores(star, digit_folder, tokenizer_file, tmp_path):
    code, out, err = star("tokenize", digit_folder, "codes", "--tokenizer", tokenizer_file)
    assert code == 0 and "test: 16 images x 1 views x 64 tokens, 2 classes" in out, (out, err)
    code, out, err = star("tokenize", "--verify", "codes")
    assert code == 0 and out.count("as their manifest says") == 3, (out, err)
    code, out, err = star("train", "--data", "codes", "--run", "r", *TINY)
    assert code == 0, err
    assert (tmp_path / "r" / "tokenizer.safetensors").exists()
    code, out, err = star("attn-maps", "r", "--layers", "1", "--steps", "2")
    assert code == 0 and "decoded from the codes" in out, (out, err)
    raw = bytearray((tmp_path / "codes" / "train" / "codes.npy").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "codes" / "train" / "codes.npy").write_bytes(raw)
    assert refused(star("tokenize", "--verify", "codes"), "codes.npy has sha256")


def test_codes_that_do_not_fit_the_model(star, trained, digit_folder, tokenizer_file, tmp_path):
    code, _, err = star(
        "tokenize", digit_folder, "small", "--tokenizer", tokenizer_file, "--size", "16"
    )
    assert code == 0, err
    result = star("probe", trained, "--layer", "1", "--data", "small")
    assert refused(result, "have grid 4; the model was built for 8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "no such file or folder: nowhere"),
        (["--mask-ratio", "1"], "mask ratio is 1.0"),
        (["--mask-ratio", "-0.1"], "mask ratio is -0.1"),
        (["--batch-size", "1"], "batch_size is 1; the contrastive losses need"),
        (["--preset", "huge"], "preset is 'huge'"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--device", "toaster"], "device is 'toaster'"),
        (["--config", "none.toml"], "cannot read settings from none.toml"),
        (["--resume", "none"], "none holds no checkpoint (ckpt.pt or step-*.pt)"),
    ],
)
def test_train_refusals_leave_nothing_behind(star, tmp_path, options, message):
    assert refused(star("train", *options), message)
    assert list(tmp_path.iterdir()) == []


def test_train_refusals_that_need_data(star, tmp_path, digit_folder, tokenizer_file):
    data = ("--data", digit_folder, "--tokenizer", tokenizer_file, "--run", "r")
    assert refused(
        star("train", *data, "--contrast-steps", "65"), "contrast_steps is 65; only 64 steps"
    )
    assert refused(star("train", *data, "--batch-size", "1000"), "training split has only")
    assert refused(star("train", *data, "--contrast-layer", "7"), "layers 1 to 6")
    (tmp_path / "empty").mkdir()
    assert refused(star("train", "--data", "empty"), "empty")
    (tmp_path / "one" / "train" / "only").mkdir(parents=True)
    (tmp_path / "one" / "train" / "only" / "a.png").touch()
    assert refused(star("train", "--data", "one", "--tokenizer", tokenizer_file), "one class")
    assert not (tmp_path / "r").exists() and not (tmp_path / "runs").exists()


def test_a_bad_image_is_named_and_can_be_skipped(star, tmp_path, digit_folder, tokenizer_file):
    import shutil

    shutil.copytree(digit_folder, tmp_path / "images")
    (tmp_path / "images" / "train" / "one" / "text.jpg").write_text("I am no picture")
    whole = next((tmp_path / "images" / "train" / "zero").glob("*.png"))
    (tmp_path / "images" / "train" / "zero" / "cut.png").write_bytes(whole.read_bytes()[:60])
    options = ("tokenize", "images", "codes", "--tokenizer", tokenizer_file)
    assert refused(star(*options), "--skip-bad")
    assert not (tmp_path / "codes").exists()
    code, out, err = star(*options, "--skip-bad")
    assert code == 0 and "text.jpg" in out and "cut.png" in out, (out, err)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves(tmp_path, digit_folder, tokenizer_file, number, code):
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "cli.main", "train", "--data", str(digit_folder), "--tokenizer",
        str(tokenizer_file), "--run", str(run), *TINY, "--max-steps", "100000",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=300) == code
    step = torch.load(run / "ckpt.pt", weights_only=True)["step"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert step == last["step"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shift", "1000"], "shift is 1000 pixels; expected less than the image's 32"),
        (["--shift", "nan"], "shift is nan"),
        (["--scale", "0"], "scale is 0; expected 0.1 to 10"),
        (["--scale", "nan"], "scale is nan"),
        (["--rotate", "inf"], "rotate is inf"),
        (["--size", "0"], "size is 0; expected a multiple"),
        (["--size", "-4"], "size is -4"),
    ],
)
def test_views_that_make_no_sense_are_refused(star, tmp_path, tokenizer_file, options, message):
    assert refused(
        star("token-invariance", "china.jpg", "--tokenizer", tokenizer_file, *options), message
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--each", "0"], "each is 0; expected 1 to 100"),
        (["--seed", "-1"], "seed is -1; expected at least 0"),
        (["--class", ""], "class is ''"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-p", "nan"], "top_p is nan"),
        (["--cfg-scale", "inf"], "cfg_scale is inf"),
        (["--top-k", "-1"], "top_k is -1"),
    ],
)
def test_sampling_options_that_make_no_sense_are_refused(star, trained, options, message):
    assert refused(star("sample", trained, *options), message)


def test_a_folder_that_cannot_be_written_is_one_line(star, trained, tmp_path):
    (tmp_path / "file").touch()
    assert refused(star("sample", trained, "--each", "1", "--out", "file/inside"), "file")
    assert refused(star("export", trained, tmp_path / "file" / "x.pt"), "file")
    assert refused(star("train", "--stop-after", "0"), "stop-after is 0")


@pytest.mark.slow
def test_runs_of_one_name_are_told_apart_by_their_folders(star, trained, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "same").mkdir(parents=True)
        for name in ("ckpt.pt", "tokenizer.safetensors"):
            (tmp_path / folder / "same" / name).write_bytes((trained / name).read_bytes())
    code, out, err = star(
        "attention-stats",
        "one/same",
        "two/same",
        "one/same",
        "--images",
        "2",
        "--at",
        "9",
        "--out",
        "s",
    )
    assert code == 0, err
    for name in ("ST-AR one/same:", "ST-AR two/same:", "ST-AR one/same again:"):
        assert name in out


def test_a_place_that_cannot_hold_results_is_refused_at_once(star, trained, tmp_path):
    (tmp_path / "file").write_text("")
    for command in ("attention-stats", "ablate", "attribute", "attn-maps", "probe"):
        result = star(command, trained, "--out", "file")
        assert refused(result, "--out file is a file; expected a folder"), command
        assert refused(star(command, trained, "--out", "file/deep"), "is a file"), command
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert refused(star("ablate", trained, "--out", "locked/x"), "no permission in")
