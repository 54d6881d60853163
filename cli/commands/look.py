"""``star sample``: what does a model draw?"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from cli.options import Checkpoint, Device, Grid, Heads, RunTokenizer, Weights
from cli.threads import computing

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


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
    temperature: float = typer.Option(1.0, help="Divides the logits."),
    top_k: int = typer.Option(0, help="Keep the k most likely tokens; 0 keeps all."),
    top_p: float = typer.Option(1.0, help="Keep the smallest set with this probability; 1 keeps all."),
    seed: int = typer.Option(0, help="Seed of the first image; image i uses seed + i."),
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(None, help="Folder for picture and codes.  \\[default: RUN/samples]"),
    heads: Heads = None,
    grid: Grid = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = typer.Option(
        None, help="Of the weights.  \\[default: fp32; bf16 on GPUs that have it, as LlamaGen]"
    ),
    device: Device = "auto",
) -> None:
    """Sample images class by class into one labelled grid, with a key-value cache and guidance."""
    import numpy as np

    from cli.terminal.screen import Stages, print_line, print_written
    from figures.opening import open_checkpoint, output_folder, tokenizer_path
    from figures.requests.shared import CheckpointRequest
    from figures.sentences import names_in_pictures
    from probes.reading.example import require_tokenizer
    from star.base.device import resolve_precision
    from star.base.errors import UserError
    from star.model.classes import class_words, null_label, parse_classes
    from star.model.decoder import in_precision
    from star.model.sampler import generate
    from star.tokenizer.model import decode_tokens
    from viz.base.style import save
    from viz.samples import sample_grid

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


def _save_codes(path: Path, images: "np.ndarray", tokens: "Tensor", labels: "np.ndarray") -> Path:
    import numpy as np

    from star.base.files import publish_file

    with publish_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, arr_0=images, tokens=tokens.cpu().numpy(), labels=labels)
    return path
