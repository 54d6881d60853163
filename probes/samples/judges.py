"""The networks that samples are judged by, opened from the files a user gives."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probes.samples.classifier import Predictions
from probes.samples.dinov2 import load_dinov2
from probes.samples.inception import load_inception
from probes.samples.networks import Features, Network
from probes.samples.scores import softmax
from star.base.errors import UserError
from star.classifier.file import load_classifier

__all__ = ["as_predictions", "classifier_network", "open_networks"]


def open_networks(
    inception: Path | None, dinov2: Path | None, classifier: str | None, device: torch.device | str
) -> list[Network]:
    """The networks of the files that are given, in this order; ``UserError`` if there is none."""
    found = []
    if inception is not None:
        found.append(load_inception(inception, device))
    if dinov2 is not None:
        found.append(load_dinov2(dinov2, device))
    if classifier is not None:
        found.append(classifier_network(classifier, device))
    if not found:
        raise UserError("no network is given: name --inception, --dinov2 or --features")
    return found


def classifier_network(given: str, device: torch.device | str = "cpu") -> Network:
    """A classifier of ``star train-classifier`` (file, or a shipped one's name) as a network."""
    classifier = load_classifier(given, device)
    size, names = classifier.config.size, classifier.class_names

    def extract(images_NCHW: Tensor) -> Features:
        features_NF, logits_NC = classifier.features_and_logits(images_NCHW)
        return Features(features_NF.cpu().numpy(), None, logits_NC.cpu().numpy())

    return Network(
        name=f"{classifier.name} classifier",
        sha256=classifier.facts["sha256"],
        resizing=f"middle square to {size} x {size}, bicubic with antialiasing, not rounded",
        extract=extract,
        class_names=tuple(names or map(str, range(classifier.config.classes))),
        facts={
            key: classifier.facts[key]
            for key in ("accuracy", "low", "high", "n", "measured_on", "source")
            if key in classifier.facts
        },
    )


def as_predictions(network: Network, logits_NC: np.ndarray) -> Predictions:
    """What a classifier has said of N images, for conditional accuracy; without their features."""
    return Predictions(
        features=np.empty((len(logits_NC), 0)),
        probabilities=softmax(logits_NC).astype(np.float32),
        class_names=network.class_names,
    )
