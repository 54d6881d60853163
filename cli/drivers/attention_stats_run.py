"""What ``star attention-stats`` does with its options: open, measure, print, write."""

from dataclasses import dataclass
from pathlib import Path

from cli.opening import (
    check_out,
    chosen_steps,
    held_out_stores,
    open_checkpoints,
    output_folder,
)
from cli.terminal.screen import Stages, console, note_few, print_rows, print_written
from probes.attention.compare import attention_sentences, compare_attention
from probes.attention.measures import MEASURES
from probes.attention.stats import SINK, AttentionStats, attention_stats
from probes.reading.features import parse_layers
from probes.reading.images import draw
from probes.results import Result, provenance, write_result
from star.base.device import resolve_precision
from star.base.errors import UserError
from star.base.files import sha256_file
from star.base.names import slug
from star.codes.store import CodeStore
from star.model.classes import null_label
from star.training.checkpoint import Loaded
from viz.attention.stats import (
    attention_curves,
    attention_difference,
    attention_heads,
    attention_layers,
)
from viz.base.style import save

__all__ = ["StatsRequest", "run"]

MOST_SINKS = 6  # printed; the table has all


@dataclass(frozen=True, kw_only=True)
class StatsRequest:
    """The command's options, as given."""

    ckpts: list[Path] | None
    layers: str
    steps: int | None
    at: str | None
    images: int
    seed: int
    rollout: bool
    null_class: bool
    precision: str
    data: str | None
    tokenizer: Path | None
    weights: str
    out: Path | None
    heads: int | None
    grid: int | None
    device: str


def run(asked: StatsRequest) -> None:
    """Do what the options ask for."""
    if asked.images < 2:
        raise UserError(f"images is {asked.images}; expected at least 2, for an interval")
    check_out(asked.out)
    opened = open_checkpoints(asked.ckpts, asked.weights, asked.device, asked.heads, asked.grid)
    if asked.null_class:
        for loaded in opened.values():
            null_label(loaded.model.config, "--null-class", "leave it out")
    found: dict[str, AttentionStats] = {}
    facts: dict[str, dict] = {}
    stores = held_out_stores(opened, asked.data, asked.tokenizer)
    for name, loaded in opened.items():
        store = stores[name][1]
        found[name] = _measure(asked, name, loaded, store)
        facts[name] = _facts(asked, loaded, store, found[name])
    several = asked.out is not None and len(opened) > 1
    written = []
    for name, loaded in opened.items():
        folder = output_folder(loaded, asked.out, "attention-stats")
        stem = _stem(asked) + (f"-{slug(name, among=opened)}" if several else "")
        # Written first: whoever stops reading what is printed keeps the measurement.
        written += _write(found[name], name, facts[name], folder / stem)
        _print(found[name], name)
    for measure in next(iter(found.values())).values:
        console.print(f"{measure}: {MEASURES[measure]}", highlight=False)
    names = list(opened)
    folder = output_folder(opened[names[0]], asked.out, "attention-stats")
    for other in names[1:]:
        written += _compare(found, (names[0], other), facts, folder / _stem(asked))
    if len(names) > 1:
        tables = {name: stats.table for name, stats in found.items()}
        total = next(iter(opened.values())).model.config.tokens
        figure = attention_curves(tables, total_steps=total)
        written += save(figure, folder / f"{_stem(asked)}-compared")
    print_written(written)


def _stem(asked: StatsRequest) -> str:
    # What was asked for beside the defaults is in the name: another question is another file.
    kind = "rollout" if asked.rollout else "attention"
    more = f"-layers-{slug(asked.layers)}" * (asked.layers != "all")
    more += f"-at-{slug(asked.at)}" if asked.at else f"-steps-{asked.steps}" * (asked.steps is not None)
    more += "-null-class" * asked.null_class
    more += f"-{slug(Path(asked.data).name)}" if asked.data else ""
    return f"{kind}-{asked.weights}{more}"


def _measure(asked: StatsRequest, name: str, loaded: Loaded, store: CodeStore) -> AttentionStats:
    config = loaded.model.config
    steps = chosen_steps(asked.at, asked.steps, config.tokens)
    with Stages() as stages:
        return attention_stats(
            loaded.model,
            draw(store, asked.images, asked.seed, "attention images"),
            layers=parse_layers(asked.layers, config.layers),
            steps=steps,
            rollout=asked.rollout,
            null_class=asked.null_class,
            batch_size=8 if asked.rollout else 32,
            precision=resolve_precision(asked.precision, loaded.model.output.weight.device),
            on_progress=lambda done, total: stages.report(f"attention of {name}", done, total),
        )


