"""``star train-tokenizer``: a VQ tokenizer from images."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from cli.options import Device, with_options
from cli.threads import computing
from star.base.progress import StageProgress
from star.tokenizer.config import TokenizerConfig, tokenizer_preset

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    import numpy as np
    import torch

    from star.tokenizer.trainer import TokenizerRunOptions, TokenizerTrainer

SMALL = tokenizer_preset("small")
RUNS = Path("tokenizers")  # apart from runs/, whose newest model other commands take


@computing("Training a tokenizer")
@with_options(
    SMALL, skip=("data",), panels={TokenizerConfig: "Training (defaults of the small preset)"}
)
def train_tokenizer(
    source: str = typer.Argument(
        None,
        help="digits, photos, any folder of images (where it has train/ and test/, only train/ is "
        "seen), a .tar, or parquet shards.",
    ),
    size: Literal["small", "vq8", "vq16"] = typer.Option(
        None,
        "--preset",
        help="small: stride 4, for 32 pixels; vq8, vq16: LlamaGen's shapes and recipe.  "
        "\\[default: small]",
    ),
    codebook_size: int = typer.Option(None, help="Number of codes.  \\[default: the preset's]"),
    sizes: str = typer.Option(
        None, help="Sides of the training views such as 32,32,64.  \\[default: the images' own]"
    ),
    config: Path = typer.Option(
        None, help="TOML or JSON file of settings (a run's config.json works)."
    ),
    run: Path = typer.Option(None, "--run", help="Run folder.  \\[default: tokenizers/DATE-SOURCE]"),
    resume: Path = typer.Option(None, help="Go on with the run in this folder, exactly where it was."),
    stop_after: int = typer.Option(None, help="End (and save) after this step, to be resumed later."),
    lpips_vgg: Path = typer.Option(
        None, help="torchvision's vgg16-397923af.pth, for --lpips-weight (pip install lpips)."
    ),
    inception: Path = typer.Option(
        None, help="torch-fidelity's Inception weights (...-6726825d.pth): adds rFID to the card."
    ),
    test_images: int = typer.Option(10_000, help="Most held-out images that the card is measured on."),
    skip_bad: bool = typer.Option(False, help="Pass over images that cannot be read."),
    device: Device = "auto",
    *,
    given: dict,
) -> None:
    """Train a VQ tokenizer: L1 + L2 + commitment, optionally LPIPS and a PatchGAN.

    Writes config.json, metrics.jsonl, ckpt.pt, pictures of reconstructions and
    tokenizer.safetensors, whose card says what it saw and how well it redraws
    held-out images: PSNR, SSIM, code usage, Fréchet distance of patches, and
    rFID with --inception. Ctrl-C saves and leaves; --resume goes on with
    identical results. star watch and star plot show a run.
    """
    from cli.terminal.screen import Stages
    from probes.samples.inception import load_inception
    from star.base.device import resolve_device
    from star.base.errors import UserError
    from star.runs.folder import RunFolder
    from star.tokenizer.trainer import TOKENIZER_RUN

    own = [source, size, codebook_size, sizes, config, run, *given[TokenizerConfig].values()]
    if resume is not None and any(value is not None for value in own):
        raise UserError(
            "--resume takes all settings from the run; give only --stop-after, --device, --lpips-vgg, "
            "--inception, --test-images or --skip-bad"
        )
    if test_images < 2:
        raise UserError(f"test-images is {test_images}; expected at least 2")
    where = resolve_device(device)
    if resume is not None:
        settings = RunFolder(resume, kind=TOKENIZER_RUN).settings()
    else:
        settings = _settings(source, size, codebook_size, sizes, config, given[TokenizerConfig])
    if settings.lpips_weight == 0 and lpips_vgg is not None:
        raise UserError("--lpips-vgg has an effect only with --lpips-weight above 0")
    features = None if inception is None else load_inception(inception, where).pool
    trainer = _prepared(
        settings, run, resume, where, lpips_vgg=lpips_vgg, skip_bad=skip_bad, facts=_facts()
    )
    _fit(trainer, stop_after)
    with Stages() as stages:
        _measure(trainer, test_images, features, skip_bad, stages.report)


def _prepared(
    settings: TokenizerConfig,
    run: Path | None,
    resume: Path | None,
    where: "torch.device",
    **options: "Unpack[TokenizerRunOptions]",
) -> "TokenizerTrainer":
    """The trainer of a new run or of the one in ``resume``; says where and how it computes."""
    from cli.terminal.screen import print_line
    from star.base.errors import UserError
    from star.images.left_out import left_out_line
    from star.images.open import open_images
    from star.runs.folder import RunFolder
    from star.tokenizer.trainer import TOKENIZER_RUN, TokenizerTrainer

    images = open_images(settings.data)
    line = left_out_line(images.name, images.left_out)
    if line:
        print_line(line)
    folder = resume or run or RUNS / f"{datetime.now():%Y%m%d-%H%M%S}-{images.name}"
    if resume is not None:
        trainer = TokenizerTrainer.resume(folder, images, where, **options)
    elif RunFolder(folder, kind=TOKENIZER_RUN).newest_path() is not None:
        raise UserError(f"{folder} already holds a run; give --resume {folder} or another --run")
    else:
        trainer = TokenizerTrainer(settings, images, folder, where, **options)
    if settings.mosaic and max(trainer.batches.sizes) < 2 * images.native_size:
        print_line(
            f"note: mosaic {settings.mosaic:g} has no effect: no size is twice the images' "
            f"{images.native_size} pixels"
        )
    precision = str(trainer.learner.precision).removeprefix("torch.")
    millions = sum(parameter.numel() for parameter in trainer.learner.model.parameters()) / 1e6
    print_line(
        f"run {folder}  device {where}  precision {precision}  {millions:.1f}M parameters, "
        f"{len(trainer.batches.split)} training images"
    )
    return trainer


def _settings(
    source: str | None,
    size: str | None,
    codebook_size: int | None,
    sizes: str | None,
    config: Path | None,
    given: dict,
) -> TokenizerConfig:
    """Preset, then the file, then the command line."""
    from star.base.errors import UserError
    from star.base.settings import config_from_dict, read_settings

    settings = tokenizer_preset(size or "small")
    if config is not None:
        settings = config_from_dict(read_settings(config), settings)
    elif source is None:
        raise UserError("no SOURCE was given; expected: star train-tokenizer SOURCE, such as digits")
    changes = dict(given)
    if source is not None:
        changes["data"] = source
    if codebook_size is not None:
        changes["shape"] = {"codebook_size": codebook_size}
    if sizes is not None:
        parts = [part.strip() for part in sizes.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise UserError(f"sizes is {sizes!r}; expected pixels such as 32 or 32,32,64")
        changes["sizes"] = [int(part) for part in parts]
    return config_from_dict(changes, settings)


def _facts() -> dict:
    """What the card says besides."""
    from probes.results import provenance

    return {"command": provenance()["command"]}


def _fit(trainer: "TokenizerTrainer", stop_after: int | None) -> None:
    """Train under the live view and say where it ended; exits on a signal or an early end."""
    from cli.terminal.fitting import fit_shown, leave_if_stopped
    from cli.terminal.screen import print_line
    from star.base.errors import listed

    folder = trainer.run.path
    result, signal = fit_shown(
        trainer,
        stop_after=stop_after,
        draw=lambda step, images, redrawn: _draw(folder, step, images, redrawn),
    )
    if trainer.batches.skipped:
        names = sorted(trainer.batches.skipped)
        print_line(f"passed over {len(names)} images: {listed(names)}")
    leave_if_stopped(result, signal, trainer.config.max_steps, "star train-tokenizer")


def _draw(folder: Path, step: int, images: "torch.Tensor", redrawn: "torch.Tensor") -> None:
    """Held-out images above their reconstructions."""
    import numpy as np

    from star.tokenizer.model import to_uint8
    from viz.base.style import save
    from viz.samples import sample_grid

    pixels = np.concatenate([to_uint8(images).numpy(), to_uint8(redrawn).numpy()])
    labels = np.repeat([0, 1], len(images))
    figure = sample_grid(
        pixels, labels, ["image", "redrawn"], title=f"Held-out images, step {step}", columns=len(images)
    )
    save(figure, folder / "reconstructions" / f"step-{step:09d}", formats=("png",))


def _measure(
    trainer: "TokenizerTrainer",
    test_images: int,
    inception: "Callable[[torch.Tensor], np.ndarray] | None",
    skip_bad: bool,
    report: StageProgress,
) -> None:
    """The card's numbers, on the test split (else val, else train), and what they are."""
    from cli.terminal.screen import print_line, print_written
    from probes.results import Result, provenance, write_result
    from probes.tokens.reconstruction import reconstruction_report
    from star.images.source import measured_split
    from star.tokenizer.batches import held_out_images
    from star.tokenizer.file import tokenizer_sha256

    source, size = trainer.source, trainer.batches.sizes[0]
    split = measured_split(source.splits)
    images = held_out_images(source.splits[split], size, test_images, trainer.config.seed, skip_bad)
    found = reconstruction_report(
        trainer.learner.model,
        images,
        inception=inception,
        on_progress=lambda done, total: report("measure", done, total),
    )
    measured = {"measured_on": f"{source.name}, {split}, {len(images)} images", **found.numbers()}
    path = trainer.publish(measured)
    info = provenance(
        measurement="reconstruction",
        tokenizer_sha256=tokenizer_sha256(trainer.learner.model),
        data=source.name,
        data_sha256=source.splits[split].fingerprint(),
        split=split,
        images=len(images),
        size=size,
    )
    written = write_result(Result(found.table(), info), trainer.run.path / "quality.csv")
    numbers = found.numbers()
    rfid = f", rFID {numbers['rfid']:.2f}" if "rfid" in numbers else ""
    codes = trainer.config.shape.codebook_size
    print_line(
        f"{split}, {len(images)} images at {size} px: PSNR {numbers['psnr']:.2f} dB, SSIM "
        f"{numbers['ssim']:.3f}, {numbers['codes_used']} of {codes} codes, "
        f"perplexity {numbers['perplexity']:.1f}, patch FD {numbers['patch_fd']:.3f}{rfid}"
    )
    print_written([path, *written])
