"""Classifier files: one ``.safetensors`` file with the shape, the class names and a card as metadata.

The weights of convolutions and of the head are kept in float16, which halves the file: what is saved is
rounded so, and measured so (``rounded``). Nothing from a file is ever run (``star.base.torch_files``).
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from star.base.errors import UserError, listed
from star.base.files import plain_path, publish_file
from star.base.names import shown
from star.base.record import Record
from star.base.torch_files import load_safetensors
from star.base.weights import check_weights
from star.classifier.config import ClassifierShape
from star.classifier.model import Classifier

__all__ = [
    "SHIPPED",
    "classifier_path",
    "classifier_sha256",
    "is_classifier",
    "load_classifier",
    "rounded",
    "save_classifier",
]

FORMAT, KIND = "star-classifier-1", "star-classifier-"
SHIPPED = ("cifar10",)  # names of the classifiers that come with the package


def classifier_path(name: str) -> Path:
    """File of the classifier called ``name`` that comes with the package; ``UserError`` for others."""
    if name not in SHIPPED:
        raise UserError(f"no classifier called {name!r} comes with the package: {listed(SHIPPED)}")
    return Path(__file__).parents[1] / "classifiers" / f"{name}.safetensors"


def load_classifier(path: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Classifier in eval mode, float32, without gradient; ``path`` is a file or a shipped one's name.

    A file of that name goes first. It carries ``.config``, ``.class_names`` (None where they were not
    named), ``.facts`` and ``.name``. Raises ``UserError`` if the file is missing, truncated, unsafe or
    not a classifier of ours.
    """
    path = _find(path)
    weights, metadata = load_safetensors(path)
    config, names, facts = _described(metadata, path)
    with torch.device("meta"):  # no memory and no random initialisation for weights to be replaced
        model = Classifier(config)
    check_weights(model, weights, path)
    state = {key: weights[key].to(value.dtype, copy=True) for key, value in model.state_dict().items()}
    model.load_state_dict(state, strict=True, assign=True)
    model.class_names, model.name = names, shown(str(facts.get("name") or path.stem))
    model.eval().requires_grad_(False)
    model.facts = {**facts, "sha256": classifier_sha256(model)}
    return model.to(device).to(memory_format=torch.channels_last)


def save_classifier(model: Classifier, path: Path | str, facts: Record) -> None:
    """Write ``rounded(model)`` as one ``.safetensors`` file, atomically, with its class names and card.

    Raises ``UserError`` for another file ending, ``ValueError`` if ``facts`` are not plain JSON.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} does not end in .safetensors, the format classifiers are saved in")
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "class_names": json.dumps(model.class_names),
        "card": json.dumps(facts, allow_nan=False),
    }
    weights = {key: _stored(value).cpu().contiguous() for key, value in model.state_dict().items()}
    with publish_file(path) as temporary, plain_path(temporary) as plain:
        safetensors.torch.save_file(weights, plain, metadata=metadata)


def rounded(model: Classifier) -> Classifier:
    """A copy in eval mode, without gradient, with the weights as a file keeps them."""
    copy = Classifier(model.config).to(model.head.weight.device)
    copy.load_state_dict(
        {key: _stored(value).to(value.dtype) for key, value in model.state_dict().items()}
    )
    copy.class_names, copy.facts, copy.name = model.class_names, model.facts, model.name
    return copy.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def classifier_sha256(model: Classifier) -> str:
    """Identity of a classifier: sha256 of its shape, class names and weights (as a file keeps them)."""
    digest = hashlib.sha256()
    digest.update(json.dumps([dataclasses.asdict(model.config), model.class_names]).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"\n{key} {tuple(value.shape)}\n".encode())
        array = _stored(value).float().cpu().contiguous().numpy()
        digest.update(array.astype(np.dtype("<f4"), copy=False).tobytes())
    return digest.hexdigest()


def is_classifier(metadata: dict[str, str]) -> bool:
    """Whether a ``.safetensors`` file with this metadata is a classifier, of any release."""
    return metadata.get("format", "").startswith(KIND)


def _stored(value: torch.Tensor) -> torch.Tensor:
    """A tensor as files keep it: weights in float16, norms and counts as they are."""
    value = value.detach()
    return value.half() if value.is_floating_point() and value.ndim > 1 else value


def _find(given: Path | str) -> Path:
    path = Path(given)
    if str(given) in SHIPPED and not path.is_file():
        return classifier_path(str(given))
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a classifier's .safetensors file")
    if not path.exists():
        raise UserError(f"no such file: {path}; expected a classifier's file, or {listed(SHIPPED)}")
    return path


def _described(
    metadata: dict[str, str], path: Path
) -> tuple[ClassifierShape, list[str] | None, Record]:
    """Shape, class names and card."""
    if not is_classifier(metadata):
        raise UserError(f"{path} is not a classifier of star train-classifier")
    if metadata["format"] != FORMAT:
        raise UserError(f"{path} has format {metadata['format']}; this release reads {FORMAT}")
    try:
        config = ClassifierShape(**json.loads(metadata["config"]))
        names = json.loads(metadata.get("class_names", "null"))
        facts = json.loads(metadata.get("card", "{}"))
        if not isinstance(facts, dict):
            raise TypeError("the card is not an object")
        if names is not None and (
            not isinstance(names, list)
            or len(names) != config.classes
            or not all(isinstance(name, str) for name in names)
        ):
            raise TypeError(f"its class names are not {config.classes} texts")
    except (json.JSONDecodeError, KeyError, RecursionError, TypeError, UserError) as error:
        raise UserError(f"the metadata of {path} is not a classifier's ({error})") from error
    return config, names, facts
