"""``star codebook``: how a tokenizer's codes are used, and what they draw."""

import math
from pathlib import Path
from typing import Literal

import typer

from cli.options import Device
from cli.threads import computing

MOST_DRAWN = 160


@computing("Counting a tokenizer's codes")
def codebook(
    data: str = typer.Argument(
        "digits", help="What the codes are counted in: a source, an image folder, or code stores."
    ),
    tokenizer: str = typer.Option(
        None,
        help="Tokenizer file, cifar10 or digits.  "
        "\\[default: the one beside the stores, else the source's]",
    ),
    split: Literal["train", "val", "test"] = typer.Option("test", help="Images that are counted."),
    top: int = typer.Option(64, help="Most used codes that are drawn, each above its nearest."),
    out: Path = typer.Option(Path("codebook"), help="Folder for csv, json, PNG and PDF."),
    device: Device = "auto",
) -> None:
    """Usage, entropy and nearest neighbours of a tokenizer's codes, and pictures of them.

    A code is drawn as the mean of the decoded cells where it occurs. Codes are
    neighbours by the cosine of their vectors, as the quantizer compares them.
    """
    from cli.opening import check_out
    from cli.terminal.screen import Stages, print_written
    from probes.results import Result, provenance, write_result
    from probes.tokens.codebook import codebook_report
    from star.base.device import resolve_device
    from star.base.errors import UserError
    from star.base.names import slug
    from star.codes.open import prepare_data
    from star.tokenizer.file import tokenizer_sha256

    check_out(out)
    if not 1 <= top <= MOST_DRAWN:
        raise UserError(f"top is {top}; expected 1 to {MOST_DRAWN} codes")
    with Stages() as stages:
        found = prepare_data(
            data,
            tokenizer=tokenizer,
            device=str(resolve_device(device)),
            on_progress=stages.report,
            on_message=stages.say,
        )
    if found.tokenizer is None:
        raise UserError(f"{data} has no tokenizer beside its codes; give --tokenizer")
    if split not in found.stores:
        raise UserError(f"{data} has no split {split}; it has: {', '.join(found.stores)}")
    model, store = found.tokenizer, found.stores[split]
    report = codebook_report(model, store)
    info = provenance(
        measurement="codebook",
        tokenizer=model.name,
        tokenizer_sha256=tokenizer_sha256(model),
        data=str(store.path),
        data_sha256=store.manifest["sha256"],
        split=split,
        images=report.images,
        codes_used=report.used,
        entropy_nats=report.entropy,
        perplexity=report.perplexity,
    )
    stem = out / f"codebook-{slug(model.name)}-{split}"
    written = write_result(Result(report.table(), info), stem.with_name(f"{stem.name}.csv"))
    written += _draw(report, model, store, stem, top)
    _print(report, f"{model.name}, {split}")
    print_written(written)


def _print(report, name: str) -> None:
    import numpy as np

    from cli.terminal.screen import print_line

    size = len(report.counts)
    (entropy, low, high), (codes, least, most) = report.entropy, report.perplexity
    print_line(
        f"{name}: {report.used} of {size} codes used in {report.images} images; "
        f"entropy {entropy:.3f} nats [{low:.3f}, {high:.3f}] of at most {math.log(size):.3f}; "
        f"perplexity {codes:.1f} [{least:.1f}, {most:.1f}]"
    )
    near = report.cosines
    print_line(
        f"cosine to the nearest other code: median {np.median(near):.3f}, largest {near.max():.3f}"
    )


def _draw(report, model, store, stem: Path, top: int) -> list[Path]:
    """The pictures' files."""
    from probes.tokens.codebook import code_pictures
    from viz.base.style import save
    from viz.tokens.codebook import codebook_pictures, codebook_usage

    table = report.table()
    title = f"Codebook of {model.name}, {report.images} images"
    figure = codebook_usage(table, perplexity=report.perplexity[0], title=title)
    written = save(figure, stem.with_name(f"{stem.name}-usage"))
    drawn = table.loc[report.ranked[:top]]
    pictures = code_pictures(model, store)
    figure = codebook_pictures(
        pictures[drawn["code"]],
        pictures[drawn["nearest"]],
        list(drawn["code"]),
        list(drawn["share"]),
        list(drawn["cosine"]),
        title=f"Most used codes of {model.name}; below each the nearest other code and the cosine",
    )
    return written + save(figure, stem.with_name(f"{stem.name}-codes"))
