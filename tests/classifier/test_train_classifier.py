"""``star train-classifier``: batches and views, learning, exact resume, signals, refusals, the card."""

import json
import math
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from PIL import Image
from small_runs import rows, timeless

from star.base.errors import UserError
from star.classifier.config import ClassifierConfig
from star.classifier.file import classifier_sha256, load_classifier
from star.classifier.images import ClassifierBatches, read_images, redrawn, shifted, warped
from star.classifier.learner import ClassifierLearner
from star.classifier.trainer import ClassifierTrainer
from star.images.open import open_source
from star.images.views import MAX_ROTATION, center_crop
from star.tokenizer.file import load_tokenizer, tokenizer_sha256
from star.tokenizer.quality import redraw

QUICK = ClassifierConfig(
    max_steps=12, batch_size=8, width=2, size=16, precision="fp32", log_every=1, validate_every=6,
    save_every=5, views="crop",
)  # fmt: skip
OPTIONS = [
    "--max-steps", "6", "--batch-size", "8", "--width", "2", "--size", "16", "--log-every", "2",
    "--precision", "fp32", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(digit_folder):
    return open_source(digit_folder)


def batches(images=20, size=8, drawn=False, **settings):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, images, 3, size, size), generator=rng).to(torch.uint8)
    config = replace(QUICK, size=size, **settings)
    return ClassifierBatches(
        images_NCHW=pixels[0], labels_N=torch.arange(images), config=config,
        drawn_NCHW=pixels[1] if drawn else None,
    )  # fmt: skip


def as_uint8(views):
    return (127.5 * (views + 1)).round().to(torch.uint8)


# ---- images and batches --------------------------------------------------------------------------


def test_images_are_read_in_order(source):
    train, seen = source.split("train"), []
    images = read_images(train, 16, lambda *done: seen.append(done))
    assert images.shape == (len(train), 3, 16, 16) and images.dtype == torch.uint8
    for place in (0, 7, len(train) - 1):
        crop = np.asarray(center_crop(train.load(place), 16))
        assert np.array_equal(images[place].permute(1, 2, 0).numpy(), crop)
    assert seen[-1] == (len(train), len(train))


def test_redrawn_images_are_the_tokenizers(source, tokenizer_file):
    tokenizer = load_tokenizer(tokenizer_file)
    images = read_images(source.split("train"), 16)
    drawn = redrawn(tokenizer, images[:5])
    expected = redraw(tokenizer, images[:5])[0]
    assert drawn.shape == (5, 3, 16, 16) and drawn.dtype == torch.uint8
    assert (drawn.float() - (127.5 * expected + 127.5)).abs().max() <= 0.51
    with pytest.raises(UserError, match="does not divide the classifier's 18; give --size"):
        redrawn(tokenizer, torch.zeros(1, 3, 18, 18, dtype=torch.uint8))


def test_a_pass_sees_every_image_once_and_batches_can_be_had_again():
    made = batches(views="plain")
    assert made.steps_a_pass == 2
    whole = list(made.stream(0, 6))
    for first in (0, 2, 4):
        seen = torch.cat([labels for _, labels in whole[first : first + 2]])
        assert len(set(seen.tolist())) == 16
    assert not torch.equal(whole[0][1], whole[2][1])
    for views, labels in whole:
        assert torch.equal(as_uint8(views), made.images_NCHW[labels])
    for step in (5, 1):
        ((views, labels),) = made.stream(step, step + 1)
        assert torch.equal(views, whole[step][0]) and torch.equal(labels, whole[step][1])
    few = batches(images=5, views="plain")
    ((views, labels),) = few.stream(3, 4)
    assert sorted(labels.tolist()) == list(range(5))


def test_half_of_the_views_are_redrawn_images():
    made = batches(images=64, drawn=True, views="plain")
    counts = np.zeros(2)
    for views, labels in made.stream(0, 30):
        for view, label in zip(as_uint8(views), labels, strict=True):
            own = torch.equal(view, made.images_NCHW[label])
            assert own or torch.equal(view, made.drawn_NCHW[label])
            counts[int(own)] += 1
    assert abs(counts[0] / counts.sum() - 0.5) < 4 * 0.5 / math.sqrt(counts.sum())


