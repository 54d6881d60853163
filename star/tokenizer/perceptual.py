"""LPIPS (Zhang et al. 2018) as a training loss, for those who have the weights.

The distance is the ``lpips`` package's, whose calibrated linear layers come with it. The VGG-16 below
them is torchvision's published file (``vgg16-397923af.pth``), given by path: nothing is downloaded, and
only tensors are read from it.
"""

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import nn

from star.base.errors import UserError
from star.base.torch_files import load_torch_file

__all__ = ["load_lpips"]

_SLICES = ("slice1", "slice2", "slice3", "slice4", "slice5")


def load_lpips(vgg: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """``loss(images_BCHW, others_BCHW) -> (B, 1, 1, 1)``, frozen, for images in [-1, 1].

    Raises ``UserError`` if the package or the file is missing, or the file is no VGG-16.
    """
    weights = load_torch_file(vgg)
    try:
        import lpips
    except ImportError as error:
        raise UserError("LPIPS needs a package that is not here: pip install lpips") from error
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it prints what it loads and calls torchvision in old ways
        model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    own = {}
    for name in _SLICES:
        for key in getattr(model.net, name).state_dict():
            own[f"{name}.{key}"] = f"features.{key}"  # the slices keep the numbers of VGG's layers
    for theirs in own.values():
        if not isinstance(weights.get(theirs), torch.Tensor):
            raise UserError(f"{vgg} is not torchvision's VGG-16: it has no {theirs}")
    try:
        model.net.load_state_dict({key: weights[theirs] for key, theirs in own.items()}, strict=True)
    except RuntimeError as error:
        raise UserError(f"{vgg} is not torchvision's VGG-16: its shapes differ") from error
    frozen: nn.Module = model.to(device).eval().requires_grad_(False)
    return frozen
