"""``star train``: ST-AR by default, ``--objective ar`` for the plain baseline."""

import functools
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from cli.options import Device, SourceTokenizer, with_options
from cli.threads import computing
from star.base.progress import OnRow
from star.model.config import SIZES, ModelConfig
from star.training.config import ObjectiveConfig, TrainConfig, for_cuda, preset

if TYPE_CHECKING:
    from cli.tracking import Tracker
    from probes.watching.samples import FixedSamples
    from star.classifier.model import Classifier
    from star.images.open import ImageSource
    from star.model.transformer import Transformer
    from star.training.own_data import OwnData
    from star.training.trainer import Trainer

SIZE_NAMES = ", ".join(SIZES)
SAMPLES = "samples"  # in the run folder
TINY = preset("tiny")


@computing("Training a model")
@with_options(
    TINY,
    TINY.objective,
    TINY.model,
    skip=("grid", "vocab_size", "num_classes", "null_class"),
    panels={
        TrainConfig: "Training (defaults of the tiny preset, here and below)",
        ObjectiveConfig: "Objective (numbers of the paper's equations in brackets)",
        ModelConfig: "Model (grid, vocabulary and classes come from the data)",
    },
)
def train(
    objective: Literal["star", "ar"] = typer.Option(
        None,
        help="star: all losses of the paper; ar: next-token prediction on the same sequences.  "
        "\\[default: star]",
    ),
    size: str = typer.Option(
        None, "--preset", help=f"Whole configuration by size: {SIZE_NAMES}.  \\[default: tiny]"
    ),
    config: Path = typer.Option(
        None, help="TOML or JSON file of settings (a run's config.json works)."
    ),
    tokenizer: SourceTokenizer = None,
    run: Path = typer.Option(None, "--run", help="Run folder.  \\[default: runs/DATE-OBJECTIVE]"),
    resume: Path = typer.Option(None, help="Go on with the run in this folder, exactly where it was."),
    without: str = typer.Option(
        None,
        help="Resume although these parts of the checkpoint (teacher,projector,optimizer) are missing "
        "or unreadable; they start anew.",
    ),
    stop_after: int = typer.Option(None, help="End (and save) after this step, to be resumed later."),
    skip_bad: bool = typer.Option(False, help="Leave out images that cannot be read."),
    device: Device = "auto",
    nproc: int = typer.Option(1, help="Processes on this machine, started through torchrun (DDP)."),
    track: Literal["tensorboard", "wandb"] = typer.Option(
        None,
        help="Also send the rows of metrics.jsonl to TensorBoard (RUN/tensorboard) or Weights & Biases "
        "(WANDB_MODE=offline stays here); pip install tensorboard, or wandb.",
    ),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print parameters, memory, FLOPs and time; train nothing."
    ),
    tflops: float = typer.Option(None, help="TFLOP/s one device sustains, for --dry-run."),
    *,
    given: dict,
) -> None:
    """Train an autoregressive image model; the defaults train ST-AR on the digits in minutes.

    Writes config.json, metrics.jsonl, ckpt.pt and the tokenizer into the run folder. Ctrl-C saves and
    leaves; star train --resume DIR goes on with identical results. In another terminal star watch
    shows the run; star plot draws its curves. With --sample-every N pictures of samples go to
    RUN/samples; --classifier counts in how many of them the class is the one asked for.
    """
    from cli.processes import launch
    from cli.terminal.dry_run import print_estimate
    from cli.tracking import TRACKERS
    from star.base.errors import UserError
    from star.runs.folder import RunFolder
    from star.runs.metrics import RUNS
    from star.training.checkpoint import MODEL_RUN

    _refuse_idle(resume, [*given.values(), config, run, objective, size], dry_run, tflops, stop_after)
    left = _left_behind(resume, without)
    own = None if resume is None else RunFolder(resume, kind=MODEL_RUN).settings(left)
    settings, chosen = (own, None) if own else _settings(objective, size, config, given)
    if dry_run:
        print_estimate(settings, nproc, device, tflops)
        return
    tracker = TRACKERS[track]() if track else None
    folder = resume or run or RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{objective or 'star'}"
    if resume is None and RunFolder(folder, kind=MODEL_RUN).newest_path() is not None:
        raise UserError(f"{folder} already holds a run; give --resume {folder} or another --run")
    if nproc != 1:
        launch(nproc, device)
    trainer, samples = _prepared(
        settings, chosen, folder, None if resume is None else left, tokenizer, skip_bad, device
    )
    _fit(trainer, samples, stop_after, tracker)


