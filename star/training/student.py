"""The student: the model that will be kept and the projector that exists only during training.

The projector follows SimSiam as the paper says ("several MLPs"): D -> 4D -> 4D -> D with BatchNorm
after each layer, the last without affine, ReLU between. Its moments are those of the global batch.

Shapes: S sequences, n tokens, K sampled steps, D width.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from star.model.config import ModelConfig
from star.model.dropout import Dropout
from star.model.transformer import Transformer
from star.parallel.processes import sum_over_processes, world_size
from star.training.config import ObjectiveConfig

__all__ = ["GlobalBatchNorm", "Projector", "Student", "StudentOutput"]


class GlobalBatchNorm(nn.Module):
    """BatchNorm over all axes but the last with the moments of all processes and no running statistics.

    The projector is never used outside training, so there is nothing to run with later. (torch's
    SyncBatchNorm refuses CPU tensors.)
    """

    def __init__(self, width: int, affine: bool, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        others = tuple(range(x.ndim - 1))
        rows = x.shape[:-1].numel() * world_size()
        mean = sum_over_processes(x.sum(others)) / rows
        centred = x - mean
        variance = sum_over_processes(centred.square().sum(others)) / rows
        y = centred * torch.rsqrt(variance + self.eps)
        return y if self.weight is None or self.bias is None else y * self.weight + self.bias


class Projector(nn.Sequential):
    """MLP with batch norms; ``layers`` linear layers, hidden width ``ratio`` times ``width``."""

    def __init__(self, width: int, layers: int, ratio: int):
        sizes = [width, *[ratio * width] * (layers - 1), width]
        parts: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(sizes)):
            last = index == layers - 1
            # BatchNorm follows, so a bias would have no effect.
            parts += [nn.Linear(before, after, bias=False), GlobalBatchNorm(after, affine=not last)]
            parts += [] if last else [nn.ReLU()]
        super().__init__(*parts)

    def initialize(self, generator: torch.Generator) -> None:
        """torch's default for linear layers, drawn from ``generator``."""
        for part in self:
            if isinstance(part, nn.Linear):
                nn.init.kaiming_uniform_(part.weight, a=5**0.5, generator=generator)


class StudentOutput(NamedTuple):  # a type whose tensors DDP and FSDP find
    """NLL (S, N), last block's output (S, N, D), projected steps (S, K, D) where asked for."""

    nll: Tensor | None
    last: Tensor | None
    projected: Tensor | None


class Student(nn.Module):
    """Model and projector as one module, so that one wrapper (DDP, FSDP) sees every gradient."""

    def __init__(self, model: Transformer, objective: ObjectiveConfig, *, recompute: bool = False):
        super().__init__()
        self.model = model
        self.recompute = recompute
        self.contrast_layer = objective.resolved_contrast_layer(model.config)
        self.mask_self = objective.mask_self
        self.projector = None
        if objective.contrast_weight:
            self.projector = Projector(
                model.config.width, objective.projector_layers, objective.projector_ratio
            )

    def forward(
        self,
        tokens_Sn: Tensor,
        labels_S: Tensor,
        *,
        masked_Sn: Tensor | None,
        dropout: Dropout | None,
        targets_ST: Tensor | None,
        last: bool,
        steps_K: Tensor | None,
    ) -> StudentOutput:
        """One pass; ``targets_ST`` asks for the likelihood of these tokens, ``last`` for the last
        block's output, and ``steps_K`` (1-based) are projected.
        """
        names = _names(self.model.config, self.contrast_layer, last, steps_K is not None)
        out = self.model(
            tokens_Sn,
            labels_S,
            capture=names.values(),
            masked_Bn=masked_Sn,
            mask_self=self.mask_self,
            dropout=dropout,
            with_logits=False,
            targets_BN=targets_ST,
            recompute=self.recompute,
        )
        projected = None
        if steps_K is not None:
            assert self.projector is not None
            features_SKD = out.captured[names["contrast"]][:, steps_K - 1]
            projected = self.projector(features_SKD)
        return StudentOutput(out.nll, out.captured.get(names.get("last")), projected)


def _names(config: ModelConfig, contrast_layer: int, last: bool, contrast: bool) -> dict[str, str]:
    """Capture names of the features a pass must return."""
    names = {"last": f"layers.{config.layers}"} if last else {}
    return names | ({"contrast": f"layers.{contrast_layer}"} if contrast else {})
