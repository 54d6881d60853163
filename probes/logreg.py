"""Multinomial logistic regression of many heads at once, each on its own path to its own minimum.

Minimises, for every head and every inverse strength C (scikit-learn's objective divided by C N),

    mean cross-entropy + |W|^2 / (2 C N)

by L-BFGS (Nocedal and Wright, algorithm 7.4, with backtracking) in each head's own preconditioned
coordinates: features rotated to their principal axes and scaled so that the Hessian is close to the
identity. Heads share the evaluations, two batched products each, and nothing else: directions, step
lengths and ends are a head's own, so a head's result does not depend on which others are fitted.

Shapes: G groups of features, N images, D width, S label sets, Y classes; Q = S x strengths, the heads
of a group; parameters are (G, D + 1, Q, Y), the last row being the bias.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fit_logreg", "predict"]

# Mean Hessian weight p (1 - p) that the preconditioner assumes; any value gives the same minimum.
CURVATURE = 0.1
MEMORY = 8  # pairs of steps and gradient differences kept
SUFFICIENT = 1e-4  # share of the predicted decrease that a step must give (Armijo)
TOLERANCE = 2e-5  # largest gradient, in preconditioned coordinates, of a head that is done


def fit_logreg(
    features_GND: Tensor,
    labels_SN: Tensor,
    classes: int,
    strengths: Sequence[float],
    *,
    iterations: int = 300,
) -> tuple[Tensor, Tensor]:
    """Weights (G, D, S, strengths, Y) and biases (G, S, strengths, Y) of standardised features."""
    groups, _, width = features_GND.shape
    problem = _Problem(features_GND, labels_SN, classes, strengths)
    sets = len(labels_SN) * len(strengths)
    start = torch.zeros(groups, width + 1, sets, classes, device=features_GND.device)
    found_GDQY = problem.weights(_minimise(problem, start, iterations))
    shape = (len(labels_SN), len(strengths), classes)
    return found_GDQY[:, :-1].unflatten(2, shape[:2]), found_GDQY[:, -1].reshape(groups, *shape)


def predict(features_GND: Tensor, weight_GDSCY: Tensor, bias_GSCY: Tensor) -> Tensor:
    """(G, S, strengths, N) predicted classes."""
    flat = torch.baddbmm(bias_GSCY.flatten(1)[:, None], features_GND, weight_GDSCY.flatten(2))
    return flat.unflatten(2, bias_GSCY.shape[1:]).argmax(-1).permute(0, 2, 3, 1)


class _Problem:
    """The losses of all heads and their gradients, in preconditioned coordinates."""

    def __init__(
        self, features_GND: Tensor, labels_SN: Tensor, classes: int, strengths: Sequence[float]
    ) -> None:
        groups, images, _ = features_GND.shape
        variances_GD, self.axes_GDD = torch.linalg.eigh(features_GND.mT @ features_GND / images)
        ones = features_GND.new_ones(groups, images, 1)
        self.x_GND = torch.cat([features_GND @ self.axes_GDD, ones], dim=2)
        penalties = 1 / (torch.tensor(strengths, device=ones.device) * images)
        self.penalty_Q = penalties.repeat(len(labels_SN))
        curvature = CURVATURE * variances_GD[:, :, None].clamp_min(0) + self.penalty_Q
        # The bias is not penalised; its curvature is that of a feature of variance 1.
        bias = torch.full_like(curvature[:, :1], CURVATURE)
        self.scale_GDQ1 = torch.cat([curvature, bias], dim=1).rsqrt()[..., None]
        target_SNY = F.one_hot(labels_SN, classes).float()
        self.target_NQY = target_SNY.repeat_interleave(len(strengths), 0).transpose(0, 1)

    def weights(self, free_GDQY: Tensor) -> Tensor:
        """Parameters in the coordinates of the features."""
        scaled = free_GDQY * self.scale_GDQ1
        turned = (self.axes_GDD @ scaled[:, :-1].flatten(2)).unflatten(2, scaled.shape[2:])
        return torch.cat([turned, scaled[:, -1:]], dim=1)

    def evaluate(self, free_GDQY: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (G, Q) and their gradients."""
        weight_GDQY = free_GDQY * self.scale_GDQ1
        logits_GNQY = (self.x_GND @ weight_GDQY.flatten(2)).unflatten(2, weight_GDQY.shape[2:])
        log_sum_GNQ = logits_GNQY.logsumexp(-1)
        picked_GNQ = (logits_GNQY * self.target_NQY).sum(-1)
        loss_GQ = (log_sum_GNQ - picked_GNQ).mean(1)
        error_GNQY = logits_GNQY.sub_(log_sum_GNQ[..., None]).exp_().sub_(self.target_NQY)
        gradient = (self.x_GND.mT @ error_GNQY.flatten(2)).view_as(weight_GDQY) / self.x_GND.shape[1]
        inner = weight_GDQY[:, :-1]
        loss_GQ = loss_GQ + inner.square().sum((1, 3)) * self.penalty_Q / 2
        gradient[:, :-1] += inner * self.penalty_Q[:, None]
        return loss_GQ, gradient * self.scale_GDQ1


def _dot(a_GDQY: Tensor, b_GDQY: Tensor) -> Tensor:
    return (a_GDQY * b_GDQY).sum((1, 3), keepdim=True)


def _minimise(problem: _Problem, point: Tensor, iterations: int) -> Tensor:
    """L-BFGS of every head on its own; a head whose step is refused tries half of it next time."""
    loss, gradient = problem.evaluate(point)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    direction, length = -gradient, torch.ones_like(_dot(point, point))
    size = torch.ones_like(length)
    for _ in range(iterations):
        open_heads = gradient.abs().amax((1, 3), keepdim=True) > TOLERANCE
        if not open_heads.any():
            break
        trial = point + length * direction * open_heads
        trial_loss, trial_gradient = problem.evaluate(trial)
        slope = _dot(gradient, direction)
        # Near the minimum the loss changes by less than float32 tells apart.
        allowed = loss[:, None, :, None] * (1 + 1e-6) + SUFFICIENT * length * slope
        taken = open_heads & (trial_loss[:, None, :, None] <= allowed)
        step = (trial - point) * taken
        change = (trial_gradient - gradient) * taken
        inner = _dot(step, change)
        size = torch.where(inner > 0, inner / _dot(change, change).clamp_min(1e-30), size)
        steps, changes = [*steps, step][-MEMORY:], [*changes, change][-MEMORY:]
        point, gradient = point + step, gradient + change
        loss = torch.where(taken[:, 0, :, 0], trial_loss, loss)
        refused = open_heads & ~taken
        fresh = _direction(gradient, steps, changes, size)
        direction = torch.where(refused, direction, fresh)
        length = torch.where(refused, length / 2, torch.ones_like(length))
    return point


def _direction(gradient: Tensor, steps: list[Tensor], changes: list[Tensor], size: Tensor) -> Tensor:
    """Two-loop recursion; a pair that a head did not take is 0 there and changes nothing."""
    inverses = []
    for step, change in zip(steps, changes, strict=True):
        inner = _dot(step, change)
        inverses.append(torch.where(inner > 0, 1 / inner.clamp_min(1e-30), torch.zeros_like(inner)))
    q, alphas = gradient, []
    for step, change, inverse in reversed(list(zip(steps, changes, inverses, strict=True))):
        alphas.append(inverse * _dot(step, q))
        q = q - alphas[-1] * change
    q = q * size
    for step, change, inverse, alpha in zip(steps, changes, inverses, reversed(alphas), strict=True):
        q = q + (alpha - inverse * _dot(change, q)) * step
    return -q
