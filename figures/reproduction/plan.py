"""What ``star reproduce`` does: how it trains, which learning rates it tries, what it measures."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from star.base.errors import UserError
from star.base.settings import read_settings
from star.codes.open import is_code_folder
from star.images.open import open_source
from star.training.config import TrainConfig, preset

__all__ = ["IMPROVED", "PLAIN", "PLAN_FILE", "Plan", "check_plan", "check_source", "plan_for"]

PLAIN, IMPROVED = "AR", "ST-AR"
PLAN_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the chain does: the training configuration, its seeds and learning rates, what is measured.

    ``seeds``: a run of each model for each, on the same tokens; ``config.seed`` is the first.
    """

    config: TrainConfig
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    pilot_steps: int
    probe_steps: int = 8
    attention_images: int = 128
    samples_a_class: int = 8
    cfg_scale: float = 1.5

    def configs(self, seed: int) -> dict[str, TrainConfig]:
        """The training of plain AR, and of ST-AR, with ``seed``."""
        config = dataclasses.replace(self.config, seed=seed)
        plain = dataclasses.replace(config, objective=config.objective.baseline())
        return {PLAIN: plain, IMPROVED: config}

    def folder(self, name: str, seed: int) -> str:
        """Where a run lies: the first seed's in ``ar`` and ``st-ar``, others beside it."""
        return name.lower() if seed == self.seeds[0] else f"{name.lower()}-seed-{seed}"

    def plain(self) -> dict:
        """The plan as its file holds it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def plan_for(
    data: str,
    *,
    seed: int = 0,
    seeds: int = 1,
    max_steps: int | None = None,
    batch_size: int | None = None,
) -> Plan:
    """The recipe of ``star reproduce SOURCE``: the tiny preset, smaller still, for two CPU cores.

    What a run costs is best spent on steps: small batches, a narrow model and no dropout go much
    farther in the same time than the preset's own values. On the digits a classifier then sees the
    class that plain AR was asked for in 80 to 86 % of its samples (three seeds). The rate is fixed:
    pilots of a few dozen steps cannot tell which one wins in the end.

    ``seeds``: how many, from ``seed`` on. Raises ``UserError`` for none.
    """
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; expected at least 1")
    base = preset("tiny")
    steps = 3000 if max_steps is None else max_steps
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, layers=4, width=64),
        data=data,
        seed=seed,
        batch_size=16 if batch_size is None else batch_size,
        max_steps=steps,
        lr=6e-3,
        warmup_steps=100,
        dropout=0.0,
        validate_every=steps,
        diagnose_every=0,  # everything is measured at the end
        save_every=500,
    )
    several = tuple(range(seed, seed + seeds))
    return Plan(config=config, seeds=several, learning_rates=(config.lr,), pilot_steps=min(60, steps))


def check_plan(out: Path, plan: Plan) -> None:
    """Raise ``UserError`` if ``out`` holds another plan's work, or its plan cannot be read.

    More seeds from the same first one on go on with the runs of fewer.
    """
    path = out / PLAN_FILE
    if path.exists() and read_settings(path) | {"seeds": list(plan.seeds)} != plan.plain():
        raise UserError(f"{out} holds the work of other settings; give another --out or delete it")


def check_source(config: TrainConfig) -> None:
    """Raise ``UserError`` for a source without images, without a split, or too small for a batch."""
    if is_code_folder(config.data):
        raise UserError(f"{config.data} holds codes only; the figures need images")
    source = open_source(config.data)
    for split in ("train", "val", "test"):
        if split not in source.splits:
            raise UserError(
                f"{config.data} has no {split} split; the figures need train, val and test: add a "
                "folder test/, and give every class in train/ two images or more"
            )
    images = len(source.splits["train"])
    if images < config.batch_size:
        raise UserError(
            f"batch_size is {config.batch_size}; {config.data} has only {images} training images: give "
            "a smaller --batch-size"
        )
