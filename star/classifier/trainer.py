"""A training run of a classifier, by the loop of ``star.runs.loop``.

It sees the source's train split alone; the schedule is fixed, and the validation split chooses nothing.
The run folder holds ``config.json``, ``metrics.jsonl`` and ``step-N.pt`` with ``ckpt.pt``. The
classifier's file is written by whoever has measured it on held-out images.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from star.base.errors import UserError, listed
from star.base.progress import OnRow, Progress, ShouldStop, StageProgress, never, nothing
from star.base.randomness import generator
from star.base.record import Record
from star.classifier.config import ClassifierConfig
from star.classifier.file import rounded
from star.classifier.images import ClassifierBatches, read_images, redrawn, require_multiple
from star.classifier.learner import ClassifierLearner
from star.classifier.model import Classifier
from star.images.source import ImageSource, measured_split
from star.runs.checkpoint import CheckpointKind
from star.runs.folder import RunFolder
from star.runs.loop import RunResult, TrainingLoop
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.model import VQModel

__all__ = ["CLASSIFIER_RUN", "ClassifierTrainer", "completed", "require_classes"]

CLASSIFIER_RUN = CheckpointKind(
    format="star-classifier-run",
    command="star train-classifier",
    parts={
        "step": int, "config": dict, "model": dict, "optimizer": dict, "loss_scale": dict,
        "data": dict, "through": str, "facts": dict,
    },
    settings=ClassifierConfig(),
)  # fmt: skip


def require_classes(source: ImageSource) -> None:
    """Raise ``UserError`` unless a classifier can be trained on ``source`` and measured."""
    train, name = source.split("train"), source.name
    if len(source.class_names) < 2:
        raise UserError(
            f"{name} has one class ({listed(source.class_names)}); a classifier needs two or more: a "
            "folder of images has a folder of train/ for each"
        )
    if not len(train):
        raise UserError(f"{name} has no training images")
    missing = sorted(set(range(len(source.class_names))) - set(train.labels.tolist()))
    if missing:
        names = listed(source.class_names[label] for label in missing)
        raise UserError(f"{name} has no training image of the class {names}")
    split = measured_split(source.splits)
    if split == "train" or not len(source.splits[split]):
        raise UserError(
            f"{name} has no held-out images (a test or val split) to measure the classifier on"
        )


def completed(config: ClassifierConfig, source: ImageSource) -> ClassifierConfig:
    """The settings of a run on ``source``: what depends on it is filled in."""
    return config.completed(
        images=len(source.split("train")),
        native_size=source.native_size,
        default_views=source.default_views,
    )


class ClassifierTrainer(TrainingLoop):
    """One run in one folder. ``ClassifierTrainer(...)`` starts afresh, ``.resume(...)`` goes on."""

    config: ClassifierConfig

    def __init__(
        self,
        config: ClassifierConfig,
        source: ImageSource,
        run: Path,
        device: torch.device | str = "cpu",
        *,
        tokenizer: VQModel | None = None,
        facts: Record | None = None,
        on_progress: StageProgress = nothing,
    ) -> None:
        """Reads all training images. ``tokenizer``: the one of ``config.through``, if it names one.

        ``facts`` (a command line, say) go into the classifier's card; a resumed run keeps its own.
        """
        assert (tokenizer is None) == (not config.through), config.through
        require_classes(source)
        config = completed(config, source)
        if tokenizer is not None:
            require_multiple(tokenizer, config.size)
        super().__init__(RunFolder(run, config.keep, kind=CLASSIFIER_RUN))
        self.config, self.source, self.device = config, source, torch.device(device)
        self.tokenizer, self.facts = tokenizer, facts or {}
        train = source.split("train")
        images_NCHW = read_images(train, config.size, _part(on_progress, "read train"))
        drawn_NCHW = None
        if tokenizer is not None:
            drawn_NCHW = redrawn(tokenizer, images_NCHW, _part(on_progress, "redraw train"))
        labels_N = torch.from_numpy(np.asarray(train.labels, dtype=np.int64))
        self.batches = ClassifierBatches(
            images_NCHW=images_NCHW, labels_N=labels_N, config=config, drawn_NCHW=drawn_NCHW
        )
        self.learner = ClassifierLearner(config, len(source.class_names), device)
        self.held_out = self._validation_images()

    @classmethod
    def resume(
        cls,
        run: Path,
        source: ImageSource,
        device: torch.device | str = "cpu",
        *,
        tokenizer: VQModel | None = None,
        on_progress: StageProgress = nothing,
    ) -> "ClassifierTrainer":
        """Go on from the newest checkpoint; options as for a new run.

        Raises ``UserError`` if there is none, it cannot be read, or it saw other images, classes or
        another tokenizer.
        """
        folder = RunFolder(run, kind=CLASSIFIER_RUN)
        settings = folder.settings()
        path, content = folder.newest()
        found = source.fingerprints()
        for name, fingerprint in content["data"].items():
            if found.get(name) != fingerprint:
                raise UserError(f"{path} was trained on other {name} images than {source.name} has now")
        through = "" if tokenizer is None else tokenizer_sha256(tokenizer)
        if content["through"] != through:
            raise UserError(
                f"{path} was trained through another tokenizer than {settings.through} is now"
            )
        trainer = cls(
            settings, source, run, device, tokenizer=tokenizer, facts=content["facts"],
            on_progress=on_progress,
        )  # fmt: skip
        trainer.learner.load_state_dict(content)
        trainer._go_on_from(content["step"])
        return trainer

    def fit(
        self,
        *,
        stop_after: int | None = None,
        should_stop: ShouldStop = never,
        callbacks: Sequence[OnRow] = (),
    ) -> RunResult:
        """Train to ``max_steps``, or end early (and save) at ``stop_after`` or on ``should_stop``.

        ``callbacks`` get each row of metrics. Raises ``UserError`` before the update if the loss or its
        gradient is not finite.
        """
        return self._run(stop_after, should_stop=should_stop, callbacks=callbacks, on_step=nothing)

    def classifier(self) -> Classifier:
        """The classifier as it stands and as a file would keep it, ready to be measured."""
        found = rounded(self.learner.model)
        found.class_names = list(self.source.class_names)
        return found

    def _stream(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.batches.stream(first, last)

    def _update(self, batch: tuple[torch.Tensor, torch.Tensor], stop: bool) -> tuple[Record, bool]:
        return self.learner.update(*batch, self.step), stop

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        return {"steps_per_second": round(steps / seconds, 4)}

    def _validation_images(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Images and labels of (part of) the val split, drawn by the seed; None without one."""
        split = self.source.splits.get("val")
        if split is None or not len(split):
            return None
        order = generator(self.config.seed, "classifier-held-out").permutation(len(split))
        chosen = split.select(np.sort(order[: self.config.val_images]))
        labels_N = torch.from_numpy(np.asarray(chosen.labels, dtype=np.int64))
        return read_images(chosen, self.config.size), labels_N

    def _validation(self, should_stop: ShouldStop) -> dict[str, float]:
        if self.held_out is None:
            return {}
        images_NCHW, labels_N = self.held_out
        model = self.learner.model.eval()
        logits = [model.features_and_logits(images)[1].cpu() for images in images_NCHW.split(256)]
        model.train()
        return {"val_acc": (torch.cat(logits).argmax(dim=1) == labels_N).double().mean().item()}

    def _content(self) -> Record:
        return {
            **self.learner.state_dict(),
            "data": self.source.fingerprints(),
            "through": "" if self.tokenizer is None else tokenizer_sha256(self.tokenizer),
            "facts": self.facts,
        }


def _part(on_progress: StageProgress, stage: str) -> Progress:
    return lambda done, total: on_progress(stage, done, total)
