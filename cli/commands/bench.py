"""``star bench``: how fast steps, probes and batches are on this machine, as ratios with intervals."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from cli.options import Device
from cli.threads import computing
from star.base.progress import Progress
from star.model.config import SIZES

if TYPE_CHECKING:
    from cli.terminal.screen import Stages
    from probes.speed.timing import Timings

bench = typer.Typer(
    no_args_is_help=True, help="Measure speed on this machine: alternating arms, medians and ratios."
)
MOST_JOBS = 256
JSON = typer.Option(False, "--json", help="Everything as JSON, for programs.")


@bench.command()
@computing("Timing training steps")
def step(
    size: str = typer.Option("tiny", "--preset", help=f"Size: {', '.join(SIZES)}."),
    images: int = typer.Option(None, help="Images a step; sequences are views times as many."),
    views: int = typer.Option(2, help="Views of each image."),
    rounds: int = typer.Option(10, help="Timed steps of each arm."),
    precision: Literal["auto", "fp32", "bf16", "fp16"] = typer.Option("auto", help="As star train."),
    dropout: float = typer.Option(0.1, help="As star train."),
    compile_: bool = typer.Option(False, "--compile", help="Compile our blocks; theirs stay eager."),
    checkpoint_activations: bool = typer.Option(False, help="As star train."),
    device: Device = "auto",
    json_: bool = JSON,
) -> None:
    """Time an optimiser step: ST-AR, plain AR, and AR the way LlamaGen's trainer computes it.

    All arms train on the same sequences of random tokens. ST-AR costs a teacher pass more than AR, a
    third of a step. Memory is measured in fresh processes.
    """
    from dataclasses import replace

    from cli.terminal.screen import Stages
    from probes.speed.step import ARMS, bench_step
    from star.base.device import resolve_device
    from star.training.config import preset

    base = preset(size)
    config = replace(
        base,
        objective=replace(base.objective, views=views),
        batch_size=base.batch_size if images is None else images,
        precision=precision,
        dropout=dropout,
        compile=compile_,
        checkpoint_activations=checkpoint_activations,
    )
    where = resolve_device(device)
    with Stages() as stages:
        found = bench_step(
            config,
            where,
            rounds=_rounds(rounds),
            on_round=_reporter(stages, json_),
        )
    theirs, plain, full = ARMS
    ratios = {f"{theirs} / {plain}": (theirs, plain), f"{full} / {plain}": (full, plain)}
    facts = {
        "preset": size,
        "sequences": found.sequences,
        "tokens": config.model.tokens,
        "device": str(where),
        "precision": found.precision,
        "peak_memory_bytes": found.memory,
        "memory_ratio": round(found.memory[full] / found.memory[plain], 4),
    }
    _show(found.timings, ratios, facts, f"{size}, {found.sequences} sequences a step", json_)


@bench.command()
@computing("Timing epochs of a probe")
def probe(
    size: str = typer.Option("tiny", "--preset", help=f"Size: {', '.join(SIZES)}."),
    layer: int = typer.Option(6, help="The one layer that all layers are compared with."),
    steps: int = typer.Option(8, help="Uniformly spaced steps."),
    images: int = typer.Option(1024, help="Random images of an epoch."),
    rounds: int = typer.Option(6, help="Timed epochs of each arm."),
    precision: Literal["auto", "fp32", "bf16", "fp16"] = typer.Option("auto", help="As star probe."),
    device: Device = "auto",
    json_: bool = JSON,
) -> None:
    """Time an epoch of MAE's linear probing: every layer in one pass, one layer, one head at a time."""
    from dataclasses import replace

    from cli.terminal.screen import Stages
    from probes.speed.probe import ARMS, bench_probe
    from star.base.device import resolve_device
    from star.base.errors import UserError
    from star.training.config import preset

    if images < 2:
        raise UserError(f"images is {images}; expected at least 2")
    where = resolve_device(device)
    with Stages() as stages:
        found = bench_probe(
            replace(preset(size), precision=precision),
            where,
            layer=layer,
            steps=steps,
            images=images,
            rounds=_rounds(rounds),
            on_round=_reporter(stages, json_),
        )
    every, one, alone = ARMS
    ratio = found.timings.ratio(alone, every)
    facts = {
        "preset": size,
        "images": images,
        "heads": found.heads,
        "device": str(where),
        "precision": found.precision,
        "all heads one by one / all layers": [
            round(found.layers * value, 3) for value in (ratio.median, ratio.low, ratio.high)
        ],
    }
    ratios = {f"{every} / {one}": (every, one), f"{alone} / {every}": (alone, every)}
    _show(found.timings, ratios, facts, f"{size}, {images} images, {found.heads} heads", json_)


