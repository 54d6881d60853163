"""What a training run would take, computed from its configuration without allocating the model.

Memory is counted in float32 (weights, gradients, two AdamW moments, the EMA teacher) and activations in
the compute dtype by the tensors a block keeps for its backward pass. FLOPs are those of the matrix
products: a training step costs three forward passes of the student and one of the teacher.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from star.config import TrainConfig
from star.device import require_memory

__all__ = ["Estimate", "estimate", "require_training_memory"]

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes a process, FLOPs of one step over all processes."""

    parameters: int
    projector_parameters: int
    weights: int
    gradients: int
    optimizer: int
    teacher: int
    activations: int
    flops: float

    @property
    def memory(self) -> int:
        """Bytes a process in all."""
        return self.weights + self.gradients + self.optimizer + self.teacher + self.activations


def forward_flops(config: TrainConfig, sequences: int, with_logits: bool) -> float:
    """Multiply-adds times two of one forward pass over ``sequences`` training sequences."""
    model = config.model
    tokens = sequences * model.tokens
    kv = model.kv_heads or model.heads
    block = model.width * (model.heads + 2 * kv) * model.head_dim + model.width**2
    block += 3 * model.width * model.ffn_width
    attention = 2 * model.tokens * model.width  # scores and weighted sum, masked half included
    head = model.width * model.vocab_size if with_logits else 0
    return 2.0 * tokens * (model.layers * (block + attention) + head)


def activation_bytes(config: TrainConfig, sequences: int, half: bool) -> int:
    """Bytes that one process keeps for the backward pass of ``sequences`` (fused attention)."""
    model = config.model
    size = 2 if half else 4
    rows = sequences * model.tokens
    kv = model.kv_heads or model.heads
    # float32: the residual stream before each norm; compute dtype: both norms' outputs, queries, keys,
    # values and attention output, the two branches' outputs, and four tensors of the SwiGLU layer
    qkv = (model.heads + 2 * kv) * model.head_dim
    block = 2 * 4 * model.width + size * (5 * model.width + 2 * qkv + 4 * model.ffn_width)
    block += 2 * size * model.width if config.dropout else 0
    logits = 4 * model.vocab_size  # the log-softmax, in float32
    if config.checkpoint_activations:  # every block's input, and all of the block at work
        return rows * (model.layers * 4 * model.width + block + logits)
    return rows * (model.layers * block + logits)


def projector_parameters(config: TrainConfig) -> int:
    """Weights of the projector; 0 without the contrastive losses."""
    objective, width = config.objective, config.model.width
    if not objective.contrast_weight:
        return 0
    hidden = objective.projector_ratio * width
    sizes = [width, *[hidden] * (objective.projector_layers - 1), width]
    return sum(a * b for a, b in pairwise(sizes)) + 2 * hidden * (objective.projector_layers - 1)


def require_training_memory(config: TrainConfig, device: torch.device, processes: int) -> None:
    """Raise ``UserError`` if weights, gradients, moments and teacher alone do not fit ``device``."""
    model, projector = config.model.parameters, projector_parameters(config)
    what = f"training {model + projector:,} parameters (float32 weights, gradients, AdamW, EMA)"
    holders = processes if config.shard else 1
    require_memory(what, (20 * model + 16 * projector) / holders, device)


def estimate(config: TrainConfig, processes: int, half: bool) -> Estimate:
    """Estimate one optimiser step of ``config`` on ``processes`` processes.

    With ``config.shard`` each holds its part of weights, gradients, optimizer and teacher (the one
    block that is gathered at a time is left out).
    """
    count, projector = config.model.parameters, projector_parameters(config)
    objective = config.objective
    sequences = config.batch_size * objective.views
    forwards = 4 if config.checkpoint_activations else 3
    passes = forwards * forward_flops(config, sequences, True)
    if objective.uses_teacher:
        passes += forward_flops(config, sequences, False)
        passes += 6.0 * projector * sequences * objective.contrast_steps
    holders = processes if config.shard else 1
    trained = 4 * (count + projector) // holders
    return Estimate(
        parameters=count,
        projector_parameters=projector,
        weights=trained,
        gradients=trained,
        optimizer=2 * trained,
        teacher=4 * count // holders,
        activations=activation_bytes(config, sequences // processes, half),
        flops=passes,
    )
