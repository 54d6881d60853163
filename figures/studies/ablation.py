"""What a model loses when it may not look: the change of NLL and of a probe, and how far it looks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.checkpoints import CheckpointStudy, Subject
from figures.opening import held_out_stores
from figures.requests.ablation import Request
from figures.sentences import OTHER_RUNS, few_images
from figures.study import Finding
from figures.work import Rows, Said, Work
from probes.ablation.accuracy import ablate_probe
from probes.ablation.cuts import CUTS, Cut, all_layers, reach_cuts
from probes.ablation.nll import STRICT, Ablation, ablate_nll, compare_ablations, strict_nll
from probes.linear.splits import fewer_images, probe_splits
from probes.reading.features import (
    check_store,
    parse_layers,
    parse_steps,
    scattered_steps,
    uniform_steps,
)
from probes.reading.images import draw
from probes.results import Result, checkpoint_facts, provenance
from star.base.device import resolve_precision
from star.base.errors import UserError
from star.base.names import slug
from star.base.progress import Progress
from star.codes.store import CodeStore
from star.model.classes import null_label
from star.model.config import ModelConfig
from star.model.transformer import check_layers
from star.training.checkpoint import Loaded
from viz.ablation import cut_changes, cut_layers, reach_curves

__all__ = ["Request", "run"]

MOST_REACHES = 9
NEAR = 0.01  # nats a token: a reach whose NLL is this near to the intact one is called enough
Stores = tuple[dict[str, CodeStore], CodeStore]  # all, and the one that is measured on


@dataclass(frozen=True)
class Plan:
    """What is cut in one model, and where it is measured."""

    cuts: list[Cut]
    reaches: list[int]
    reach_layers: tuple[int, ...]
    strict: list[int]
    probe_layer: int
    probe_steps: list[int]

    @property
    def probes(self) -> bool:
        """Whether what a probe loses is measured too."""
        return bool(self.probe_layer and self.cuts)


@dataclass(frozen=True)
class Found:
    """What was measured of one model, and where it comes from."""

    ablation: Ablation
    plan: Plan
    info: dict


class AblationStudy(CheckpointStudy[Request, Plan, Stores, Found]):
    """``star ablate``."""

    request = Request
    folder = "ablate"

    def check(self, asked: Request) -> None:
        """Refuse counts too small, and cuts of nothing."""
        for name in ("images", "probe_images"):
            if getattr(asked, name) < 2:
                said = name.replace("_", "-")
                raise UserError(f"{said} is {getattr(asked, name)}; expected at least 2")
        if "beyond" in asked.cut:
            raise UserError("what is beyond a distance is cut by --reach; leave it out of --cut")
        if asked.random_cuts < 1:
            raise UserError(f"random-cuts is {asked.random_cuts}; expected at least 1")
        if asked.strict_steps < 0:
            raise UserError(f"strict-steps is {asked.strict_steps}; expected at least 0")
        if asked.reach == "none" and asked.cut == "none":
            raise UserError("with --cut none and --reach none nothing is cut; leave one of them out")

    def plan(self, asked: Request, loaded: Loaded) -> Plan:
        """The cuts asked of a model; those of a probe need its null class."""
        found = plan(asked, loaded.model.config)
        if found.probes:
            null_label(loaded.model.config, "the probe of star ablate", "give --probe-layer 0")
        return found

    def data(self, asked: Request, opened: dict[str, Loaded], work: Work) -> dict[str, Stores]:
        """Stores of the same images for all; NLL is of the images' own classes."""
        found = held_out_stores(opened, asked.data, asked.tokenizer, work)
        for name, (_, store) in found.items():
            check_store(opened[name].model, store)
        return found

    def stem(self, asked: Request, plan: Plan) -> str:
        """Layers and weights, and the steps and data that were named."""
        more = f"-at-{slug(asked.at)}" if asked.at else ""
        more += f"-{slug(Path(asked.data).name)}" if asked.data else ""
        return f"ablate-layers-{slug(asked.layers)}-{asked.weights}{more}"

    def measure(
        self, asked: Request, subject: Subject[Plan, Stores], earlier: list[Found], work: Work
    ) -> Found:
        """Cuts, strict windows and probes of one model."""
        model, plan, (stores, store) = subject.loaded.model, subject.plan, subject.data
        images = draw(store, asked.images, asked.seed, "ablation images")
        precision = resolve_precision(asked.precision, model.output.weight.device)

        def progress(stage: str) -> Progress:
            return work.progress(f"{subject.name}: {stage}")

        curve = reach_cuts(model.config, plan.reach_layers, plan.reaches)
        rows = ablate_nll(
            model, images, [*plan.cuts, *curve], precision=precision, on_progress=progress("cuts")
        ).rows
        if plan.strict:
            rows = rows + strict_nll(
                model, images, steps=plan.strict, reaches=plan.reaches,
                precision=precision, on_progress=progress("strict windows"),
            ).rows  # fmt: skip
        if plan.probes:
            splits = fewer_images(probe_splits(stores), asked.probe_images, asked.seed)
            rows = rows + ablate_probe(
                model, splits, plan.cuts, layer=plan.probe_layer, steps=plan.probe_steps,
                seed=asked.seed, precision=precision, on_progress=progress("probes"),
            ).rows  # fmt: skip
        return Found(Ablation(rows), plan, _facts(asked, subject.loaded, store, plan))

    def finding(self, asked: Request, subject: Subject[Plan, Stores], found: Found) -> Finding:
        """The table, its pictures, and the changes in words."""
        table = found.ablation.table()
        return Finding(
            results={"": Result(table, found.info)},
            figures=_figures({subject.name: table}, asked),
            said=_said(table, subject.name, subject.plan),
        )

    def explained(self, asked: Request, found: Mapping[str, Found]) -> list[Said]:
        """What each cut hides, and what may be concluded."""
        cut = {name for each in found.values() for one in each.plan.cuts for name in one.names}
        said: list[Said] = [
            f"{name}: attention to {text}" for name, text in CUTS.items() if name in cut
        ]
        if "random" in cut and asked.random_cuts > 1:
            said.append(f"random: the mean over {asked.random_cuts} draws")
        if cut:
            said.append(
                "weight: attention that the cut takes away (mean over layers, heads, steps); a model "
                "trained with masked attention may tolerate cuts better without using less"
            )
        return said

    def compared(self, asked: Request, found: dict[str, Found], first: str, other: str) -> Finding:
        """Paired differences of two models' changes."""
        names = (first, other)
        table = compare_ablations(found[first].ablation, found[other].ablation, names)
        infos = {name: each.info for name, each in found.items()}
        info = {
            "measurement": "paired comparison of ablations",
            "names": list(names),
            "ablations": infos,
        }
        return Finding(results={"": Result(table, info)}, said=[*_compared(table, names), OTHER_RUNS])

    def together(self, asked: Request, found: dict[str, Found]) -> Finding:
        """All models in the pictures of one."""
        figures = _figures({name: each.ablation.table() for name, each in found.items()}, asked)
        return Finding(figures={f"-compared{ending}": figure for ending, figure in figures.items()})


