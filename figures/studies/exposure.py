"""How fast a model leaves the data when it goes on from its own tokens: rollouts beside real images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from figures.checkpoints import CheckpointStudy, Subject
from figures.opening import held_out_stores, tokenizer_path
from figures.requests.exposure import Request
from figures.said.exposure import compared_said, exposure_said
from figures.sentences import few_images
from figures.study import Finding
from figures.work import Said, Work
from probes.likelihood.exposure import Exposure, compare_exposures, exposure
from probes.likelihood.rollouts import AS_IT_IS, Sampling, default_starts, parse_starts, partners
from probes.reading.codes import code_vectors
from probes.reading.features import check_decoder, check_store
from probes.reading.images import draw_rows, take
from probes.results import Result, checkpoint_facts, provenance
from star.base.errors import UserError
from star.base.names import slug
from star.codes.store import CodeStore
from star.model.classes import null_label
from star.tokenizer.file import load_tokenizer
from star.training.checkpoint import Loaded
from viz.exposure import exposure_curves

__all__ = ["Request", "run"]


@dataclass(frozen=True)
class Data:
    """The store that is measured on, and its codes' vectors where the tokenizer is there."""

    store: CodeStore
    codes_VE: np.ndarray | None


@dataclass(frozen=True)
class Found:
    """What was measured of one model, and where it comes from."""

    exposure: Exposure
    info: dict


class ExposureStudy(CheckpointStudy[Request, list[int], Data, Found]):
    """``star exposure``."""

    request = Request
    folder = "exposure"

    def check(self, asked: Request) -> None:
        """Refuse too few images."""
        if asked.images < 2:
            raise UserError(f"images is {asked.images}; expected at least 2, for an interval")

    def plan(self, asked: Request, loaded: Loaded) -> list[int]:
        """Where rollouts start."""
        config = loaded.model.config
        if asked.cfg_scale != 1:
            null_label(config, f"guidance (cfg_scale {asked.cfg_scale:g})", "give --cfg-scale 1")
        if asked.starts is None:
            return default_starts(config.tokens)
        return parse_starts(asked.starts, config.tokens)

    def data(self, asked: Request, opened: dict[str, Loaded], work: Work) -> dict[str, Data]:
        """Codes of the same images for all, from one tokenizer."""
        found: dict[str, Data] = {}
        for name, (_, store) in held_out_stores(opened, asked.data, asked.tokenizer, work).items():
            check_store(opened[name].model, store)
            for other in found.values():
                same = other.store.tokenizer_sha256 == store.tokenizer_sha256
                if not same or other.store.grid != store.grid:
                    raise UserError(
                        "the checkpoints have different tokenizers, under which neither NLL nor codes "
                        "compare; ask for each alone"
                    )
            path, codes_VE = tokenizer_path(opened[name], asked.tokenizer), None
            if path is not None:
                tokenizer = load_tokenizer(path)
                check_decoder(tokenizer, store)
                codes_VE = code_vectors(tokenizer).numpy()
            found[name] = Data(store, codes_VE)
        return found

    def stem(self, asked: Request, plan: list[int]) -> str:
        """What was asked for beside the defaults is in the name."""
        more = f"-from-{slug(asked.starts)}" if asked.starts else ""
        for name, default in asdict(AS_IT_IS).items():
            if getattr(asked, name) != default:
                more += f"-{name.replace('_', '-')}-{getattr(asked, name):g}"
        more += f"-{slug(Path(asked.data).name)}" if asked.data else ""
        return f"exposure-{asked.weights}{more}"

    def measure(
        self, asked: Request, subject: Subject[list[int], Data], earlier: list[Found], work: Work
    ) -> Found:
        """Rollouts of one model from every start."""
        store, sampling = subject.data.store, _sampling(asked)
        rows = draw_rows(np.arange(len(store)), asked.images, asked.seed, "exposure images")
        others = partners(np.asarray(store.labels), rows, asked.seed)
        views = [view for view in range(store.views) if view != store.test_view]
        found = exposure(
            subject.loaded.model,
            take(store, rows),
            subject.plan,
            seed=asked.seed,
            sampling=sampling,
            codes_VE=subject.data.codes_VE,
            others=take(store, others),
            alone=others == rows,
            view=take(store, rows, view=views[0]) if views else None,
            on_progress=work.progress(f"{subject.name}: rollouts"),
        )
        info = provenance(
            measurement="exposure bias",
            **checkpoint_facts(subject.loaded),
            data=str(store.path),
            data_sha256=store.manifest["sha256"],
            split=store.path.name,
            view="test view",
            other_view=store.view_names[views[0]] if views else None,
            images=len(rows),
            images_alone_in_their_class=int((others == rows).sum()),
            starts=subject.plan,
            sampling=asdict(sampling),
            seed=asked.seed,
            precision="float32",
            tokenizer_sha256=store.tokenizer_sha256,
        )
        return Found(found, info)

    def finding(self, asked: Request, subject: Subject[list[int], Data], found: Found) -> Finding:
        """The table, its picture, and the ends of the curves in words."""
        table = found.exposure.table()
        return Finding(
            results={"": Result(table, found.info)},
            figures={"-curves": exposure_curves({subject.name: table})},
            said=[
                *few_images(len(found.exposure.labels)),
                *exposure_said(subject.name, table, found.exposure, subject.data.store.path.name),
            ],
        )

    def compared(self, asked: Request, found: dict[str, Found], first: str, other: str) -> Finding:
        """Paired differences on the same images and random numbers."""
        names = (first, other)
        table = compare_exposures(found[first].exposure, found[other].exposure, names)
        info = {
            "measurement": "paired comparison of exposure bias",
            "names": list(names),
            "exposures": {name: found[name].info for name in names},
        }
        return Finding(results={"": Result(table, info)}, said=compared_said(table, names))

    def explained(self, asked: Request, found: Mapping[str, Found]) -> list[Said]:
        """What is exposure bias and what is not."""
        said: list[Said] = [
            "a calibrated model's excess is 0 right after real tokens: an offset at distance 1 is "
            "calibration, only growth with distance is exposure bias; entropy is what the model's own "
            "prefix alone changes. Below 0, rollouts are easier to predict than images: a departure too"
        ]
        if _sampling(asked) != AS_IT_IS:
            said.append(
                "rollouts were not drawn from the model as it is, but NLL and entropy are those of the "
                "model as it is: their excess holds what guidance, temperature, top-k and top-p do"
            )
        return said

    def together(self, asked: Request, found: dict[str, Found]) -> Finding:
        """All models in one picture, from the first start."""
        tables = {name: each.exposure.table() for name, each in found.items()}
        return Finding(figures={"-compared-curves": exposure_curves(tables)})


run = ExposureStudy().run


def _sampling(asked: Request) -> Sampling:
    return Sampling(
        cfg_scale=asked.cfg_scale,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
    )
