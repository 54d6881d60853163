"""What ``star probe --dry-run`` prints: forward passes, FLOPs, memory and time, nothing computed."""

from dataclasses import dataclass, replace

import torch

from cli.terminal.dry_run import PEAK_TFLOPS, UTILISATION
from cli.terminal.screen import print_line
from figures.opening import open_checkpoints
from figures.requests.probing import Request
from figures.studies.probing import plan
from probes.linear.atlas import AtlasConfig
from probes.linear.cost import probe_cost
from probes.linear.splits import probe_splits
from star.base.device import parse_device
from star.base.errors import UserError
from star.codes.store import CodeStore
from star.images.open import ImageSource
from star.images.views import view_set
from star.model.config import ModelConfig
from star.training.config import preset
from star.training.run_data import open_run_data

__all__ = ["print_probe_costs"]

GB = 1e9
HELD_OUT, VIEWS = 60_000, 10  # ImageNet: 50,000 tested on, 10,000 cut from train


def print_probe_costs(
    asked: Request, size: str | None, train_images: int, *, processes: int, tflops: float | None
) -> None:
    """Print what the atlas asked of a size takes, or of every checkpoint; nothing is tokenised."""
    costs, cpu = [], torch.device("cpu")
    if size is not None:
        model = preset(size).model
        images = _Images(train_images, HELD_OUT, VIEWS, model.num_classes)
        costs.append((model, plan(asked, model, cpu), images))
    else:
        how = replace(asked, device="cpu")
        for loaded in open_checkpoints(asked.ckpts, how, print_line).values():
            model = loaded.model.config
            images = _counted(open_run_data(loaded, asked.data, make_codes=False))
            costs.append((model, plan(asked, model, cpu), images))
    for model, config, images in costs:
        _print_cost(model, config, images, processes=processes, device=asked.device, tflops=tflops)


@dataclass(frozen=True)
class _Images:
    """What a cost depends on: images of the parts, views of a training image, classes."""

    train: int
    held_out: int
    views: int
    classes: int


def _counted(data: ImageSource | dict[str, CodeStore]) -> _Images:
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
    return _Images(train, held_out, views, classes)


def _print_cost(
    model: ModelConfig, config: AtlasConfig, images: _Images, *,
    processes: int, device: str, tflops: float | None,
) -> None:  # fmt: skip
    """Print the cost of an atlas ``config`` of ``model``; ``tflops``: what one device sustains."""
    if tflops is not None and not tflops > 0:
        raise UserError(f"tflops is {tflops}; expected a number > 0")
    if min(images.train, images.held_out, images.views, processes) < 1:
        raise UserError("a dry run needs at least 1 image, view and process")
    protocol, seeds = config.protocol, len(config.seeds)
    cost = probe_cost(
        model,
        protocol=protocol.name,
        mae=protocol.mae,
        layers=len(config.layers),
        steps=len(config.steps),
        train=images.train,
        held_out=images.held_out,
        views=images.views,
        classes=images.classes,
    )
    print_line(
        f"{model.size_name or 'custom'}: {len(config.layers)} layers x {len(config.steps)} steps, "
        f"protocol {protocol.name}, {cost.heads} heads a label set, {seeds} seed(s)"
    )
    print_line(
        f"images: {images.train:,} training (views {images.views}), {images.held_out:,} held out; "
        f"{images.classes} classes"
    )
    print_line(
        f"forward passes: {cost.forwards:,} sequences, checkpoint and random control "
        f"({cost.forward_flops:.3g} FLOPs a seed)"
    )
    print_line(
        f"with every view cached: {cost.cached_forwards:,} ({cost.cached_flops:.3g} FLOPs), features "
        f"{cost.view_bytes / GB:,.1f} GB a view, {cost.cache_bytes / GB:,.1f} GB in all (--cache-gb)"
    )
    print_line(
        f"heads: {cost.head_flops:.3g} FLOPs; {cost.head_bytes / GB:.2f} GB with momenta; a batch of "
        f"features {cost.batch_bytes / GB:.2f} GB"
    )
    if tflops is None and parse_device(device).type == "cuda":
        tflops = UTILISATION * PEAK_TFLOPS["cuda"]
        print_line(f"speed assumed: {tflops:.0f} TFLOP/s a device, 40 % of an A100's peak (--tflops N)")
    if tflops is None:
        print_line("time: give --tflops, the TFLOP/s that one device sustains")
        return
    fits = cost.cache_bytes / processes <= protocol.cache_gb * GB
    flops = cost.cached_flops if fits else cost.forward_flops
    hours = seeds * (flops + cost.head_flops) / (tflops * 1e12 * processes) / 3600
    print_line(
        f"time: {hours:.3g} hours on {processes} process(es), features "
        f"{'cached' if fits else 'streamed'} (--cache-gb {protocol.cache_gb:g} a process)"
    )
