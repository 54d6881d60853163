"""What an atlas would take, from sizes alone: forward passes, FLOPs, memory of features and heads."""

from dataclasses import dataclass

from probes.linear.mae import MaeConfig
from star.model.config import ModelConfig
from star.training.config import TrainConfig
from star.training.estimate import forward_flops

__all__ = ["ProbeCost", "probe_cost"]


@dataclass(frozen=True)
class ProbeCost:
    """Sequences through a frozen model, multiply-adds times two, bytes; over all processes.

    ``forwards`` counts those of the checkpoint and of its run's initial weights (the control);
    ``cached_forwards`` those that are left if every stored view of the training images is kept in
    ``cache_bytes``. ``view_bytes`` are the features of one view of all training images.
    """

    heads: int
    forwards: int
    cached_forwards: int
    forward_flops: float
    cached_flops: float
    head_flops: float
    view_bytes: int
    cache_bytes: int
    batch_bytes: int
    head_bytes: int


def probe_cost(
    model: ModelConfig,
    *,
    protocol: str,
    mae: MaeConfig,
    layers: int,
    steps: int,
    train: int,
    held_out: int,
    views: int,
    classes: int,
) -> ProbeCost:
    """Cost of probing ``layers`` x ``steps``; ``held_out`` images of val and test are seen once.

    Only ``mae`` runs over the training images once an epoch; the other protocols are counted as one
    pass over their test view (more where features are fitted in several pieces).
    """
    epochs, seen_views = (mae.epochs, views) if protocol == "mae" else (1, 1)
    label_sets, rates = 2, len(mae.base_lrs) if protocol == "mae" else 1
    groups = layers * steps
    batch = min(mae.batch_size, train)
    passes = train // batch * batch * epochs
    each = forward_flops(TrainConfig(model=model), 1, False)
    forwards = 2 * (passes + held_out)
    cached = 2 * (min(passes, train * seen_views) + held_out)
    features = groups * model.width
    parameters = features * classes * rates * label_sets
    return ProbeCost(
        heads=groups * rates,
        forwards=forwards,
        cached_forwards=cached,
        forward_flops=forwards * each,
        cached_flops=cached * each,
        head_flops=2 * passes * 4.0 * parameters,
        view_bytes=4 * train * features,
        cache_bytes=4 * train * features * seen_views,
        batch_bytes=4 * batch * features,
        head_bytes=4 * 2 * parameters,
    )