@bench.command()
@computing("Timing sampling")
def sample(
    size: str = typer.Option("tiny", "--preset", help=f"Size: {', '.join(SIZES)}."),
    images: int = typer.Option(8, help="Images of a batch."),
    cfg_scale: float = typer.Option(2.0, help="Guidance; 1: none, half the work."),
    rounds: int = typer.Option(6, help="Timed batches of each arm."),
    precision: Literal["fp32", "bf16", "fp16"] = typer.Option("fp32", help="Of the weights."),
    device: Device = "auto",
    json_: bool = JSON,
) -> None:
    """Time sampling: star sample's way, and the way LlamaGen's generate computes it.

    Decoding reads every weight for every token. How near each comes to the time that reading alone
    takes on this machine is its share of the memory-bandwidth limit; with many images sampling is
    bound by arithmetic, and the share is low whatever one does.
    """
    from cli.terminal.screen import Stages
    from probes.speed.sample import ARMS, bench_sample
    from star.base.device import resolve_device, resolve_precision
    from star.base.errors import UserError
    from star.training.config import preset

    if images < 1:
        raise UserError(f"images is {images}; expected at least 1")
    if not 0 <= cfg_scale < float("inf"):
        raise UserError(f"cfg_scale is {cfg_scale:g}; expected a number >= 0 (1 is no guidance)")
    config, where = preset(size).model, resolve_device(device)
    with Stages() as stages:
        found = bench_sample(
            config,
            where,
            images=images,
            cfg_scale=cfg_scale,
            dtype=resolve_precision(precision, where),
            rounds=_rounds(rounds),
            on_round=_reporter(stages, json_),
        )
    facts = {
        "preset": size,
        "images": images,
        "tokens": config.tokens,
        "cfg_scale": cfg_scale,
        "device": str(where),
        "precision": precision,
        "tokens a second": {arm: round(found.tokens_a_second(arm), 1) for arm in ARMS},
        "memory-bandwidth limit, tokens a second": round(found.tokens / found.limit, 1),
        "share of the limit": {arm: round(found.share_of_limit(arm), 3) for arm in ARMS},
    }
    title = f"{size}: {images} images of {config.tokens} tokens, {precision}"
    _show(found.timings, {f"{ARMS[0]} / {ARMS[1]}": ARMS}, facts, title, json_)


@bench.command()
@computing("Timing batches", option=False)
def loader(
    folder: Path = typer.Option(Path("."), help="Where to put the scratch files; a disk of interest."),
    images: int = typer.Option(1_281_167, help="Images of the store (ImageNet's by default)."),
    files: int = typer.Option(20_000, help="Images of the one-file-per-image layout."),
    batch: int = typer.Option(256, help="Images a batch, two views each."),
    rounds: int = typer.Option(30, help="Timed batches of each arm."),
    json_: bool = JSON,
) -> None:
    """Time random batches: from a code store of ImageNet's size, and from one file per image."""
    from cli.terminal.screen import Stages
    from probes.speed.loader import ARMS, bench_loader

    with Stages() as stages:
        found = bench_loader(
            folder,
            images=images,
            files=files,
            batch=batch,
            rounds=_rounds(rounds),
            on_round=_reporter(stages, json_),
        )
    facts = {
        "batch_images": batch,
        "store_bytes": found.store_bytes,
        "files": found.files,
        "private_memory_growth_bytes": found.growth_bytes,
    }
    ratios = {f"{ARMS[0]} / {ARMS[1]}": ARMS[:2], f"{ARMS[0]} / {ARMS[2]}": (ARMS[0], ARMS[2])}
    _show(found.timings, ratios, facts, f"batches of {batch} images x 2 views", json_)


@bench.command()
@computing("Timing star tokenize")
def tokenize(
    tokenizer: str = typer.Option(
        "cifar10",
        "--tokenizer",
        help="File, cifar10 (the package's own), or a preset with random weights: small, vq8, vq16.",
    ),
    size: int = typer.Option(32, help="Side of a view in pixels."),
    images: int = typer.Option(100, help="Images a round, ten crops each."),
    workers: int = typer.Option(2, help="Loader processes of the other way."),
    rounds: int = typer.Option(5, help="Timed passes over the images of each arm."),
    folder: Path = typer.Option(Path("."), help="Where to put the scratch files."),
    device: Device = "auto",
    json_: bool = JSON,
) -> None:
    """Time star tokenize against one image at a time, the way LlamaGen extracts codes (fp32 both)."""
    from cli.terminal.screen import Stages
    from probes.speed.tokenize import ARMS, bench_tokenize
    from star.base.device import resolve_device

    where = resolve_device(device)
    with Stages() as stages:
        found = bench_tokenize(
            tokenizer,
            where,
            size=size,
            images=images,
            workers=workers,
            rounds=_rounds(rounds),
            folder=folder,
            on_round=_reporter(stages, json_),
        )
    facts = {
        "tokenizer": tokenizer,
        "images": found.images,
        "device": str(where),
        "images a second": {arm: round(found.images / found.timings.median(arm), 2) for arm in ARMS},
        "equal tokens": round(found.equal, 6),
    }
    title = f"{found.images} images, ten crops of {size} pixels, {tokenizer}"
    _show(found.timings, {f"{ARMS[0]} / {ARMS[1]}": ARMS}, facts, title, json_)


