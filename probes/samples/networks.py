"""What samples are judged by: a frozen network that turns images into features, whatever its name.

Three are known: Inception (``probes.samples.inception``), DINOv2 (``probes.samples.dinov2``) and a
classifier trained here (``probes.samples.classifier``).

Shapes: N images of H x W pixels, D features, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

__all__ = ["Features", "Network"]


@dataclass(frozen=True)
class Features:
    """What a network says of N images: float32 ``pool_ND``, and where it has them the rest.

    spatial_NS: features with their places (sFID). logits_NC: of its classes.
    """

    pool_ND: np.ndarray
    spatial_NS: np.ndarray | None = None
    logits_NC: np.ndarray | None = None


@dataclass(frozen=True)
class Network:
    """A frozen network: ``extract(images uint8 (N, 3, H, W)) -> Features``.

    name: in the name of its Fréchet distance. sha256: of its weights' file. resizing: how it takes
    images of another size, in words. scores_classes: the Inception score is taken of its logits.
    class_names: what its logits stand for, where samples are asked for by class.
    """

    name: str
    sha256: str
    resizing: str
    extract: Callable[[torch.Tensor], Features] = field(repr=False)
    scores_classes: bool = False
    class_names: tuple[str, ...] | None = None
    facts: dict = field(default_factory=dict)

    @property
    def distance_name(self) -> str:
        """What its Fréchet distance is called: FID is Inception's alone."""
        known = {"Inception": "FID", "DINOv2": "FD-DINOv2"}
        return known.get(self.name, f"FD on {self.name} features")

    def pool(self, images_NCHW: torch.Tensor) -> np.ndarray:
        """Pooled features alone, float64 (N, D)."""
        return self.extract(images_NCHW).pool_ND.astype(np.float64)
