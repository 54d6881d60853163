"""What ``star ablate`` does with its options: open, cut, measure, print, write."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cli.opening import check_out, held_out_stores, open_checkpoints, output_folder
from cli.terminal.screen import Stages, console, note_few, print_rows, print_written
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
from probes.results import Result, provenance, write_result
from star.base.device import resolve_precision
from star.base.errors import UserError
from star.base.files import sha256_file
from star.base.names import slug
from star.codes.store import CodeStore
from star.model.classes import null_label
from star.model.config import ModelConfig
from star.model.transformer import check_layers
from star.training.checkpoint import Loaded
from viz.ablation import cut_changes, cut_layers, reach_curves
from viz.base.style import save

__all__ = ["AblateRequest", "run"]

MOST_REACHES = 9
NEAR = 0.01  # nats a token: a reach whose NLL is this near to the intact one is called enough


@dataclass(frozen=True, kw_only=True)
class AblateRequest:
    """The command's options, as given."""

    ckpts: list[Path] | None
    cut: str
    layers: str
    at: str | None
    reach: str | None
    strict_steps: int
    images: int
    probe_layer: int | None
    probe_images: int
    steps: int
    seed: int
    precision: str
    data: str | None
    tokenizer: Path | None
    weights: str
    out: Path | None
    heads: int | None
    grid: int | None
    device: str


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


def run(asked: AblateRequest) -> None:
    """Do what the options ask for."""
    _refuse(asked)
    opened = open_checkpoints(asked.ckpts, asked.weights, asked.device, asked.heads, asked.grid)
    plans = {name: plan(asked, loaded.model.config) for name, loaded in opened.items()}
    for name, loaded in opened.items():
        if plans[name].probes:
            null_label(loaded.model.config, "the probe of star ablate", "give --probe-layer 0")
    found: dict[str, Ablation] = {}
    infos: dict[str, dict] = {}
    of_data = held_out_stores(opened, asked.data, asked.tokenizer)
    for name, loaded in opened.items():
        stores, store = of_data[name]
        check_store(loaded.model, store)  # NLL is of the images' own classes
        found[name] = _measure(asked, name, loaded, stores, store, plans[name])
        infos[name] = _info(asked, loaded, store, plans[name])
    written = []
    for name, loaded in opened.items():
        folder = output_folder(loaded, asked.out, "ablate")
        several = asked.out is not None and len(opened) > 1
        stem = _stem(asked) + (f"-{slug(name, among=opened)}" if several else "")
        written += write_result(Result(found[name].table(), infos[name]), folder / f"{stem}.csv")
        written += _pictures({name: found[name].table()}, asked, folder / stem)
        _print(found[name], name, plans[name])
    names = list(opened)
    folder = output_folder(opened[names[0]], asked.out, "ablate")
    for other in names[1:]:
        written += _compare(found, (names[0], other), infos, folder / _stem(asked))
    if len(names) > 1:
        tables = {name: ablation.table() for name, ablation in found.items()}
        written += _pictures(tables, asked, folder / f"{_stem(asked)}-compared")
    for name, text in CUTS.items():
        if any(name in cut.names for each in plans.values() for cut in each.cuts):
            console.print(f"{name}: attention to {text}", highlight=False)
    print_written(written)


def _refuse(asked: AblateRequest) -> None:
    check_out(asked.out)
    for name in ("images", "probe_images"):
        if getattr(asked, name) < 2:
            raise UserError(f"{name.replace('_', '-')} is {getattr(asked, name)}; expected at least 2")
    if "beyond" in asked.cut:
        raise UserError("what is beyond a distance is cut by --reach; leave it out of --cut")
    if asked.strict_steps < 0:
        raise UserError(f"strict-steps is {asked.strict_steps}; expected at least 0")
    if asked.reach == "none" and asked.cut == "none":
        raise UserError("with --cut none and --reach none nothing is cut; leave one of them out")