def test_shifts_are_what_padding_and_cropping_gives():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (40, 3, 16, 16), dtype=np.uint8))
    shifts, mirrored = rng.integers(-2, 2, (40, 2), endpoint=True), rng.random(40) < 0.5
    found = shifted(images, shifts, mirrored)
    for image, (down, right), mirror, view in zip(images, shifts, mirrored, found, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
        expected = padded[:, 2 - down : 18 - down, 2 - right : 18 - right]
        assert np.array_equal(view.numpy(), expected[:, :, ::-1] if mirror else expected)


@pytest.mark.parametrize(("views", "mirrors"), [("crop", False), ("crop-flip", True)])
def test_only_crop_flip_mirrors(views, mirrors):
    ramp = torch.arange(8, dtype=torch.uint8).mul(30).expand(16, 3, 8, 8).contiguous()
    config = replace(QUICK, size=8, views=views, batch_size=16)
    made = ClassifierBatches(images_NCHW=ramp, labels_N=torch.zeros(16).long(), config=config)
    ((found, _),) = made.stream(0, 1)
    falling = (found[:, 0, 0, 2] > found[:, 0, 0, 5]).sum().item()
    assert (0 < falling < 16) if mirrors else falling == 0


def test_warps_keep_identity_turn_and_shift_the_right_way():
    images = torch.full((1, 1, 32, 32), -1.0)
    images[0, 0, 6:9, 14:18] = 1.0  # a bar above the centre
    scale_1 = 0.0
    same = warped(images, np.array([[0, scale_1, 0, 0]]))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)

    def centre(views):
        weights = (views[0, 0] + 1).double()
        rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        return [(weights * axis).sum().item() / weights.sum().item() for axis in (rows, columns)]

    down, right = centre(warped(images, np.array([[0, 0, 0.5, 0.25]])))
    assert (down, right) == pytest.approx((7 + 0.14 * 32 * 0.25, 15.5 + 0.14 * 32 * 0.5), abs=0.05)
    smaller = centre(warped(images, np.array([[0, -1, 0, 0]])))
    assert smaller == pytest.approx((15.5 - 8.5 * 0.85, 15.5), abs=0.1)
    turned = centre(warped(images, np.array([[1, 0, 0, 0]])))
    angle = math.radians(MAX_ROTATION)
    assert turned[0] == pytest.approx(15.5 - 8.5 * math.cos(angle), abs=0.05)
    assert abs(turned[1] - 15.5) == pytest.approx(8.5 * math.sin(angle), abs=0.05)


# ---- learning --------------------------------------------------------------------------------------


