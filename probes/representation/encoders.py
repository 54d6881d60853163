"""Frozen image encoders of torchvision and timm as a yardstick: pooled features of pixels.

The weights are a file the user has; nothing is ever downloaded and nothing from a file is run. The
classifier is left off, so what comes out is what it reads (2048 numbers of a ResNet-50, the class token
of a ViT); weights without a classifier fit too. Images are resized whole, with antialiasing, to the
encoder's size and normalised by the ImageNet moments (timm: the size, interpolation and moments that
timm records of the model).

Shapes: N images of H x W pixels, D width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from probes.reading.foreign import IMAGENET_MEAN, IMAGENET_STD, import_timm, read_weights
from star.base.device import exact_float32
from star.base.errors import UserError
from star.base.files import sha256_file
from star.base.weights import check_weights

__all__ = ["Encoder", "encode_pooled", "load_encoder"]

TIMM = "timm/"
# torchvision's published weights of these two expect it; building without weights leaves it out
REFITTED = "transform_input"


@dataclass(frozen=True)
class Encoder:
    """A frozen network without its classifier, and how it wants its images."""

    name: str
    module: nn.Module
    size: tuple[int, int]
    sha256: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"


def load_encoder(name: str, path: Path | str, device: torch.device | str = "cpu") -> Encoder:
    """Encoder ``name`` (torchvision's, or ``timm/`` and timm's) with the weights in ``path``.

    ``path`` is a ``.pt``, ``.pth`` or ``.safetensors`` file. Every weight but the classifier's must be
    there, and no other. Raises ``UserError`` for an unknown name, a network without a linear
    classifier, timm not installed, and a file that is missing, damaged, unsafe or of another network.
    """
    path = Path(path)
    weights = read_weights(path)
    # Building a network draws its random weights from the global state: put that back.
    with torch.random.fork_rng(devices=[]):
        module, heads, recipe = _of_timm(name) if name.startswith(TIMM) else _of_torchvision(name)
    weights = {
        key: value
        for key, value in weights.items()
        if not any(key.startswith(f"{head}.") for head in heads)
    }
    expected = module.state_dict()
    # A counter of training batches, which old files lack and nothing here reads.
    counters = {key: expected[key] for key in expected if key.endswith("num_batches_tracked")}
    weights = counters | weights
    check_weights(module, weights, path)
    module.load_state_dict(weights, strict=True)
    module = module.eval().requires_grad_(False).to(device)
    return Encoder(name=name, module=module, sha256=sha256_file(path), **recipe)


@torch.no_grad()
@exact_float32()
def encode_pooled(encoder: Encoder, images_NHWC: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """(N, D) float32 pooled features of uint8 images (N, H, W, 3); ``UserError`` for other arrays."""
    images = np.asarray(images_NHWC)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
        raise UserError(
            f"images are {images.dtype} {images.shape}; expected uint8 (images, height, width, 3)"
        )
    device = next(encoder.module.parameters()).device
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size]).to(device)
        pooled = encoder.module(_prepared(batch.permute(0, 3, 1, 2), encoder))
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            raise UserError(f"encoder {encoder.name} gives no (N, D) features; choose another")
        parts.append(pooled.float().cpu().numpy())
    return np.concatenate(parts)


def _prepared(images_BCHW: Tensor, encoder: Encoder) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    mode = InterpolationMode(encoder.interpolation)
    sized = resize(images_BCHW.float() / 255, list(encoder.size), interpolation=mode, antialias=True)
    mean, std = (sized.new_tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    return (sized.clamp(0, 1) - mean) / std


def _of_torchvision(name: str) -> tuple[nn.Module, list[str], dict]:
    import torchvision  # takes a second, and most commands name no encoder

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(
            f"encoder is {name!r}; expected a classifier of torchvision such as resnet50 or vit_b_16, "
            f"or {TIMM} and a name of timm"
        )
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = torchvision.models.get_model(name, weights=None, **extra)
    if hasattr(module, REFITTED):
        module.transform_input = True
    linear = [key for key, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise UserError(f"encoder {name} has no linear classifier to take off; choose another")
    head = linear[-1]
    parent, _, leaf = head.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Identity())
    side = 299 if name == "inception_v3" else getattr(module, "image_size", 224)
    return module, [head], {"size": (side, side)}


def _of_timm(name: str) -> tuple[nn.Module, list[str], dict]:
    timm = import_timm(f"encoder {name}")
    wanted = name.removeprefix(TIMM)
    if not timm.is_model(wanted):
        raise UserError(
            f"encoder is {name!r}; timm knows no {wanted!r} (timm.list_models() lists them)"
        )
    module = timm.create_model(wanted, pretrained=False, num_classes=0)
    heads = module.pretrained_cfg.get("classifier") or []
    wish = timm.data.resolve_model_data_config(module)
    recipe = {
        "size": tuple(wish["input_size"][-2:]),
        "mean": tuple(wish["mean"]),
        "std": tuple(wish["std"]),
        "interpolation": wish["interpolation"],
    }
    return module, [heads] if isinstance(heads, str) else list(heads), recipe
