"""Samples inside training: which, that they disturb nothing, who draws them, what is seen in them."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from cell_tokenizer import CellTokenizer
from fresh import in_two
from helpers import TINY, fake_store, refused, small_model
from small_runs import CPU, rows, small_stores, timeless, tiny
from torch.utils.flop_counter import FlopCounterMode
from two_processes import one_of_two

from probes.watching.samples import fixed_samples, sampling_cost
from star.base.errors import UserError
from star.base.randomness import torch_generator
from star.base.settings import config_from_dict
from star.classifier.config import ClassifierShape
from star.classifier.file import load_classifier, save_classifier
from star.classifier.model import new_classifier
from star.codes.open import is_code_folder
from star.model.config import ModelConfig
from star.model.decoder import in_precision
from star.model.sampler import generate
from star.parallel import processes as distributed
from star.tokenizer.file import load_tokenizer, tokenizer_sha256
from star.training.checkpoint import load_model
from star.training.config import TrainConfig, preset
from star.training.trainer import Trainer
from viz.base.style import save
from viz.samples import sample_grid

NAMES = tuple(f"class{number}" for number in range(4))  # of ``fake_store``


def a_classifier(path, names=NAMES, seed=0, **facts):
    """A file of a classifier with random weights, which sees something else in every image."""
    model = new_classifier(ClassifierShape(classes=len(names), size=32, width=8), seed)
    torch.nn.init.normal_(model.head.weight, generator=torch_generator(seed, "head"))
    model.class_names = list(names)
    save_classifier(model, path, {"name": path.stem, **facts})
    return path


def of(config, classifier=None, store=None, tokenizer=None):
    store = fake_store() if store is None else store
    tokenizer = CellTokenizer(codes=store.vocab_size) if tokenizer is None else tokenizer
    return fixed_samples(config, store, store.class_names, tokenizer, classifier, CPU)


def generators():
    """The state of every global generator."""
    of_numpy = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global one is what is asked about
    return random.getstate(), of_numpy, torch.get_rng_state().tolist()


class Kept:
    """Keeps what was drawn, and says the numbers of it, as ``star train`` does with pictures."""

    def __init__(self, trainer, samples):
        self.trainer, self.samples, self.drawn = trainer, samples, {}

    def __call__(self, weights, model):
        before = generators()
        images, labels = self.samples.draw(model)
        self.drawn[self.trainer.step, weights] = images
        row = self.samples.accuracy(weights, images, labels)
        assert generators() == before
        return row


def fitted(config, run, samples=None, stores=None, **options):
    """A trained run, or one that went on, and what was drawn on its way."""
    stores = small_stores() if stores is None else stores
    trainer = Trainer.start_or_resume(config, stores, run, CPU)
    kept = Kept(trainer, samples or of(config))
    trainer.fit(sample=kept, **options)
    return kept.drawn


def test_samples_are_those_of_one_image_at_a_time():
    config = tiny(sample_every=1, sample_each=3, seed=7)
    model, tokenizer = small_model(), CellTokenizer(codes=11)
    images, labels = of(config, tokenizer=tokenizer).draw(model)
    assert labels.tolist() == [0, 1, 2, 3] * 3
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        tokens_1T = generate(model, [int(label)], seeds=[7 + number])  # guidance 2 by default
        pixels = tokenizer.decode(tokens_1T.view(1, 3, 3))[0].permute(1, 2, 0)
        assert np.array_equal(image, (127.5 * pixels + 128).clamp(0, 255).to(torch.uint8).numpy())
    assert len({image.tobytes() for image in images}) > 6


def test_of_many_classes_the_same_twenty_are_drawn():
    store = fake_store(images=60, classes=50)
    config = tiny(sample_every=1, sample_each=2)
    first, again = (of(config, store=store) for _ in range(2))
    other = of(dataclasses.replace(config, seed=1), store=store)
    assert first.chosen == again.chosen == sorted(set(first.chosen)) and len(first.chosen) == 20
    assert first.chosen != other.chosen and max(first.chosen) > 25
    assert first.options.count == 40
    few = of(config, store=fake_store(images=60, classes=20))
    assert few.chosen == list(range(20))


def test_drawing_disturbs_nothing_and_comes_when_it_should(tmp_path):
    config = tiny(sample_every=5, sample_each=1, log_every=4)
    Trainer(config, small_stores(), tmp_path / "without", CPU).fit()
    drawn = fitted(config, tmp_path / "with")
    assert list(drawn) == [(n, who) for n in (5, 10, 12) for who in ("teacher", "student")]
    a, b = (torch.load(tmp_path / name / "ckpt.pt", weights_only=True) for name in ("with", "without"))
    for part in ("student", "teacher", "projector"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    for number, moments in a["optimizer"]["state"].items():
        other = b["optimizer"]["state"][number]
        assert all(torch.equal(value, other[name]) for name, value in moments.items())
    written = {row["step"]: timeless(row) for row in rows(tmp_path / "with")}
    assert list(written) == [1, 4, 5, 6, 8, 10, 12], "a row where samples are drawn too"
    for row in rows(tmp_path / "without"):
        assert written[row["step"]] == timeless(row)


def test_nothing_is_drawn_when_off(tmp_path):
    config = tiny(max_steps=3)
    assert fitted(config, tmp_path, of(tiny(sample_every=2))) == {}


def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path):
    config = tiny(sample_every=4, sample_each=2)
    judge = load_classifier(a_classifier(tmp_path / "judge.safetensors"))
    straight = fitted(config, tmp_path / "straight", of(config, judge))
    parts = fitted(config, tmp_path / "parts", of(config, judge), stop_after=6)
    assert list(parts) == [(4, "teacher"), (4, "student")], "an early end is not the end"
    parts |= fitted(config, tmp_path / "parts", of(config, judge))
    assert list(parts) == list(straight) and len(straight) == 6
    assert all(np.array_equal(parts[key], straight[key]) for key in straight)
    a, b = ([timeless(row) for row in rows(tmp_path / name)] for name in ("straight", "parts"))
    assert a == b and sum("cond_acc" in row for row in a) == 3


def test_accuracy_is_what_counting_gives(tmp_path):
    config = tiny(sample_every=1, sample_each=5)
    names = NAMES[::-1]  # another order: classes are matched by name
    tokenizer = CellTokenizer(codes=11)
    file = a_classifier(
        tmp_path / "judge.safetensors", names, accuracy=0.75,
        through={"sha256": tokenizer_sha256(tokenizer), "accuracy": 0.5},
    )  # fmt: skip
    judge = load_classifier(file)
    samples = of(config, judge, tokenizer=tokenizer)
    images, labels = samples.draw(small_model())
    hits = 0
    for image, label in zip(images, labels, strict=True):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        hits += names[int(judge.features_and_logits(pixels)[1][0].argmax())] == NAMES[label]
    assert 0 < hits < 20, "else any order of the classes would do"
    worth = {"cond_n": 20, "cond_acc_real": 0.75, "cond_acc_redrawn": 0.5}
    assert samples.accuracy("teacher", images, labels) == {"cond_acc": hits / 20, **worth}
    assert samples.accuracy("student", images, labels) == {"cond_acc_student": hits / 20, **worth}
    elsewhere = of(config, judge, tokenizer=CellTokenizer(codes=11, seed=5))
    assert elsewhere.worth == {"cond_acc_real": 0.75}, "redrawn by another tokenizer is another number"
    assert of(config).accuracy("teacher", images, labels) == {}
    json.dumps(samples.facts(), allow_nan=False)


def test_what_does_not_fit_is_refused(tmp_path):
    config, store = tiny(sample_every=50), fake_store()
    with pytest.raises(UserError, match="without their tokenizer, .* --sample-every 50; give --token"):
        fixed_samples(config, store, store.class_names, None, None, CPU)
    with pytest.raises(UserError, match="has 12 codes; the data have 11"):
        of(config, tokenizer=CellTokenizer(codes=12))
    judge = load_classifier(a_classifier(tmp_path / "judge.safetensors", ("0", "1", "2", "3")))
    with pytest.raises(UserError, match="does not know the class class0: .* it knows 0, 1, 2, 3"):
        of(config, judge)
    judge.class_names = None
    with pytest.raises(UserError, match="does not say what its classes are called"):
        of(config, judge)
    for changes, message in (
        ({"sample_every": -1}, "sample_every is -1"),
        ({"sample_each": 0}, "sample_each is 0; expected 1 to 100"),
        ({"classifier": "cifar10"}, "classifier is cifar10, but nothing is drawn"),
    ):
        with pytest.raises(UserError, match=message):
            tiny(**changes)


def test_a_run_is_judged_by_one_classifier(tmp_path):
    config = tiny(sample_every=1)
    one, other = (
        of(config, load_classifier(a_classifier(tmp_path / f"{seed}.safetensors", seed=seed)))
        for seed in (0, 1)
    )
    one.require_same(tmp_path)  # nothing there yet
    one.publish(tmp_path)
    one.require_same(tmp_path)
    of(config).require_same(tmp_path)
    with pytest.raises(UserError, match=r"samples.json names another classifier .* delete samples.js"):
        other.require_same(tmp_path)
    facts = json.loads((tmp_path / "samples.json").read_text())
    assert facts["of_classes"] == list(NAMES) and facts["sampling"]["cfg_scale"] == 2
    assert facts["classifier"]["sha256"] == one.classifier.facts["sha256"]


class KeptAlone(Kept):
    def __call__(self, weights, model):
        assert distributed.world_size() == 1
        return super().__call__(weights, model)


def draw_in_one_of_two(rank: int, folder, shard: bool):
    config = dataclasses.replace(TWO, shard=shard)
    with one_of_two(rank, f"{folder}/rendezvous", sharded=shard):
        trainer = Trainer(config, small_stores(), folder / "two", CPU)
        kept = KeptAlone(trainer, of(config))
        trainer.fit(sample=kept)
        assert distributed.world_size() == 2 and distributed.rank() == rank
        drawn = {f"{step}-{weights}": images for (step, weights), images in kept.drawn.items()}
        np.savez(folder / f"rank{rank}.npz", **drawn)
        del trainer, kept  # they hold the process group


TWO = tiny(sample_every=3, sample_each=2, max_steps=8, dropout=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_of_two_processes_one_draws_and_the_other_goes_on(tmp_path, shard):
    in_two(draw_in_one_of_two, tmp_path, shard)
    with np.load(tmp_path / "rank0.npz") as drawn, np.load(tmp_path / "rank1.npz") as nothing:
        assert not nothing.files
        assert drawn.files == [f"{n}-{who}" for n in (3, 6, 8) for who in ("teacher", "student")]
        for weights in ("teacher", "student"):
            of_file = load_model(tmp_path / "two", weights=weights)
            assert np.array_equal(of(TWO).draw(of_file)[0], drawn[f"8-{weights}"])
        assert not np.array_equal(drawn["3-teacher"], drawn["8-teacher"])


def test_the_cost_that_is_told_is_what_sampling_computes():
    model = ModelConfig(layers=2, heads=2, width=64, grid=6, vocab_size=64, num_classes=4)
    config = TrainConfig(model=model, sample_every=30, sample_each=10, max_steps=100)
    cost = sampling_cost(config, half=False)
    assert (cost.times, cost.samples) == (4, 40)
    # What is counted is products of ``Transformer.forward``, which decodes where weights are bfloat16.
    with FlopCounterMode(display=False) as counted:
        generate(in_precision(small_model(model), torch.bfloat16), [0] * 32, seeds=range(32))
    # 40 samples are two batches of 32, for each of teacher and student. Told is attention over all of
    # the 36 positions; computed is what is there, about half.
    computed = 4 * 2 * 2 * counted.get_total_flops()
    attention = 4 * 2 * 2 * (2 * 64 * 2 * 2 * 36 * 36 * 64)
    assert computed < cost.flops < computed + attention
    assert cost.memory == 2 * 2 * 36 * 64 * 64 * 4  # keys and values of 64 sequences in 2 layers
    weights = sum(weight.numel() for weight in small_model(model).parameters())
    assert sampling_cost(config, half=True).memory == cost.memory // 2 + 2 * weights


# The command


def options(digit_folder, tokenizer_file, run, *more):
    data = ("--data", digit_folder, "--tokenizer", tokenizer_file)
    return ("train", *data, "--run", run, *TINY, "--sample-every", "2", "--sample-each", "3", *more)


def test_train_writes_pictures_of_what_star_sample_draws(star, tmp_path, digit_folder, tokenizer_file):
    judge = a_classifier(tmp_path / "judge.safetensors", ("one", "zero"), accuracy=0.9)
    asked = options(digit_folder, tokenizer_file, "r", "--classifier", judge)
    code, out, err = star(*asked, "--stop-after", "3")
    assert code == 0, err
    assert "samples r/samples: 6 of the teacher and of the student, 2 classes, judged by" in out
    assert "90.0 % right on real images" in out
    code, out, err = star("train", "--resume", "r")
    assert code == 0, err
    found = sorted(path.name for path in (tmp_path / "r" / "samples").glob("*.png"))
    assert found == [f"step-00000000{n}-{who}.png" for n in (2, 4) for who in ("student", "teacher")]
    seen = {row["step"]: row for row in rows(tmp_path / "r") if "cond_acc" in row}
    assert list(seen) == [2, 4]
    for who, column in (("teacher", "cond_acc"), ("student", "cond_acc_student")):
        code, _, err = star("sample", "r", "--count", 6, "--weights", who, "--out", f"{who}.npz")
        assert code == 0, err
        with np.load(tmp_path / f"{who}.npz") as file:
            images, labels = file["arr_0"], file["labels"]
        share = seen[4][column]
        title = f"{who}, step 4, guidance 2, class seen in {round(6 * share)} of 6"
        figure = sample_grid(images, labels, ["one", "zero"], title=title, columns=3)
        save(figure, tmp_path / who, formats=("png",))
        drawn = tmp_path / "r" / "samples" / f"step-000000004-{who}.png"
        assert drawn.read_bytes() == (tmp_path / f"{who}.png").read_bytes()
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        said = load_classifier(judge).features_and_logits(pixels)[1].argmax(1).numpy()
        assert share == np.mean(said == labels) and seen[4]["cond_n"] == 6
    assert seen[4]["cond_acc_real"] == 0.9
    a_classifier(judge, ("one", "zero"), seed=3)
    assert refused(star("train", "--resume", "r"), "names another classifier")


def test_what_train_refuses_before_codes_are_made(star, tmp_path, digit_folder, tokenizer_file):
    asked = options(digit_folder, tokenizer_file, "r")
    assert refused(star(*asked, "--classifier", "nothing.pt"), "no such file: nothing.pt", "cifar10")
    assert refused(star(*asked, "--classifier", "cifar10"), "does not know the class one")
    judge = ("--classifier", a_classifier(tmp_path / "judge.safetensors", ("one", "zero")))
    assert refused(star("train", "--run", "r", *TINY, *judge), "give --sample-every N too")
    assert not (tmp_path / "r").exists()


def test_codes_without_a_tokenizer_cannot_be_drawn(star, tmp_path, stores, tokenizer_file):
    assert is_code_folder(stores) and not (stores / "tokenizer.safetensors").exists()
    asked = ("train", "--data", stores, "--run", "r", *TINY, "--sample-every", "2")
    assert refused(star(*asked), "holds codes without their tokenizer", "--tokenizer FILE")
    assert not (tmp_path / "r").exists()
    code, _, err = star(*asked, "--tokenizer", tokenizer_file)
    assert code == 0, err
    assert load_tokenizer(tmp_path / "r").name == "random"


def test_a_dry_run_tells_what_samples_cost(star, tmp_path):
    asked = ("train", "--dry-run", "--device", "cpu")
    code, out, err = star(*asked)
    assert code == 0 and "samples" not in out, err
    code, out, err = star(*asked, "--sample-every", "50", "--classifier", "cifar10")
    assert code == 0, err
    text = " ".join(out.split())
    assert "samples: 10 times 100 of the teacher and of the student (10 classes, unless" in text
    assert "judging them by cifar10" in text and "GiB more" in text
    assert not list(tmp_path.iterdir())


def test_settings_written_before_have_no_samples():
    old = dataclasses.asdict(preset("tiny"))
    for name in ("sample_every", "sample_each", "classifier"):
        del old[name]
    assert config_from_dict(old, TrainConfig()) == preset("tiny")
