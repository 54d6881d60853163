"""``star train-classifier``: the network that samples are judged by, from labelled images."""

import functools
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli.options import Device, with_options
from cli.threads import computing
from star.classifier.config import ClassifierConfig

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from cli.terminal.screen import Stages
    from star.classifier.trainer import ClassifierTrainer
    from star.images.source import ImageSource
    from star.tokenizer.model import VQModel

OUT = Path("classifiers")
ENDING, RUN = ".safetensors", "-run"
HELD_OUT, REDRAWN = "held out", "redrawn"


@computing("Training a classifier")
@with_options(ClassifierConfig(), skip=("data",), panels={ClassifierConfig: "Training"})
def train_classifier(
    source: str = typer.Argument(
        None, help="digits, or labelled images: a folder of train/CLASS/, a .tar, parquet shards."
    ),
    out: Path = typer.Option(
        None, help="File to write, .safetensors.  \\[default: classifiers/SOURCE.safetensors]"
    ),
    resume: Path = typer.Option(
        None, help="Go on with the run in this folder (FILE-run), exactly where it was."
    ),
    stop_after: int = typer.Option(None, help="End (and save) after this step, to be resumed later."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be trained, and leave."),
    device: Device = "auto",
    *,
    given: dict,
) -> None:
    """Train a small residual network to tell the classes of images apart.

    For judging samples: conditional accuracy (is the class that was asked for
    seen?) and distances of its features. It sees the train split alone, for a
    fixed number of steps; its accuracy on held-out images is printed, kept in
    its file, and written beside it by class. --through TOKENIZER trains it on
    images as the tokenizer redraws them too, as samples are, and measures it
    on both. Ctrl-C saves and leaves; --resume goes on with identical results.
    """
    from cli.terminal.screen import Stages
    from star.base.device import resolve_device
    from star.base.errors import UserError
    from star.base.settings import config_from_dict
    from star.classifier.trainer import CLASSIFIER_RUN, completed, require_classes
    from star.images.open import open_source
    from star.runs.folder import RunFolder

    own = [source, out, *given[ClassifierConfig].values()]
    if resume is not None and (dry_run or any(value is not None for value in own)):
        raise UserError(
            "--resume takes all settings from the run; give only --stop-after, --device or --threads"
        )
    if stop_after is not None and (stop_after < 1 or dry_run):
        raise UserError(f"stop_after is {stop_after}; expected at least 1, and no --dry-run")
    where = resolve_device(device)
    if resume is not None:
        settings = RunFolder(resume, kind=CLASSIFIER_RUN).settings()
    elif source is None:
        raise UserError("no SOURCE was given; expected: star train-classifier SOURCE, such as digits")
    else:
        settings = config_from_dict({**given[ClassifierConfig], "data": source}, ClassifierConfig())
    images = open_source(settings.data, settings.label_column or None)
    require_classes(images)
    run, file = _places(images.name, out, resume)
    if dry_run:
        _describe(completed(settings, images), images, file)
        return
    with Stages() as stages:
        trainer = _prepared(settings, images, run, resume is not None, where, stages)
    _fit(trainer, stop_after)
    with Stages() as stages:
        _measure(trainer, file, stages)


def _places(name: str, out: Path | None, resume: Path | None) -> tuple[Path, Path]:
    """The run's folder and the classifier's file, which stand side by side: NAME-run and NAME's."""
    from star.base.errors import UserError
    from star.classifier.trainer import CLASSIFIER_RUN
    from star.runs.folder import RunFolder

    if resume is not None:
        return resume, resume.with_name(resume.name.removesuffix(RUN) + ENDING)
    file = out or OUT / f"{name}{ENDING}"
    if file.suffix != ENDING:
        raise UserError(f"out is {file}; expected a name that ends in {ENDING}")
    run = file.with_name(file.stem + RUN)
    if RunFolder(run, kind=CLASSIFIER_RUN).newest_path() is not None:
        raise UserError(f"{run} already holds a run; give --resume {run} or another --out")
    there = [path for path in (file, run) if path.exists() and (path == file or any(path.iterdir()))]
    if there:
        raise UserError(f"{there[0]} exists; give another --out or remove it")
    return run, file


def _describe(settings: ClassifierConfig, images: "ImageSource", file: Path) -> None:
    """What --dry-run prints; nothing is read or written."""
    import torch

    from cli.terminal.screen import print_line
    from star.classifier.model import Classifier

    shape = settings.shape(len(images.class_names))
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Classifier(shape).parameters())
    print_line(
        f"{shape.classes} classes at {shape.size} pixels, width {shape.width}: {parameters:,} "
        f"parameters, {shape.features} features, a file of {2 * parameters / 1e6:.1f} MB"
    )
    counts = ", ".join(f"{name} {len(split)}" for name, split in images.splits.items())
    passes = settings.max_steps * settings.batch_size / len(images.splits["train"])
    print_line(
        f"{images.name} ({counts} images): {settings.max_steps} steps of {settings.batch_size} images, "
        f"{passes:.1f} passes, views {settings.views}; would write {file}"
    )


