"""What layers know of the class, step by step: an atlas of every checkpoint, and where they differ.

Where files are written, what is done so far lies in a folder beside them until all is: an atlas that
was interrupted goes on when the same is asked again. Processes that torchrun has started are joined and
share the images; the first writes and speaks. Whoever asks leaves (``star.parallel.processes``).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figures.checkpoints import CheckpointStudy, Subject
from figures.features import features_stem, layers_and_steps
from figures.opening import run_data
from figures.requests.probing import Request
from figures.said.probing import atlas_said, few_updates
from figures.sentences import OTHER_RUNS
from figures.studies.probing_drawn import atlas_figures, compared_figures, difference_figures
from figures.study import Finding
from figures.work import Work
from probes.linear.atlas import Atlas, AtlasConfig, probe_atlas
from probes.linear.classes import per_class_accuracy
from probes.linear.compare import compare_hits
from probes.linear.mae import MaeConfig
from probes.linear.pixels import check_pictures
from probes.linear.protocols import ProtocolConfig
from probes.linear.splits import ProbeSplits, probe_splits
from probes.reading.features import check_store, check_tokenizer
from probes.results import Result
from star.base.device import resolve_precision
from star.base.errors import UserError
from star.base.files import publish_file, remove_folder
from star.codes.store import same_images
from star.images.open import ImageSource, open_source
from star.model.classes import null_label
from star.model.config import ModelConfig
from star.parallel.processes import join, main_first, rank
from star.tokenizer.model import VQModel
from star.training.checkpoint import Loaded

__all__ = ["Request", "check", "plan", "run"]

WORK = ".work"  # ending of the folder of what is done so far


@dataclass(frozen=True)
class Material:
    """The images a checkpoint is probed on, and what gives the pixels of the pixel control."""

    splits: ProbeSplits
    images: ImageSource | None
    tokenizer: VQModel | None


@dataclass(frozen=True)
class Found:
    """The atlas of a checkpoint, and the folder it is written to, if it is."""

    atlas: Atlas
    class_names: tuple[str, ...]
    checkpoint: Path
    folder: Path | None


class ProbingStudy(CheckpointStudy[Request, AtlasConfig, Material, Found]):
    """``star probe``."""

    request = Request
    folder = "probe"

    def check(self, asked: Request) -> None:
        """Refuse settings that the protocol has not."""
        _protocol(asked)

    def plan(self, asked: Request, loaded: Loaded) -> AtlasConfig:
        """The atlas asked of a checkpoint; ``UserError`` if its model has no such layer or step."""
        return plan(asked, loaded.model.config, loaded.model.output.weight.device)

    def data(self, asked: Request, opened: dict[str, Loaded], work: Work) -> dict[str, Material]:
        """The splits of each; ``UserError`` unless the test images are the same."""
        found: dict[str, Material] = {}
        for name, loaded in opened.items():
            with main_first():
                prepared = run_data(loaded, asked.data, asked.tokenizer, work)
            for store in prepared.stores.values():
                check_store(loaded.model, store, classes=False)
                check_tokenizer(loaded, store)
            splits = probe_splits(prepared.stores)
            images = given_images(asked.images, splits) if asked.images else prepared.source
            found[name] = Material(splits, images, prepared.tokenizer)
            _check_beside(next(iter(found.values())), found[name])
        return found

    def stem(self, asked: Request, plan: AtlasConfig) -> str:
        """Protocol, layers and weights; steps, seeds and data that were named."""
        return features_stem(f"probe-{plan.protocol.name}", asked, plan.layers, asked.seeds)

    def findings(self, asked: Request, work: Work) -> Iterator[Finding]:
        """As for any checkpoints, with a share of the images for every process there is."""
        where = join(asked.device)
        work = work if rank() == 0 else Work(writes=work.writes)
        for finding in super().findings(replace(asked, device=str(where)), work):
            yield replace(finding, said=())
            if finding.results and work.writes and rank() == 0:
                remove_folder(finding.path(WORK))
            yield Finding(said=finding.said)

    def measure(
        self,
        asked: Request,
        subject: Subject[AtlasConfig, Material],
        earlier: list[Found],
        work: Work,
    ) -> Found:
        """Probe every layer and step; of the same data, controls are those of the first checkpoint."""
        config, data, stem = subject.plan, subject.data, subject.stem
        for note in few_updates(config.protocol, data.splits.count("train")):
            work.say(note)
        first = earlier[0].atlas if earlier else None
        same = first is not None and first.result.info["splits"] == data.splits.describe()
        several = len(asked.ckpts or ()) > 1
        atlas = probe_atlas(
            subject.loaded,
            data.splits,
            config,
            images=data.images,
            tokenizer=data.tokenizer,
            work=stem.with_name(f"{stem.name}{WORK}") if work.writes else None,
            like=first if same else None,
            on_stage=lambda name, done, total: work.stage(
                f"{subject.name}, {name}" if several else name, done, total
            ),
        )
        class_names = data.splits.stores["train"].class_names
        folder = stem.parent if work.writes else None
        return Found(atlas, class_names, subject.loaded.path, folder)

    def finding(self, asked: Request, subject: Subject[AtlasConfig, Material], found: Found) -> Finding:
        """The table, predictions, accuracy by class, pictures, and every number in words."""
        atlas, class_names = found.atlas, found.class_names
        info = atlas.result.info
        cells = {"layers": info["layers"], "steps": info["steps"]}
        classes = per_class_accuracy(atlas.predicted_SLKN, atlas.labels_N, len(class_names), **cells)
        classes["class_name"] = [class_names[number] for number in classes["class"]]
        return Finding(
            results={"": atlas.result, "-classes": Result(classes, info)},
            files={"-predictions.npz": lambda path: _write_predictions(atlas, path)},
            figures=atlas_figures(atlas, classes, subject.name, class_names),
            said=atlas_said(atlas, subject.name, class_names),
        )

    def end(self, asked: Request, found: Mapping[str, Found]) -> None:
        """Refuse what is not finite: it has no rows, and there is nothing to compare."""
        broken = [f"{cell} in {one.checkpoint}" for one in found.values() for cell in one.atlas.broken]
        if not broken:
            return
        said = f"features are not finite at {', '.join(broken[:3])}{', ...' if broken[3:] else ''}"
        folder = list(found.values())[-1].folder
        if folder is not None:
            said += f"; the others are written and marked incomplete in {folder}"
        raise UserError(said)

    def compared(self, asked: Request, found: dict[str, Found], first: str, other: str) -> Finding:
        """Paired tests at every layer and step, and where they tell the two apart."""
        atlases = {name: found[name].atlas for name in (first, other)}
        infos = {name: atlas.result.info for name, atlas in atlases.items()}
        cells = {key: infos[first][key] for key in ("layers", "steps")}
        hits = [atlas.hits_SLKN for atlas in atlases.values()]
        result = compare_hits(*hits, **cells, names=(first, other))
        info: dict[str, Any] = {"measurement": "paired comparison", "names": [first, other]}
        info |= {"sentences": result.sentences(), "atlases": infos}
        return Finding(
            results={"": Result(result.table, info)},
            figures=difference_figures(atlases, result.table, first, other),
            said=[*result.sentences(), OTHER_RUNS],
        )

    def together(self, asked: Request, found: dict[str, Found]) -> Finding:
        """The curves of all checkpoints in one picture."""
        return Finding(figures=compared_figures({name: one.atlas for name, one in found.items()}))


_STUDY = ProbingStudy()
check, run = _STUDY.check, _STUDY.run


def plan(asked: Request, model: ModelConfig, device: torch.device) -> AtlasConfig:
    """The atlas that a request asks of a model of this shape; ``UserError`` if it cannot be."""
    null_label(model, "a probe")
    layers, steps = layers_and_steps(asked, model)
    return AtlasConfig(
        layers=tuple(layers),
        steps=tuple(steps),
        protocol=_protocol(asked),
        seeds=tuple(range(asked.seeds)),
        precision=resolve_precision(asked.precision, device),
    )


def _protocol(asked: Request) -> ProtocolConfig:
    given = {"--lr": asked.lr, "--epochs": asked.epochs, "--batch-size": asked.batch_size}
    used = [flag for flag, value in given.items() if value is not None]
    if used and asked.protocol != "mae":
        raise UserError(
            f"{', '.join(used)}: only for --protocol mae; {asked.protocol} has no such setting"
        )
    if not asked.cache_gb >= 0:
        raise UserError(f"cache-gb is {asked.cache_gb}; expected a number >= 0")
    if asked.seeds < 1:
        raise UserError(f"seeds is {asked.seeds}; expected at least 1")
    settings: dict[str, Any] = {}
    if asked.lr is not None:
        try:
            settings["base_lrs"] = tuple(float(part) for part in asked.lr.split(","))
        except ValueError:
            raise UserError(f"lr is {asked.lr!r}; expected numbers such as 0.1 or 0.1,1,10") from None
    if asked.epochs is not None:
        settings |= {"epochs": asked.epochs, "warmup_epochs": asked.epochs // 9}
    if asked.batch_size is not None:
        settings["batch_size"] = asked.batch_size
    return ProtocolConfig(name=asked.protocol, mae=MaeConfig(**settings), cache_gb=asked.cache_gb)


def given_images(images: str, splits: ProbeSplits) -> ImageSource:
    """The source called ``images``, with the column of labels that the codes were made with."""
    noted = splits.stores["train"].manifest.get("source")
    return open_source(images, noted.get("label_column") if isinstance(noted, dict) else None)


def _check_beside(first: Material, other: Material) -> None:
    """Refuse other test images than the first checkpoint's, and codes whose pixels nobody has."""
    of_first, of_other = first.splits.describe(), other.splits.describe()
    if of_other == of_first:  # the first, or one that takes its controls over
        return
    if not same_images(of_first["source"]["test"], of_other["source"]["test"]):
        raise UserError("the checkpoints' test images differ; give --data to probe both on the same")
    check_pictures(other.splits, other.images, other.tokenizer)


def _write_predictions(atlas: Atlas, path: Path) -> Iterable[Path]:
    info = atlas.result.info
    cells = {"layers": info["layers"], "steps": info["steps"]}
    with publish_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, predicted=atlas.predicted_SLKN, labels=atlas.labels_N, **cells)
    return [path]
