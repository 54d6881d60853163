"""Multinomial logistic regression of many heads at once.

Minimises, for every head and every inverse strength C (scikit-learn's objective divided by C N),

    mean cross-entropy + |W|^2 / (2 C N)

with torch's L-BFGS on all heads together, in each head's own preconditioned coordinates: features
rotated to their principal axes and scaled so that the Hessian is close to the identity. The minimum is
the same; some hundred evaluations of one batched product replace the thousands that separate fits take.

Shapes: H heads, N images, D width, S strengths, Y classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fit_logreg", "predict"]

# Mean Hessian weight p (1 - p) that the preconditioner assumes; any value gives the same minimum.
CURVATURE = 0.1


def fit_logreg(
    features_HND: Tensor,
    labels_N: Tensor,
    classes: int,
    strengths: Sequence[float],
    *,
    iterations: int = 150,
) -> tuple[Tensor, Tensor]:
    """Weights (H, S, D, Y) and biases (H, S, Y) of standardised features."""
    heads, images, width = features_HND.shape
    device = features_HND.device
    target_NY = F.one_hot(labels_N, classes).to(features_HND.dtype)
    variances_HD, axes_HDD = torch.linalg.eigh(features_HND.mT @ features_HND / images)
    rotated_HND = features_HND @ axes_HDD
    penalty_S1 = 1 / (torch.tensor(strengths, device=device)[:, None] * images)
    scale_HS1D = (CURVATURE * variances_HD[:, None].clamp_min(0) + penalty_S1).rsqrt()
    scale_HDS1 = scale_HS1D.permute(0, 2, 1)[..., None]
    free_HDSY = torch.zeros(heads, width, len(strengths), classes, device=device, requires_grad=True)
    bias_H1SY = torch.zeros(heads, 1, len(strengths), classes, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [free_HDSY, bias_H1SY],
        max_iter=iterations,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight_HDSY = free_HDSY * scale_HDS1
        logits_HNSY = (rotated_HND @ weight_HDSY.flatten(2)).unflatten(2, weight_HDSY.shape[2:])
        # The bias' curvature is that of a feature of variance 1.
        logits_HNSY = logits_HNSY + bias_H1SY * CURVATURE**-0.5
        picked_HNS = (logits_HNSY * target_NY[:, None]).sum(-1)
        losses_HS = (logits_HNSY.logsumexp(-1) - picked_HNS).mean(1)
        penalties_S = weight_HDSY.square().sum((0, 1, 3)) * penalty_S1[:, 0] / 2
        total = losses_HS.sum() + penalties_S.sum()
        total.backward()
        return total

    optimizer.step(closure)
    weight_HDSY = (axes_HDD @ (free_HDSY.detach() * scale_HDS1).flatten(2)).unflatten(
        2, (len(strengths), classes)
    )
    return weight_HDSY.transpose(1, 2), (bias_H1SY.detach() * CURVATURE**-0.5)[:, 0]


def predict(features_HND: Tensor, weight_HSDY: Tensor, bias_HSY: Tensor) -> Tensor:
    """(H, S, N) predicted classes."""
    return (features_HND[:, None] @ weight_HSDY + bias_HSY[:, :, None]).argmax(-1)
