"""MAE's linear probing of one head, literally: autograd, torch's modules, LARS tensor by tensor.

Written from the public MAE code (``main_linprobe.py``, ``util/lars.py``, ``util/lr_sched.py``), in
float64. Slow; knows nothing of stacks of heads.
"""

import math

import numpy as np
import torch


class Lars:
    """``util/lars.py`` on a list of arrays: momentum 0.9, trust coefficient 0.001, weight decay 0."""

    def __init__(self, parameters: list[np.ndarray]) -> None:
        self.parameters = parameters
        self.mu = [np.zeros_like(parameter) for parameter in parameters]

    def step(self, gradients: list[np.ndarray], lr: float) -> None:
        """One update in place."""
        for place, gradient in enumerate(gradients):
            parameter = self.parameters[place]
            if parameter.ndim > 1:
                parameter_norm = math.sqrt(sum(float(value) ** 2 for value in parameter.flat))
                update_norm = math.sqrt(sum(float(value) ** 2 for value in gradient.flat))
                ratio = 1.0
                if parameter_norm > 0 and update_norm > 0:
                    ratio = 0.001 * parameter_norm / update_norm
                gradient = gradient * ratio
            self.mu[place] = 0.9 * self.mu[place] + gradient
            parameter -= lr * self.mu[place]


def rate(epoch: float, lr: float, warmup_epochs: int, epochs: int) -> float:
    """``util/lr_sched.py`` with min_lr 0, ``epoch`` counting batches as fractions."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    share = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return lr * 0.5 * (1.0 + math.cos(math.pi * share))


class LinearProbe:
    """BatchNorm1d without affine parameters, eps 1e-6, then a linear layer; trained batch by batch."""

    def __init__(self, first_weight_CD: np.ndarray) -> None:
        classes, width = first_weight_CD.shape
        self.norm = torch.nn.BatchNorm1d(width, affine=False, eps=1e-6).double()
        self.linear = torch.nn.Linear(width, classes).double()
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(first_weight_CD))
            self.linear.bias.zero_()
        self.parameters = [self.linear.weight, self.linear.bias]
        self.lars = Lars([parameter.detach().numpy() for parameter in self.parameters])

    def step(self, x_BD: np.ndarray, labels_B: np.ndarray, lr: float) -> None:
        """One update on the mean cross-entropy of a batch."""
        logits = self.linear(self.norm(torch.from_numpy(x_BD).double()))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels_B))
        gradients = torch.autograd.grad(loss, self.parameters)
        # The arrays are the parameters' own memory.
        self.lars.step([gradient.numpy() for gradient in gradients], lr)

    def predict(self, x_BD: np.ndarray) -> np.ndarray:
        """(B, C) logits with the running moments."""
        self.norm.eval()
        with torch.no_grad():
            return self.linear(self.norm(torch.from_numpy(x_BD).double())).numpy()
