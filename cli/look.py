"""``star token-invariance`` and ``star sample``: look at one tokenizer or model."""

from pathlib import Path

import typer

from cli.options import Checkpoint, Device, Grid, Heads, RunTokenizer, Weights


def token_invariance(
    image: str = typer.Argument(..., help="Image file, digits/17, china.jpg or flower.jpg."),
    tokenizer: Path = typer.Option(
        None, help="Tokenizer file.  \\[default: the digits tokenizer, trained if not cached]"
    ),
    shift: float = typer.Option(1.0, help="Shift to the right in pixels."),
    rotate: float = typer.Option(0.0, help="Rotation in degrees."),
    scale: float = typer.Option(1.0, help="Scale; 1.05 enlarges by 5 %."),
    size: int = typer.Option(None, help="Centre crop in pixels.  \\[default: 8 tokens, VQ-8/16: 256]"),
    out: Path = typer.Option(Path("token-invariance"), help="Folder for csv, json, PNG and PDF."),
) -> None:
    """Token indices of an image and of a slightly different view of it (Figure 1(c)).

    Changed cells are marked; the share of unchanged indices is printed and saved.
    """
    from cli.screen import Stages, console, print_written
    from probes.results import write_result
    from probes.tokens import change_result, token_change
    from star.images import load_image
    from star.prepare import open_tokenizer
    from viz.style import save
    from viz.tokens import token_views

    loaded_image = load_image(image)
    with Stages() as stages:
        model = open_tokenizer(tokenizer, on_progress=stages.report, on_message=stages.message)
    pixels = size
    if pixels is None:
        pixels = 8 * model.config.stride if model.config.stride < 8 else 256
    change = token_change(model, loaded_image, size=pixels, shift=shift, rotate=rotate, scale=scale)
    changed = change.indices != change.view_indices
    console.print(
        f"{image} at {pixels} px, {model.name}: {changed.sum()} of {changed.size} indices change when "
        f"{change.label}; {100 * change.share:.1f} % unchanged",
        highlight=False,
        markup=False,
    )
    name = f"tokens-{Path(image).stem}"
    written = write_result(change_result(change, model, image, pixels), out / f"{name}.csv")
    figure = token_views(
        change.image,
        change.view,
        change.indices,
        change.view_indices,
        labels=("image", change.label),
    )
    written += save(figure, out / name)
    print_written(written)


def sample(
    ckpt: Checkpoint = None,
    each: int = typer.Option(8, "--each", help="Images a class."),
    classes: str = typer.Option(
        None, "--class", help="Classes such as 3 or 0,1,7.  \\[default: the first 10]"
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
    device: Device = "auto",
) -> None:
    """Sample images class by class into one labelled grid, with a key-value cache and guidance."""
    import numpy as np

    from cli.opening import open_checkpoint, output_folder, tokenizer_path
    from cli.screen import Stages, print_written
    from probes.subject import parse_classes, require_tokenizer
    from star.errors import UserError
    from star.files import publish_file
    from star.sampler import generate
    from star.vq import decode_tokens
    from viz.samples import sample_grid
    from viz.style import save

    loaded = open_checkpoint(ckpt, weights, device, heads, grid)
    config = loaded.model.config
    decoder = require_tokenizer(loaded, tokenizer_path(loaded.path.parent, tokenizer))
    if not 1 <= each <= 100:
        raise UserError(f"each is {each}; expected 1 to 100 images a class")
    labels = np.repeat(parse_classes(classes, config.num_classes), each)
    with Stages() as stages:
        tokens = generate(
            loaded.model,
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
    names = loaded.class_names or tuple(str(c) for c in range(config.num_classes))
    figure = sample_grid(
        images, labels, [*names, "null class"], title=f"Samples, guidance {cfg_scale:g}", columns=each
    )
    folder = output_folder(loaded, out, "samples")
    written = save(figure, folder / f"samples-{weights}")
    with publish_file(folder / f"samples-{weights}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, arr_0=images, tokens=tokens.cpu().numpy(), labels=labels)
    print_written([*written, folder / f"samples-{weights}.npz"])