def _prepared(
    settings: TrainConfig,
    chosen: Collection[str] | None,
    folder: Path,
    without: list[str] | None,
    tokenizer: str | None,
    skip_bad: bool,
    device: str,
) -> "tuple[Trainer, FixedSamples | None]":
    """The trainer of this process, and what is to be sampled; its codes are made if need be.

    ``chosen`` names the settings of a new run that the user gave. ``without``: None for a new run, else
    the parts to go on without from where the run ended.
    """
    from cli.terminal.screen import Stages, console
    from probes.watching.samples import fixed_samples
    from star.classifier.file import load_classifier
    from star.codes.open import keep_tokenizer, prepare_data
    from star.parallel import processes as distributed
    from star.tokenizer.file import tokenizer_beside
    from star.training.estimate import require_training_memory
    from star.training.trainer import Trainer

    where = distributed.join(device)
    if chosen is not None and where.type == "cuda":
        settings = for_cuda(settings, chosen)
    console.quiet = distributed.rank() > 0
    # Before codes are made, which may take hours. How many codes and classes there are the trainer
    # knows, and looks again.
    least = settings.fitted_to(grid=settings.model.grid, vocab_size=1, num_classes=1)
    require_training_memory(least, where, distributed.world_size())
    own = None if without is None else _own_data(settings, folder, without)
    classifier = load_classifier(settings.classifier) if settings.classifier else None
    with Stages() as stages, distributed.main_first():
        data = prepare_data(
            settings.data,
            tokenizer=tokenizer or (None if without is None else tokenizer_beside(folder)),
            skip_bad=skip_bad,
            device=str(where),
            on_source=lambda source: _check_source(source, own, classifier),
            on_progress=stages.report,
            on_message=stages.say,
        )
    samples, train = None, data.stores["train"]
    if settings.sample_every:
        samples = fixed_samples(settings, train, train.class_names, data.tokenizer, classifier, where)
        if without is not None:
            samples.require_same(folder / SAMPLES)
    if without is None:
        trainer = Trainer(settings, data.stores, folder, where)
    else:
        trainer = Trainer.resume(folder, data.stores, where, without)
    if distributed.rank() == 0:
        keep_tokenizer(data, folder)
    precision = str(trainer.learner.precision).removeprefix("torch.")
    processes = f"  processes {distributed.world_size()}" if distributed.world_size() > 1 else ""
    console.print(f"run {folder}  device {where}  precision {precision}{processes}", highlight=False)
    if samples is not None:
        _announce(samples, folder)
    return trainer, samples


def _check_source(
    source: "ImageSource", own: "OwnData | None", classifier: "Classifier | None"
) -> None:
    """Refuse images that do not fit, before codes are made of them."""
    from probes.samples.classifier import require_classes

    if own is not None:
        own.check_source(source)
    if classifier is not None:
        require_classes(classifier, source.class_names)


def _announce(samples: "FixedSamples", folder: Path) -> None:
    """What will be sampled, and by whom it is judged."""
    from cli.terminal.screen import console
    from figures.sentences import names_in_pictures

    judged = ""
    if samples.classifier is not None:
        worth = {
            "on real images": "cond_acc_real",
            "redrawn by the run's tokenizer": "cond_acc_redrawn",
        }
        known = [
            f"{100 * samples.worth[column]:.1f} % right {images}"
            for images, column in worth.items()
            if column in samples.worth
        ]
        said = f" ({', '.join(known)})" if known else ""
        judged = f", judged by the {samples.classifier.name} classifier{said}"
    classes = f"{len(samples.chosen)} classes"
    console.print(
        f"samples {folder / SAMPLES}: {samples.options.count} of the teacher and of the student, "
        f"{classes}{judged}",
        highlight=False,
        soft_wrap=True,
    )
    for line in names_in_pictures(samples.class_names, samples.chosen):
        console.print(line, highlight=False, soft_wrap=True)


def _own_data(settings: TrainConfig, folder: Path, without: list[str]) -> "OwnData":
    """What the run in ``folder`` recorded of its data; ``UserError`` if there are none."""
    from star.runs.folder import RunFolder
    from star.training.checkpoint import MODEL_RUN
    from star.training.own_data import OwnData

    path, content = RunFolder(folder, kind=MODEL_RUN).newest("meta", without)  # reads no weights
    own = OwnData(
        name=settings.data,
        record=content["data"],
        path=path,
        class_names=tuple(map(str, content["class_names"])),
        for_training=True,
    )
    own.require()
    return own


