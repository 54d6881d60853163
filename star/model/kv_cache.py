"""Keys and values of the positions decoded so far; owned by the caller, never by the model.

``KVCache`` is read as far as it is filled: the least work, in shapes that grow with every token.
``StaticCache`` is always read whole, behind a mask, and keeps its place on the device: every token is
then the same program on the same memory, which a GPU can record once and replay (CUDA graphs).

Shapes: B batch, N new positions, H key-value heads, C channels of a head, T tokens of an image.
"""

import torch
from torch import Tensor

from star.model.attention import Visibility, visibility
from star.model.config import ModelConfig

__all__ = ["KVCache", "StaticCache", "cache_bytes"]


def cache_bytes(config: ModelConfig, batch: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of ``batch`` whole sequences."""
    kept = config.head_dim * (config.kv_heads or config.heads)  # of one key or value
    return 2 * config.layers * config.tokens * kept * batch * dtype.itemsize


class KVCache:
    """Grows: attention reads what is filled and nothing more."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype):
        shape = (batch, config.kv_heads or config.heads, config.tokens, config.head_dim)

        def unset() -> Tensor:  # zeros, since what is masked is multiplied by 0, and NaN stays NaN
            return torch.zeros(shape, device=device, dtype=dtype)

        self.layers = [(unset(), unset()) for _ in range(config.layers)]  # keys, values
        self.length = 0

    def place(self, rotary: Tensor, count: int) -> tuple[Tensor, Visibility]:
        """Rows of the rotary table of ``count`` new positions, and what they may read."""
        end = self.length + count
        return rotary[self.length : end], visibility(end, None, False, rotary.device, self.length)

    def extend(self, layer: int, k_BHNC: Tensor, v_BHNC: Tensor) -> tuple[Tensor, Tensor]:
        """Append to one layer; returns all keys and values of that layer so far."""
        count, (keys, values) = k_BHNC.shape[2], self.layers[layer]
        keys.narrow(2, self.length, count).copy_(k_BHNC)
        values.narrow(2, self.length, count).copy_(v_BHNC)
        end = self.length + count
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def advance(self, count: int) -> None:
        """All layers have been extended by ``count`` positions."""
        self.length += count


class StaticCache(KVCache):
    """Always read whole; one new position at a time, whose number lies on the device."""

    def __init__(self, config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype):
        super().__init__(config, batch, device, dtype)
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.everywhere = torch.arange(config.tokens, device=device)

    def place(self, rotary: Tensor, count: int) -> tuple[Tensor, Visibility]:
        assert count == 1, count
        filled_T = self.everywhere <= self.at
        return rotary.index_select(0, self.at), Visibility(1, len(filled_T), filled_T[None, None, None])

    def extend(self, layer: int, k_BHNC: Tensor, v_BHNC: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.layers[layer]
        keys.index_copy_(2, self.at, k_BHNC.to(keys.dtype))
        values.index_copy_(2, self.at, v_BHNC.to(values.dtype))
        return keys, values

    def advance(self, count: int) -> None:
        self.length += count
        self.at += count
