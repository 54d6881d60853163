"""What ``star probe`` does with its options: open, measure, print, write."""

from dataclasses import dataclass
from pathlib import Path

from cli.drivers.probe_report import compare_atlases, print_atlas, write_atlas
from cli.opening import check_out, open_checkpoints, output_folder, run_data
from cli.processes import launch
from cli.terminal.probe_cost import print_probe_cost
from cli.terminal.screen import Stages, console, note_stand_ins, print_rows, print_written
from probes.linear.atlas import Atlas, AtlasConfig, probe_atlas
from probes.linear.mae import MaeConfig
from probes.linear.protocols import ProtocolConfig
from probes.linear.splits import ProbeSplits, probe_splits
from probes.reading.features import check_store, check_tokenizer, parse_layers, uniform_steps
from probes.representation.encoders import load_encoder
from probes.representation.measures import MEASURES, measure_checkpoint
from probes.results import write_result
from star.base.device import resolve_precision
from star.base.errors import UserError, require_choice
from star.base.files import remove_folder
from star.base.names import slug
from star.codes.open import PreparedData
from star.codes.store import CodeStore, same_images
from star.images.open import ImageSource, open_source
from star.images.views import view_set
from star.model.classes import null_label
from star.model.config import ModelConfig
from star.model.transformer import check_layers
from star.parallel import processes as distributed
from star.training.checkpoint import Loaded
from star.training.config import preset
from star.training.run_data import open_run_data
from viz.base.style import save
from viz.measures import measure_figures

__all__ = ["ProbeRequest", "run"]

DEFAULT_STEPS = 8
FEW_UPDATES = 2000  # a note below; ImageNet's 1.28 million images give 7,020
DRY_RUN_HELD_OUT, DRY_RUN_VIEWS = 60_000, 10  # ImageNet: 50,000 tested on, 10,000 cut from train


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """The command's options, as given."""

    ckpts: list[Path] | None
    layer: str | None
    steps: int
    protocol: str
    lr: str | None
    epochs: int | None
    batch_size: int | None
    seeds: int
    cache_gb: float
    precision: str
    data: str | None
    images: str | None
    tokenizer: Path | None
    weights: str
    out: Path | None
    heads: int | None
    grid: int | None
    measure: str | None
    split: str
    encoder: str | None
    encoder_weights: Path | None
    nproc: int
    device: str
    dry_run: bool
    size: str | None
    train_images: int
    tflops: float | None


def run(asked: ProbeRequest) -> None:
    """Do what the options ask for."""
    protocol = _protocol(asked)
    _refuse_idle(asked)
    if asked.dry_run:
        _dry_run(asked, protocol)
        return
    if asked.nproc != 1:
        launch(asked.nproc, asked.device)
    where = distributed.join(asked.device)
    console.quiet = distributed.rank() > 0
    opened = open_checkpoints(asked.ckpts, asked.weights, str(where), asked.heads, asked.grid)
    for loaded in opened.values():  # before any code is made
        null_label(loaded.model.config, "--measure" if asked.measure else "a probe")
    written = _measure(asked, opened) if asked.measure else _probe(asked, protocol, opened)
    print_written(written)
    distributed.leave()


def _probe(asked: ProbeRequest, protocol: ProtocolConfig, opened: dict[str, Loaded]) -> list[Path]:
    """One atlas a checkpoint, and their comparison; the files written."""
    atlases: dict[str, Atlas] = {}
    written, broken = [], []
    several = asked.out is not None and len(opened) > 1
    # What does not fit is refused before anything is measured.
    configs = {
        name: _config(asked, loaded.model.config, protocol, loaded.model.output.weight.device)
        for name, loaded in opened.items()
    }
    data = {name: _fitting_data(asked, loaded) for name, loaded in opened.items()}
    for name, loaded in opened.items():
        config = configs[name]
        folder = output_folder(loaded, asked.out, "probe")
        stem = _stem(f"probe-{protocol.name}", config.layers, asked)
        own = f"{stem}-{slug(name, among=opened)}" if several else stem
        work = folder / f"{own}.work"
        first = next(iter(atlases.values()), None)
        stage = f"{name}, " if len(opened) > 1 else ""
        atlases[name], class_names = _atlas(asked, loaded, data[name], config, work, first, stage)
        if distributed.rank() == 0:
            # Written first: whoever stops reading what is printed keeps the measurement.
            written += write_atlas(atlases[name], name, folder, own, class_names)
            remove_folder(work)
            print_atlas(atlases[name], name)
            note_stand_ins(class_names)
        broken += [f"{cell} in {loaded.path}" for cell in atlases[name].broken]
    if broken:
        raise UserError(
            f"features are not finite at {', '.join(broken[:3])}{', ...' if broken[3:] else ''}; the "
            f"others are written and marked incomplete in {folder}"
        )
    if len(atlases) > 1 and distributed.rank() == 0:
        written += compare_atlases(atlases, folder, stem, seed=0)
    return written


