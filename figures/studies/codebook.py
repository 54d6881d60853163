"""How a tokenizer's codes are used, which lie next to which, and what they draw."""

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from figures.requests.codebook import Request
from figures.study import Finding, Study
from figures.work import Work
from probes.results import Result, provenance
from probes.tokens.codebook import Codebook, code_pictures, codebook_report
from star.base.device import resolve_device
from star.base.errors import UserError
from star.base.names import slug
from star.codes.open import prepare_data
from star.codes.store import CodeStore
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.model import VQModel
from viz.tokens.codebook import codebook_pictures, codebook_usage

__all__ = ["Request", "run"]

MOST_DRAWN = 160


class CodebookStudy(Study[Request]):
    """``star codebook``."""

    request = Request

    def check(self, asked: Request) -> None:
        """Refuse no codes, and more than a picture holds."""
        if not 1 <= asked.top <= MOST_DRAWN:
            raise UserError(f"top is {asked.top}; expected 1 to {MOST_DRAWN} codes")

    def findings(self, asked: Request, work: Work) -> Iterator[Finding]:
        """The one finding: a row a code, two pictures, and two sentences."""
        tokenizer, store = _opened(asked, work)
        report = codebook_report(tokenizer, store)
        yield Finding(
            stem=asked.out / f"codebook-{slug(tokenizer.name)}-{asked.split}",
            results={"": Result(report.table(), _facts(asked, report, tokenizer, store))},
            figures=_figures(asked, report, tokenizer, store),
            said=_said(report, f"{tokenizer.name}, {asked.split}"),
        )


run = CodebookStudy().run


def _opened(asked: Request, work: Work) -> tuple[VQModel, CodeStore]:
    found = prepare_data(
        asked.data,
        tokenizer=asked.tokenizer,
        device=str(resolve_device(asked.device)),
        on_progress=work.stage,
        on_message=work.say,
    )
    if found.tokenizer is None:
        raise UserError(f"{asked.data} has no tokenizer beside its codes; give --tokenizer")
    if asked.split not in found.stores:
        there = ", ".join(found.stores)
        raise UserError(f"{asked.data} has no split {asked.split}; it has: {there}")
    return found.tokenizer, found.stores[asked.split]


def _facts(asked: Request, report: Codebook, tokenizer: VQModel, store: CodeStore) -> dict:
    return provenance(
        measurement="codebook",
        tokenizer=tokenizer.name,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        data=str(store.path),
        data_sha256=store.manifest["sha256"],
        split=asked.split,
        images=report.images,
        codes_used=report.used,
        entropy_nats=_known(report.entropy),
        perplexity=_known(report.perplexity),
    )


def _known(numbers: tuple[float, ...]) -> list[float | None]:
    # JSON has no NaN, which the bounds of a few images are.
    return [number if math.isfinite(number) else None for number in numbers]


def _figures(
    asked: Request, report: Codebook, tokenizer: VQModel, store: CodeStore
) -> dict[str, Figure]:
    table, name = report.table(), tokenizer.name
    drawn = table.loc[report.ranked[: asked.top]]
    pictures = code_pictures(tokenizer, store)
    return {
        "-usage": codebook_usage(
            table,
            perplexity=report.perplexity[0],
            title=f"Codebook of {name}, {report.images} images",
        ),
        "-codes": codebook_pictures(
            pictures[drawn["code"]],
            pictures[drawn["nearest"]],
            list(drawn["code"]),
            list(drawn["share"]),
            list(drawn["cosine"]),
            title=f"Most used codes of {name}; below each the nearest other code and the cosine",
        ),
    }


def _said(report: Codebook, name: str) -> list[str]:
    size, near = len(report.counts), report.cosines
    return [
        f"{name}: {report.used} of {size} codes used in {report.images} images; "
        f"entropy {_interval(report.entropy, 3, ' nats')} of at most {math.log(size):.3f}; "
        f"perplexity {_interval(report.perplexity, 1)}",
        f"cosine to the nearest other code: median {np.median(near):.3f}, largest {near.max():.3f}",
    ]


def _interval(found: tuple[float, float, float], digits: int, unit: str = "") -> str:
    """A number with its interval, where there is one: few images have none."""
    value, low, high = found
    bounds = f" [{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) else ""
    return f"{value:.{digits}f}{unit}{bounds}"
