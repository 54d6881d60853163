"""2-D rotary position embedding, exactly as LlamaGen computes it.

The first half of each head's channel pairs rotates with the row index, the second half with the column
index; adjacent channels form a pair; everything in float32. The class token's row is all zeros
(cos = sin = 0), not the identity: its query and its key are zero, so its attention logit is 0 for every
query. It looks like a bug, and checkpoint parity needs it.

Shapes: B batch, N positions (class token first), H heads, C channels of a head, g grid.
"""

import torch
from torch import Tensor

__all__ = ["apply_rotary", "rotary_table"]


def rotary_table(grid: int, head_dim: int, base: float) -> Tensor:
    """(1 + g * g, C / 2, 2) table of (cos, sin); row 0 belongs to the class token and is zero."""
    frequencies = base ** (-torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2))
    angles_gf = torch.arange(grid, dtype=torch.float32)[:, None] * frequencies
    rows_ggf = angles_gf[:, None].expand(grid, grid, -1)
    columns_ggf = angles_gf[None].expand(grid, grid, -1)
    angles_TF = torch.cat([rows_ggf, columns_ggf], dim=-1).reshape(grid * grid, head_dim // 2)
    table_TF2 = torch.stack([angles_TF.cos(), angles_TF.sin()], dim=-1)
    return torch.cat([table_TF2.new_zeros(1, head_dim // 2, 2), table_TF2])


def apply_rotary(x_BNHC: Tensor, table_NF2: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of queries or keys in float32; returns the input's dtype.

    A pair is one complex number, so the rotation is one multiplication (several times faster on a CPU
    than the same sums written out).
    """
    if torch.compiler.is_compiling():
        # The compiler fuses the written-out sums but has no complex numbers.
        pairs = x_BNHC.float().unflatten(-1, (-1, 2))
        real, imaginary = pairs.unbind(-1)
        cos, sin = table_NF2.float()[:, None].unbind(-1)
        turned = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)
        return turned.flatten(-2).to(x_BNHC.dtype)
    pairs = torch.view_as_complex(x_BNHC.float().unflatten(-1, (-1, 2)))
    turn_N1F = torch.view_as_complex(table_NF2.float())[:, None]
    return torch.view_as_real(pairs * turn_N1F).flatten(-2).to(x_BNHC.dtype)
