"""Multinomial logistic regression of many heads at once, each on its own path to its own minimum.

Minimises, for every head and every inverse strength C (scikit-learn's objective divided by C N),

    mean cross-entropy + |W|^2 / (2 C N)

by L-BFGS (Nocedal and Wright, algorithm 7.4, with backtracking) in each head's own preconditioned
coordinates: features rotated to their principal axes and scaled so that the Hessian is close to the
identity. Heads share the evaluations, two batched products each, and nothing else: directions, step
lengths and ends are a head's own, so a head's result does not depend on which others are fitted.

Shapes: G groups of features, N images, D width, S label sets, Y classes, R = min(N, D) principal axes;
parameters are (G, R + 1, S, Y), the last row being the bias; a head is one (g, s) at one strength.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fit_logreg", "log_losses", "predict"]

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
    """Weights (G, D, S, strengths, Y) and biases (G, S, strengths, Y) of standardised features.

    The strengths are fitted from the smallest on, each from the minimum of the one before.
    """
    problem = _Problem(features_GND, labels_SN, classes)
    inner = problem.x_GNR.new_zeros(len(features_GND), problem.x_GNR.shape[2], len(labels_SN), classes)
    found = {}
    for strength in sorted(strengths):
        problem.set_strength(strength)
        inner = _minimise(problem, inner / problem.scale_GR11, iterations) * problem.scale_GR11
        found[strength] = torch.cat(
            [
                (problem.axes_GDR @ inner[:, :-1].flatten(2)).unflatten(2, inner.shape[2:]),
                inner[:, -1:],
            ],
            dim=1,
        )
    both_GDSCY = torch.stack([found[strength] for strength in strengths], dim=3)
    return both_GDSCY[:, :-1], both_GDSCY[:, -1]


def predict(features_GND: Tensor, weight_GDSCY: Tensor, bias_GSCY: Tensor) -> Tensor:
    """(G, S, strengths, N) predicted classes."""
    flat = torch.baddbmm(bias_GSCY.flatten(1)[:, None], features_GND, weight_GDSCY.flatten(2))
    return flat.unflatten(2, bias_GSCY.shape[1:]).argmax(-1).permute(0, 2, 3, 1)


def log_losses(
    features_GND: Tensor, labels_N: Tensor, weight_GDSCY: Tensor, bias_GSCY: Tensor
) -> Tensor:
    """(G, S, strengths) mean cross-entropy of given images; a strength at a time, for the memory."""
    losses = []
    for place in range(weight_GDSCY.shape[3]):
        weight_GDSY, bias_GSY = weight_GDSCY[:, :, :, place], bias_GSCY[:, :, place]
        flat = torch.baddbmm(bias_GSY.flatten(1)[:, None], features_GND, weight_GDSY.flatten(2))
        logits_GNSY = flat.unflatten(2, bias_GSY.shape[1:])
        picked_GNS = logits_GNSY.gather(
            3, labels_N[None, :, None, None].expand(*logits_GNSY.shape[:3], 1)
        )
        losses.append((logits_GNSY.logsumexp(-1) - picked_GNS[..., 0]).mean(1))
    return torch.stack(losses, dim=2)


class _Problem:
    """The losses of all heads and their gradients, in preconditioned coordinates."""

    def __init__(self, features_GND: Tensor, labels_SN: Tensor, classes: int) -> None:
        groups, images, _ = features_GND.shape
        self.variances_GR, self.axes_GDR = _principal_axes(features_GND)
        ones = features_GND.new_ones(groups, images, 1)
        self.x_GNR = torch.cat([features_GND @ self.axes_GDR, ones], dim=2)
        self.target_NSY = F.one_hot(labels_SN, classes).float().transpose(0, 1)

    def set_strength(self, strength: float) -> None:
        """Evaluate for this inverse strength C from now on."""
        self.penalty = 1 / (strength * self.x_GNR.shape[1])
        curvature = CURVATURE * self.variances_GR + self.penalty
        # The bias is not penalised; its curvature is that of a feature of variance 1.
        bias = torch.full_like(curvature[:, :1], CURVATURE)
        self.scale_GR11 = torch.cat([curvature, bias], dim=1).rsqrt()[..., None, None]

    def only(self, chosen_G: Tensor) -> "_Problem":
        """The same problem of some of the groups."""
        part = copy.copy(self)
        part.x_GNR, part.scale_GR11 = self.x_GNR[chosen_G], self.scale_GR11[chosen_G]
        return part

    def evaluate(self, free_GRSY: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (G, 1, S, 1) and their gradients."""
        weight_GRSY = free_GRSY * self.scale_GR11
        logits_GNSY = (self.x_GNR @ weight_GRSY.flatten(2)).unflatten(2, weight_GRSY.shape[2:])
        log_sum_GNS = logits_GNSY.logsumexp(-1)
        picked_GNS = (logits_GNSY * self.target_NSY).sum(-1)
        error_GNSY = logits_GNSY.sub_(log_sum_GNS[..., None]).exp_().sub_(self.target_NSY)
        gradient = (self.x_GNR.mT @ error_GNSY.flatten(2)).view_as(weight_GRSY) / self.x_GNR.shape[1]
        inner = weight_GRSY[:, :-1]
        loss_GS = (log_sum_GNS - picked_GNS).mean(1) + inner.square().sum((1, 3)) * self.penalty / 2
        gradient[:, :-1] += inner * self.penalty
        return loss_GS[:, None, :, None], gradient * self.scale_GR11