def test_a_step_is_sgd_on_the_smoothed_cross_entropy():
    """The first updates by hand: Nesterov's momentum, weight decay on weights alone."""
    config = replace(QUICK, warmup=0.0, max_steps=1000)
    learner = ClassifierLearner(config, 3)
    mirror = ClassifierLearner(config, 3).model
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 16, 16, generator=rng) * 2 - 1
    labels = torch.arange(8) % 3
    speed = {}
    for step in range(2):
        numbers = learner.update(images, labels, step)
        log_p = mirror(images)[1].log_softmax(1)
        own = log_p[torch.arange(8), labels]
        loss = -(0.9 * own + 0.1 * log_p.mean(1)).mean()
        assert numbers["loss"] == pytest.approx(loss.item(), abs=1e-6)
        assert numbers["acc"] == (log_p.argmax(1) == labels).float().mean().item()
        named = dict(mirror.named_parameters())
        gradients = torch.autograd.grad(loss, list(named.values()))
        lr = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 1000))
        with torch.no_grad():
            for (name, value), gradient in zip(named.items(), gradients, strict=True):
                if value.ndim > 1:
                    gradient = gradient + 5e-4 * value
                speed[name] = gradient + (0.9 * speed[name] if step else 0)
                value -= lr * (gradient + 0.9 * speed[name])
        for name, value in learner.model.named_parameters():
            torch.testing.assert_close(value, named[name], rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_before_the_update():
    learner = ClassifierLearner(QUICK, 3)
    before = {key: value.clone() for key, value in learner.model.named_parameters()}
    with pytest.raises(
        UserError, match=r"loss is not finite at step 4: lower its learning rate \(0.1\)"
    ):
        learner.update(torch.full((2, 3, 16, 16), torch.nan), torch.tensor([0, 1]), 3)
    assert all(torch.equal(value, before[key]) for key, value in learner.model.named_parameters())


@pytest.fixture(scope="module")
def straight(source, tmp_path_factory):
    run = tmp_path_factory.mktemp("straight")
    trainer = ClassifierTrainer(QUICK, source, run)
    result = trainer.fit()
    assert result.finished and result.step == 12
    return run, classifier_sha256(trainer.classifier())


def test_rows_of_a_run(straight, source):
    run, _ = straight
    found = rows(run)
    assert [row["step"] for row in found] == list(range(1, 13))
    assert [row["step"] for row in found if "val_acc" in row] == [6, 12]
    trainer = ClassifierTrainer.resume(run, source)
    val = source.split("val")
    logits = trainer.learner.model.eval().features_and_logits(read_images(val, 16))[1]
    right = (logits.argmax(1).numpy() == val.labels).mean()
    assert found[-1]["val_acc"] == pytest.approx(right)


@pytest.mark.parametrize("stop", [3, 5, 11])
def test_a_resumed_run_is_the_same_run(straight, source, tmp_path, stop):
    run, sha256 = straight
    first = ClassifierTrainer(QUICK, source, tmp_path).fit(stop_after=stop)
    assert (first.step, first.finished) == (stop, False)
    second = ClassifierTrainer.resume(tmp_path, source)
    assert second.fit().finished
    assert list(map(timeless, rows(tmp_path))) == list(map(timeless, rows(run)))
    assert classifier_sha256(second.classifier()) == sha256


def test_what_cannot_be_resumed_is_refused(straight, source, tmp_path, tokenizer_file):
    with pytest.raises(UserError, match="no checkpoint"):
        ClassifierTrainer.resume(tmp_path, source)
    with pytest.raises(UserError, match="other train images than digits has now"):
        ClassifierTrainer.resume(straight[0], open_source("digits"))
    tokenizer = load_tokenizer(tokenizer_file)
    config = replace(QUICK, through=str(tokenizer_file))
    ClassifierTrainer(config, source, tmp_path, tokenizer=tokenizer).fit(stop_after=2)
    assert ClassifierTrainer.resume(tmp_path, source, tokenizer=tokenizer).step == 2
    with torch.no_grad():
        tokenizer.decoder.conv_out.weight.mul_(2)
    with pytest.raises(UserError, match="through another tokenizer"):
        ClassifierTrainer.resume(tmp_path, source, tokenizer=tokenizer)


def test_it_learns_the_digits():
    """Most of 360 test images after 60 small steps; one in ten is chance."""
    from probes.samples.classifier import conditional_accuracy, predict

    digits = open_source("digits")
    config = replace(QUICK, data="digits", max_steps=60, batch_size=64, width=8, views="auto")
    learner, test = None, digits.split("test")
    made = ClassifierBatches(
        images_NCHW=read_images(digits.split("train"), 16),
        labels_N=torch.from_numpy(digits.split("train").labels),
        config=config.completed(images=1297, native_size=32, default_views="affine"),
    )
    assert made.config.views == "affine"
    learner = ClassifierLearner(made.config, 10)
    for step, (views, labels) in enumerate(made.stream(0, 60)):
        learner.update(views, labels, step)
    found = predict(learner.model.eval(), read_images(test, 16).split(128))
    table = conditional_accuracy(found, test.labels, digits.class_names)
    assert table["accuracy"].iloc[0] > 0.85 and table["n"].iloc[0] == 360


# ---- the command -----------------------------------------------------------------------------------


def test_the_command_trains_measures_and_says_so(star, digit_folder, tmp_path):
    code, out, err = star("train-classifier", digit_folder, *OPTIONS)
    assert code == 0, err
    name = digit_folder.name
    file = tmp_path / "classifiers" / f"{name}.safetensors"
    assert f"{name}, test, 16 images: accuracy 0." in out and "(chance 0.5)" in out
    assert {path.name for path in file.parent.iterdir()} == {
        f"{name}.safetensors", f"{name}.csv", f"{name}.json", f"{name}-run"
    }  # fmt: skip
    model = load_classifier(file)
    test = open_source(digit_folder).split("test")
    logits = model.features_and_logits(read_images(test, 16))[1]
    right = (logits.argmax(1).numpy() == test.labels).mean()
    facts, table = model.facts, pd.read_csv(file.with_suffix(".csv"))
    assert facts["accuracy"] == right == table["accuracy"][0] and facts["n"] == 16
    assert facts["low"] < right < facts["high"]
    assert list(table["class"]) == ["all", "one", "zero"] == ["all", *model.class_names]
    assert facts["source_sha256"] == open_source(digit_folder).split("train").fingerprint()
    assert facts["source"] == name and facts["measured_on"] == f"{name}, test, 16 images"
    assert facts["seed"] == 0 and facts["max_steps"] == 6 and "through" not in facts
    assert facts["command"].startswith("star train-classifier ")
    info = json.loads(file.with_suffix(".json").read_text())
    assert info["classifier_sha256"] == facts["sha256"] and info["split"] == "test"
    run = file.with_name(f"{name}-run")
    code, out, err = star("inspect", run)
    assert code == 0 and "kind: classifier run" in out, err
    code, out, err = star("watch", run, "--once")
    assert code == 0 and "val acc" in out, err
    assert star("plot", run, "--out", "plot")[0] == 0
    assert refused(star("train-classifier", digit_folder, *OPTIONS), "already holds a run", "--resume")
    code, _, err = star("train-classifier", "--resume", run)  # measured again
    assert code == 0 and load_classifier(file).facts == facts, err


def test_stopped_and_resumed_by_the_command_is_the_same(star, digit_folder, tmp_path):
    code, out, err = star("train-classifier", digit_folder, "--out", "a/whole.safetensors", *OPTIONS)
    assert code == 0, err
    command = ["train-classifier", digit_folder, "--out", "a/cut.safetensors", *OPTIONS]
    code, out, err = star(*command, "--stop-after", 4)
    assert code == 0 and "step 4/6 saved, go on with: star train-classifier --resume a/cut-run" in out
    assert not (tmp_path / "a" / "cut.safetensors").exists()
    code, out, err = star("train-classifier", "--resume", "a/cut-run")
    assert code == 0, err
    one, two = (load_classifier(tmp_path / "a" / f"{name}.safetensors") for name in ("whole", "cut"))
    assert one.facts["sha256"] == two.facts["sha256"]
    assert two.facts["command"].endswith("--stop-after 4")  # of the run's beginning


def test_a_signal_saves_and_the_run_goes_on(star, digit_folder, tmp_path, monkeypatch):
    """The signal arrives while step 3 is computed."""
    update = ClassifierLearner.update

    def interrupted(self, images, labels, step):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return update(self, images, labels, step)

    monkeypatch.setattr(ClassifierLearner, "update", interrupted)
    code, out, err = star("train-classifier", digit_folder, "--out", "c.safetensors", *OPTIONS)
    assert code == 130 and "step 3/6 saved, go on with" in out, err
    monkeypatch.setattr(ClassifierLearner, "update", update)
    code, out, err = star("train-classifier", "--resume", "c-run")
    assert code == 0 and (tmp_path / "c.safetensors").exists(), err
    assert [row["step"] for row in rows(tmp_path / "c-run")][-1] == 6


def test_through_a_tokenizer_both_accuracies_are_told(star, digit_folder, tmp_path, tokenizer_file):
    options = ["--out", "c.safetensors", "--through", tokenizer_file]
    code, out, err = star("train-classifier", digit_folder, *options, *OPTIONS)
    assert code == 0, err
    assert "16 images: accuracy" in out and "16 images as random redraws them: accuracy" in out
    model, tokenizer = load_classifier(tmp_path / "c.safetensors"), load_tokenizer(tokenizer_file)
    test = open_source(digit_folder).split("test")
    drawn = redrawn(tokenizer, read_images(test, 16))
    right = (model.features_and_logits(drawn)[1].argmax(1).numpy() == test.labels).mean()
    through = model.facts["through"]
    assert (through["name"], through["sha256"]) == ("random", tokenizer_sha256(tokenizer))
    assert through["accuracy"] == right and through["n"] == 16
    table = pd.read_csv(tmp_path / "c.csv")
    assert list(table["images"]) == ["held out"] * 3 + ["redrawn"] * 3
    code, out, err = star("train-classifier", "--resume", "c-run")
    assert code == 0, err


def test_a_dry_run_writes_nothing(star, tmp_path):
    code, out, err = star("train-classifier", "digits", "--dry-run")
    assert code == 0, err
    assert "10 classes at 32 pixels, width 16: 486,938 parameters, 128 features" in out
    assert "200 steps of 128 images, 19.7 passes, views affine" in out
    assert "would write classifiers/digits.safetensors" in out
    assert list(tmp_path.iterdir()) == []


def folder(root, counts):
    """An image folder: ``counts`` maps "train/a" to how many images there are."""
    for place, count in counts.items():
        (root / place).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (16, 16), (9 * i, 0, 0)).save(root / place / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train/a": 4, "test/a": 2}, "has one class (a)"),
        ({"a": 3}, "images"),
        ({"train/a": 1, "train/b": 1}, "has no held-out images"),
    ],
)
def test_sources_that_will_not_do(star, tmp_path, counts, message):
    folder(tmp_path / "images", counts)
    assert refused(star("train-classifier", "images", *OPTIONS), message)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_class_of_the_test_split_alone_is_named(tmp_path):
    root = folder(tmp_path / "i", {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2})
    source = open_source(root)
    only_a = replace(
        source, splits={**source.splits, "train": source.split("train").select(np.array([0, 1]))}
    )
    with pytest.raises(UserError, match="no training image of the class b"):
        ClassifierTrainer(QUICK, only_a, tmp_path / "run")