def _measure(asked: ProbeRequest, opened: dict[str, Loaded]) -> list[Path]:
    """Representation measures of the first checkpoint, against the second if there is one."""
    if len(opened) > 2:
        raise UserError(f"--measure takes one checkpoint or two; {len(opened)} were given")
    if distributed.world_size() > 1:
        raise UserError("--measure runs in one process; leave out --nproc")
    (name, loaded), *rest = opened.items()
    other_name, other = rest[0] if rest else (None, None)
    model, where = loaded.model.config, loaded.model.output.weight.device
    layers, steps = _layers(asked, model), uniform_steps(model.tokens, asked.steps)
    wanted = None if asked.measure == "all" else [part.strip() for part in asked.measure.split(",")]
    encoder = asked.encoder and load_encoder(asked.encoder, asked.encoder_weights, where)
    with Stages() as stages:
        data = _prepare(asked, loaded, stages)
        result = measure_checkpoint(
            loaded,
            data.stores,
            split=asked.split,
            layers=layers,
            steps=steps,
            names=wanted,
            other=other,
            encoder=encoder or None,
            tokenizer=data.tokenizer if encoder else None,
            precision=resolve_precision(asked.precision, where),
            on_progress=lambda done, total: stages.report("measures", done, total),
        )
    _print_measures(result, name if other is None else f"{name} (against: {other_name})")
    folder = output_folder(loaded, asked.out, "probe")
    kind = "measures" if wanted is None else f"measures-{'-'.join(wanted)}"
    kind += "" if asked.split == "test" else f"-{asked.split}"
    kind += f"-against-{slug(other_name)}" if other is not None else ""
    stem = _stem(f"{kind}-{slug(encoder.name)}" if encoder else kind, layers, asked)
    written = write_result(result, folder / f"{stem}.csv")
    votes = (result.info["knn"] or {}).get("k")
    for label, figure in measure_figures(result.table, total_steps=model.tokens, votes=votes):
        written += save(figure, folder / f"{stem}-{label}")
    return written


def _print_measures(result, name: str) -> None:
    """Means over layers and steps of each measure; the table has the rest."""
    rows = []
    for (measure, against), group in result.table.groupby(["measure", "against"], sort=False):
        values = group["value"].dropna()
        if values.empty:
            continue
        base = group["baseline"].dropna()
        cells = [measure, "" if against == "none" else against, f"{values.mean():.3g}"]
        cells += [f"{values.min():.3g}", f"{values.max():.3g}"]
        rows.append([*cells, f"{base.mean():.3g}" if len(base) else "-"])
    columns = ["over layers and steps", "against", "mean", "least", "most", "baseline"]
    print_rows(f"{name}: {result.info['images']} images", columns, rows)
    if result.info.get("of_train"):
        console.print(
            f"of training images, which have several views: {', '.join(result.info['of_train'])}"
        )
    for measure, why in result.info["left_out"].items():
        console.print(f"left out: {measure} ({why})", highlight=False)
    for measure in dict.fromkeys(row[0] for row in rows):
        votes = f", k = {result.info['knn']['k']}" if measure == "knn" else ""
        console.print(f"{measure}: {MEASURES[measure]}{votes}", highlight=False)


def _stem(kind: str, layers, asked: ProbeRequest) -> str:
    which = asked.layer if asked.layer == "all" else "-".join(map(str, layers))
    # What was asked for beside the defaults is in the name: another question is another file.
    more = f"-steps-{asked.steps}" * (asked.steps != DEFAULT_STEPS)
    more += f"-seeds-{asked.seeds}" * (asked.seeds != 1)
    more += f"-{slug(Path(asked.data).name)}" if asked.data else ""
    return f"{kind}-layer-{which}-{asked.weights}{more}"


def _protocol(asked: ProbeRequest) -> ProtocolConfig:
    """Settings of the protocol from the options given."""
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
    settings = {}
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


def _refuse_idle(asked: ProbeRequest) -> None:
    """Refuse options that would have no effect."""
    if not asked.dry_run and (asked.size is not None or asked.tflops is not None):
        raise UserError("--preset and --tflops have an effect only with --dry-run")
    check_out(asked.out)
    for name in (asked.measure or "all").split(","):
        if name.strip() != "all":
            require_choice("measure", name.strip(), ("all", *MEASURES))
    if asked.size is not None and asked.ckpts:
        raise UserError("--preset stands in for a checkpoint in a dry run; give one of them")
    if asked.measure is None and (asked.encoder or asked.encoder_weights or asked.split != "test"):
        raise UserError("--encoder, --encoder-weights and --split have an effect only with --measure")
    if bool(asked.encoder) != bool(asked.encoder_weights):
        raise UserError("--encoder and --encoder-weights belong together: a name and its weights' file")


