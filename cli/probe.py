"""``star probe``: what layers know of the class, step by step, with controls and comparisons."""

from pathlib import Path
from typing import Literal

import typer

from cli.options import Data, Device, Grid, Heads, RunTokenizer, Weights
from star.config import SIZES

FEW_UPDATES = 2000  # a warning below; ImageNet's 1.28 million images give 7,020
PROTOCOLS = Literal["logreg", "mae", "ridge", "knn", "attentive"]


def probe(
    ckpts: list[Path] = typer.Argument(
        None,
        metavar="[CKPT]...",
        help="Checkpoints or run folders; two or more are compared.  \\[default: the newest run]",
    ),
    layer: str = typer.Option(
        None,
        help="Layer 1 to L (output of that block), several (2,4,6), or all.  "
        "\\[default: half the depth, the paper's 6 of 12]",
    ),
    steps: int = typer.Option(8, help="Number of uniformly spaced steps, the last being T."),
    protocol: PROTOCOLS = typer.Option("logreg", help="How a probe is fitted; see above."),
    lr: str = typer.Option(
        None, help="mae: base rates per 256 images, e.g. 0.1,1,10; the best on validation is taken."
    ),
    epochs: int = typer.Option(None, help="mae: epochs, a ninth of them warm-up.  \\[default: 90]"),
    batch_size: int = typer.Option(None, help="mae: images a batch.  \\[default: min(16384, N)]"),
    seeds: int = typer.Option(1, help="Probe with seeds 0, 1, ..; means and spread are printed."),
    cache_gb: float = typer.Option(4.0, help="Memory for features a process; beyond, they stream."),
    precision: Literal["auto", "fp32", "bf16", "fp16"] = typer.Option(
        "fp32", help="Of the frozen model's forward passes."
    ),
    data: Data = None,
    images: str = typer.Option(
        None, help="Image folder that code stores were made from, for the pixel control."
    ),
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(None, help="Folder for csv, json, PNG and PDF.  \\[default: RUN/probe]"),
    heads: Heads = None,
    grid: Grid = None,
    nproc: int = typer.Option(1, help="Processes (torchrun); each takes a share of the images."),
    device: Device = "auto",
    dry_run: bool = typer.Option(False, "--dry-run", help="Print sizes, FLOPs and time; do nothing."),
    size: str = typer.Option(
        None, "--preset", help=f"Dry run without a checkpoint: {', '.join(SIZES)}."
    ),
    train_images: int = typer.Option(1_281_167, help="Dry run with --preset: training images."),
    tflops: float = typer.Option(None, help="Dry run: TFLOP/s that one device sustains."),
) -> None:
    """Probe frozen features for the class, under the null class, every number beside its controls.

    Step t has seen the class position and tokens 1 to t-1. Protocols: logreg (L-BFGS), mae (MAE's
    linear probing: BatchNorm, LARS; made for large data), ridge (closed form), knn (20 neighbours),
    attentive (a learned query over the steps so far). Choices are made on the validation split; the
    accuracy is that of the test split. An interrupted probe goes on when started again.
    """
    from cli.opening import output_folder
    from cli.processes import launch
    from cli.screen import console
    from star import distributed
    from star.errors import UserError
    from star.files import remove_folder

    protocol_config = _protocol(protocol, lr, epochs, batch_size, cache_gb)
    if seeds < 1:
        raise UserError(f"seeds is {seeds}; expected at least 1")
    if not dry_run and (size is not None or tflops is not None):
        raise UserError("--preset and --tflops have an effect only with --dry-run")
    if dry_run:
        _dry_run(
            ckpts, size, train_images, layer, steps, protocol_config, seeds, weights, data, heads, grid,
            nproc, device, tflops,
        )  # fmt: skip
        return
    if nproc != 1:
        launch(nproc)
    where = distributed.join(device)
    console.quiet = distributed.rank() > 0
    from cli.probe_report import compare_atlases, print_atlas, slug, write_atlas

    opened = _open(ckpts or [None], weights, str(where), heads, grid)
    atlases, written, broken = {}, [], []
    folder = stem = None
    for name, loaded in opened.items():
        config = _config(loaded.model.config, layer, steps, protocol_config, seeds, precision, where)
        folder = output_folder(loaded, out, "probe")
        which = layer if layer == "all" else "-".join(map(str, config.layers))
        stem = f"probe-{protocol}-layer-{which}-{weights}"
        own = f"{stem}-{slug(name)}" if out is not None and len(opened) > 1 else stem
        work = folder / f"{own}.work"
        first = next(iter(atlases.values()), None)
        atlas, class_names = _measure(loaded, config, data, images, tokenizer, work, first)
        atlases[name] = atlas
        if distributed.rank() == 0:
            print_atlas(atlas, name)
            written += write_atlas(atlas, name, folder, own, class_names)
            remove_folder(work)
        broken += [f"{cell} in {loaded.path}" for cell in atlas.broken]
    if broken:
        raise UserError(
            f"features are not finite at {', '.join(broken[:3])}{', ...' if broken[3:] else ''}; the "
            f"others are written and marked incomplete ({written[0] if written else 'by process 0'})"
        )
    if len(atlases) > 1 and distributed.rank() == 0:
        written += compare_atlases(atlases, folder, stem, seed=0)
    for place in dict.fromkeys(path.parent for path in written):
        names = ", ".join(path.name for path in written if path.parent == place)
        console.print(f"written to {place}: {names}", highlight=False)
    distributed.leave()