def test_an_image_that_cannot_be_read_is_named(star, tmp_path):
    root = folder(tmp_path / "images", {"train/a": 8, "train/b": 8, "test/a": 2, "test/b": 2})
    (root / "train" / "a" / "3.png").write_bytes(b"\x89PNG broken")
    assert refused(star("train-classifier", "images", *OPTIONS), "3.png")


def test_refusals(star, digit_folder, tmp_path):
    command = ("train-classifier", digit_folder)
    assert refused(star("train-classifier"), "no SOURCE", "star train-classifier SOURCE")
    assert refused(star("train-classifier", "nowhere"), "no such file or folder: nowhere")
    assert refused(star("train-classifier", "photos"), "no held-out images")
    assert refused(star(*command, "--out", "c.pt"), "c.pt; expected a name that ends in .safetensors")
    assert refused(star(*command, "--lr", "0"), "classifier lr is 0")
    assert refused(star(*command, "--size", "4"), "classifier size is 4")
    assert refused(star(*command, "--stop-after", "0"), "stop_after is 0")
    assert refused(star(*command, "--label-column", "x"), "--label-column x names a column of parquet")
    assert refused(star(*command, "--through", "none.pt"), "no such file: none.pt")
    assert refused(
        star("train-classifier", "--resume", "r", "--lr", "1"), "--resume takes all settings"
    )
    assert refused(star("train-classifier", "--resume", tmp_path), "no checkpoint")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.safetensors").write_bytes(b"mine")
    assert refused(star(*command, "--out", "c.safetensors"), "c.safetensors exists")
    (tmp_path / "d-run").mkdir()
    (tmp_path / "d-run" / "notes").write_text("mine")
    assert refused(star(*command, "--out", "d.safetensors"), "d-run exists")


def test_other_runs_are_no_classifiers_and_the_other_way_round(star, trained, source, straight):
    assert refused(star("train-classifier", "--resume", trained), "star train-classifier")
    assert refused(star("train", "--resume", straight[0]), "not a checkpoint of star train")
