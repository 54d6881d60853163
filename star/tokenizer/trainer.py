"""A training run of a tokenizer, by the loop of ``star.runs.loop``.

The run folder holds ``config.json``, ``metrics.jsonl``, ``step-N.pt`` with ``ckpt.pt`` and, beside
every checkpoint, ``tokenizer.safetensors``: the tokenizer as it stands, ready for use. It knows no
measurement beyond PSNR, SSIM and code usage, and no picture: callbacks receive them.
"""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import torch

from star.base.errors import UserError
from star.base.progress import OnRow, ShouldStop, never
from star.base.record import Record
from star.images.open import BadImageError, ImageSource
from star.images.views import scaled
from star.runs.checkpoint import CheckpointKind
from star.runs.folder import RunFolder
from star.runs.loop import RunResult, TrainingLoop
from star.tokenizer.batches import TokenizerBatches, held_out_images
from star.tokenizer.config import TokenizerConfig
from star.tokenizer.discriminator import PatchDiscriminator
from star.tokenizer.file import TOKENIZER_FILE, save_tokenizer
from star.tokenizer.learner import TokenizerLearner
from star.tokenizer.quality import evaluate_tokenizer

__all__ = ["TOKENIZER_RUN", "TokenizerTrainer"]

TOKENIZER_RUN = CheckpointKind(
    format="star-tokenizer-run",
    command="star train-tokenizer",
    parts={
        "step": int, "config": dict, "model": dict, "optimizer": dict, "chosen": torch.Tensor,
        "critic": dict | None, "critic_optimizer": dict | None, "data": dict,
        "facts": dict, "skipped": list,
    },
    settings=TokenizerConfig(),
)  # fmt: skip


class TokenizerRunOptions(TypedDict, total=False):
    """Options of ``TokenizerTrainer`` that no checkpoint keeps."""

    lpips_vgg: Path | str | None
    skip_bad: bool
    facts: Record | None


