"""Networks of others (torchvision's, timm's, DINOv2's): what reading their weights has in common.

The weights are a file the user has; nothing is ever downloaded and nothing from a file is run.
"""

from pathlib import Path
from types import ModuleType

from torch import Tensor

from star.base.errors import UserError
from star.base.torch_files import load_safetensors, load_torch_file
from star.model.state_keys import without_wrappers

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "import_timm", "read_weights"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # in 0..1
CONTAINERS = ("state_dict", "model", "model_state_dict")  # where checkpoints keep their weights


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pt``, ``.pth`` or ``.safetensors`` file, without trainers' wrappers."""
    if path.suffix == ".safetensors":
        return without_wrappers(load_safetensors(path)[0], path)
    content = load_torch_file(path)
    found = (content[key] for key in CONTAINERS if isinstance(content.get(key), dict))
    return without_wrappers(next(found, content), path)


def import_timm(what: str) -> ModuleType:
    """timm, which is not among our packages; ``UserError`` naming ``what`` needs it."""
    try:
        import timm
    except ImportError:
        raise UserError(f"{what} needs timm, which is not installed: pip install timm") from None
    module: ModuleType = timm
    return module
