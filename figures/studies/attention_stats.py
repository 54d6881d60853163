"""Where models look, in numbers over images: by layer, step and head, beside even attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from figures.checkpoints import CheckpointStudy, Subject
from figures.opening import chosen_steps, held_out_stores
from figures.requests.attention_stats import Request
from figures.sentences import OTHER_RUNS, few_images
from figures.study import Finding
from figures.work import Rows, Said, Work
from probes.attention.compare import attention_sentences, compare_attention
from probes.attention.measures import MEASURES
from probes.attention.stats import SINK, AttentionStats, attention_stats
from probes.reading.features import check_store, parse_layers
from probes.reading.images import draw
from probes.results import Result, checkpoint_facts, provenance
from star.base.device import resolve_precision
from star.base.errors import UserError
from star.base.names import slug
from star.codes.store import CodeStore
from star.model.classes import null_label
from star.model.transformer import check_layers
from star.training.checkpoint import Loaded
from viz.attention.stats import (
    attention_curves,
    attention_difference,
    attention_heads,
    attention_layers,
)

__all__ = ["Request", "run"]

MOST_SINKS = 6  # said; the table has all


@dataclass(frozen=True)
class Plan:
    """Where one model is measured."""

    layers: list[int]
    steps: list[int]


@dataclass(frozen=True)
class Found:
    """What was measured of one model, and where it comes from."""

    stats: AttentionStats
    info: dict


class AttentionStudy(CheckpointStudy[Request, Plan, CodeStore, Found]):
    """``star attention-stats``."""

    request = Request
    folder = "attention-stats"

    def check(self, asked: Request) -> None:
        """Refuse too few images."""
        if asked.images < 2:
            raise UserError(f"images is {asked.images}; expected at least 2, for an interval")

    def plan(self, asked: Request, loaded: Loaded) -> Plan:
        """The layers and steps asked of a model."""
        config = loaded.model.config
        if asked.null_class:
            null_label(config, "--null-class", "leave it out")
        layers = parse_layers(asked.layers, config.layers)
        check_layers(config, layers)
        return Plan(layers, chosen_steps(asked.at, asked.steps, config.tokens))

    def data(self, asked: Request, opened: dict[str, Loaded], work: Work) -> dict[str, CodeStore]:
        """Codes of the same images for all."""
        found = held_out_stores(opened, asked.data, asked.tokenizer, work)
        for name, (_, store) in found.items():
            check_store(opened[name].model, store, classes=not asked.null_class)
        return {name: store for name, (_, store) in found.items()}

    def stem(self, asked: Request, plan: Plan) -> str:
        """What was asked for beside the defaults is in the name."""
        steps = f"-steps-{asked.steps}" if asked.steps is not None else ""
        more = f"-layers-{slug(asked.layers)}" if asked.layers != "all" else ""
        more += f"-at-{slug(asked.at)}" if asked.at else steps
        more += "-null-class" if asked.null_class else ""
        more += f"-{slug(Path(asked.data).name)}" if asked.data else ""
        return f"{'rollout' if asked.rollout else 'attention'}-{asked.weights}{more}"

    def measure(
        self, asked: Request, subject: Subject[Plan, CodeStore], earlier: list[Found], work: Work
    ) -> Found:
        """Rows of attention of one model, reduced to the measures."""
        model, store = subject.loaded.model, subject.data
        stats = attention_stats(
            model,
            draw(store, asked.images, asked.seed, "attention images"),
            layers=subject.plan.layers,
            steps=subject.plan.steps,
            rollout=asked.rollout,
            null_class=asked.null_class,
            batch_size=8 if asked.rollout else 32,
            precision=resolve_precision(asked.precision, model.output.weight.device),
            on_progress=work.progress(f"attention of {subject.name}"),
        )
        return Found(stats, _facts(asked, subject.loaded, store, stats))

    def finding(self, asked: Request, subject: Subject[Plan, CodeStore], found: Found) -> Finding:
        """The table, what every place receives, their pictures, and the means in words."""
        stats, info = found.stats, found.info
        places = info | {"measurement": f"{info['measurement']}: weight received by place"}
        return Finding(
            results={"": Result(stats.table, info), "-places": Result(stats.places, places)},
            figures=_figures(stats, subject.name, asked),
            said=_said(stats, subject.name),
        )

    def explained(self, asked: Request, found: Mapping[str, Found]) -> list[Said]:
        """What each measure is."""
        measures = next(iter(found.values())).stats.values
        return [f"{measure}: {MEASURES[measure]}" for measure in measures]

    def compared(self, asked: Request, found: dict[str, Found], first: str, other: str) -> Finding:
        """Paired differences; where there can be none, what was measured of each stands."""
        names = (first, other)
        try:
            table = compare_attention(found[first].stats, found[other].stats, names)
        except UserError as error:
            return Finding(said=[f"not compared: {error}"])
        sentences = attention_sentences(table, names)
        info = {
            "measurement": "paired comparison of attention",
            "names": list(names),
            "sentences": sentences,
            "statistics": {name: found[name].info for name in names},
        }
        return Finding(
            results={"": Result(table, info)},
            figures={"": attention_difference(table, names)},
            said=[*sentences, OTHER_RUNS],
        )

    def together(self, asked: Request, found: dict[str, Found]) -> Finding:
        """All models in one picture of the steps."""
        tables = {name: each.stats.table for name, each in found.items()}
        total = next(iter(found.values())).stats.grid ** 2
        return Finding(figures={"-compared": attention_curves(tables, total_steps=total)})


run = AttentionStudy().run


def _facts(asked: Request, loaded: Loaded, store: CodeStore, stats: AttentionStats) -> dict:
    return provenance(
        measurement="rollout statistics" if asked.rollout else "attention statistics",
        **checkpoint_facts(loaded),
        data=str(store.path),
        data_sha256=store.manifest["sha256"],
        split=store.path.name,
        images=stats.images,
        seed=asked.seed,
        condition="null class" if asked.null_class else "each image's class",
        precision=asked.precision,
        layers=stats.layers,
        steps=stats.steps,
        sink_threshold=SINK,
        measures={name: MEASURES[name] for name in stats.values},
    )


def _figures(stats: AttentionStats, name: str, asked: Request) -> dict[str, Figure]:
    kind = "Rollout through each layer" if asked.rollout else "Attention"
    by_layer = f"{kind} of {name} by layer and"
    figures = {
        "-steps": attention_curves({name: stats.table}, total_steps=stats.grid**2),
        "-layers": attention_layers(stats.table, title=f"{by_layer} step, mean over heads"),
    }
    if stats.table["head"].max() > 0:
        figures["-heads"] = attention_heads(stats.table, title=f"{by_layer} head, mean over steps")
    return figures


def _said(stats: AttentionStats, name: str) -> list[Said]:
    """Each measure over all layers, steps and heads, beside even attention; its extremes; sinks."""
    table = stats.table[(stats.table["step"] == 0) & (stats.table["head"] == 0)]
    rows = []
    for measure in stats.values:
        of_layers = table[table["measure"] == measure].set_index("layer")
        mean, layers = of_layers.loc[0], of_layers.drop(index=0)["value"]
        least, most = (f"{layers[at]:.3f} in {at}" for at in (layers.idxmin(), layers.idxmax()))
        value = f"{mean.value:.3f} ± {(mean.high - mean.low) / 2:.3f}"
        rows.append([measure, value, f"{mean.uniform:.3f}", least, most])
    title = f"{name}: {stats.images} images, steps {', '.join(map(str, stats.steps))}"
    columns = ["over heads and steps", "mean, 95 %", "even", "least layer", "most"]
    sinks = stats.places[stats.places["sink"]].sort_values("value", ascending=False)
    where = [
        f"layer {row.layer} head {row.head}: {'class' if row.place == 0 else f'token {row.place}'} "
        f"({row.value:.2f})"
        for row in sinks.head(MOST_SINKS).itertuples()
    ]
    more = f", and {len(sinks) - MOST_SINKS} more" if len(sinks) > MOST_SINKS else ""
    of_sinks = f"{name}: sinks (get more than {SINK:g} on average): {'; '.join(where) or 'none'}{more}"
    return [*few_images(stats.images), Rows(title, columns, rows), of_sinks]
