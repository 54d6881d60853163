"""Which features a request asks for, layers at steps, and how files of them are named."""

from collections.abc import Sequence
from pathlib import Path

from figures.requests import measures, probing
from probes.reading.features import parse_layers, uniform_steps
from star.base.names import slug
from star.model.config import ModelConfig
from star.model.transformer import check_layers

__all__ = ["features_stem", "layers_and_steps"]

Request = probing.Request | measures.Request


def layers_and_steps(asked: Request, model: ModelConfig) -> tuple[list[int], list[int]]:
    """The layers and steps asked of a model of this shape; ``UserError`` if it has no such."""
    given = str(max(1, model.layers // 2)) if asked.layer is None else asked.layer
    layers = parse_layers(given, model.layers)
    check_layers(model, layers)
    return layers, uniform_steps(model.tokens, asked.steps)


def features_stem(kind: str, asked: Request, layers: Sequence[int], seeds: int = 1) -> str:
    """What the files' names begin with: all that was asked for beside the defaults.

    Another question is another file.
    """
    which = asked.layer if asked.layer == "all" else "-".join(map(str, layers))
    more = f"-steps-{asked.steps}" * (asked.steps != probing.Request.steps)
    more += f"-seeds-{seeds}" * (seeds != 1)
    more += f"-{slug(Path(asked.data).name)}" if asked.data else ""
    return f"{kind}-layer-{which}-{asked.weights}{more}"