def _prepared(
    settings: ClassifierConfig,
    images: "ImageSource",
    run: Path,
    resumed: bool,
    where: "torch.device",
    stages: "Stages",
) -> "ClassifierTrainer":
    """The trainer of a new run or of the one in ``run``; says where and how it computes."""
    from cli.terminal.screen import print_line
    from probes.results import provenance
    from star.base.files import require_writable
    from star.classifier.trainer import ClassifierTrainer
    from star.images.left_out import left_out_line
    from star.tokenizer.file import load_tokenizer

    line = left_out_line(images.name, images.left_out)
    if line:
        print_line(line)
    tokenizer: VQModel | None = None
    if settings.through:
        tokenizer = load_tokenizer(settings.through, where)
    require_writable(run.absolute().parent, "choose another --out")
    if resumed:
        trainer = ClassifierTrainer.resume(
            run, images, where, tokenizer=tokenizer, on_progress=stages.report
        )
    else:
        facts = {"command": provenance()["command"]}
        trainer = ClassifierTrainer(
            settings, images, run, where, tokenizer=tokenizer, facts=facts, on_progress=stages.report
        )
    precision = str(trainer.learner.precision).removeprefix("torch.")
    millions = sum(parameter.numel() for parameter in trainer.learner.model.parameters()) / 1e6
    print_line(
        f"run {run}  device {where}  precision {precision}  {millions:.2f}M parameters, "
        f"{len(images.splits['train'])} training images of {len(images.class_names)} classes"
    )
    return trainer


def _fit(trainer: "ClassifierTrainer", stop_after: int | None) -> None:
    """Train under the live view; exits on a signal or an early end."""
    from cli.terminal.fitting import fit_shown, leave_if_stopped

    result, signal = fit_shown(trainer, stop_after=stop_after)
    leave_if_stopped(result, signal, trainer.config.max_steps, "star train-classifier")


def _measure(trainer: "ClassifierTrainer", file: Path, stages: "Stages") -> None:
    """Write the classifier with its accuracy on the test split (else val), and say what it is."""
    from cli.terminal.screen import print_line, print_written
    from probes.results import Result, provenance, write_result
    from star.classifier.file import classifier_sha256, save_classifier
    from star.images.source import measured_split

    source, config, model = trainer.source, trainer.config, trainer.classifier()
    split = measured_split(source.splits)
    table = _accuracy(trainer, split, stages)
    facts = _card(trainer, split, table)
    save_classifier(model, file, facts)
    info = provenance(
        measurement="accuracy of a classifier",
        classifier_sha256=classifier_sha256(model),
        data=source.name,
        data_sha256=source.splits[split].fingerprint(),
        split=split,
        config=asdict(config),
    )
    written = write_result(Result(table, info), file.with_suffix(".csv"))
    for images, rows in table.groupby("images", sort=False):
        row = rows.iloc[0]
        what = "images" if images == HELD_OUT else f"images as {facts['through']['name']} redraws them"
        print_line(
            f"{source.name}, {split}, {row['n']} {what}: accuracy {row['accuracy']:.4f} "
            f"[{row['low']:.4f}, {row['high']:.4f}] (chance {row['chance']:.3g})"
        )
    print_written([file, *written])


def _accuracy(trainer: "ClassifierTrainer", split: str, stages: "Stages") -> "pd.DataFrame":
    """Accuracy, in all and by class, on held-out images and on what the tokenizer makes of them."""
    import pandas as pd

    from probes.samples.classifier import conditional_accuracy, predict
    from star.classifier.images import read_images, redrawn

    held_out, source = trainer.source.splits[split], trainer.source
    report_read = functools.partial(stages.report, f"read {split}")
    images_NCHW = read_images(held_out, trainer.config.size, report_read)
    sets = {HELD_OUT: images_NCHW}
    if trainer.tokenizer is not None:
        report_redrawn = functools.partial(stages.report, f"redraw {split}")
        sets[REDRAWN] = redrawn(trainer.tokenizer, images_NCHW, report_redrawn)
    model, tables = trainer.classifier(), []
    for name, pixels_NCHW in sets.items():
        report = functools.partial(stages.report, f"measure, {name}", total=len(held_out))
        found = predict(model, pixels_NCHW.split(256), report)
        table = conditional_accuracy(found, held_out.labels, source.class_names)
        table.insert(0, "images", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _card(trainer: "ClassifierTrainer", split: str, table: "pd.DataFrame") -> dict:
    """What the classifier's file says of it."""
    from star.base.versions import installed_version
    from star.tokenizer.file import tokenizer_sha256

    source, config = trainer.source, trainer.config
    settings = asdict(replace(config, name=config.name or f"{source.name}-{config.size}"))
    for key in ("data", "label_column", "through", "keep", "log_every", "save_every"):
        settings.pop(key)
    numbers = {
        images: {name: rows.iloc[0][name].item() for name in ("accuracy", "low", "high", "n")}
        for images, rows in table.groupby("images", sort=False)
    }
    card = {
        **settings,
        "precision": str(trainer.learner.precision).removeprefix("torch."),
        "source": source.name,
        "source_sha256": source.splits["train"].fingerprint(),
        "data": f"{source.name}, train, {len(source.splits['train'])} images",
        "measured_on": f"{source.name}, {split}, {len(source.splits[split])} images",
        **numbers[HELD_OUT],
    }
    if trainer.tokenizer is not None:
        card["through"] = {
            "name": trainer.tokenizer.name,
            "sha256": tokenizer_sha256(trainer.tokenizer),
            **numbers[REDRAWN],
        }
    return {**card, **trainer.facts, "versions": {"torch": installed_version("torch")}}
