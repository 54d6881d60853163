"""The Inception network of FID, from a local file: torch-fidelity's port of the 2015-12-05 graph.

The file (``...-6726825d.pth``) carries the first 8 digits of its sha256 in its name, and is checked
against them. torch-fidelity would unpickle it whatever it holds; it is read safely here and handed on
as tensors.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from star.base.device import exact_float32
from star.base.errors import UserError
from star.base.files import sha256_file
from star.base.torch_files import load_torch_file

__all__ = ["inception_pool"]

_FEATURES = "2048"


def inception_pool(
    path: Path | str, device: torch.device | str = "cpu"
) -> Callable[[torch.Tensor], np.ndarray]:
    """``features(images uint8 (N, 3, H, W)) -> float64 (N, 2048)``: pool_3.

    Raises ``UserError`` for a file that is missing, unsafe, no such network, or not what its name says.
    """
    weights = load_torch_file(path)
    named = re.search(r"-([0-9a-f]{8})\.pth$", Path(path).name)
    if named and not sha256_file(path).startswith(named[1]):
        raise UserError(f"{path} is damaged: its sha256 does not start with {named[1]}")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    try:
        network = FeatureExtractorInceptionV3("inception", [_FEATURES], buffer)
    except RuntimeError as error:
        raise UserError(
            f"{path} is not torch-fidelity's Inception network: its tensors differ"
        ) from error
    network = network.to(device)

    @torch.no_grad()
    @exact_float32()
    def features(images_NCHW: torch.Tensor) -> np.ndarray:
        return network(images_NCHW.to(device))[0].double().cpu().numpy()

    return features
