"""Causal attention with ST-AR's token mask (Eq. 3): one place that chooses how it is computed.

Two kernels give the same numbers: ``explicit`` (matmul, softmax, matmul) and ``fused`` (torch's
scaled_dot_product_attention). ``choose_kernel`` picks by device, dtype and length. The pattern for
pictures and measurements is always recomputed from queries and keys by ``attention_rows``, so that
capturing it works with either kernel and never changes the result.

Shapes: B batch, N query positions, S key positions, H heads, C channels of a head. Position 0 is the
class token; S = N except when decoding with a cache.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Visibility",
    "attend",
    "attention_rows",
    "choose_kernel",
    "missing_channels",
    "visibility",
]


@dataclass(frozen=True)
class Visibility:
    """Which of ``keys`` positions each of the last ``queries`` may read.

    ``mask`` is boolean (1 or B, 1, N, S), True where a key may be read; None where nothing but the
    future is hidden, which kernels can be told without a mask.
    """

    queries: int
    keys: int
    mask: Tensor | None = None

    def rows(self, device: torch.device) -> Tensor:
        """The mask, made if there is none."""
        if self.mask is not None:
            return self.mask
        full = torch.ones(self.queries, self.keys, dtype=torch.bool, device=device)
        return full.tril(self.keys - self.queries)[None, None]

    def without(self, cut_NS: Tensor) -> "Visibility":
        """The same, less the pairs marked in ``cut_NS``."""
        return replace(self, mask=self.rows(cut_NS.device) & ~cut_NS)


def visibility(
    positions: int, masked_BS: Tensor | None, mask_self: bool, device: torch.device, start: int = 0
) -> Visibility:
    """May query n (from ``start`` on) read key s? Causal, minus the masked tokens.

    ``masked_BS`` marks the masked positions of each sequence (the class, position 0, never is). A
    masked token is hidden from every query but its own position, or from that too with ``mask_self``.
    The mask is the same in all heads and layers, so hidden means hidden: no deeper layer can route
    around it through another position.
    """
    plain = Visibility(positions - start, positions)
    if masked_BS is None:
        # Kernels count the future from the first key, so several queries after others need a mask.
        between = start > 0 and plain.queries > 1
        return replace(plain, mask=plain.rows(device)) if between else plain
    allowed_BNS = ~masked_BS[:, None, :]
    if not mask_self:
        allowed_BNS = allowed_BNS | torch.eye(positions, dtype=torch.bool, device=device)[start:]
    return replace(plain, mask=plain.rows(device) & allowed_BNS[:, None])


def choose_kernel(device: torch.device, dtype: torch.dtype, keys: int) -> str:
    """``explicit`` or ``fused``, by measurement.

    On CPUs the fused kernel's half-precision backward is several times slower than plain matmuls at the
    lengths of image grids (64 to 576 tokens); in float32 the two are close and fused saves memory. On
    GPUs the backward pass of the fused kernels adds in any order, so deterministic runs do without.
    """
    if device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
        return "explicit"
    if device.type == "cpu" and dtype is not torch.float32 and keys <= 1024:
        return "explicit"
    return "fused"


def missing_channels(device: torch.device, dtype: torch.dtype, channels: int) -> int:
    """How many channels a head lacks for CUDA's fused kernels with a mask; 0 elsewhere.

    In half precision they take multiples of 8 (the 3B model has 100); with others torch would fall back
    on plain matmuls, and keep the whole pattern of every layer for the backward pass.
    """
    fits = device.type != "cuda" or dtype.itemsize != 2
    return 0 if fits else -channels % 8


def attend(q_BHNC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, visible: Visibility, kernel: str) -> Tensor:
    """(B, H, N, C) attention output over the keys that ``visible`` lets each query read."""
    if kernel == "fused":
        causal = visible.mask is None and visible.queries > 1
        channels = q_BHNC.shape[-1]
        more = missing_channels(q_BHNC.device, q_BHNC.dtype, channels)
        if not more:
            return F.scaled_dot_product_attention(
                q_BHNC, k_BHSC, v_BHSC, attn_mask=visible.mask, is_causal=causal
            )
        # Channels of zeros change neither the products nor the other channels of the output.
        q, k, v = (F.pad(x, (0, more)) for x in (q_BHNC, k_BHSC, v_BHSC))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible.mask, is_causal=causal, scale=channels**-0.5
        )
        return y[..., :channels]
    assert kernel == "explicit", kernel
    logits_BHNS = q_BHNC @ (k_BHSC.transpose(-1, -2) * q_BHNC.shape[-1] ** -0.5)
    if visible.mask is not None or visible.queries > 1:
        rows = visible.rows(q_BHNC.device)
        logits_BHNS = logits_BHNS + torch.zeros_like(rows, dtype=q_BHNC.dtype).masked_fill_(
            ~rows, float("-inf")
        )
    y_BHNC: Tensor = logits_BHNS.softmax(-1) @ v_BHSC
    return y_BHNC


def attention_rows(q_BHNC: Tensor, k_BHSC: Tensor, visible: Tensor) -> Tensor:
    """Softmax rows (B, H, N, S) in float32 from rotated queries and keys, whatever the kernel was.

    ``visible`` is a ``Visibility``'s ``rows``. Pass a subset of the queries (and the same rows of
    ``visible``) to get a few rows without the memory of the whole pattern.
    """
    scale = q_BHNC.shape[-1] ** -0.5
    with torch.autocast(q_BHNC.device.type, enabled=False):  # it would round the logits to half
        logits_BHNS: Tensor = q_BHNC.float() @ k_BHSC.float().transpose(-1, -2) * scale
    return logits_BHNS.masked_fill(~visible, float("-inf")).softmax(-1)