def plan(asked: AblateRequest, config: ModelConfig) -> Plan:
    """The cuts that the options ask of a model of this shape; ``UserError`` if it has no such place."""
    layers = all_layers(config)
    if asked.layers != "each":
        layers = tuple(parse_layers(asked.layers, config.layers))
        check_layers(config, layers)
    groups = [(layer,) for layer in layers] if asked.layers == "each" else [layers]
    steps = None if asked.at is None else tuple(parse_steps(asked.at, config.tokens))
    names = [] if asked.cut == "none" else [name.strip() for name in asked.cut.split(",")]
    cuts = [Cut(name, group, steps, seed=asked.seed) for name in names for group in groups]
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


def _reaches(asked: AblateRequest, grid: int) -> list[int]:
    if asked.reach == "none":
        return []
    if asked.reach is None:
        return sorted({round(d) for d in np.linspace(0, grid - 1, min(MOST_REACHES, grid))})
    try:
        return sorted({int(part) for part in asked.reach.split(",")})
    except ValueError:
        raise UserError(f"reach is {asked.reach!r}; expected none or numbers such as 0,1,2") from None


def _measure(
    asked: AblateRequest,
    name: str,
    loaded: Loaded,
    stores: dict[str, CodeStore],
    store: CodeStore,
    plan: Plan,
) -> Ablation:
    model = loaded.model
    images = draw(store, asked.images, asked.seed, "ablation images")
    precision = resolve_precision(asked.precision, model.output.weight.device)
    rows = []
    with Stages() as stages:

        def report(stage: str):
            return lambda done, total: stages.report(f"{name}: {stage}", done, total)

        curve = reach_cuts(model.config, plan.reach_layers, plan.reaches)
        options = {"precision": precision, "on_progress": report("cuts")}
        rows += ablate_nll(model, images, [*plan.cuts, *curve], **options).rows
        if plan.strict:
            at = {"steps": plan.strict, "reaches": plan.reaches}
            options = {"precision": precision, "on_progress": report("strict windows")}
            rows += strict_nll(model, images, **at, **options).rows
        if plan.probes:
            splits = fewer_images(probe_splits(stores), asked.probe_images, asked.seed)
            rows += ablate_probe(
                model, splits, plan.cuts, layer=plan.probe_layer, steps=plan.probe_steps,
                seed=asked.seed, precision=precision, on_progress=report("probes"),
            ).rows  # fmt: skip
    return Ablation(rows)


