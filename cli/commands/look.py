"""``star sample``: what does a model draw?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from cli.options import Checkpoint, Device, Grid, Heads, RunTokenizer, Weights
from cli.processes import launch
from cli.threads import computing
from star.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from star.codes.sample import SampleOptions
    from star.model.transformer import Transformer
    from star.tokenizer.model import VQModel
    from star.training.checkpoint import Loaded


@computing("Drawing samples")
def sample(
    ckpt: Checkpoint = None,
    each: int = typer.Option(8, "--each", help="Images a class."),
    classes: str = typer.Option(
        None,
        "--class",
        help="Classes by name or number, such as zebra or 0,1,7; null: none.  "
        "\\[default: the first 10]",
    ),
    cfg_scale: float = typer.Option(2.0, help="Classifier-free guidance; 1 is none."),
    cfg_interval: int = typer.Option(-1, help="Guidance ends after this decoded token; -1 never."),
    cfg_schedule: Literal["constant", "linear"] = typer.Option(
        "constant", help="Guidance over the tokens; linear: from none to the full one."
    ),
    temperature: float = typer.Option(1.0, help="Divides the logits."),
    top_k: int = typer.Option(0, help="Keep the k most likely tokens; 0 keeps all."),
    top_p: float = typer.Option(1.0, help="Keep the smallest set with this probability; 1 keeps all."),
    greedy: bool = typer.Option(False, "--greedy", help="Take the most likely token."),
    seed: int = typer.Option(0, help="Seed of the first image; image i uses seed + i."),
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(
        None,
        help="Folder for picture and codes; with --count the .npz.  "
        "\\[default: RUN/samples, RUN/samples/samples-WEIGHTS-COUNT.npz]",
    ),
    count: int = typer.Option(
        None, help="Instead of a grid: this many samples as .npz and code store, resumable."
    ),
    classes_drawn: Literal["balanced", "random"] = typer.Option(
        None,
        "--classes",
        help="With --count: classes in turn, or at random.  \\[default: balanced]",
    ),
    batch_size: int = typer.Option(
        None, help="With --count: every batch is padded to it; part of the plan.  \\[default: 32]"
    ),
    pictures: bool = typer.Option(False, "--images", help="With --count: PNG files too."),
    nproc: int = typer.Option(1, help="With --count: processes (torchrun); each takes batches."),
    heads: Heads = None,
    grid: Grid = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = typer.Option(
        None, help="Of the weights.  \\[default: fp32; bf16 on GPUs that have it, as LlamaGen]"
    ),
    device: Device = "auto",
) -> None:
    """Sample images class by class into one labelled grid, or --count of them for an evaluation."""
    if count is None:
        _refuse_idle(classes_drawn, batch_size, pictures, nproc)
    elif each != 8:
        raise UserError("--each is of the grid; with --count leave it out")
    elif nproc != 1:
        launch(nproc, device)
    import numpy as np

    from cli.terminal.screen import Stages, print_line, print_written
    from figures.opening import open_checkpoint, output_folder, tokenizer_path
    from figures.requests.shared import CheckpointRequest
    from figures.sentences import names_in_pictures
    from probes.reading.example import require_tokenizer
    from star.base.device import resolve_precision
    from star.codes.sample import SampleOptions
    from star.model.classes import class_words, null_label, parse_classes
    from star.model.decoder import in_precision
    from star.model.sampler import generate
    from star.parallel.processes import join, leave
    from star.tokenizer.model import decode_tokens
    from viz.base.style import save
    from viz.samples import sample_grid

    if count is not None:
        _quiet_unless_first()
        device = str(join(device))
    how = CheckpointRequest(weights=weights, device=device, heads=heads, grid=grid)
    loaded = open_checkpoint(ckpt, how, print_line)
    config = loaded.model.config
    if cfg_scale != 1:
        null_label(config, f"guidance (--cfg-scale {cfg_scale:g})", "give --cfg-scale 1")
    chosen = parse_classes(
        classes, config.num_classes, loaded.class_names, null_class=config.null_class
    )
    decoder = require_tokenizer(loaded, tokenizer_path(loaded, tokenizer))
    if not 1 <= each <= 100:
        raise UserError(f"each is {each}; expected 1 to 100 images a class")
    where = loaded.model.output.weight.device
    precision = precision or ("auto" if where.type == "cuda" else "fp32")
    model = in_precision(loaded.model, resolve_precision(precision, where))
    if count is not None:
        options = SampleOptions(
            count=count, seed=seed, balance=classes_drawn or "balanced", cfg_scale=cfg_scale,
            cfg_interval=cfg_interval, cfg_schedule=cfg_schedule, temperature=temperature,
            top_k=top_k, top_p=top_p, greedy=greedy,
            batch_size=32 if batch_size is None else batch_size,
        )  # fmt: skip
        drawn = list(range(config.num_classes)) if classes is None else chosen
        _write_many(loaded, model, decoder, options, drawn, out, pictures)
        leave()
        return
    if classes is not None:
        words = (class_words(label, config.num_classes, loaded.class_names) for label in chosen)
        print_line(f"sampled: {'; '.join(words)}")
    labels = np.repeat(chosen, each)
    with Stages() as stages:
        tokens = generate(
            model,
            labels,
            seeds=range(seed, seed + len(labels)),
            cfg_scale=cfg_scale,
            cfg_interval=cfg_interval,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            cfg_schedule=cfg_schedule,
            greedy=greedy,
            on_step=lambda done, total: stages.report("sample", done, total),
        )
    images = decode_tokens(decoder, tokens, config.grid)
    names = [*(loaded.class_names or map(str, range(config.num_classes))), "null class"]
    figure = sample_grid(images, labels, names, title=f"Samples, guidance {cfg_scale:g}", columns=each)
    stem = output_folder(loaded, out, "samples") / f"samples-{weights}"
    written = [*save(figure, stem), _save_codes(stem.with_suffix(".npz"), images, tokens, labels)]
    for line in names_in_pictures(names, labels):
        print_line(line)
    print_written(written)


def _refuse_idle(balance: str | None, batch_size: int | None, pictures: bool, nproc: int) -> None:
    if balance is not None or batch_size is not None or pictures or nproc != 1:
        raise UserError("--classes, --batch-size, --images and --nproc need --count")


def _quiet_unless_first() -> None:
    from cli.terminal.screen import console

    console.quiet = int(os.environ.get("RANK", 0)) > 0


def _write_many(
    loaded: "Loaded",
    model: "Transformer",
    tokenizer: "VQModel",
    options: "SampleOptions",
    chosen: list[int],
    out: Path | None,
    pictures: bool,
) -> None:
    from cli.terminal.screen import Stages, print_line, print_written
    from figures.opening import output_folder
    from probes.results import checkpoint_facts
    from star.codes.sample import write_samples
    from star.tokenizer.file import tokenizer_sha256

    named = f"samples-{loaded.weights}-{options.count}.npz"
    path = out if out is not None else output_folder(loaded, None, "samples") / named
    number = model.config.num_classes
    names = [*(loaded.class_names or map(str, range(number)))]
    weight = model.output.weight
    facts = {
        **checkpoint_facts(loaded),
        "precision": str(weight.dtype).removeprefix("torch."),
        "device": weight.device.type,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }
    with Stages() as stages:
        written = write_samples(
            model,
            tokenizer,
            path,
            options,
            chosen=chosen,
            facts=facts,
            class_names=names,
            images=pictures,
            on_progress=stages.report,
            on_message=print_line,
        )
    print_written(written)


def _save_codes(path: Path, images: "np.ndarray", tokens: "Tensor", labels: "np.ndarray") -> Path:
    import numpy as np

    from star.base.files import publish_file

    with publish_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, arr_0=images, tokens=tokens.cpu().numpy(), labels=labels)
    return path
