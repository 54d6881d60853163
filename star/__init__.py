"""ST-AR training and the models it trains: the public API, loaded lazily.

``import star`` imports neither torch nor numpy; a name is imported on its first use.
"""

import importlib
from typing import Any

_EXPORTS = {
    "load_model": "star.training.checkpoint",
    "load_tokenizer": "star.tokenizer.file",
    "generate": "star.model.sampler",
    "open_source": "star.images.open",
    "open_codes": "star.codes.store",
    "UserError": "star.base.errors",
    "preset": "star.training.config",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'star' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
