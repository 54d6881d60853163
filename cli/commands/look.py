"""``star sample``: what does a model draw?"""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import with_options
from cli.processes import launch
from cli.threads import computing
from figures.requests.sampling import Request
from star.base.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from star.model.transformer import Transformer
    from star.tokenizer.model import VQModel
    from star.training.checkpoint import Loaded


def sample(given: dict[type, dict]) -> None:
    """Open a model and draw the grid, or the many samples of --count."""
    asked = Request(**given[Request])
    _refuse_idle(asked)
    if asked.nproc != 1:
        launch(asked.nproc, asked.device)
    from cli.terminal.screen import console, print_line
    from figures.opening import open_checkpoint, tokenizer_path
    from probes.reading.example import require_tokenizer
    from star.base.device import resolve_precision
    from star.model.classes import class_words, null_label, parse_classes
    from star.model.decoder import in_precision
    from star.parallel.processes import join, leave

    console.quiet = int(os.environ.get("RANK", 0)) > 0
    if asked.count is not None:  # each process has a device of its own
        asked = replace(asked, device=str(join(asked.device)))
    loaded = open_checkpoint(asked.ckpt, asked, print_line)
    config = loaded.model.config
    if asked.cfg_scale != 1:
        null_label(config, f"guidance (--cfg-scale {asked.cfg_scale:g})", "give --cfg-scale 1")
    chosen = parse_classes(
        asked.label, config.num_classes, loaded.class_names, null_class=config.null_class
    )
    decoder = require_tokenizer(loaded, tokenizer_path(loaded, asked.tokenizer))
    if not 1 <= asked.each <= 100:
        raise UserError(f"each is {asked.each}; expected 1 to 100 images a class")
    where = loaded.model.output.weight.device
    precision = asked.precision or ("auto" if where.type == "cuda" else "fp32")
    model = in_precision(loaded.model, resolve_precision(precision, where))
    if asked.label is not None:
        words = (class_words(label, config.num_classes, loaded.class_names) for label in chosen)
        print_line(f"sampled: {'; '.join(words)}")
    if asked.count is None:
        _draw_grid(asked, loaded, model, decoder, chosen)
    else:
        every = list(range(config.num_classes)) if asked.label is None else chosen
        _write_many(asked, asked.count, loaded, model, decoder, every)
        leave()


sample.__doc__ = Request.__doc__
sample = computing("Drawing samples")(with_options(Request(), skip=("data",))(sample))


def _refuse_idle(asked: Request) -> None:
    """Refuse options that would have no effect."""
    of_many = asked.classes is not None or asked.batch_size is not None or asked.images
    if asked.count is None and (of_many or asked.nproc != 1):
        raise UserError("--classes, --batch-size, --images and --nproc need --count")
    if asked.count is not None and asked.each != Request.each:
        raise UserError("--each is of the grid; with --count leave it out")


def _draw_grid(
    asked: Request, loaded: "Loaded", model: "Transformer", decoder: "VQModel", chosen: list[int]
) -> None:
    """One labelled picture, and its images and tokens as .npz."""
    import numpy as np

    from cli.terminal.screen import Stages, print_line, print_written
    from figures.opening import output_folder
    from figures.sentences import names_in_pictures
    from star.model.sampler import generate
    from star.tokenizer.model import decode_tokens
    from viz.base.style import save
    from viz.samples import sample_grid

    config, labels = model.config, np.repeat(chosen, asked.each)
    with Stages() as stages:
        tokens = generate(
            model,
            labels,
            seeds=range(asked.seed, asked.seed + len(labels)),
            cfg_scale=asked.cfg_scale,
            cfg_interval=asked.cfg_interval,
            cfg_schedule=asked.cfg_schedule,
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            greedy=asked.greedy,
            on_step=lambda done, total: stages.report("sample", done, total),
        )
    images = decode_tokens(decoder, tokens, config.grid)
    names = [*(loaded.class_names or map(str, range(config.num_classes))), "null class"]
    title = f"Samples, guidance {asked.cfg_scale:g}"
    figure = sample_grid(images, labels, names, title=title, columns=asked.each)
    folder = output_folder(loaded, asked.out, "samples")
    written = save(figure, folder / f"samples-{asked.weights}")
    written.append(_save_codes(folder / f"samples-{asked.weights}.npz", images, tokens, labels))
    for line in names_in_pictures(names, labels):
        print_line(line)
    print_written(written)


def _write_many(
    asked: Request,
    count: int,
    loaded: "Loaded",
    model: "Transformer",
    tokenizer: "VQModel",
    chosen: list[int],
) -> None:
    """The samples of --count, by one process or several."""
    from cli.terminal.screen import Stages, print_line, print_written
    from figures.opening import output_folder
    from probes.results import checkpoint_facts
    from star.codes.sample import SampleOptions, write_samples
    from star.tokenizer.file import tokenizer_sha256

    options = SampleOptions(
        count=count, seed=asked.seed, balance=asked.classes or "balanced", cfg_scale=asked.cfg_scale,
        cfg_interval=asked.cfg_interval, cfg_schedule=asked.cfg_schedule,
        temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, greedy=asked.greedy,
        batch_size=32 if asked.batch_size is None else asked.batch_size,
    )  # fmt: skip
    named = f"samples-{loaded.weights}-{count}.npz"
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
            asked.out or output_folder(loaded, None, "samples") / named,
            options,
            chosen=chosen,
            facts=facts,
            class_names=[*(loaded.class_names or map(str, range(model.config.num_classes)))],
            images=asked.images,
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
