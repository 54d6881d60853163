"""What a query may be kept from reading: cuts of attention, layer by layer ("attention knockout").

A cut takes keys out of the softmax of chosen layers and queries, in all heads; the rest of the row is
renormalised, and every position keeps itself (Geva et al. 2023 cut attention in the same way). It says
what a trained model loses without a path, not what a model trained without it would do.

Shapes: N positions (class first), T tokens, g grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.attention.places import cut_beyond, place_patterns, predicted_distance
from probes.reading.features import check_steps
from star.base.errors import UserError, require_choice
from star.base.randomness import torch_generator
from star.model.config import ModelConfig
from star.model.transformer import check_layers

__all__ = ["CUTS", "Cut", "all_layers", "reach_cuts", "strict_window"]

CUTS = {
    "class": "the class token",
    "neighbourhood": "the neighbours before the current token (causal 3 x 3 without itself)",
    "random": "as many random tokens outside of the neighbourhood as it has",
    "row_above": "the row of the grid above the current token's",
    "beyond": "all tokens farther than the reach (cells, larger offset) from the cell being predicted",
}


@dataclass(frozen=True)
class Cut:
    """One cut. ``what``: names of ``CUTS``, joined by ``+``; ``layers`` from 1; ``steps`` whose queries
    are cut (None: all); ``reach`` in cells, for ``beyond`` alone; ``seed`` draws ``random``, ``draws``
    times: what it changes is the mean over them, so that no single draw stands for all.

    Raises ``UserError`` for a name that does not exist and a reach that is missing or idle.
    """

    what: str
    layers: tuple[int, ...]
    steps: tuple[int, ...] | None = None
    reach: int | None = None
    seed: int = 0
    draws: int = 1

    def __post_init__(self) -> None:
        for name in self.names:
            require_choice("cut", name, tuple(CUTS))
        if ("beyond" in self.names) != (self.reach is not None):
            raise UserError(
                f"cut is {self.what} and reach is {self.reach}; beyond needs a reach, no other has one"
            )
        if self.reach is not None and self.reach < 0:
            raise UserError(f"reach is {self.reach}; expected at least 0 cells")
        if self.draws < 1:
            raise UserError(f"draws of random cuts are {self.draws}; expected at least 1")

    @property
    def names(self) -> list[str]:
        """The parts of ``what``."""
        return self.what.split("+")

    def all_patterns(self, config: ModelConfig) -> list[dict[int, Tensor]]:
        """``patterns`` of every draw: one where nothing is random."""
        draws = self.draws if "random" in self.names else 1
        return [self.patterns(config, draw) for draw in range(draws)]

    def patterns(self, config: ModelConfig, draw: int = 0) -> dict[int, Tensor]:
        """Layer to (N, N) bool, as ``Transformer.forward`` takes it; ``UserError`` if out of range."""
        check_layers(config, self.layers)
        grid, positions = config.grid, config.tokens + 1
        hidden = torch.zeros(positions, positions, dtype=torch.bool)
        for name in self.names:
            hidden |= self._pattern(name, grid, draw)
        if self.steps is not None:
            check_steps(config.tokens, self.steps)
            chosen = torch.zeros(positions, dtype=torch.bool)
            chosen[torch.tensor(self.steps, dtype=torch.long) - 1] = True
            hidden &= chosen[:, None]
        hidden.fill_diagonal_(False)
        return dict.fromkeys(self.layers, hidden)

    def _pattern(self, name: str, grid: int, draw: int) -> Tensor:
        if name == "beyond":
            assert self.reach is not None
            return cut_beyond(grid, self.reach)
        if name == "random":
            return _random(grid, self.seed, draw)
        return place_patterns(grid)[name]


def _random(grid: int, seed: int, draw: int) -> Tensor:
    """As many keys of each query as its neighbours, drawn among the other tokens it sees."""
    patterns = place_patterns(grid)
    near = patterns["neighbourhood"] & ~patterns["self"]
    far = patterns["image"] & ~patterns["neighbourhood"]
    drawn = torch.rand(far.shape, generator=torch_generator(seed, "random cut", draw))
    order = drawn.masked_fill(~far, -1).argsort(dim=1, descending=True).argsort(dim=1)
    return far & (order < near.sum(1, keepdim=True))


def strict_window(config: ModelConfig, step: int, reach: int) -> dict[int, Tensor]:
    """The cut that leaves ``step`` the class, its current token and what is within ``reach``.

    Every other token farther than ``reach`` from the cell that the step predicts is hidden from every
    other position in every layer, so that nothing of it arrives by any route.
    """
    check_steps(config.tokens, [step])
    far_N = predicted_distance(config.grid)[step - 1] > reach
    far_N[[0, step - 1]] = False  # the class, and the query's own position
    hidden = far_N.expand(config.tokens + 1, -1).clone().fill_diagonal_(False)
    return dict.fromkeys(range(1, config.layers + 1), hidden)


def all_layers(config: ModelConfig) -> tuple[int, ...]:
    """1 to L."""
    return tuple(range(1, config.layers + 1))


def reach_cuts(config: ModelConfig, layers: Sequence[int], reaches: Sequence[int]) -> list[Cut]:
    """A cut of everything beyond each reach."""
    for reach in reaches:
        if not 0 <= reach < config.grid:
            raise UserError(f"reach {reach} is not on the grid; expected 0 to {config.grid - 1} cells")
    return [Cut("beyond", tuple(layers), reach=reach) for reach in reaches]
