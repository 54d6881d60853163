"""Write a model's weights for other programs: LlamaGen's layout, or safetensors with the configuration.

Only the transformer leaves: never the projector, the optimiser or the other set of weights.
"""

from argparse import Namespace
from pathlib import Path

import torch

from star.base.errors import UserError, require_choice
from star.base.files import publish_file
from star.model.file import ModelFacts, write_model_file
from star.training.checkpoint import Loaded

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
    ``args``; it loads back equal. ``safetensors``: the same keys, and ``star.model.file``'s metadata.
    """
    check_ending(path, form)
    if path.exists() and path.samefile(loaded.path):
        raise UserError(f"{path} is the checkpoint itself; give another file to write")
    config = loaded.model.config
    weights = {
        key: value.detach().cpu().contiguous() for key, value in loaded.model.state_dict().items()
    }
    if form == "safetensors":
        facts = ModelFacts(
            config=config,
            origin=f"{loaded.path.name}, {loaded.description}",
            weights=loaded.weights,
            objective=loaded.objective_name,
            class_names=loaded.class_names,
            tokenizer=loaded.tokenizer,
        )
        write_model_file(path, weights, facts)
        return path
    arguments = Namespace(
        gpt_model=f"GPT-{config.size_name or 'custom'}",
        gpt_type="c2i",
        vocab_size=config.vocab_size,
        num_classes=config.num_classes,
        class_dropout_prob=0.1 if config.null_class else 0.0,  # LlamaGen makes the null row above 0
        cls_token_num=1,
        n_head=config.heads,
        image_size=config.grid * DOWNSAMPLE,
        downsample_size=DOWNSAMPLE,
        norm_eps=config.norm_eps,
        rope_base=config.rope_base,
    )
    with publish_file(path) as temporary:
        torch.save({"model": weights, "args": arguments}, temporary)
    return path
