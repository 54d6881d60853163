"""One optimiser step of a classifier: cross-entropy with smoothed labels, SGD with Nesterov's momentum.

In float16 the loss is scaled, and where a gradient overflows the weights stay as they are. Only this
module calls ``backward``.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F

from star.base.device import autocast, resolve_precision
from star.base.errors import UserError
from star.base.loss_scale import LossScale
from star.base.record import Record
from star.base.weights import load_optimizer
from star.classifier.config import ClassifierConfig
from star.classifier.model import new_classifier
from star.runs.schedule import learning_rate

__all__ = ["ClassifierLearner"]


class ClassifierLearner:
    """Network, optimiser and loss scale of one run; ``update(images, labels, step)``, steps from 0."""

    def __init__(
        self, config: ClassifierConfig, classes: int, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.model = new_classifier(config.shape(classes), config.seed).to(self.device).train()
        parameters = list(self.model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim == 1]},
        ]
        self.optimizer = torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
        )
        self.precision = resolve_precision(config.precision, self.device)
        self.loss_scale = LossScale(enabled=self.precision is torch.float16)
        self.autocast = functools.partial(autocast, self.device, self.precision)

    def update(self, images_BCHW: torch.Tensor, labels_B: torch.Tensor, step: int) -> dict[str, float]:
        """Learn from images in [-1, 1]; returns the loss and the share of the batch it got right.

        Raises ``UserError``, before the weights have changed, if the loss or its gradient is not finite
        (in float16: not even at the smallest loss scale).
        """
        images_BCHW = images_BCHW.to(self.device, memory_format=torch.channels_last)
        labels_B = labels_B.to(self.device)
        with self.autocast():
            logits_BC = self.model(images_BCHW)[1]
        logits_BC = logits_BC.float()
        loss = F.cross_entropy(logits_BC, labels_B, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.loss_scale.value).backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.loss_scale.unscale(gradients)
        norm = torch.nn.utils.get_total_norm(gradients).item()
        finite = math.isfinite(loss.item()) and math.isfinite(norm)
        if not finite and not (self.loss_scale.can_fall and math.isfinite(loss.item())):
            raise UserError(
                f"the classifier's loss is not finite at step {step + 1}: lower its learning rate "
                f"({self.config.lr}) or train it in fp32"
            )
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.config, step)
            self.optimizer.step()
        self.loss_scale.update(finite)
        right = (logits_BC.argmax(dim=1) == labels_B).float().mean().item()
        return {"loss": loss.item(), "acc": right, "grad_norm": norm if finite else 0.0}

    def state_dict(self) -> Record:
        """Everything that a resume needs besides the configuration and the step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_scale": self.loss_scale.state_dict(),
        }

    def load_state_dict(self, state: Record) -> None:
        """Take over ``state_dict()`` of a learner of the same configuration."""
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.loss_scale.load_state_dict(state["loss_scale"])