class TokenizerTrainer(TrainingLoop):
    """One run in one folder. ``TokenizerTrainer(...)`` starts afresh, ``.resume(...)`` goes on."""

    config: TokenizerConfig

    def __init__(
        self,
        config: TokenizerConfig,
        source: ImageSource,
        run: Path,
        device: torch.device | str = "cpu",
        *,
        lpips_vgg: Path | str | None = None,
        skip_bad: bool = False,
        facts: Record | None = None,
    ) -> None:
        """``facts`` (a command line, say) go into the tokenizer's card; a resumed run keeps its own."""
        super().__init__(RunFolder(run, config.keep, kind=TOKENIZER_RUN))
        self.config, self.source, self.device = config, source, torch.device(device)
        self.batches = TokenizerBatches(source=source, config=config, skip_bad=skip_bad)
        self.facts = facts or {}
        size, smallest = self.batches.sizes[0], PatchDiscriminator.smallest(config.disc_layers)
        if config.adversarial and min(self.batches.sizes) < smallest:
            raise UserError(
                f"views of {min(self.batches.sizes)} pixels are too small for a discriminator of "
                f"{config.disc_layers} layers, which needs {smallest}: lower --disc-layers "
                "or raise --sizes"
            )
        self.held_out = "val" if source.splits.get("val") else "train"
        split = source.split(self.held_out)
        self.val_NCHW = held_out_images(split, size, config.val_images, config.seed, skip_bad)
        self.learner = TokenizerLearner(config, device, lpips_vgg)
        self._validated: tuple[int, Record] = -1, {}  # the step and its numbers

    @classmethod
    def resume(
        cls,
        run: Path,
        source: ImageSource,
        device: torch.device | str = "cpu",
        *,
        lpips_vgg: Path | str | None = None,
        skip_bad: bool = False,
        facts: Record | None = None,
    ) -> "TokenizerTrainer":
        """Go on from the newest checkpoint; options as for a new run, but ``facts`` stay the run's own.

        Raises ``UserError`` if there is none, it cannot be read, or it saw other images.
        """
        folder = RunFolder(run, kind=TOKENIZER_RUN)
        settings = folder.settings()
        trainer = cls(
            settings, source, run, device, lpips_vgg=lpips_vgg, skip_bad=skip_bad, facts=facts
        )
        path, content = trainer.run.newest()
        for split, fingerprint in source.fingerprints().items():
            if content["data"].get(split) != fingerprint:
                raise UserError(
                    f"{path} was trained on other {split} images than {source.name} has now"
                )
        trainer.learner.load_state_dict(content)
        trainer.facts = content["facts"]
        trainer.batches.skipped.update(content["skipped"])
        trainer._go_on_from(content["step"])
        return trainer

    def fit(
        self,
        *,
        stop_after: int | None = None,
        should_stop: ShouldStop = never,
        callbacks: Sequence[OnRow] = (),
        draw: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
    ) -> RunResult:
        """Train to ``max_steps``, or end early (and save) at ``stop_after`` or on ``should_stop``.

        ``callbacks`` get each row of metrics; ``draw(step, images, redrawn)`` gets held-out images and
        their reconstructions, both (n, 3, H, W) in [-1, 1].
        Raises ``UserError`` before the update if the loss or its gradient is not finite.
        """

        def on_step(step: int) -> None:
            if draw is not None and self._due(self.config.draw_every):
                draw(step, *self.redrawn())

        return self._run(stop_after, should_stop=should_stop, callbacks=callbacks, on_step=on_step)

    def _stream(self, first: int, last: int) -> Iterator[torch.Tensor]:
        try:
            yield from self.batches.stream(first, last)
        except BadImageError as error:
            if self.step == max(0, self.saved_step):
                raise
            self.save()
            raise BadImageError(
                f"{error}; saved at step {self.step}: --resume {self.run.path} goes on, with "
                "--skip-bad without this image"
            ) from error

    def _update(self, batch: torch.Tensor, stop: bool) -> tuple[Record, bool]:
        return self.learner.update(scaled(batch), self.step), stop

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        return {"steps_per_second": round(steps / seconds, 4)}

    def _validation(self, should_stop: ShouldStop) -> dict[str, float]:
        return {f"val_{name}": value for name, value in self.validate().items()}

    def validate(self) -> Record:
        """PSNR, SSIM and code usage on the held-out images; measured once a step."""
        if self._validated[0] != self.step:
            self._validated = self.step, evaluate_tokenizer(self.learner.model, self.val_NCHW)
        return self._validated[1]

    @torch.no_grad()
    def redrawn(self, count: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
        """Some held-out images and their reconstructions, (n, 3, H, W) in [-1, 1]."""
        every = max(1, len(self.val_NCHW) // count)  # they are in the order of their classes
        images_BCHW = scaled(self.val_NCHW[::every][:count]).to(self.learner.device)
        return images_BCHW.cpu(), self.learner.model(images_BCHW).clamp(-1, 1).cpu()

    def _content(self) -> Record:
        return {
            **self.learner.state_dict(),
            "data": self.source.fingerprints(),
            "facts": self.facts,
            "skipped": sorted(self.batches.skipped),
        }

    def save(self) -> None:
        """Publish the checkpoint and the tokenizer as it stands."""
        super().save()
        self.publish()

    def publish(self, measured: Record | None = None) -> Path:
        """Write the tokenizer's file; ``measured`` replaces the validation's numbers in its card."""
        path = self.run.path / TOKENIZER_FILE
        save_tokenizer(self.learner.model, path, self.card(measured))
        return path

    def card(self, measured: Record | None = None) -> Record:
        """What the tokenizer's file says of it: data, settings, quality."""
        config, name = self.config, self.source.name
        settings = asdict(config) | {"sizes": list(self.batches.sizes)}
        for key in ("data", "name", "shape", "keep", "log_every", "draw_every", "save_every"):
            settings.pop(key)
        if measured is None:
            measured = {
                "measured_on": f"{name}, {self.held_out}, {len(self.val_NCHW)} images",
                **self.validate(),
            }
        return {
            "name": config.name or f"{name}-{self.batches.sizes[0]}",
            "data": f"{name}, train, {len(self.batches.split)} images",
            "steps": self.step,
            **settings,
            "precision": str(self.learner.precision).removeprefix("torch."),
            **measured,
            **({"skipped": sorted(self.batches.skipped)} if self.batches.skipped else {}),
            **self.facts,
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        }