def _layers(asked: ProbeRequest, model: ModelConfig) -> list[int]:
    given = str(max(1, model.layers // 2)) if asked.layer is None else asked.layer
    layers = parse_layers(given, model.layers)
    check_layers(model, layers)
    return layers


def _config(asked: ProbeRequest, model: ModelConfig, protocol: ProtocolConfig, device) -> AtlasConfig:
    """The atlas that the options ask of a model of this shape."""
    return AtlasConfig(
        layers=tuple(_layers(asked, model)),
        steps=tuple(uniform_steps(model.tokens, asked.steps)),
        protocol=protocol,
        seeds=tuple(range(asked.seeds)),
        precision=resolve_precision(asked.precision, device),
    )


def _prepare(asked: ProbeRequest, loaded: Loaded, stages: Stages) -> PreparedData:
    """The checkpoint's codes, made if need be."""
    with distributed.main_first():
        return run_data(loaded, asked.data, asked.tokenizer, stages)


def _fitting_data(asked: ProbeRequest, loaded: Loaded) -> PreparedData:
    """The checkpoint's codes; ``UserError`` if they are not of its tokenizer, vocabulary and grid."""
    with Stages() as stages:
        data = _prepare(asked, loaded, stages)
    for store in data.stores.values():
        check_store(loaded.model, store, classes=False)
        check_tokenizer(loaded, store)
    return data


def _atlas(
    asked: ProbeRequest,
    loaded: Loaded,
    data: PreparedData,
    config: AtlasConfig,
    work: Path,
    first: Atlas | None,
    stage: str,
) -> tuple[Atlas, tuple[str, ...]]:
    """The atlas of one checkpoint and the names of its classes.

    ``first`` is an atlas made before it; ``stage`` begins the name of every stage.
    """
    with Stages() as stages:
        splits = probe_splits(data.stores)
        _note_few_updates(config.protocol, splits.count("train"))
        atlas = probe_atlas(
            loaded,
            splits,
            config,
            images=_given_images(asked.images, splits) if asked.images else data.source,
            tokenizer=data.tokenizer,
            work=work,
            like=_same_data(first, splits),
            on_stage=lambda name, done, total: stages.report(stage + name, done, total),
        )
    return atlas, splits.stores["train"].class_names


def _given_images(images: str, splits: ProbeSplits) -> ImageSource:
    """The source called ``images``, with the column of labels that the codes were made with."""
    noted = splits.stores["train"].manifest.get("source")
    return open_source(images, noted.get("label_column") if isinstance(noted, dict) else None)


def _same_data(first: Atlas | None, splits: ProbeSplits) -> Atlas | None:
    """``first`` if it was probed on the very same codes, None if on other codes of the same images."""
    if first is None or first.result.info["splits"] == splits.describe():
        return first
    of_first, of_this = first.result.info["splits"]["source"], splits.describe()["source"]
    if not same_images(of_first["test"], of_this["test"]):
        raise UserError("the checkpoints' test images differ; give --data to probe both on the same")
    return None


def _note_few_updates(protocol: ProtocolConfig, images: int) -> None:
    """MAE's protocol is made for large data; say so where its heads are hardly trained."""
    mae, batch = protocol.mae, min(protocol.mae.batch_size, images)
    updates = mae.epochs * (images // batch)
    if protocol.name == "mae" and updates < FEW_UPDATES and len(mae.base_lrs) == 1:
        console.print(
            f"note: {images:,} training images make {updates} updates at lr {mae.base_lrs[0]:g} x "
            f"{batch}/256 (ImageNet: 7,020 at 6.4): hardly trained heads. Try --batch-size 512 "
            "--lr 0.1,1,10, or --protocol logreg",
            highlight=False,
        )


def _dry_run(asked: ProbeRequest, protocol: ProtocolConfig) -> None:
    """Print what the atlas of a size or of a checkpoint would take."""
    common = {"processes": asked.nproc, "device": asked.device, "tflops": asked.tflops}
    if asked.size is not None:
        model = preset(asked.size).model
        print_probe_cost(
            model,
            _config(asked, model, protocol, "cpu"),
            train=asked.train_images,
            held_out=DRY_RUN_HELD_OUT,
            views=DRY_RUN_VIEWS,
            classes=model.num_classes,
            **common,
        )
        return
    opened = open_checkpoints(asked.ckpts, asked.weights, "cpu", asked.heads, asked.grid)
    for loaded in opened.values():
        model = loaded.model.config
        null_label(model, "a probe")
        sizes = _sizes(open_run_data(loaded, asked.data, make_codes=False))
        print_probe_cost(model, _config(asked, model, protocol, "cpu"), **sizes, **common)


def _sizes(data: ImageSource | dict[str, CodeStore]) -> dict[str, int]:
    """Images, views and classes of ``data``, without tokenising anything."""
    if isinstance(data, dict):
        splits = probe_splits(data)
        train, views = splits.count("train"), splits.stores["train"].views
        held_out, classes = splits.count("val") + splits.count("test"), splits.classes
    else:
        counts = {name: len(split) for name, split in data.splits.items()}
        train, held_out = counts.pop("train"), sum(counts.values())
        views = len(view_set(data.default_views, data.native_size))
        classes = len(data.class_names)
    return {"train": train, "held_out": held_out, "views": views, "classes": classes}
