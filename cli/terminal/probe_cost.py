"""What ``star probe --dry-run`` prints: forward passes, FLOPs, memory and time, nothing computed."""

from cli.terminal.dry_run import PEAK_TFLOPS, UTILISATION

__all__ = ["print_probe_cost"]

GB = 1e9


def print_probe_cost(
    model, config, *, train: int, held_out: int, views: int, classes: int, processes: int,
    device: str, tflops: float | None,
) -> None:  # fmt: skip
    """Print the cost of an atlas ``config`` of ``model``; ``tflops``: what one device sustains."""
    from cli.terminal.screen import print_line
    from probes.linear.cost import probe_cost
    from star.base.device import parse_device
    from star.base.errors import UserError

    if tflops is not None and not tflops > 0:
        raise UserError(f"tflops is {tflops}; expected a number > 0")
    if min(train, held_out, views, processes) < 1:
        raise UserError("a dry run needs at least 1 image, view and process")
    protocol, seeds = config.protocol, len(config.seeds)
    cost = probe_cost(
        model,
        protocol=protocol.name,
        mae=protocol.mae,
        layers=len(config.layers),
        steps=len(config.steps),
        train=train,
        held_out=held_out,
        views=views,
        classes=classes,
    )
    print_line(
        f"{model.size_name or 'custom'}: {len(config.layers)} layers x {len(config.steps)} steps, "
        f"protocol {protocol.name}, {cost.heads} heads a label set, {seeds} seed(s)"
    )
    print_line(f"images: {train:,} training (views {views}), {held_out:,} held out; {classes} classes")
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