run = AblationStudy().run


def plan(asked: Request, config: ModelConfig) -> Plan:
    """The cuts that a request asks of a model of this shape; ``UserError`` if it has no such place."""
    layers = all_layers(config)
    if asked.layers != "each":
        layers = tuple(parse_layers(asked.layers, config.layers))
        check_layers(config, layers)
    groups = [(layer,) for layer in layers] if asked.layers == "each" else [layers]
    steps = None if asked.at is None else tuple(parse_steps(asked.at, config.tokens))
    names = [] if asked.cut == "none" else [name.strip() for name in asked.cut.split(",")]
    cuts = [
        Cut(name, group, steps, seed=asked.seed, draws=asked.random_cuts)
        for name in names
        for group in groups
    ]
    reaches = _reaches(asked, config.grid)
    reach_cuts(config, layers, reaches)  # refuses what is not on the grid
    half = max(1, config.layers // 2)
    probe_layer = half if asked.probe_layer is None else asked.probe_layer
    if probe_layer:
        check_layers(config, [probe_layer])
    strict = scattered_steps(config.tokens, asked.strict_steps) if asked.strict_steps else []
    strict = strict if reaches else []
    probed = uniform_steps(config.tokens, asked.steps)
    return Plan(cuts, reaches, layers, strict, probe_layer, probed)


def _reaches(asked: Request, grid: int) -> list[int]:
    if asked.reach == "none":
        return []
    if asked.reach is None:
        return sorted({round(d) for d in np.linspace(0, grid - 1, min(MOST_REACHES, grid))})
    try:
        return sorted({int(part) for part in asked.reach.split(",")})
    except ValueError:
        raise UserError(f"reach is {asked.reach!r}; expected none or numbers such as 0,1,2") from None


def _facts(asked: Request, loaded: Loaded, store: CodeStore, plan: Plan) -> dict:
    return provenance(
        measurement="attention ablation",
        **checkpoint_facts(loaded),
        data=str(store.path),
        data_sha256=store.manifest["sha256"],
        split=store.path.name,
        images=min(asked.images, len(store)),
        seed=asked.seed,
        condition="each image's class (NLL), null class (probe)",
        probe="ridge" if plan.probe_layer else None,
        precision=asked.precision,
        plan={**asdict(plan), "cuts": [cut.what for cut in plan.cuts]},
        cuts=CUTS,
    )


def _figures(tables: dict[str, pd.DataFrame], asked: Request) -> dict[str, Figure]:
    figures = {}
    if asked.cut != "none":
        figures["-cuts"] = (cut_layers if asked.layers == "each" else cut_changes)(tables)
    if asked.reach != "none":
        figures["-reach"] = reach_curves(tables)
    return figures


def _said(table: pd.DataFrame, name: str, plan: Plan) -> list[Said]:
    nll = table[table["measure"].isin(["nll", "nll_cut_steps"])]
    intact = nll.loc[nll["cut"].ne(STRICT) & nll["measure"].eq("nll"), "intact"].iloc[0]
    said: list[Said] = [*few_images(int(nll["n"].iloc[0]))]
    said.append(f"{name}: NLL {intact:.3f} nats a token with nothing cut")
    rows = []
    for (cut, layers), group in table[table["reach"].isna()].groupby(["cut", "layers"], sort=False):
        by = group.set_index("measure")
        cells = [_change(by, "nll", 1), _change(by, "nll_cut_steps", 1), *_by_weight(by)]
        cells += [_change(by, f"accuracy_{reading}", 100) for reading in ("refit", "fixed")]
        rows.append([cut, layers, *cells])
    if rows:
        columns = ["attention cut to", "layers", "NLL", "at cut steps", "weight", "NLL / weight"]
        columns += ["refit", "fixed"]
        keep = [i for i in range(len(columns)) if any(row[i] for row in rows)]
        where = f"layer {plan.probe_layer}, mean of steps {', '.join(map(str, plan.probe_steps))}"
        of_probe = f" (probe in points: {where})" if plan.probe_layer else ""
        body = [[row[i] for i in keep] for row in rows]
        said.append(Rows(f"{name}: change, 95 %{of_probe}", [columns[i] for i in keep], body))
    return said + _reach_said(nll[nll["reach"].notna()], name, plan)


def _change(by: pd.DataFrame, measure: str, factor: float) -> str:
    if measure not in by.index:
        return ""
    row, digits = by.loc[measure], 1 if factor == 100 else 3
    value, low, high = (factor * row[name] for name in ("difference", "low", "high"))
    if factor == 1:  # Student's t, the same to either side
        return f"{value:+.{digits}f} ± {(high - low) / 2:.{digits}f}"
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _by_weight(by: pd.DataFrame) -> list[str]:
    """The attention that was cut, and the loss of NLL per unit of it, at the cut steps."""
    row = by.loc["nll_cut_steps" if "nll_cut_steps" in by.index else "nll"]
    value, low, high = (row[f"per_weight{end}"] for end in ("", "_low", "_high"))
    bounds = "" if np.isnan(low) else f" ± {(high - low) / 2:.2f}"
    return [f"{row['weight']:.3f}", "" if np.isnan(value) else f"{value:+.2f}{bounds}"]


def _reach_said(nll: pd.DataFrame, name: str, plan: Plan) -> list[Said]:
    if nll.empty:
        return []
    kinds = {"beyond": "no layer farther"} | ({STRICT: "by no route"} if plan.strict else {})
    rows = []
    for reach, group in nll.groupby("reach"):
        by = group.set_index("cut")
        rows.append([str(reach), *(f"{by.loc[kind, 'difference']:+.3f}" for kind in kinds)])
    title = f"{name}: change of NLL when d is the farthest"
    said: list[Said] = [Rows(title, ["d (cells)", *kinds.values()], rows)]
    for kind, words in kinds.items():
        of_kind = nll[nll["cut"].eq(kind)].sort_values("reach")
        near = of_kind[["low", "high"]].abs().max(axis=1) <= NEAR
        far = of_kind.loc[~near, "reach"]
        enough = of_kind.loc[of_kind["reach"] > (far.max() if len(far) else -1), "reach"]
        where = f"from d = {enough.iloc[0]} on" if len(enough) else "nowhere"
        said.append(f"{words}: within {NEAR:g} nats of the intact model {where}")
    return said


def _compared(table: pd.DataFrame, names: tuple[str, str]) -> list[Said]:
    first, other = names
    shown = table[table["measure"].isin(["nll", "accuracy_refit", "accuracy_fixed"])]
    said: list[Said] = []
    for row in shown[shown["reach"].isna()].itertuples():
        factor, digits = (1, 3) if row.measure == "nll" else (100, 1)
        numbers = (factor * n for n in (row.second, row.first, row.difference, row.low, row.high))
        a, b, difference, low, high = (f"{value:+.{digits}f}" for value in numbers)
        said.append(
            f"{row.cut} cut in layers {row.layers}, {row.measure}: {other} {a}, {first} {b}, "
            f"difference {difference} [{low}, {high}]"
            + (f", Holm-corrected p {row.p_holm:.2g}" if row.p_holm == row.p_holm else "")
        )
    return said