@bench.command()
@computing("Timing attention rows")
def attention(
    size: str = typer.Option("B", "--preset", help=f"Size: {', '.join(SIZES)}."),
    images: int = typer.Option(16, help="Images of one pass."),
    steps: int = typer.Option(8, help="Rows captured: uniform steps."),
    rounds: int = typer.Option(3, help="Timed passes of each arm."),
    device: Device = "auto",
    json_: bool = JSON,
) -> None:
    """Time and weigh attention rows of all layers against whole patterns (fresh processes)."""
    from cli.terminal.screen import Stages
    from probes.speed.attention import ARMS, bench_attention
    from star.base.device import resolve_device
    from star.base.errors import UserError
    from star.training.config import preset

    if images < 1:
        raise UserError(f"images is {images}; expected at least 1")
    config = preset(size).model
    where = resolve_device(device)
    with Stages() as stages:
        found = bench_attention(
            config,
            where,
            images=images,
            steps=steps,
            rounds=_rounds(rounds),
            on_round=_reporter(stages, json_),
        )
    facts = {
        "images": images,
        "memory_bytes": found.memory,
        "memory_rows_over_patterns": round(found.memory_ratio, 4),
    }
    nothing, rows, whole = ARMS
    ratios = {f"{arm} / {nothing}": (arm, nothing) for arm in (rows, whole)}
    title = f"{size}: attention of {config.layers} layers, {steps} of {config.tokens} rows"
    _show(found.timings, ratios, facts, title, json_)


@bench.command()
@computing("Timing work beside other jobs", option=False)
def contention(
    work: Literal["step", "tokenize"] = typer.Option(
        "step", help="A training step of the tiny size, or ten crops through the tokenizer."
    ),
    jobs: int = typer.Option(
        None, help="Busy single-threaded processes beside it; 0: none.  \\[default: the cores]"
    ),
    alike: int = typer.Option(2, help="Copies of the same work beside it; 0: none."),
    rounds: int = typer.Option(6, help="Timed rounds; each measures every arm once."),
    json_: bool = JSON,
) -> None:
    """Time work on shared cores, with the libraries' own thread settings (before) and ours (after).

    Under a fair share of two cores, work of two threads takes twice as long beside two busy
    processes and three times as long beside two copies of itself. The last ratio is that of an
    idle machine. Everything runs on the CPU, in fresh processes.
    """
    from cli.terminal.screen import Stages
    from probes.speed.contention import ALONE, SETTINGS, arm, bench_contention
    from star.base.errors import UserError

    for name, value in {"jobs": jobs or 0, "alike": alike}.items():
        if not 0 <= value <= MOST_JOBS:
            raise UserError(f"{name} is {value}; expected 0 to {MOST_JOBS} processes")
    with Stages() as stages:
        found = bench_contention(
            work, jobs=jobs, alike=alike, rounds=_rounds(rounds), on_round=_reporter(stages, json_)
        )
    before, after = SETTINGS
    pairs = [((name, beside), (name, ALONE)) for beside in found.fair for name in SETTINGS]
    pairs += [((after, beside), (before, beside)) for beside in (*found.fair, ALONE)]
    ratios = {f"{arm(*one)} / {arm(*two)}": (arm(*one), arm(*two)) for one, two in pairs}
    facts = {
        "work": work,
        "threads": found.threads,
        "after": found.environment,
        "loaded / alone if shares were fair": found.fair,
        "load average before": found.load,
    }
    _show(found.timings, ratios, facts, f"{work}, alone and beside others", json_)


def _reporter(stages: "Stages", as_json: bool) -> Progress:
    """Progress of the rounds; none where only JSON may be printed."""
    if as_json:
        return lambda done, total: None
    return lambda done, total: stages.report("rounds", done, total)


def _rounds(rounds: int) -> int:
    from star.base.errors import UserError

    if rounds < 2:
        raise UserError(f"rounds is {rounds}; expected at least 2, for an interval")
    return rounds


def _show(
    timings: "Timings",
    ratios: dict[str, tuple[str, str]],
    facts: dict,
    title: str,
    as_json: bool,
) -> None:
    """Print medians with quartiles and ratios with their intervals, and the facts beside them."""
    import json
    from dataclasses import asdict

    from cli.terminal.screen import print_facts, print_rows
    from probes.results import provenance
    from star.base.names import shown_values

    compared = {name: timings.ratio(*pair) for name, pair in ratios.items()}
    if as_json:
        seconds = {name: [round(s, 6) for s in values] for name, values in timings.seconds.items()}
        content = {
            **facts,
            "seconds": seconds,
            "ratios": {name: asdict(ratio) for name, ratio in compared.items()},
        }
        print(json.dumps(shown_values(provenance(**content)), indent=2))
        return
    rows = []
    for name in timings.seconds:
        low, high = timings.quartiles(name)
        rows.append([name, f"{timings.median(name):.4g}", f"{low:.4g} to {high:.4g}"])
    print_rows(title, ["arm", "median (s)", "quartiles (s)"], rows)
    rows = [
        [name, f"{ratio.median:.3g}", f"{ratio.low:.3g} to {ratio.high:.3g}"]
        for name, ratio in compared.items()
    ]
    print_rows("ratio of times", ["arms", "median", "95 % interval"], rows)
    print_facts(facts)