def _fit(
    trainer: "Trainer",
    samples: "FixedSamples | None",
    stop_after: int | None,
    tracker: "Tracker | None",
) -> None:
    """Train under the live view, with diagnostics, and say where it ended; exits on a signal."""
    import sys

    from cli.stopping import StopSignals
    from cli.terminal.screen import console
    from cli.terminal.training import TrainingView
    from probes.watching.diagnostics import in_loop_diagnostics
    from star.parallel import processes as distributed
    from star.runs.metrics import read_metrics

    folder, learner = trainer.run.path, trainer.learner
    view = TrainingView(
        str(folder), trainer.config.max_steps, read_metrics(folder)[0] if trainer.step else ()
    )
    callbacks: list[OnRow] = [view]
    if tracker is not None and distributed.rank() == 0:
        tracker.start(folder, trainer.config, trainer.step)
        callbacks.append(tracker)
    try:
        with view.shown(), StopSignals() as signals:
            result = trainer.fit(
                stop_after=stop_after,
                should_stop=lambda: signals.received is not None,
                callbacks=callbacks,
                diagnose=lambda _: in_loop_diagnostics(
                    learner.student, learner.teacher, trainer.stores, trainer.config, learner.precision
                ),
                sample=None if samples is None else functools.partial(_sample, trainer, samples),
            )
    finally:
        if tracker is not None and len(callbacks) > 1:
            tracker.close()
    done = "finished" if result.finished else f"saved, go on with: star train --resume {folder}"
    console.print(f"step {result.step}/{trainer.config.max_steps} {done}", highlight=False)
    distributed.leave()
    if signals.received is not None:
        sys.exit(128 + signals.received)


def _sample(
    trainer: "Trainer", samples: "FixedSamples", weights: str, model: "Transformer"
) -> dict[str, float]:
    """Draw the samples of ``model`` into a picture; what the classifier says of them."""
    from viz.base.style import save
    from viz.samples import sample_grid

    folder, step = trainer.run.path / SAMPLES, trainer.step
    images, labels = samples.draw(model)
    found = samples.accuracy(weights, images, labels)
    guidance, count, last = samples.options.cfg_scale, len(labels), trainer.config.max_steps

    def title(step: int, seen: list[float]) -> str:
        of_them = "".join(f", class seen in {share * count:.0f} of {count}" for share in seen)
        return f"{weights}, step {step}, guidance {guidance:g}{of_them}"

    seen = [share for name, share in found.items() if name in ("cond_acc", "cond_acc_student")]
    longest = title(last, [1.0 for _ in seen])
    figure = sample_grid(
        images,
        labels,
        samples.class_names,
        title=title(step, seen).ljust(len(longest)),  # all pictures have the size of the widest
        columns=trainer.config.sample_each,
    )
    save(figure, folder / f"step-{step:09d}-{weights}", formats=("png",))
    samples.publish(folder)
    return found


def _refuse_idle(
    resume: Path | None, of_a_new_run: list, dry_run: bool, tflops: float | None, stop_after: int | None
) -> None:
    """Refuse options that would have no effect."""
    from star.base.errors import UserError

    if resume is not None and any(of_a_new_run):
        raise UserError(
            "--resume takes all settings from the run; give only --stop-after, --device, --nproc, "
            "--track, --without, --tokenizer or --skip-bad"
        )
    if tflops is not None and not dry_run:
        raise UserError("--tflops has an effect only with --dry-run")
    if stop_after is not None and stop_after < 1:
        raise UserError(f"stop-after is {stop_after}; expected at least 1")


def _left_behind(resume: Path | None, without: str | None) -> list[str]:
    """The parts of a checkpoint that ``--without`` names."""
    from star.base.errors import UserError, require_choice
    from star.training.checkpoint import DISPENSABLE

    if without is not None and resume is None:
        raise UserError("--without has an effect only with --resume")
    parts = [part.strip() for part in (without or "").split(",") if part.strip()]
    for part in parts:
        require_choice("without", part, DISPENSABLE)
    return parts


def _settings(
    objective: str | None, size: str | None, config: Path | None, given: dict
) -> tuple[TrainConfig, set[str]]:
    """Preset, then the file, then the command line; and the names of those not left to the preset."""
    from star.base.settings import config_from_dict, read_settings

    settings = preset(size or "tiny")
    of_file = {} if config is None else read_settings(config)
    settings = config_from_dict(of_file, settings)
    if objective == "ar":
        settings = _plain(settings, given[ObjectiveConfig])
    changes = given[TrainConfig] | {"objective": given[ObjectiveConfig], "model": given[ModelConfig]}
    return config_from_dict(changes, settings), set(of_file) | set(given[TrainConfig])


def _plain(settings: TrainConfig, given: dict) -> TrainConfig:
    """The AR baseline of ``settings``; refuses options that would have no effect."""
    import dataclasses

    from star.base.errors import UserError

    kept = ("views", "ema_decay", "ema_warmup")
    idle = [name for name in given if name not in kept]
    if idle:
        flags = ", ".join("--" + name.replace("_", "-") for name in idle)
        raise UserError(f"--objective ar uses none of: {flags}; leave them out or train with star")
    return dataclasses.replace(settings, objective=settings.objective.baseline())
