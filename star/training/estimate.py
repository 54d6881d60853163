"""What a training run would take, computed from its configuration without allocating the model.

Memory is counted in float32 (weights, gradients, two AdamW moments, the EMA teacher), activations by
the tensors that autograd keeps for the backward pass, term by term as the modules make them (fused
attention; compiled blocks keep fewer). DDP's buckets are the gradients themselves. FLOPs are those of
the matrix products: a training step costs three forward passes of the student and one of the teacher.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from star.base.device import require_memory
from star.model.config import ModelConfig
from star.model.head import head_bytes
from star.training.config import ObjectiveConfig, TrainConfig

__all__ = [
    "Estimate",
    "estimate",
    "images_at_once",
    "kept_bytes",
    "require_training_memory",
]

GIB = 2**30
FLOAT, HALF = 4, 2  # bytes
# Of one pass that only measures; where a batch takes more, it is made smaller.
MOST_BYTES = 4 * GIB


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes a process, FLOPs of one step over all processes.

    ``activations`` are kept from the forward to the backward pass, ``head`` is what the loss over the
    codebook takes at its peak (``star.model.head``).
    """

    parameters: int
    projector_parameters: int
    weights: int
    gradients: int
    optimizer: int
    teacher: int
    activations: int
    head: int
    flops: float

    @property
    def memory(self) -> int:
        """Bytes a process in all."""
        state = self.weights + self.gradients + self.optimizer + self.teacher
        return state + self.activations + self.head


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


def kept_bytes(config: TrainConfig, sequences: int, half: bool) -> int:
    """Bytes that one process keeps for the backward pass of ``sequences``, without the loss head's."""
    model, objective = config.model, config.objective
    rows = sequences * model.tokens
    size = HALF if half else FLOAT
    masks = sequences * model.tokens**2 * size if objective.mask_ratio else 0
    block = rows * _block_bytes(config, half) + masks
    blocks = model.layers * block
    if config.checkpoint_activations:  # every block's input, and all of the block at work
        blocks = model.layers * rows * FLOAT * model.width + block
    first = rows * model.width * (FLOAT if config.dropout else 0)  # the embeddings' dropout
    last = rows * model.width * (2 * FLOAT + size)  # the norm's input, what it normalised, the head's
    copies = HALF * _matrices(config) if half else 0  # of the weights, made by autocast
    of_passes = _student_passes(objective) * (blocks + first) + last
    return of_passes + copies + _objective_bytes(config, sequences, half)


def _block_bytes(config: TrainConfig, half: bool) -> int:
    """Bytes a token that one block keeps."""
    model = config.model
    size, width = HALF if half else FLOAT, model.width
    # float32: the inputs of both norms and what they normalised
    norms = 4 * FLOAT * width
    # the inputs of wqkv, of w1 and w3 (one tensor, or a cast for each) and of w2
    linear = size * ((3 if half else 2) * width + model.ffn_width)
    # queries, keys and output; values are a view of all that wqkv gave, or repeated for grouped heads
    values = width if model.kv_heads not in (0, model.heads) else 3 * width
    attention = size * (3 * width + values) + FLOAT * model.heads  # a row's normaliser in float32
    gate = size * 3 * model.ffn_width  # w1's output before and after silu, w3's output
    dropped = size * 2 * width if config.dropout else 0
    return norms + linear + attention + gate + dropped


def _student_passes(objective: ObjectiveConfig) -> int:
    return 2 if objective.student_pass == "two" and objective.mim_weight else 1


def _matrices(config: TrainConfig) -> int:
    """Weights of the student's and the projector's linear layers."""
    model = config.model
    kv = model.kv_heads or model.heads
    block = model.width * (model.heads + 2 * kv) * model.head_dim + model.width**2
    block += 3 * model.width * model.ffn_width
    return model.layers * block + model.width * model.vocab_size + sum(_projector_matrices(config))


def _projector_matrices(config: TrainConfig) -> list[int]:
    objective, width = config.objective, config.model.width
    if not objective.contrast_weight:
        return []
    hidden = objective.projector_ratio * width
    sizes = [width, *[hidden] * (objective.projector_layers - 1), width]
    return [a * b for a, b in pairwise(sizes)]


def _objective_bytes(config: TrainConfig, sequences: int, half: bool) -> int:
    """Bytes that the losses on features and the projector keep."""
    model, objective = config.model, config.objective
    size = HALF if half else FLOAT
    # The student's features are a norm's input; the teacher's are kept besides.
    total = sequences * model.tokens * FLOAT * model.width if objective.mim_weight else 0
    if objective.contrast_weight:
        hidden = (objective.projector_layers - 1) * objective.projector_ratio * model.width
        # Of a hidden layer: centred, normalised, after ReLU (float32; the next layer's input a cast).
        row = 3 * FLOAT * hidden + (HALF * hidden if half else 0)
        row += (size + FLOAT) * model.width  # the first layer's input, the last one's centred
        # Both sides before and after their norm; of every pair the anchor and the positive.
        pairs = objective.contrast_steps - 1 + objective.views - 1
        row += FLOAT * model.width * (2 + pairs)
        total += sequences * objective.contrast_steps * row
    return total


def images_at_once(model: ModelConfig, most: int, *, with_logits: bool) -> int:
    """Images of a pass without gradient: ``most``, or as many as take no more than 4 GiB, at least one.

    A token takes, in float32, the widest moment of a block (three tensors of the SwiGLU layer and three
    of the residual stream's width) or, ``with_logits``, four numbers a logit: the logits, in half
    precision another copy, the same as the loss wants them laid out, and their log-softmax.
    """
    block = 3 * FLOAT * (model.ffn_width + model.width)
    token = max(block, 4 * FLOAT * model.vocab_size if with_logits else 0)
    return max(1, min(most, MOST_BYTES // (token * model.tokens)))


def projector_parameters(config: TrainConfig) -> int:
    """Weights of the projector; 0 without the contrastive losses."""
    matrices = _projector_matrices(config)
    hidden = config.objective.projector_ratio * config.model.width
    return sum(matrices) + 2 * hidden * max(0, len(matrices) - 1)


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
    if _student_passes(objective) == 2:
        passes += forwards * forward_flops(config, sequences, False)
    if objective.uses_teacher:
        passes += forward_flops(config, sequences, False)
        passes += 6.0 * projector * sequences * objective.contrast_steps
    part = sequences // (processes * config.accumulate)  # what one backward pass is of
    holders = processes if config.shard else 1
    trained = 4 * (count + projector) // holders
    return Estimate(
        parameters=count,
        projector_parameters=projector,
        weights=trained,
        gradients=trained,
        optimizer=2 * trained,
        teacher=4 * count // holders,
        activations=kept_bytes(config, part, half),
        head=head_bytes(part * config.model.tokens, config.model.vocab_size),
        flops=passes,
    )