def _protocol(name: str, lr: str | None, epochs: int | None, batch_size: int | None, cache_gb: float):
    """Settings of the protocol from the options given."""
    from probes.mae import MaeConfig
    from probes.protocols import ProtocolConfig
    from star.errors import UserError

    given = {"--lr": lr, "--epochs": epochs, "--batch-size": batch_size}
    used = [flag for flag, value in given.items() if value is not None]
    if used and name != "mae":
        raise UserError(f"{', '.join(used)} belong to --protocol mae; {name} has no such setting")
    if not cache_gb >= 0:
        raise UserError(f"cache-gb is {cache_gb}; expected a number >= 0")
    settings = {}
    if lr is not None:
        try:
            settings["base_lrs"] = tuple(float(part) for part in lr.split(","))
        except ValueError:
            raise UserError(f"lr is {lr!r}; expected numbers such as 0.1 or 0.1,1,10") from None
    if epochs is not None:
        settings |= {"epochs": epochs, "warmup_epochs": epochs // 9}
    if batch_size is not None:
        settings["batch_size"] = batch_size
    return ProtocolConfig(name=name, mae=MaeConfig(**settings), cache_gb=cache_gb)


def _open(paths: list, weights: str, device: str, heads: int | None, grid: int | None) -> dict:
    """Checkpoints by the names they go by: AR, ST-AR, or with their folder where that is not enough."""
    from collections import Counter

    from cli.opening import open_checkpoint

    loaded = [open_checkpoint(path, weights, device, heads, grid) for path in paths]
    count = Counter(item.objective_name for item in loaded)
    named = {}
    for item in loaded:
        name = item.objective_name
        if count[name] > 1:
            name += f" {item.path.parent.name}" if item.path.stem == "ckpt" else f" {item.path.stem}"
        while name in named:
            name += "'"
        named[name] = item
    return named


def _config(model, layer: str | None, steps: int, protocol, seeds: int, precision: str, device):
    """The atlas that the options ask of a model of this shape."""
    from probes.atlas import AtlasConfig
    from probes.features import parse_layers, uniform_steps
    from star.device import resolve_precision
    from star.transformer import check_layers

    layers = parse_layers(layer or str(max(1, model.layers // 2)), model.layers)
    check_layers(model, layers)
    return AtlasConfig(
        layers=tuple(layers),
        steps=tuple(uniform_steps(model.tokens, steps)),
        protocol=protocol,
        seeds=tuple(range(seeds)),
        precision=resolve_precision(precision, device),
    )


def _measure(loaded, config, data, images, tokenizer, work: Path, first):
    """(atlas, class names) of one checkpoint, its codes made if need be; ``first`` is the one before."""
    from cli.opening import data_name, tokenizer_path
    from cli.screen import Stages
    from probes.atlas import probe_atlas
    from probes.splits import probe_splits
    from star import distributed
    from star.images import open_source
    from star.prepare import prepare_data

    with Stages() as stages:
        with distributed.main_first():
            prepared = prepare_data(
                data_name(loaded, data),
                tokenizer=tokenizer_path(loaded.path.parent, tokenizer),
                device=str(loaded.model.output.weight.device),
                on_progress=stages.report,
                on_message=stages.message,
            )
        splits = probe_splits(prepared.stores)
        _warn_of_few_updates(config.protocol, splits.count("train"), stages.message)
        atlas = probe_atlas(
            loaded,
            splits,
            config,
            images=open_source(images) if images else prepared.source,
            tokenizer=prepared.tokenizer,
            work=work,
            like=_same_data(first, splits),
            on_stage=stages.report,
        )
    return atlas, splits.stores["train"].class_names


def _same_data(first, splits):
    """``first`` if it was probed on the very same codes, None if on other codes of the same images."""
    from star.errors import UserError

    if first is None or first.result.info["splits"] == splits.describe():
        return first
    if first.result.info["splits"]["source"]["test"] != splits.describe()["source"]["test"]:
        raise UserError("the checkpoints' test images differ; give --data to probe both on the same")
    return None


def _warn_of_few_updates(protocol, images: int, say) -> None:
    """MAE's protocol is made for large data; say so where its heads are hardly trained."""
    if protocol.name != "mae":
        return
    mae = protocol.mae
    batch = min(mae.batch_size, images)
    updates = mae.epochs * (images // batch)
    if updates < FEW_UPDATES and len(mae.base_lrs) == 1:
        say(
            f"note: {images:,} training images make {updates} updates at lr {mae.base_lrs[0]:g} x "
            f"{batch}/256 (ImageNet: 7,020); such heads are hardly trained. Try --batch-size 256 --lr "
            "0.1,1,10, or --protocol logreg"
        )


def _dry_run(
    ckpts, size, train_images, layer, steps, protocol, seeds, weights, data, heads, grid,
    nproc, device, tflops,
) -> None:  # fmt: skip
    """Print what the atlas of a size or of a checkpoint would take."""
    import torch

    from cli.opening import data_name
    from cli.probe_cost import print_probe_cost
    from probes.splits import probe_splits
    from star.config import preset
    from star.prepare import prepare_data

    common = {"processes": nproc, "device": device, "tflops": tflops}
    if size is not None:
        model = preset(size).model
        config = _config(model, layer, steps, protocol, seeds, "fp32", torch.device("cpu"))
        counts = {"train": train_images, "held_out": 60_000, "views": 10, "classes": model.num_classes}
        print_probe_cost(model, config, **counts, **common)
        return
    for loaded in _open(ckpts or [None], weights, "cpu", heads, grid).values():
        model = loaded.model.config
        splits = probe_splits(prepare_data(data_name(loaded, data)).stores)
        counts = {
            "train": splits.count("train"),
            "held_out": splits.count("val") + splits.count("test"),
            "views": splits.stores["train"].views,
            "classes": splits.classes,
        }
        config = _config(model, layer, steps, protocol, seeds, "fp32", torch.device("cpu"))
        print_probe_cost(model, config, **counts, **common)
