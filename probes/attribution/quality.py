"""How far an attribution can be trusted: two measures of Yeh et al. (2019), and agreement of ranks.

- **infidelity**: draw a set of tokens (each, and the class, with a probability that is itself drawn
  uniformly from 0..1), replace it by the baseline, and compare the contributions of the set with the
  change of the score: the mean squared difference, in the score's unit squared. Its **share** divides
  by the mean squared change: 0 is perfect, 1 is as bad as attributing nothing. This is the paper's
  "difference to baseline on a subset", which asks all methods the same question.
- **sensitivity**: the largest change of the attribution, relative to its length, over noise drawn
  uniformly from +-``noise`` times the standard deviation of the embedding tables' entries, added to
  every embedding. 0 is stable; the baseline stays.
- **rank correlation**: Spearman's, between the absolute contributions and the attention of the same
  step, over the image tokens seen; the class, which has no place in the image and often takes most of
  both, is left out. Where tokens were scored in groups, the groups are ranked (sums of both).

The first two are captum's, with perturbations from explicit generators: the same seed, the same number.

Shapes: T tokens, n seen, P perturbed inputs.
"""

import numpy as np
import pandas as pd
import torch
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from probes.attribution.methods import Attribution, AttributionConfig, attribute_embedded, one_input
from probes.attribution.scores import StepScores
from star.base.randomness import torch_generator

__all__ = ["attention_agreement", "attribution_infidelity", "attribution_sensitivity", "spearman"]

SETS_A_DRAW = 10  # a set costs one forward pass, a sensitivity draw a whole attribution


def attribution_infidelity(
    scores: StepScores,
    tokens_T: Tensor,
    label: int,
    index: int,
    found: Attribution | None,
    config: AttributionConfig,
) -> float:
    """Mean squared error of ``found``; of None, nothing attributed, the mean squared change."""
    inputs = one_input(scores, tokens_T, label)
    device, seen = inputs[0].device, scores.step - 1
    own_N = np.zeros(1 + seen) if found is None else np.r_[found.class_value, found.tokens[:seen]]
    own_1N = torch.from_numpy(own_N).float().to(device)[None]
    rng = torch_generator(config.seed, "infidelity")  # on the CPU: the same sets on every device

    def perturb(perturbed: tuple[Tensor, Tensor]) -> tuple[tuple, tuple]:
        # One row of numbers a set, its share first: the same sets whatever the batch.
        drawn_PN = torch.rand(len(perturbed[1]), seen + 2, generator=rng)
        taken_PN = (drawn_PN[:, 1:] < drawn_PN[:, :1]).to(device)
        taken = taken_PN[:, 1:], taken_PN[:, 0]
        instead = scores.baselines(*perturbed)
        changed = (torch.where(t, b, x) for t, b, x in zip(taken, instead, perturbed, strict=True))
        return tuple(t.float() for t in taken), tuple(changed)

    sets = SETS_A_DRAW * config.draws
    value = infidelity(
        scores, perturb, inputs, (own_1N[:, 1:], own_1N[:, 0]), target=index, n_perturb_samples=sets,
        max_examples_per_batch=min(config.batch, sets),
    )  # fmt: skip
    return float(value)


def attribution_sensitivity(
    scores: StepScores,
    tokens_T: Tensor,
    label: int,
    index: int,
    method: str,
    config: AttributionConfig,
) -> float:
    """Largest relative change of the contributions of ``method`` under noise on the embeddings."""
    indices = one_input(scores, tokens_T, label)
    inputs, baselines = scores.embed(*indices), scores.embed(*scores.baselines(*indices))
    # The last row of each table is a baseline, not an embedding of the model's.
    radii = [config.noise * float(layer.weight[:-1].std()) for layer in scores.embedding_layers]
    rng = torch_generator(config.seed, "sensitivity")

    def perturb(perturbed: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        noise = [(2 * torch.rand(x.shape, generator=rng) - 1).to(x) for x in perturbed]
        return tuple(x + radius * unit for x, unit, radius in zip(perturbed, noise, radii, strict=True))

    def explain(embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return attribute_embedded(method, scores, embeddings, baselines, index, config)

    value = sensitivity_max(
        explain, inputs, perturb, n_perturb_samples=config.draws, max_examples_per_batch=1
    )
    return float(value)


def attention_agreement(found: Attribution, attention_T: np.ndarray) -> float:
    """Spearman's correlation of |contribution| and attention over the units seen."""
    seen = found.units >= 0
    table = pd.DataFrame(
        {
            "unit": found.units[seen], "own": found.tokens[seen],
            "attention": np.asarray(attention_T, dtype=float)[seen],
        }
    )  # fmt: skip
    sums = table.groupby("unit").sum()
    return spearman(sums["own"].abs().to_numpy(), sums["attention"].to_numpy())


def spearman(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Correlation of ranks, equals sharing their mean rank; NaN if either is constant or N < 2."""
    return float(pd.DataFrame({"a": a_N, "b": b_N}).corr("spearman").loc["a", "b"])