def _facts(asked: StatsRequest, loaded: Loaded, store: CodeStore, found: AttentionStats) -> dict:
    return provenance(
        measurement="rollout statistics" if asked.rollout else "attention statistics",
        checkpoint=str(loaded.path),
        checkpoint_sha256=sha256_file(loaded.path),
        weights=loaded.weights,
        step=loaded.step,
        data=str(store.path),
        data_sha256=store.manifest["sha256"],
        split=store.path.name,
        images=found.images,
        seed=asked.seed,
        condition="null class" if asked.null_class else "each image's class",
        precision=asked.precision,
        layers=found.layers,
        steps=found.steps,
        sink_threshold=SINK,
        measures={name: MEASURES[name] for name in found.values},
    )


def _print(found: AttentionStats, name: str) -> None:
    """Each measure over all layers, steps and heads, beside even attention; its extremes; sinks."""
    table = found.table[(found.table["step"] == 0) & (found.table["head"] == 0)]
    rows = []
    for measure in found.values:
        of_layers = table[table["measure"] == measure].set_index("layer")
        mean, layers = of_layers.loc[0], of_layers.drop(index=0)["value"]
        least, most = (f"{layers[at]:.3f} in {at}" for at in (layers.idxmin(), layers.idxmax()))
        value = f"{mean.value:.3f} ± {(mean.high - mean.low) / 2:.3f}"
        rows.append([measure, value, f"{mean.uniform:.3f}", least, most])
    title = f"{name}: {found.images} images, steps {', '.join(map(str, found.steps))}"
    note_few(found.images)
    print_rows(title, ["over heads and steps", "mean, 95 %", "even", "least layer", "most"], rows)
    sinks = found.places[found.places["sink"]].sort_values("value", ascending=False)
    where = [
        f"layer {row.layer} head {row.head}: {'class' if row.place == 0 else f'token {row.place}'} "
        f"({row.value:.2f})"
        for row in sinks.head(MOST_SINKS).itertuples()
    ]
    more = f", and {len(sinks) - MOST_SINKS} more" if len(sinks) > MOST_SINKS else ""
    console.print(
        f"sinks (get more than {SINK:g} on average): {'; '.join(where) or 'none'}{more}",
        highlight=False,
    )


def _write(found: AttentionStats, name: str, info: dict, stem: Path) -> list[Path]:
    written = write_result(Result(found.table, info), stem.with_name(f"{stem.name}.csv"))
    places = {**info, "measurement": f"{info['measurement']}: weight received by place"}
    written += write_result(Result(found.places, places), stem.with_name(f"{stem.name}-places.csv"))
    kind = "Rollout through each layer" if "rollout" in info["measurement"] else "Attention"
    figure = attention_curves({name: found.table}, total_steps=found.grid**2)
    written += save(figure, stem.with_name(f"{stem.name}-steps"))
    figure = attention_layers(found.table, title=f"{kind} of {name} by layer and step, mean over heads")
    written += save(figure, stem.with_name(f"{stem.name}-layers"))
    if found.table["head"].max() > 0:
        figure = attention_heads(
            found.table, title=f"{kind} of {name} by layer and head, mean over steps"
        )
        written += save(figure, stem.with_name(f"{stem.name}-heads"))
    return written


def _compare(
    found: dict[str, AttentionStats], names: tuple[str, str], facts: dict[str, dict], stem: Path
) -> list[Path]:
    first, other = names
    try:
        table = compare_attention(found[first], found[other], names)
    except UserError as error:  # what was measured of each is written all the same
        console.print(f"not compared: {error}", highlight=False)
        return []
    for sentence in attention_sentences(table, names):
        console.print(sentence, highlight=False)
    info = {
        "measurement": "paired comparison of attention",
        "names": list(names),
        "sentences": attention_sentences(table, names),
        "statistics": {name: facts[name] for name in names},
    }
    own, base = (slug(name, among=found) for name in (other, first))
    pair = f"{stem.name}-{own}-against-{base}"
    written = write_result(Result(table, info), stem.with_name(f"{pair}.csv"))
    return written + save(attention_difference(table, names), stem.with_name(pair))
