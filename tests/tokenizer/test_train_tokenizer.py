"""``star train-tokenizer``: batches, exact resume, signals, kills, the run folder and the card."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, TINY_VQ, refused
from PIL import Image
from small_runs import rows, timeless

from star.base.errors import UserError
from star.base.files import sha256_file
from star.base.randomness import generator
from star.images.open import open_images, open_source
from star.images.views import random_crop
from star.tokenizer.batches import TokenizerBatches, held_out_images
from star.tokenizer.config import TokenizerConfig
from star.tokenizer.file import load_tokenizer, tokenizer_sha256
from star.tokenizer.quality import evaluate_tokenizer
from star.tokenizer.trainer import TokenizerTrainer

QUICK = TokenizerConfig(
    max_steps=12, batch_size=8, warmup_steps=2, revive_every=4, precision="fp32", shape=TINY_VQ,
    sizes=(16, 32), log_every=1, validate_every=6, save_every=5, val_images=4, draw_every=0,
)  # fmt: skip
OPTIONS = [
    "--max-steps", "6", "--batch-size", "4", "--sizes", "16", "--codebook-size", "16",
    "--log-every", "2", "--validate-every", "3", "--save-every", "3", "--draw-every", "3",
    "--val-images", "4", "--precision", "fp32", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(digit_folder):
    return open_source(digit_folder)


# ---- batches -------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step(source):
    batches = TokenizerBatches(source=source, config=QUICK)
    whole = list(batches.stream(0, 8))
    assert {tuple(batch.shape) for batch in whole} == {(8, 3, 16, 16), (2, 3, 32, 32)}
    for step in (6, 3):
        (again,) = batches.stream(step, step + 1)
        assert torch.equal(again, whole[step])
    other = TokenizerBatches(source=source, config=replace(QUICK, seed=1))
    assert not any(
        one.shape == two.shape and torch.equal(one, two)
        for one, two in zip(whole, other.stream(0, 8), strict=True)
    )
    assert list(batches.stream(3, 3)) == []


def test_views_are_those_of_the_setting(source):
    """Every view of a batch is found again by cutting the image it says it is."""
    plain = TokenizerBatches(source=source, config=replace(QUICK, views="plain", sizes=(32,)))
    _, picks = plain._draw(0)
    (batch,) = plain.stream(0, 1)
    for pixels_CHW, pick in zip(batch, picks, strict=True):
        image = np.asarray(source.splits["train"].load(int(pick)))
        assert np.array_equal(pixels_CHW.permute(1, 2, 0).numpy(), image)

    crop = TokenizerBatches(source=source, config=replace(QUICK, views="crop"))
    for step in (0, 1, 2, 3):
        size, picks = crop._draw(step)
        rng = generator(0, "tokenizer-view", step, 0)
        expected = random_crop(source.splits["train"].load(int(picks[0])), size, rng)
        (batch,) = crop.stream(step, step + 1)
        assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), np.asarray(expected))
    digits = TokenizerBatches(source=open_source("digits"), config=replace(QUICK, sizes=()))
    assert digits.sizes == (32,)
    (batch,) = digits.stream(0, 1)
    assert batch.shape == (8, 3, 32, 32)


def test_larger_views_are_enlarged_or_tiled(tmp_path):
    """Images of one colour each: an enlargement has one colour, a mosaic of 8-pixel tiles several."""
    for split, label, count in (
        ("train", "a", 6),
        ("train", "b", 6),
        ("test", "a", 1),
        ("test", "b", 1),
    ):
        (tmp_path / split / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = (20 * i, 255 - 20 * i, 100 if label == "a" else 200)
            Image.new("RGB", (8, 8), colour).save(tmp_path / split / label / f"{i}.png")
    base = replace(QUICK, sizes=(8, 32), batch_size=64)
    seen = {}
    for mosaic in (0.0, 1.0):
        batches = TokenizerBatches(source=open_source(tmp_path), config=replace(base, mosaic=mosaic))
        found = [batch for batch in batches.stream(0, 12) if batch.shape[-1] == 32]
        colours = [len(image.flatten(1).unique(dim=1).T) for batch in found for image in batch]
        seen[mosaic] = colours
    assert set(seen[0.0]) == {1}
    assert min(seen[1.0]) > 4


def test_bad_images_are_named_or_passed_over(digit_folder, tmp_path):
    import shutil

    shutil.copytree(digit_folder, tmp_path / "images")
    victim = next((tmp_path / "images" / "train" / "zero").iterdir())
    victim.write_bytes(b"")
    images = open_source(tmp_path / "images")
    config = replace(QUICK, batch_size=32, sizes=(16,))
    with pytest.raises(UserError, match=victim.name):
        list(TokenizerBatches(source=images, config=config).stream(0, 6))
    whole = list(TokenizerBatches(source=images, config=config, skip_bad=True).stream(0, 6))
    assert all(len(batch) == 32 for batch in whole)

    run = tmp_path / "run"  # the steps before it are not lost
    small = replace(QUICK, batch_size=4, sizes=(16,), save_every=1000, max_steps=60)
    with pytest.raises(UserError, match=rf"{victim.name}.*saved at step \d+: --resume"):
        TokenizerTrainer(small, images, run).fit()
    trainer = TokenizerTrainer.resume(run, images, skip_bad=True)
    assert trainer.step > 0
    assert trainer.fit().finished
    assert load_tokenizer(run).card["skipped"] == [f"train/zero/{victim.name}"]
    assert TokenizerTrainer.resume(run, images).batches.skipped == {f"train/zero/{victim.name}"}


def test_a_folder_without_classes_will_do(digit_folder):
    source = open_images(digit_folder / "train" / "zero")
    assert [len(split) for split in source.splits.values()] == [23, 1]
    (batch,) = TokenizerBatches(source=source, config=QUICK).stream(0, 1)
    assert batch.shape[1:] in ((3, 16, 16), (3, 32, 32))
    assert open_images(digit_folder).class_names == ("one", "zero")
    assert open_images("digits").name == "digits"


def test_held_out_images_are_drawn_by_the_seed(source):
    split = source.splits["test"]
    every = held_out_images(split, 32, None, 0)
    assert every.shape == (len(split), 3, 32, 32)
    some = held_out_images(split, 32, 5, 0)
    assert all(any(torch.equal(image, other) for other in every) for image in some)
    assert torch.equal(some, held_out_images(split, 32, 5, 0))
    assert not torch.equal(some, held_out_images(split, 32, 5, 1))


# ---- the trainer ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(source, tmp_path_factory):
    run = tmp_path_factory.mktemp("straight")
    result = TokenizerTrainer(QUICK, source, run).fit()
    assert result.finished and result.step == 12
    return run


def test_rows_and_files_of_a_run(straight, source):
    found = rows(straight)
    assert [row["step"] for row in found] == list(range(1, 13))
    validated = [row["step"] for row in found if "val_psnr" in row]
    assert validated == [6, 12]
    assert {path.name for path in straight.iterdir()} == {
        "ckpt.pt", "config.json", "metrics.jsonl", "step-000000010.pt", "step-000000012.pt",
        "tokenizer.safetensors",
    }  # fmt: skip
    model = load_tokenizer(straight)
    assert model.card["steps"] == 12 and model.card["sizes"] == [16, 32]
    images = held_out_images(source.splits["val"], 16, 4, 0)
    # 1e-3 dB: the saved tokenizer runs in another memory layout
    assert model.card["psnr"] == pytest.approx(evaluate_tokenizer(model, images)["psnr"], abs=1e-3)
    assert found[-1]["val_psnr"] == pytest.approx(model.card["psnr"], abs=1e-6)


@pytest.mark.parametrize("stop", [3, 5, 11])
def test_a_resumed_run_is_the_same_run(straight, source, tmp_path, stop):
    first = TokenizerTrainer(QUICK, source, tmp_path).fit(stop_after=stop)
    assert (first.step, first.finished) == (stop, False)
    second = TokenizerTrainer.resume(tmp_path, source).fit()
    assert second.finished
    assert list(map(timeless, rows(tmp_path))) == list(map(timeless, rows(straight)))
    same = [tokenizer_sha256(load_tokenizer(run)) for run in (tmp_path, straight)]
    assert same[0] == same[1]


def test_a_request_to_stop_saves(source, tmp_path):
    calls = []
    trainer = TokenizerTrainer(QUICK, source, tmp_path)
    result = trainer.fit(should_stop=lambda: calls.append(None) or len(calls) > 4)
    assert (result.step, result.finished) == (4, False)
    assert TokenizerTrainer.resume(tmp_path, source).step == 4


def test_rows_after_the_last_checkpoint_are_made_again(straight, source, tmp_path):
    TokenizerTrainer(QUICK, source, tmp_path).fit(stop_after=5)
    with open(tmp_path / "metrics.jsonl", "a") as file:  # a killed run that got to step 7
        file.write(json.dumps({"step": 6, "loss": 9.0}) + "\n" + json.dumps({"step": 7}) + "\n{")
    TokenizerTrainer.resume(tmp_path, source).fit()
    assert list(map(timeless, rows(tmp_path))) == list(map(timeless, rows(straight)))


def test_what_cannot_be_resumed_is_refused(straight, source, tmp_path, digit_folder):
    with pytest.raises(UserError, match="no checkpoint"):
        TokenizerTrainer.resume(tmp_path, source)
    with pytest.raises(UserError, match="other train images"):
        TokenizerTrainer.resume(straight, open_source("digits"))
    small = replace(QUICK, disc_weight=0.5, disc_start=0, disc_layers=3)
    with pytest.raises(UserError, match="16 pixels are too small .* needs 24"):
        TokenizerTrainer(small, source, tmp_path)
    trainer = TokenizerTrainer.resume(straight, source)
    with pytest.raises(UserError, match="stop_after is 3"):
        trainer.fit(stop_after=3)
    other = tmp_path / "other"
    TokenizerTrainer(QUICK, source, other).fit(stop_after=5)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "lr": 1.0}))
    with pytest.raises(UserError, match=r"lr is 1\.0, not 0\.002"):
        TokenizerTrainer.resume(other, source)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command_run(tmp_path_factory, digit_folder):
    run = tmp_path_factory.mktemp("command") / "run"
    done = _start(["train-tokenizer", digit_folder, "--run", run, *OPTIONS]).communicate()
    assert (run / "quality.csv").exists(), done
    return run, done[0].decode()


def _start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_the_command_trains_measures_and_says_so(command_run):
    run, out = command_run
    assert "test, 16 images at 16 px: PSNR" in out and "of 16 codes" in out
    card = load_tokenizer(run).card
    assert card["measured_on"].endswith("test, 16 images")
    assert {"psnr", "ssim", "codes_used", "perplexity", "patch_fd", "seed", "command"} <= set(card)
    table = pd.read_csv(run / "quality.csv").set_index("measure")
    assert table.loc["psnr", "value"] == pytest.approx(card["psnr"], rel=1e-4)
    assert table.loc["psnr", "low"] < card["psnr"] < table.loc["psnr", "high"]
    assert json.loads((run / "quality.json").read_text())["images"] == 16
    pictures = sorted(path.name for path in (run / "reconstructions").iterdir())
    assert pictures == ["step-000000003.png", "step-000000006.png"]


def test_the_tokenizer_serves_the_other_commands(star, command_run, digit_folder):
    run, _ = command_run
    code, out, err = star("tokenize", digit_folder, "codes", "--tokenizer", run, "--size", 16)
    assert code == 0, err
    assert "16 tokens" in out
    code, out, err = star("inspect", run)
    assert code == 0, err
    assert "tokenizer run" in out and "patch_fd" in out
    code, out, err = star("watch", run, "--once")
    assert code == 0 and "val PSNR" in out, err
    code, out, err = star("plot", run, "--out", "plot")
    assert code == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on(star, digit_folder, tmp_path, number):
    run = tmp_path / "run"
    options = ["--max-steps", "4000", "--name", "mine", *OPTIONS[2:]]
    process = _start(["train-tokenizer", digit_folder, "--run", run, *options])
    _wait_for(run / "ckpt.pt", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number, err
    assert b"Traceback" not in err and b"go on with: star train-tokenizer --resume" in out
    step = rows(run)[-1]["step"]
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    code, out, err = star("train-tokenizer", "--resume", run, "--stop-after", 4 * (step // 4 + 2))
    assert code == 0, err
    assert "saved, go on with" in out
    card = load_tokenizer(run).card
    assert card["name"] == "mine" and f"--run {run}" in card["command"]  # of the run's beginning


@pytest.mark.slow
def test_a_kill_leaves_whole_files(source, digit_folder, tmp_path):
    run = tmp_path / "run"
    options = ["--max-steps", "4000", *OPTIONS[2:]]
    process = _start(["train-tokenizer", digit_folder, "--run", run, *options])
    _wait_for(run / "tokenizer.safetensors", process)
    process.kill()
    process.communicate()
    assert TokenizerTrainer.resume(run, source).step >= 3
    load_tokenizer(run)


def _wait_for(path, process):
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


def test_refusals(star, command_run, digit_folder, tmp_path, tokenizer_file):
    run, _ = command_run
    assert refused(star("train-tokenizer"), "no SOURCE", "star train-tokenizer SOURCE")
    assert refused(star("train-tokenizer", "nowhere"), "no such file or folder: nowhere")
    (tmp_path / "empty").mkdir()
    assert refused(star("train-tokenizer", "empty"), "empty holds no image")
    (tmp_path / "empty").rmdir()
    assert refused(star("train-tokenizer", digit_folder, "--run", run), "already holds a run")
    assert refused(star("train-tokenizer", digit_folder, "--sizes", "30"), "multiples of the stride")
    assert refused(star("train-tokenizer", digit_folder, "--sizes", "a,b"), "expected pixels")
    assert refused(star("train-tokenizer", digit_folder, "--lr", "0"), "tokenizer lr is 0")
    assert refused(star("train-tokenizer", digit_folder, "--codebook-size", "0"), "codebook_size")
    assert refused(star("train-tokenizer", digit_folder, "--lpips-weight", "1"), "--lpips-vgg")
    assert refused(star("train-tokenizer", digit_folder, "--lpips-vgg", "x"), "--lpips-weight")
    assert refused(star("train-tokenizer", digit_folder, "--inception", "x.pth"), "no such file")
    assert refused(star("train-tokenizer", digit_folder, "--test-images", "1"), "at least 2")
    assert refused(star("train-tokenizer", "--resume", run, "--lr", "1e-3"), "--resume takes all")
    assert refused(star("train-tokenizer", "--resume", tmp_path), "no checkpoint")
    assert list(tmp_path.iterdir()) == []


def test_a_model_run_is_no_tokenizer_run_and_the_other_way_round(star, trained, command_run):
    assert refused(star("train-tokenizer", "--resume", trained), "star train-tokenizer")
    assert refused(star("train", "--resume", command_run[0]), "not a checkpoint of star train")
    before = sha256_file(command_run[0] / "ckpt.pt")
    assert refused(star("probe", command_run[0]), "ckpt.pt")
    assert sha256_file(command_run[0] / "ckpt.pt") == before
