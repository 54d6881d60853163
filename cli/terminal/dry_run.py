"""What ``star train --dry-run`` prints: sizes, memory by part, FLOPs and time, nothing allocated."""

from star.training.config import TrainConfig

__all__ = ["print_estimate"]

# Sustained share of the peak that transformer training usually reaches on a GPU.
UTILISATION = 0.4
PEAK_TFLOPS = {"cuda": 312.0}  # dense bfloat16 of an A100; --tflops for another device


def print_estimate(config: TrainConfig, processes: int, device: str, tflops: float | None) -> None:
    """Print the estimate of ``config`` on ``processes`` devices called ``device``."""
    from cli.terminal.screen import print_line
    from star.base.device import parse_device
    from star.base.errors import UserError
    from star.training.estimate import GIB, estimate

    if processes < 1 or config.batch_size % processes:
        raise UserError(
            f"batch_size {config.batch_size} is not a multiple of the {processes} processes"
        )
    if tflops is not None and not tflops > 0:
        raise UserError(f"tflops is {tflops}; expected a number > 0")
    cuda = parse_device(device).type == "cuda"
    half = config.precision in ("bf16", "fp16") or (config.precision == "auto" and cuda)
    found = estimate(config, processes, half)
    model, sequences = config.model, config.batch_size * config.objective.views
    print_line(
        f"{model.size_name or 'custom'}: {model.layers} layers, {model.heads} heads, "
        f"width {model.width}, {model.tokens} tokens of {model.vocab_size}"
    )
    print_line(f"parameters: {found.parameters:,} and {found.projector_parameters:,} in the projector")
    print_line(
        f"a step: {config.batch_size} images x {config.objective.views} views = {sequences} sequences, "
        f"{sequences // processes} a process"
    )
    for name in ("weights", "gradients", "optimizer", "teacher", "activations", "head"):
        shown = "loss head" if name == "head" else name
        print_line(f"  {shown:12s} {getattr(found, name) / GIB:9.2f} GiB")
    dtype = "bfloat16" if half else "float32"
    print_line(f"memory a process: {found.memory / GIB:.1f} GiB (activations in {dtype})")
    print_line(f"FLOPs a step: {found.flops:.3e}")
    if config.sample_every:
        _print_samples(config, found.flops, half=cuda)
    if tflops is None and cuda:
        tflops = UTILISATION * PEAK_TFLOPS["cuda"]
        print_line(f"speed assumed: {tflops:.0f} TFLOP/s a device, 40 % of an A100's peak (--tflops N)")
    if tflops is None:
        print_line("time: give --tflops, the TFLOP/s that one device sustains")
        return
    seconds = found.flops / (tflops * 1e12 * processes)
    total = seconds * config.max_steps
    print_line(f"time: {seconds:.3g} s a step, {total / 3600:.3g} hours for {config.max_steps:,} steps")


def _print_samples(config: TrainConfig, a_step: float, half: bool) -> None:
    """What --sample-every costs; tokenizer and classifier are not opened."""
    from cli.terminal.screen import print_line
    from probes.watching.samples import sampling_cost
    from star.training.estimate import GIB

    cost = sampling_cost(config, half)
    share = 100 * cost.flops / (a_step * config.max_steps)
    print_line(
        f"samples: {cost.times} times {cost.samples:,} of the teacher and of the student "
        f"({config.model.num_classes} classes, unless the data have others), {share:.3g} % of the "
        "FLOPs of all steps, token by token; not counted: decoding the images"
        + (f", judging them by {config.classifier}" if config.classifier else "")
    )
    copy = " and a copy of the weights in bfloat16" if half else ""
    print_line(f"  on process 0, meanwhile: {cost.memory / GIB:.2f} GiB more, keys and values{copy}")
