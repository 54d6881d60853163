"""The shape of the transformer, and the sizes that the field knows by name.

This module imports neither torch nor numpy, so that the command line can build its options from the
fields (``metadata["help"]``) and start at once.
"""

import math
from dataclasses import dataclass

from star.base.errors import UserError
from star.base.settings import option

__all__ = ["SIZES", "ModelConfig"]

# name: (layers, heads, width); B to 3B are LlamaGen's, tiny is for two CPU cores and the tests
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (6, 4, 128),
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "3B": (24, 32, 3200),
}

# Beyond every model there is; larger numbers are slips, and would fill the memory before they fail.
_MOST = {
    "layers": 1000,
    "heads": 1 << 12,
    "width": 1 << 18,
    "grid": 1 << 10,
    "vocab_size": 1 << 24,
    "num_classes": 1 << 24,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a class-conditional transformer over a g x g grid of VQ tokens (LlamaGen's layout)."""

    layers: int = option(6, "Number of transformer blocks.")
    heads: int = option(4, "Attention heads.")
    kv_heads: int = option(0, "Key-value heads (grouped attention); 0 means as many as heads.")
    width: int = option(128, "Width of the residual stream.")
    grid: int = option(8, "Tokens along one side of the image; T = grid squared.")
    vocab_size: int = option(256, "Number of codebook entries.")
    num_classes: int = option(10, "Number of classes; the null class is one more.")
    null_class: bool = option(
        True, "A last row of the class table that stands for no class (some foreign models have none)."
    )
    norm_eps: float = option(1e-5, "Epsilon of RMSNorm.")
    rope_base: float = option(10000.0, "Base of the 2-D rotary frequencies.")

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name} is {getattr(self, name)}; expected 1 to {most:,}")
        for name in ("norm_eps", "rope_base"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number > 0")
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.head_dim % 4:
            raise UserError(
                f"width / heads is {self.head_dim}; 2-D rotary positions need a multiple of 4"
            )
        if self.kv_heads < 0 or self.heads % (self.kv_heads or self.heads):
            raise UserError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")

    @property
    def tokens(self) -> int:
        """T, the number of image tokens."""
        return self.grid**2

    @property
    def class_rows(self) -> int:
        """Rows of the class table: the classes, and the null class if there is one."""
        return self.num_classes + self.null_class

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def ffn_width(self) -> int:
        """Hidden width of the SwiGLU layer: int(2/3 * 4 * width), up to a multiple of 256."""
        return 256 * math.ceil(int(2 * 4 * self.width / 3) / 256)

    @property
    def parameters(self) -> int:
        """Number of weights, counted without building the model."""
        attention = self.width * self.head_dim * (self.heads + 2 * (self.kv_heads or self.heads))
        block = attention + self.width**2 + 3 * self.width * self.ffn_width + 2 * self.width
        rows = self.class_rows + 2 * self.vocab_size + 1  # class and token tables, output, norm
        return self.layers * block + self.width * rows

    @property
    def size_name(self) -> str | None:
        """Name in the size table, or None for another shape."""
        shape = (self.layers, self.heads, self.width)
        return next((name for name, size in SIZES.items() if size == shape), None)
