"""Ridge regression onto one-hot classes in closed form: a linear probe without any optimiser.

    minimise |X W + b - Y|^2 / N + penalty |W|^2

for features standardised by the training part's moments; the largest output is the class. One pass
gathers the moments, one eigendecomposition a group serves every penalty and label set.

Shapes: G groups, N images, D width, S label sets, P penalties, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from probes.linear.sharing import add_up

__all__ = ["Moments", "fit_ridge"]

# A feature with less spread than this counts as constant and gets no weight.
LEAST_SPREAD = 1e-6


class Moments:
    """Sums of one pass: of x, x x', y and x y', in float64 about the first batch's mean.

    Each process adds its own images; ``gather`` makes the sums those of all.
    """

    def __init__(self, label_sets: int, classes: int) -> None:
        self.classes, self.label_sets = classes, label_sets
        self.count = 0
        self.centre_GD: Tensor | None = None

    def add(self, x_GBD: Tensor, labels_SB: Tensor) -> None:
        """Take in a batch of features (float) and the labels of each label set."""
        centre_GD = self._start(x_GBD) if self.centre_GD is None else self.centre_GD
        x_GBD = x_GBD - centre_GD[:, None].to(x_GBD.dtype)
        # (B, S C); a product in the features' own precision, sums in float64
        y_BZ = F.one_hot(labels_SB.T, self.classes).flatten(1).to(x_GBD.dtype)
        self.x_GD += x_GBD.sum(1).double()
        self.y_Z += y_BZ.sum(0).double()
        self.xx_GDD += (x_GBD.mT @ x_GBD).double()
        self.xy_GDZ += (x_GBD.mT @ y_BZ).double()
        self.count += x_GBD.shape[1]

    def _start(self, x_GBD: Tensor) -> Tensor:
        """Sums of nothing yet; the centre."""
        groups, _, width = x_GBD.shape
        outputs = self.label_sets * self.classes
        new: dict[str, Any] = {"dtype": torch.float64, "device": x_GBD.device}
        images = add_up(torch.tensor(float(x_GBD.shape[1]), **new))
        self.centre_GD = centre_GD = add_up(x_GBD.double().sum(1)) / images
        self.x_GD, self.y_Z = torch.zeros(groups, width, **new), torch.zeros(outputs, **new)
        self.xx_GDD = torch.zeros(groups, width, width, **new)
        self.xy_GDZ = torch.zeros(groups, width, outputs, **new)
        return centre_GD

    def gather(self) -> "Moments":
        """Sum over processes; to be called once, after the last batch."""
        for value in (self.x_GD, self.y_Z, self.xx_GDD, self.xy_GDZ):
            add_up(value)
        self.count = int(add_up(torch.tensor(self.count, device=self.x_GD.device)))
        return self


def fit_ridge(moments: Moments, penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Weights (G, D, S, P, C) and biases (G, S, P, C) for features as they are (not standardised)."""
    images = moments.count
    mean_GD = moments.x_GD / images
    mean_Z = moments.y_Z / images
    covariance = moments.xx_GDD / images - mean_GD[:, :, None] * mean_GD[:, None]
    cross_GDZ = moments.xy_GDZ / images - mean_GD[:, :, None] * mean_Z
    spread_GD = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    scale_GD = torch.where(spread_GD > LEAST_SPREAD, 1 / spread_GD.clamp_min(LEAST_SPREAD), 0.0)
    values_GD, axes_GDD = torch.linalg.eigh(covariance * scale_GD[:, :, None] * scale_GD[:, None])
    turned_GDZ = axes_GDD.mT @ (cross_GDZ * scale_GD[..., None])
    weights = [
        scale_GD[..., None] * (axes_GDD @ (turned_GDZ / (values_GD.clamp_min(0) + penalty)[..., None]))
        for penalty in penalties
    ]
    shape = (moments.label_sets, moments.classes)
    weight_GDPZ = torch.stack(weights, dim=2)
    assert moments.centre_GD is not None  # a batch at least was added
    at_GD = moments.centre_GD + mean_GD
    bias_GPZ = mean_Z - torch.einsum("gd,gdpz->gpz", at_GD, weight_GDPZ)
    weight = weight_GDPZ.unflatten(3, shape).transpose(2, 3)
    return weight.float(), bias_GPZ.unflatten(2, shape).transpose(1, 2).float()
