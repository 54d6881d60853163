"""Which tokens of its prefix a step's score owes itself to: three attributions of one image.

- ``integrated_gradients``: gradients averaged along the straight path from the baseline to the input,
  times their difference (Sundararajan et al. 2017), by Gauss-Legendre quadrature;
- ``gradient_x_input``: the gradient at the input times the embedding (Shrikumar et al. 2016): the
  first-order guess with the zero vector as its baseline. RMSNorm makes the scores hardly depend on the
  common length of all embeddings, so its sum is close to 0 (Euler), whatever the score: of use as a
  ranking, not as shares of the score;
- ``occlusion``: the score minus the score with a group of tokens replaced by the baseline (Zeiler and
  Fergus 2014); groups are square patches of the grid, as far as they are seen, and the class. The
  tokens of a group share its value equally.

All three are captum's, of the functions in ``probes.attribution.scores``, which defines the baselines;
they are signed, summed over the embedding's width, and in the score's unit. Tokens that the step has
not seen are not fed and are exactly 0. **Completeness**: contributions should sum to score(input) -
score(baseline); integrated gradients do in the limit of many path points, the others need not. The gap
is reported for all.

Shapes: T tokens, n = step - 1 of them seen, D width, B inputs.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import (
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    LayerIntegratedGradients,
)
from torch import Tensor

from probes.attribution.scores import StepScores
from probes.reading.features import check_prefix
from star.base.errors import UserError

__all__ = [
    "METHODS",
    "Attribution",
    "AttributionConfig",
    "attribute",
    "attribute_embedded",
    "occlusion_groups",
]

METHODS = ("integrated_gradients", "gradient_x_input", "occlusion")


@dataclass(frozen=True, kw_only=True)
class AttributionConfig:
    """``points`` on the path of integrated gradients, ``batch`` inputs in one pass, ``patch`` tokens
    along an occluded patch's side; ``draws`` (0: none), ``noise`` (relative to the embeddings' spread)
    and ``seed`` are those of ``probes.attribution.quality``."""

    points: int = 64
    batch: int = 64
    patch: int = 2
    draws: int = 10
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("points", 2), ("batch", 1), ("patch", 1), ("draws", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not self.noise > 0:
            raise UserError(f"noise is {self.noise}; expected a number > 0")


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """``tokens`` (T,) float64, 0 where unseen; ``class_value``; ``units`` (T,) int, the group that a
    token was scored in, -1 where unseen; ``difference`` is score(input) - score(baseline)."""

    method: str
    tokens: np.ndarray
    class_value: float
    units: np.ndarray
    difference: float

    @property
    def gap(self) -> float:
        """Completeness gap: sum of the contributions minus ``difference``."""
        return float(self.tokens.sum() + self.class_value - self.difference)

    @property
    def relative_gap(self) -> float:
        """|gap| / |difference|; NaN where input and baseline have the same score."""
        return abs(self.gap / self.difference) if self.difference else float("nan")


def attribute(
    scores: StepScores, tokens_T: Tensor, label: int, index: int, config: AttributionConfig
) -> list[Attribution]:
    """Every method's contributions to score ``index`` (a code, or the class of a probe) of one image.

    Raises ``UserError`` for tokens, a label or an index that do not exist, and for scores that are not
    finite.
    """
    tokens_1n, label_1 = one_input(scores, tokens_T, label)
    grid, seen = scores.model.config.grid, scores.step - 1
    baselines = scores.baselines(tokens_1n, label_1)
    with torch.no_grad():
        whole, nothing = scores(tokens_1n, label_1), scores(*baselines)
    if not 0 <= index < whole.shape[1]:
        raise UserError(f"score {index} does not exist; expected 0 to {whole.shape[1] - 1}")
    if not (whole.isfinite().all() and nothing.isfinite().all()):
        raise UserError(f"scores at step {scores.step} are not finite; the checkpoint is broken")
    difference = float(whole[0, index].double() - nothing[0, index].double())
    found = []
    for method in METHODS:
        values = _values(method, scores, (tokens_1n, label_1), baselines, index, config)
        tokens = np.zeros(grid**2)
        tokens[:seen] = values[0][0].double().cpu().numpy()
        units = np.arange(grid**2)
        if method == "occlusion":
            units = occlusion_groups(grid, config.patch)
        units = np.where(np.arange(grid**2) < seen, units, -1)
        found.append(
            Attribution(
                method=method, tokens=tokens, class_value=float(values[1][0]), units=units,
                difference=difference,
            )
        )  # fmt: skip
    return found


def _values(
    method: str,
    scores: StepScores,
    inputs: tuple[Tensor, Tensor],
    baselines: tuple[Tensor, Tensor],
    index: int,
    config: AttributionConfig,
) -> tuple[Tensor, Tensor]:
    """(1, n) and (1,) contributions of indices."""
    if method != "integrated_gradients":
        embedded = scores.embed(*inputs), scores.embed(*baselines)
        return attribute_embedded(method, scores, *embedded, index, config)
    with warnings.catch_warnings():
        # captum's reminder that no layer may follow from another; the two embeddings do not.
        warnings.filterwarnings("ignore", message="Multiple layers provided")
        path = LayerIntegratedGradients(scores, scores.embedding_layers)
    tokens_BnD, classes_BD = path.attribute(
        inputs, baselines=baselines, target=index, n_steps=config.points,
        internal_batch_size=config.batch,
    )  # fmt: skip
    return tokens_BnD.detach().sum(-1), classes_BD.detach().sum(-1)


def attribute_embedded(
    method: str,
    scores: StepScores,
    inputs: tuple[Tensor, Tensor],
    baselines: tuple[Tensor, Tensor],
    index: int,
    config: AttributionConfig,
) -> tuple[Tensor, Tensor]:
    """(B, n) and (B,) contributions of embeddings (B, n, D) and (B, D), by any method.

    ``baselines`` are embeddings (1, n, D) and (1, D).
    """
    inputs = inputs[0].detach(), inputs[1].detach()
    if method == "integrated_gradients":
        found = IntegratedGradients(scores.embedded).attribute(
            inputs, baselines=baselines, target=index, n_steps=config.points,
            internal_batch_size=max(config.batch, len(inputs[0])),
        )  # fmt: skip
    elif method == "gradient_x_input":
        needing = tuple(value.requires_grad_() for value in inputs)
        found = InputXGradient(scores.embedded).attribute(needing, target=index)
    else:
        return _occluded(scores, inputs, baselines, index, config)
    return tuple(value.detach().sum(-1) for value in found)


def _occluded(
    scores: StepScores,
    inputs: tuple[Tensor, Tensor],
    baselines: tuple[Tensor, Tensor],
    index: int,
    config: AttributionConfig,
) -> tuple[Tensor, Tensor]:
    seen, device = inputs[0].shape[1], inputs[0].device
    groups = occlusion_groups(scores.model.config.grid, config.patch)[:seen]
    # captum takes groups numbered 0, 1, ..; the class is the last one.
    numbers, size = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    mask_1n1 = torch.from_numpy(numbers).to(device)[None, :, None]
    mask_11 = torch.full((1, 1), int(numbers.max()) + 1, device=device)
    with torch.no_grad():
        tokens_BnD, classes_BD = FeatureAblation(scores.embedded).attribute(
            inputs, baselines=baselines, target=index, feature_mask=(mask_1n1, mask_11),
            perturbations_per_eval=max(1, config.batch // len(inputs[0])),
        )  # fmt: skip
    # Every number of a group holds the change of the whole group.
    share_n = torch.from_numpy(size[numbers]).to(device)
    return tokens_BnD[..., 0] / share_n, classes_BD[..., 0]


def occlusion_groups(grid: int, patch: int) -> np.ndarray:
    """(T,) number of the patch of ``patch`` x ``patch`` cells that each token lies in."""
    row, column = np.divmod(np.arange(grid * grid), grid)
    return (row // patch) * -(-grid // patch) + column // patch


def one_input(scores: StepScores, tokens_T: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """(1, n) tokens seen and (1,) label, checked, on the model's device."""
    config, device = scores.model.config, scores.model.output.weight.device
    check_prefix(config, tokens_T, label)
    seen = tokens_T[None, : scores.step - 1].to(device)
    return seen, torch.tensor([label], device=device)
