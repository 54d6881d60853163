"""The Inception network of FID, from a local file: torch-fidelity's port of the 2015-12-05 graph.

The file (``...-6726825d.pth``) carries the first 8 digits of its sha256 in its name, and is checked
against them. torch-fidelity would unpickle it whatever it holds; it is read safely here and handed on
as tensors. The network resizes images itself, as TensorFlow 1 did.

Shapes: N images of H x W pixels.
"""

import io
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probes.samples.networks import Features, Network
from star.base.device import exact_float32
from star.base.errors import UserError
from star.base.files import sha256_file
from star.base.torch_files import load_torch_file

__all__ = ["PUBLISHED", "load_inception"]

PUBLISHED = "6726825d"  # first digits of the sha256 of the weights that published FIDs rest on
SPATIAL = 7  # channels of Mixed_6d's 1 x 1 branch that sFID takes (Nash et al. 2021)


def load_inception(path: Path | str, device: torch.device | str = "cpu") -> Network:
    """Inception with pool_3 (2048), the spatial features of sFID (2023) and logits without bias (1008).

    Spatial features are flattened channels last, (row, column, channel), as TensorFlow lays them out:
    a stored reference has them so. Raises ``UserError`` for a file that is missing, unsafe, no such
    network, or not what its name says.
    """
    weights = load_torch_file(path)
    sha256 = sha256_file(path)
    named = re.search(r"-([0-9a-f]{8})\.pth$", Path(path).name)
    if named and not sha256.startswith(named[1]):
        raise UserError(f"{path} is damaged: its sha256 does not start with {named[1]}")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    try:
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], buffer)
    except RuntimeError as error:
        raise UserError(
            f"{path} is not torch-fidelity's Inception network: its tensors differ"
        ) from error
    network = network.to(device)
    branch: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, found: branch.append(found))

    @torch.no_grad()
    @exact_float32()
    def extract(images_NCHW: Tensor) -> Features:
        branch.clear()
        pool_ND, logits_NC = network(images_NCHW.to(device))
        spatial_NS = branch.pop()[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)
        return Features(*(_array(found) for found in (pool_ND, spatial_NS, logits_NC)))

    resizing = "the network's own: bilinear as TensorFlow 1 (align_corners=False), no antialiasing"
    facts = {"published_weights": sha256.startswith(PUBLISHED)}
    return Network("Inception", sha256, resizing, extract, scores_classes=True, facts=facts)


def _array(found: Tensor) -> np.ndarray:
    array: np.ndarray = found.float().cpu().numpy()
    return array
