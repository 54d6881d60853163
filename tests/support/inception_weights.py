"""Weights of Inception's names and shapes, for the tests: small random numbers."""

import pytest
import torch


def random_inception() -> dict:
    """A state dict of Inception's names and shapes, small random numbers."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as network

    with torch.device("meta"):
        shell = object.__new__(network)
        weights = {}

        def take(self, state):
            weights.update(self.state_dict())

        patch = pytest.MonkeyPatch()
        patch.setattr(network, "load_state_dict", take)
        patch.setattr(network, "to", lambda self, *a, **k: self)
        patch.setattr(torch, "load", lambda *a, **k: {})
        network.__init__(shell, "x", ["2048"], "unread")
        patch.undo()
    rng = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(value.shape, generator=rng) * 0.1 + 0.01
        if value.is_floating_point()
        else torch.zeros(value.shape, dtype=value.dtype)
        for key, value in weights.items()
    }


def lively_inception() -> dict:
    """As ``random_inception``, drawn as He et al. (2015) do, so that features differ between images."""
    rng = torch.Generator().manual_seed(1)
    weights = random_inception()
    for key, value in weights.items():
        if value.ndim == 4:
            fan_in = value[0].numel()
            weights[key] = torch.randn(value.shape, generator=rng) * (2 / fan_in) ** 0.5
        elif value.ndim == 2:
            weights[key] = torch.randn(value.shape, generator=rng)
        elif key.endswith(("running_var", "bn.weight")):
            weights[key] = torch.ones(value.shape)
        elif value.is_floating_point():
            weights[key] = torch.zeros(value.shape)
    return weights
