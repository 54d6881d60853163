"""What training, sampling and the tokenizers do, as small runs on any device.

``RUNS[name](device, folder)`` builds its own inputs, computes on ``device``, writes below ``folder`` at
most, and returns what must be the same on a CPU and on the pretended card: arrays, tables, numbers. The
runs of the probes are in ``pretend_probes``.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from cell_tokenizer import CellTokenizer, pictures, random_pictures
from helpers import GOLDEN, SMALL, TINY_VQ, fake_store, small_model, small_pictures
from reference.fill import fill_
from small_runs import rows, timeless, tiny

from probes.doctor.lines import OK
from probes.doctor.self_test import self_test
from probes.speed.attention import bench_attention
from probes.speed.llamagen import LlamaGenStep
from probes.speed.probe import bench_probe
from probes.speed.step import bench_step
from probes.speed.tokenize import bench_tokenize, extract_one_by_one
from probes.watching.diagnostics import in_loop_diagnostics
from probes.watching.samples import fixed_samples
from star.base.randomness import torch_generator
from star.classifier.config import ClassifierShape
from star.classifier.model import new_classifier
from star.codes.encode import tokenize
from star.images.open import ImageSource
from star.images.views import scaled
from star.model.sampler import generate
from star.runs.checkpoint import load_checkpoint
from star.tokenizer.config import TokenizerConfig
from star.tokenizer.file import load_tokenizer, save_tokenizer
from star.tokenizer.learner import TokenizerLearner
from star.tokenizer.model import VQModel, decode_tokens
from star.tokenizer.trainer import TokenizerTrainer
from star.training.batches import TrainLoader
from star.training.checkpoint import MODEL_RUN, load_model, open_model
from star.training.config import ObjectiveConfig
from star.training.export import export_model
from star.training.learner import Learner
from star.training.likelihood import image_nll
from star.training.trainer import Trainer

__all__ = ["GAN", "OBJECTIVES", "RUNS", "run"]

Run = Callable[[torch.device, Path], object]
RUNS: dict[str, Run] = {}

STAR = {"contrast_steps": 3, "ema_decay": 0.9}
OBJECTIVES = {
    "ar": {"objective": ObjectiveConfig(**STAR).baseline()},
    "ar in two parts": {"objective": ObjectiveConfig(**STAR).baseline(), "accumulate": 2},
    "st-ar": {"objective": ObjectiveConfig(**STAR)},
    "st-ar in two passes": {"objective": ObjectiveConfig(**STAR, student_pass="two")},
    "st-ar recomputed": {"objective": ObjectiveConfig(**STAR), "checkpoint_activations": True},
}  # without dropout: its bytes are other generators' on a card
GAN = TokenizerConfig(
    max_steps=4, batch_size=8, warmup_steps=2, revive_every=3, precision="fp32", shape=TINY_VQ,
    sizes=(16,), log_every=1, validate_every=2, save_every=3, val_images=4, draw_every=0,
    disc_weight=0.5, disc_start=1, disc_channels=8, disc_layers=1,
)  # fmt: skip


def run(of: Run) -> Run:
    """Register a run under its name."""
    RUNS[of.__name__.replace("_", " ")] = of
    return of


def stores() -> dict:
    return {"train": fake_store(), "val": fake_store(images=8, views=1, seed=5)}


def image_source(count: int = 12) -> ImageSource:
    """Random pictures of 16 pixels as a data set with three splits."""
    splits = {
        name: pictures(random_pictures(images, seed=seed))
        for seed, (name, images) in enumerate({"train": count, "val": 4, "test": 4}.items())
    }
    return ImageSource(
        name="made up", class_names=("one",), native_size=16, default_views="ten-crop", splits=splits,
        notes=[],
    )  # fmt: skip


def random_tokenizer(device: torch.device) -> VQModel:
    return fill_(VQModel(TINY_VQ)).requires_grad_(False).eval().to(device)


def _steps_of(settings: dict) -> Run:
    def steps(device: torch.device, folder: Path) -> object:
        config = tiny(dropout=0.0, **settings)
        learner, loader = Learner(config, device), TrainLoader(fake_store(), config)
        found = [learner.update(loader.batch(step), step).row() for step in range(3)]
        return found, learner.state_dict()

    return steps


RUNS |= {f"steps of {name}": _steps_of(settings) for name, settings in OBJECTIVES.items()}


@run
def steps_of_st_ar_with_the_head_in_parts(device, folder):
    with mock.patch("star.model.head.PART_BYTES", 100_000):  # some thirty positions at a time
        return _steps_of(OBJECTIVES["st-ar"])(device, folder)


@run
def training_with_validation_diagnostics_and_resume(device, folder):
    config = tiny(dropout=0.0, max_steps=6, validate_every=3, save_every=2, diagnose_every=3)

    def diagnose(trainer):
        learner = trainer.learner
        return in_loop_diagnostics(learner.student, learner.teacher, trainer.stores, config)

    Trainer(config, stores(), folder, device).fit(stop_after=4, diagnose=diagnose)
    resumed = Trainer.resume(folder, stores(), device)
    assert resumed.step == 4 and resumed.fit(diagnose=diagnose).finished
    content = load_checkpoint(folder / "ckpt.pt", device, kind=MODEL_RUN)
    teacher = load_model(folder, device=device)
    return (
        [timeless(row) for row in rows(folder)],
        {name: content[name] for name in ("student", "teacher", "projector", "optimizer")},
        image_nll(teacher, stores()["val"], batch_size=3),
    )


@run
def samples_inside_training(device, folder):
    config = tiny(dropout=0.0, max_steps=4, sample_every=2, sample_each=2)
    train, judge = stores()["train"], new_classifier(ClassifierShape(classes=4, size=16, width=8), 0)
    torch.nn.init.normal_(judge.head.weight, generator=torch_generator(0, "head"))
    judge.class_names = list(train.class_names)
    tokenizer = CellTokenizer(codes=train.vocab_size)
    samples = fixed_samples(config, train, train.class_names, tokenizer, judge.eval(), device)
    drawn = {}

    def sample(weights, model):
        images, labels = drawn[len(drawn), weights] = samples.draw(model)
        return samples.accuracy(weights, images, labels)

    # float32 on both: a card would take half precision.
    with mock.patch("probes.watching.samples.resolve_precision", lambda name, where: torch.float32):
        Trainer(config, stores(), folder, device).fit(sample=sample)
    return [timeless(row) for row in rows(folder)], drawn


@run
def llamagens_step(device, folder):
    config = tiny(dropout=0.0, objective=ObjectiveConfig(**STAR).baseline())
    reference, loader = LlamaGenStep(config, device), TrainLoader(fake_store(), config)
    return [reference.update(loader.batch(step)) for step in range(2)]


@run
def sampling(device, folder):
    model, found = small_model(device=device), {}
    for name, options in {
        "plain": {"cfg_scale": 1.0},
        "guided": {"cfg_scale": 2.5, "cfg_interval": 3},
        "top k": {"top_k": 3, "temperature": 0.7},
        "top p": {"top_p": 0.6},
        "greedy": {"greedy": True},
    }.items():
        found[name] = generate(model, [0, 1, 4], seeds=[3, 4, 5], **options)
    return found


@run
def llamagen_files(device, folder):
    loaded = open_model(GOLDEN / "llamagen_gpt_tiny.pt", device=device)
    for form, ending in (("llamagen", "pt"), ("safetensors", "safetensors")):
        export_model(loaded, folder / f"x.{ending}", form)
    return generate(loaded.model, [0, 1], seeds=[0, 1]), load_model(folder / "x.pt").state_dict()


@run
def a_model_with_grouped_keys_in_a_seeds_weights(device, folder):
    model = small_model(dataclasses.replace(SMALL, kv_heads=1), device=device)
    tokens = torch.arange(18, device=device).view(2, 9) % 11
    names = ["layers.2", "layers.2.attention", "layers.3.queries", "layers.1.values", "norm"]
    out = model(tokens, torch.tensor([0, 4], device=device), capture=names)
    return out.logits, out.captured


@run
def tokenizer_training(device, folder):
    source = image_source()
    TokenizerTrainer(GAN, source, folder, device).fit(stop_after=3)
    resumed = TokenizerTrainer.resume(folder, source, device)
    assert resumed.fit().finished
    found = [
        {k: v for k, v in timeless(row).items() if k != "steps_per_second"} for row in rows(folder)
    ]
    return found, load_tokenizer(folder, device).state_dict(), resumed.redrawn(2)


@run
def tokenizer_steps_in_the_callers_batches(device, folder):
    learner, images = TokenizerLearner(GAN, device), scaled(small_pictures())
    return [learner.update(images[8 * step : 8 * step + 8], step) for step in range(4)]


@run
def tokenizing_and_drawing(device, folder):
    save_tokenizer(random_tokenizer(torch.device("cpu")), folder / "t.safetensors", {"name": "random"})
    tokenizer = load_tokenizer(folder / "t.safetensors")
    options = {"views": "ten-crop", "device": str(device), "precision": "fp32", "workers": 0}
    found = tokenize(image_source(), tokenizer, folder / "codes", **options)
    tokenizer = load_tokenizer(folder / "t.safetensors", device)
    codes = np.array(found["train"].codes[:4, 0], dtype=np.int64)
    drawn = decode_tokens(tokenizer, torch.from_numpy(codes), found["train"].grid)
    return {name: np.array(store.codes) for name, store in found.items()}, drawn


@run
def images_tokenized_one_by_one(device, folder):
    extract_one_by_one(
        image_source().splits["val"], random_tokenizer(device), folder / "one", 16, 0, device
    )
    return [np.load(path) for path in sorted((folder / "one").iterdir())]


@run
def benches(device, folder):
    """What they time; how long it took and how much memory there was are no numbers of ours."""
    probe = bench_probe(tiny(), device, layer=1, steps=2, images=8, rounds=1)
    step = bench_step(tiny(), device, rounds=1)
    attention = bench_attention(SMALL, device, images=2, steps=3, rounds=1)
    tokens = bench_tokenize("small", device, size=8, images=2, workers=0, rounds=1, folder=folder)
    return probe.heads, step.sequences, set(step.memory), set(attention.memory), tokens.equal


@run
def the_doctors_self_test(device, folder):
    found = list(self_test(device.type, lambda: [folder]))
    assert {line.status for line in found} == {OK}, found
    return {line.name for line in found} - {"gloo"}  # between the CPU's processes