def _principal_axes(features_GND: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (G, R) along principal axes (G, D, R), R = min(N, D); in float64 for its small ones.

    With fewer images than features the minimum lies in the images' span, whose axes suffice; those
    without variance are 0.
    """
    images, width = features_GND.shape[1:]
    x_GND = features_GND.double()
    if width <= images:
        variances_GR, axes_GDR = torch.linalg.eigh(x_GND.mT @ x_GND / images)
    else:
        variances_GR, inside_GNR = torch.linalg.eigh(x_GND @ x_GND.mT / images)
        known = variances_GR > 1e-9 * variances_GR.amax(1, keepdim=True).clamp_min(1e-30)
        length = torch.where(known, (images * variances_GR.clamp_min(1e-30)).rsqrt(), 0.0)
        axes_GDR = (x_GND.mT @ inside_GNR) * length[:, None]
    return variances_GR.clamp_min(0).float(), axes_GDR.float()


def _dot(a_GRSY: Tensor, b_GRSY: Tensor) -> Tensor:
    return (a_GRSY * b_GRSY).sum((1, 3), keepdim=True)


def _minimise(problem: _Problem, start: Tensor, iterations: int) -> Tensor:
    """L-BFGS of every head on its own; a head whose step is refused tries half of it next time."""
    result, places = start.clone(), torch.arange(len(start), device=start.device)
    point = start
    loss, gradient = problem.evaluate(point)
    direction, length = -gradient, torch.ones_like(loss)
    size = torch.ones_like(loss)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    for _ in range(iterations):
        open_heads = gradient.abs().amax((1, 3), keepdim=True) > TOLERANCE
        open_G = open_heads.flatten(1).any(1)
        left = int(open_G.sum())  # the one number that an iteration waits for
        if left == 0:
            break
        if 2 * left <= len(open_G):  # most groups are done: work on the others alone
            result[places] = point
            problem, places, open_heads = problem.only(open_G), places[open_G], open_heads[open_G]
            point, loss, gradient, direction, length, size = (
                value[open_G] for value in (point, loss, gradient, direction, length, size)
            )
            steps, changes = ([value[open_G] for value in kept] for kept in (steps, changes))
        trial = point + length * direction * open_heads
        trial_loss, trial_gradient = problem.evaluate(trial)
        # Near the minimum the loss changes by less than float32 tells apart.
        allowed = loss * (1 + 1e-6) + SUFFICIENT * length * _dot(gradient, direction)
        taken = open_heads & (trial_loss <= allowed)
        step, change = (trial - point) * taken, (trial_gradient - gradient) * taken
        inner = _dot(step, change)
        size = torch.where(inner > 0, inner / _dot(change, change).clamp_min(1e-30), size)
        steps, changes = [*steps, step][-MEMORY:], [*changes, change][-MEMORY:]
        point, gradient = point + step, gradient + change
        loss = torch.where(taken, trial_loss, loss)
        refused = open_heads & ~taken
        direction = torch.where(refused, direction, _direction(gradient, steps, changes, size))
        length = torch.where(refused, length / 2, torch.ones_like(length))
    result[places] = point
    return result


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
