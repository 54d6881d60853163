"""``star attn-maps``, ``star token-invariance``, ``star sample``: look at one model or tokenizer."""

from pathlib import Path

import typer

from cli.options import Checkpoint, Data, Device, Grid, Heads, RunTokenizer, Weights


def attn_maps(
    ckpt: Checkpoint = None,
    image: str = typer.Argument(
        None,
        help="Image file, digits/17, china.jpg or flower.jpg.  \\[default: the run's first test image]",
    ),
    layers: str = typer.Option("all", help="Layers such as 2,4,6, or all."),
    steps: int = typer.Option(
        None, help="Number of steps, spread over the image, up to 16.  \\[default: 8]"
    ),
    at: str = typer.Option(None, help="Exact steps such as 12,40,64 (instead of --steps)."),
    head: str = typer.Option("mean", help="mean or max over heads, or a head's number from 1."),
    label: int = typer.Option(
        None,
        "--class",
        help="Class shown to the model.  \\[default: the image's own, else the null class]",
    ),
    codes: Path = typer.Option(None, help="Token indices (.npy, T integers) instead of an image."),
    data: Data = None,
    tokenizer: RunTokenizer = None,
    weights: Weights = "teacher",
    out: Path = typer.Option(None, help="Folder for the pictures.  \\[default: RUN/attn-maps]"),
    heads: Heads = None,
    grid: Grid = None,
    device: Device = "auto",
) -> None:
    """Attention of chosen layers and steps as heat over the image (Figures 1(a), 2 and 5).

    Step t looks from its newest token (red); the most attended tokens are yellow, what it has not seen
    is grey; the bar is the weight on the class token.
    """
    from cli.opening import open_checkpoint, output_folder, tokenizer_path
    from cli.screen import console
    from probes.attention import attention_maps
    from probes.features import parse_layers
    from probes.subject import find_subject
    from star.transformer import check_layers
    from viz.attention import attention_grid
    from viz.style import save

    loaded = open_checkpoint(ckpt, weights, device, heads, grid)
    config = loaded.model.config
    chosen_layers = parse_layers(layers, config.layers)
    check_layers(config, chosen_layers)
    chosen_steps = _steps(steps, at, config.tokens)
    subject = find_subject(
        loaded,
        image=image,
        codes=codes,
        label=label,
        data=data,
        tokenizer=tokenizer_path(loaded.path.parent, tokenizer),
    )
    console.print(subject.description, highlight=False, markup=False)
    measured = attention_maps(
        loaded.model,
        subject.tokens,
        subject.label,
        layers=chosen_layers,
        steps=chosen_steps,
        head=int(head) if head.isdecimal() else head,
    )
    figure = attention_grid(
        subject.image,
        measured.maps,
        layers=chosen_layers,
        steps=chosen_steps,
        grid=config.grid,
        class_weights=measured.class_weights,
        title=f"Attention of {loaded.objective_name} ({head} over heads), {subject.name}",
    )
    folder = output_folder(loaded, out, "attn-maps")
    written = save(figure, folder / f"attn-maps-{subject.slug}-{weights}")
    console.print("written: " + ", ".join(str(path) for path in written), highlight=False)


def _steps(count: int | None, at: str | None, tokens: int) -> list[int]:
    """The steps that --steps or --at asks for, as many as a picture can show."""
    from probes.features import parse_steps, scattered_steps
    from star.errors import UserError
    from viz.attention import check_legible

    if at is not None and count is not None:
        raise UserError(f"--at {at} and --steps {count} both name the steps; give one of them")
    if at is None:
        steps = scattered_steps(tokens, 8 if count is None else count)
    else:
        steps = parse_steps(at, tokens)
    check_legible(steps)
    return steps


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
    from cli.screen import Stages, console
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
    console.print("written: " + ", ".join(str(path) for path in written), highlight=False)


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
    from cli.screen import Stages, console
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
    console.print(
        "written: " + ", ".join(str(path) for path in [*written, folder / f"samples-{weights}.npz"]),
        highlight=False,
    )
