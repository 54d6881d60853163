"""Write a model's weights for other programs: LlamaGen's layout, or safetensors with the configuration.

Only the transformer leaves: never the projector, the optimiser or the other set of weights.
"""

import dataclasses
import json
from argparse import Namespace
from pathlib import Path

import safetensors.torch
import torch

from star.checkpoint import Loaded
from star.errors import UserError, require_choice
from star.files import plain_path, publish_file
from star.names import shown

__all__ = ["ENDINGS", "check_ending", "export_model"]

ENDINGS = {"llamagen": ".pt", "safetensors": ".safetensors"}  # by format
DOWNSAMPLE = 16  # LlamaGen's grid is image_size / downsample_size; any pair with this quotient serves


def check_ending(path: Path, form: str) -> None:
    """Raise ``UserError`` unless ``form`` is a format and ``path`` has its ending."""
    require_choice("format", form, tuple(ENDINGS))
    if path.suffix != ENDINGS[form]:
        raise UserError(f"{path} does not end in {ENDINGS[form]}, the ending of format {form}")


def export_model(loaded: Loaded, path: Path, form: str) -> Path:
    """Write the loaded weights to ``path`` and return it.

    ``llamagen``: a ``.pt`` with the weights under ``model`` and the arguments its code reads under
    ``args``; it loads back equal. ``safetensors``: the same keys, configuration and origin as metadata.
    """
    check_ending(path, form)
    if path.exists() and path.samefile(loaded.path):
        raise UserError(f"{path} is the checkpoint itself; give another file to write")
    config = loaded.model.config
    weights = {
        key: value.detach().cpu().contiguous() for key, value in loaded.model.state_dict().items()
    }
    if form == "safetensors":
        metadata = {
            "format": "star-transformer-1",
            "config": json.dumps(dataclasses.asdict(config)),
            "origin": shown(f"{loaded.path.name}, {loaded.description}"),
        }
        with publish_file(path) as temporary, plain_path(temporary) as plain:
            safetensors.torch.save_file(weights, plain, metadata=metadata)
        return path
    arguments = Namespace(
        gpt_model=f"GPT-{config.size_name or 'custom'}",
        gpt_type="c2i",
        vocab_size=config.vocab_size,
        num_classes=config.num_classes,
        cls_token_num=1,
        n_head=config.heads,
        image_size=config.grid * DOWNSAMPLE,
        downsample_size=DOWNSAMPLE,
    )
    with publish_file(path) as temporary:
        torch.save({"model": weights, "args": arguments}, temporary)
    return path
