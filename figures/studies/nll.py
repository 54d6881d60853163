"""How probable a model finds held-out images: by step, with the class and without, and how surely."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from figures.checkpoints import CheckpointStudy, Subject
from figures.opening import held_out_stores, tokenizer_path
from figures.requests.nll import Request
from figures.said.nll import compared_said, nll_said
from figures.sentences import few_images
from figures.study import Finding
from figures.work import Said, Work
from probes.likelihood.calibration import BINS, Calibration, calibration
from probes.likelihood.nll import Likelihood, compare_likelihoods, likelihood
from probes.reading.features import check_store
from probes.reading.images import draw
from probes.results import Result, checkpoint_facts, provenance
from star.base.device import resolve_precision
from star.base.errors import UserError
from star.base.names import slug
from star.codes.store import CodeStore
from star.tokenizer.file import load_tokenizer
from star.training.checkpoint import Loaded
from viz.likelihood import nll_by_step, reliability

__all__ = ["Request", "run"]

CLASS_PASSES = 10_000  # images times classes, by default
FEWEST_CLASSIFIED = 20


@dataclass(frozen=True)
class Data:
    """The store that is measured on, and the training images of the same data, if it has others."""

    store: CodeStore
    train: CodeStore | None
    pixels: int | None


@dataclass(frozen=True)
class Found:
    """What was measured of one model, and where it comes from."""

    nll: Likelihood
    calibration: Calibration
    info: dict


class NllStudy(CheckpointStudy[Request, int, Data, Found]):
    """``star nll``."""

    request = Request
    folder = "nll"

    def check(self, asked: Request) -> None:
        """Refuse too few images."""
        if asked.images < 2:
            raise UserError(f"images is {asked.images}; expected at least 2, for an interval")
        if asked.class_images is not None and asked.class_images < 0:
            raise UserError(f"class-images is {asked.class_images}; expected at least 0 (none)")

    def plan(self, asked: Request, loaded: Loaded) -> int:
        """How many images are classified."""
        if asked.class_images is not None:
            return min(asked.class_images, asked.images)
        each = max(FEWEST_CLASSIFIED, CLASS_PASSES // loaded.model.config.num_classes)
        return min(each, asked.images)

    def data(self, asked: Request, opened: dict[str, Loaded], work: Work) -> dict[str, Data]:
        """Codes of the same images for all, and of training images beside them."""
        found = {}
        for name, (stores, store) in held_out_stores(opened, asked.data, asked.tokenizer, work).items():
            check_store(opened[name].model, store)
            train = stores.get("train")
            pixels = _pixels(opened[name], store, asked.tokenizer)
            found[name] = Data(store, None if train is store else train, pixels)
        return found

    def stem(self, asked: Request, plan: int) -> str:
        """What was asked for beside the defaults is in the name."""
        more = f"-{slug(Path(asked.data).name)}" if asked.data else ""
        return f"nll-{asked.weights}{more}"

    def measure(
        self, asked: Request, subject: Subject[int, Data], earlier: list[Found], work: Work
    ) -> Found:
        """NLL and calibration of one model."""
        model, data = subject.loaded.model, subject.data
        images = draw(data.store, asked.images, asked.seed, "nll images")
        train = None
        if data.train is not None:
            train = draw(data.train, len(images), asked.seed, "nll training images")
        precision = resolve_precision(asked.precision, model.output.weight.device)
        found = likelihood(
            model,
            images,
            train=train,
            class_images=subject.plan,
            seed=asked.seed,
            pixels=data.pixels,
            precision=precision,
            on_progress=work.progress(f"{subject.name}: likelihood"),
        )
        calibrated = calibration(
            model,
            images,
            seed=asked.seed,
            precision=precision,
            on_progress=work.progress(f"{subject.name}: calibration"),
        )
        return Found(found, calibrated, _facts(asked, subject, found, precision))

    def finding(self, asked: Request, subject: Subject[int, Data], found: Found) -> Finding:
        """The table of likelihoods, the reliability table, their pictures, and the means in words."""
        table, bins = found.nll.table(), found.calibration.table()
        error = found.calibration.error()
        reliable = found.info | {
            "measurement": "reliability of the next token's prediction",
            "binning": f"{BINS} bins of equal count by the probability of the most likely token",
            "expected_calibration_error": list(error),
            "floor": found.calibration.floor(),
        }
        return Finding(
            results={"": Result(table, found.info), "-reliability": Result(bins, reliable)},
            figures={
                "-steps": nll_by_step({subject.name: table}),
                "-reliability": reliability({subject.name: bins}),
            },
            said=[
                *few_images(len(found.nll.labels)),
                *nll_said(subject.name, found.nll, found.calibration, subject.data.store),
            ],
        )

    def compared(self, asked: Request, found: dict[str, Found], first: str, other: str) -> Finding:
        """Paired differences on the same images."""
        names = (first, other)
        table = compare_likelihoods(found[first].nll, found[other].nll, names)
        info = {
            "measurement": "paired comparison of likelihoods",
            "names": list(names),
            "likelihoods": {name: found[name].info for name in names},
        }
        return Finding(results={"": Result(table, info)}, said=compared_said(table, names))

    def explained(self, asked: Request, found: Mapping[str, Found]) -> list[Said]:
        """What calibration is measured by."""
        return [
            f"calibration: the share of next tokens guessed right beside the guess's probability, in "
            f"{BINS} bins of as many predictions each; the expected error is the mean distance of the "
            "two, and its floor what a perfectly calibrated model would show on as many"
        ]

    def together(self, asked: Request, found: dict[str, Found]) -> Finding:
        """All models in one picture of the steps, and one of the reliability."""
        tables = {name: each.nll.table() for name, each in found.items()}
        bins = {name: each.calibration.table() for name, each in found.items()}
        pictures = {"-compared-steps": nll_by_step(tables), "-compared-reliability": reliability(bins)}
        return Finding(figures=pictures)


run = NllStudy().run


def _pixels(loaded: Loaded, store: CodeStore, given: Path | None) -> int | None:
    """H * W of the images that the tokenizer saw: as the store says, else by the tokenizer's stride."""
    views = store.manifest.get("view_set")
    size = views.get("size") if isinstance(views, dict) else None
    if type(size) is not int or size < 1:
        path = tokenizer_path(loaded, given)
        if path is None:
            return None
        size = load_tokenizer(path).config.stride * store.grid
    return int(size) ** 2


def _facts(
    asked: Request, subject: Subject[int, Data], found: Likelihood, precision: torch.dtype
) -> dict:
    data = subject.data
    return provenance(
        measurement="likelihood",
        **checkpoint_facts(subject.loaded),
        data=str(data.store.path),
        data_sha256=data.store.manifest["sha256"],
        split=data.store.path.name,
        train=None if data.train is None else str(data.train.path),
        view="test view",
        images=len(found.labels),
        images_classified=len(found.classified),
        seed=asked.seed,
        precision=str(precision).replace("torch.", ""),
        pixels=data.pixels,
        tokenizer_sha256=data.store.tokenizer_sha256,
        uniform_nats=float(np.log(data.store.vocab_size)),
    )
