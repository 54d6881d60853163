"""The measuring commands: each asks one study (``figures.studies``) with the options of its request."""

from collections.abc import Callable
from importlib import import_module

from cli.options import with_options
from cli.threads import computing
from figures.requests import (
    ablation,
    attention_maps,
    attention_stats,
    attribution,
    codebook,
    evaluation,
    exposure,
    nll,
    token_invariance,
)

__all__ = ["STUDIES", "answer", "command"]

# command: the request, the study's module in figures.studies, what its first line says
STUDIES = {
    "attn-maps": (attention_maps.Request, "attention_maps", "Drawing where layers look"),
    "attention-stats": (attention_stats.Request, "attention_stats", "Measuring where models look"),
    "attribute": (attribution.Request, "attribution", "Explaining the score of a step"),
    "ablate": (ablation.Request, "ablation", "Cutting attention to see what is lost"),
    "nll": (nll.Request, "nll", "Measuring how probable held-out images are"),
    "evaluate": (evaluation.Request, "evaluation", "Judging samples"),
    "exposure": (exposure.Request, "exposure", "Measuring how fast models leave the data"),
    "token-invariance": (
        token_invariance.Request,
        "token_invariance",
        "Looking which tokens change when the image hardly does",
    ),
    "codebook": (codebook.Request, "codebook", "Counting a tokenizer's codes"),
}


def command(name: str) -> Callable:
    """The function of the command called ``name``; its help is the request's."""
    request, study, doing = STUDIES[name]

    def ask(given: dict[type, dict]) -> None:
        answer(study, request(**given[request]))

    ask.__doc__ = request.__doc__
    return computing(doing)(with_options(request)(ask))


def answer(study: str, request: object) -> None:
    """Ask a study, write what it finds, and print what it says as it comes."""
    from cli.terminal.screen import Stages, print_written
    from figures.work import Work

    run = import_module(f"figures.studies.{study}").run
    with Stages() as stages:
        found = run(request, Work(stage=stages.report, say=stages.say, writes=True))
    print_written(found.written)