def _info(asked: AblateRequest, loaded: Loaded, store: CodeStore, plan: Plan) -> dict:
    return provenance(
        measurement="attention ablation",
        checkpoint=str(loaded.path),
        checkpoint_sha256=sha256_file(loaded.path),
        weights=loaded.weights,
        step=loaded.step,
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


def _print(found: Ablation, name: str, plan: Plan) -> None:
    table = found.table()
    nll = table[table["measure"].isin(["nll", "nll_cut_steps"])]
    intact = nll.loc[nll["cut"].ne(STRICT) & nll["measure"].eq("nll"), "intact"].iloc[0]
    note_few(int(nll["n"].iloc[0]))
    console.print(f"{name}: NLL {intact:.3f} nats a token with nothing cut", highlight=False)
    named = table[table["reach"].isna()]
    rows = []
    for (cut, layers), group in named.groupby(["cut", "layers"], sort=False):
        by = group.set_index("measure")
        cells = [_change(by, "nll", 1), _change(by, "nll_cut_steps", 1)]
        cells += [_change(by, f"accuracy_{reading}", 100) for reading in ("refit", "fixed")]
        rows.append([cut, layers, *cells])
    if rows:
        columns = ["attention cut to", "layers", "NLL", "at cut steps", "probe refit", "fixed"]
        keep = [i for i in range(6) if any(row[i] for row in rows)]
        where = f"layer {plan.probe_layer}, mean of steps {', '.join(map(str, plan.probe_steps))}"
        of_probe = f" (probe in points: {where})" if plan.probe_layer else ""
        title = f"{name}: change, 95 %{of_probe}"
        print_rows(title, [columns[i] for i in keep], [[row[i] for i in keep] for row in rows])
    _print_reach(nll[nll["reach"].notna()], name, plan)


def _change(by: pd.DataFrame, measure: str, factor: float) -> str:
    if measure not in by.index:
        return ""
    row, digits = by.loc[measure], 1 if factor == 100 else 3
    half = factor * (row["high"] - row["low"]) / 2
    return f"{factor * row['difference']:+.{digits}f} ± {half:.{digits}f}"


def _print_reach(nll: pd.DataFrame, name: str, plan: Plan) -> None:
    if nll.empty:
        return
    kinds = {"beyond": "no layer farther"} | ({STRICT: "by no route"} if plan.strict else {})
    rows = []
    for reach, group in nll.groupby("reach"):
        by = group.set_index("cut")
        cells = [f"{by.loc[kind, 'difference']:+.3f}" for kind in kinds]
        rows.append([str(reach), *cells])
    print_rows(f"{name}: change of NLL when d is the farthest", ["d (cells)", *kinds.values()], rows)
    for kind, words in kinds.items():
        of_kind = nll[nll["cut"].eq(kind)].sort_values("reach")
        near = of_kind[["low", "high"]].abs().max(axis=1) <= NEAR
        far = of_kind.loc[~near, "reach"]
        enough = of_kind.loc[of_kind["reach"] > (far.max() if len(far) else -1), "reach"]
        where = f"from d = {enough.iloc[0]} on" if len(enough) else "nowhere"
        console.print(f"{words}: within {NEAR:g} nats of the intact model {where}", highlight=False)


def _pictures(tables: dict[str, pd.DataFrame], asked: AblateRequest, stem: Path) -> list[Path]:
    written = []
    if asked.cut != "none":
        draw_cuts = cut_layers if asked.layers == "each" else cut_changes
        written += save(draw_cuts(tables), stem.with_name(f"{stem.name}-cuts"))
    if asked.reach != "none":
        written += save(reach_curves(tables), stem.with_name(f"{stem.name}-reach"))
    return written


def _compare(
    found: dict[str, Ablation], names: tuple[str, str], infos: dict[str, dict], stem: Path
) -> list[Path]:
    first, other = names
    table = compare_ablations(found[first], found[other], names)
    shown = table[table["measure"].isin(["nll", "accuracy_refit", "accuracy_fixed"])]
    shown = shown[shown["reach"].isna()]
    for row in shown.itertuples():
        factor, digits = (1, 3) if row.measure == "nll" else (100, 1)
        numbers = (
            factor * value for value in (row.second, row.first, row.difference, row.low, row.high)
        )
        a, b, difference, low, high = (f"{value:+.{digits}f}" for value in numbers)
        console.print(
            f"{row.cut} cut in layers {row.layers}, {row.measure}: {other} {a}, {first} {b}, "
            f"difference {difference} [{low}, {high}]"
            + (f", Holm-corrected p {row.p_holm:.2g}" if row.p_holm == row.p_holm else ""),
            highlight=False,
        )
    info = {"measurement": "paired comparison of ablations", "names": list(names), "ablations": infos}
    own, base = (slug(name, among=found) for name in (other, first))
    pair = f"{stem.name}-{own}-against-{base}"
    return write_result(Result(table, info), stem.with_name(f"{pair}.csv"))


def _stem(asked: AblateRequest) -> str:
    # What was asked for beside the defaults is in the name: another question is another file.
    more = f"-at-{slug(asked.at)}" if asked.at else ""
    more += f"-{slug(Path(asked.data).name)}" if asked.data else ""
    return f"ablate-layers-{slug(asked.layers)}-{asked.weights}{more}"
