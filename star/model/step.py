"""One position after another on a CPU in float32: the model's formulas with little around them.

A token of a small model is some hundred operations of a few microseconds each, and starting them takes
longer than computing them. So buffers are made once, results go where they are needed (``out=``), the
rotation writes keys and values into the cache, and attention is two products over what is filled.
``Transformer.forward`` is the definition; sums are in another order and may differ in the last bits.

Shapes: B sequences, D width, H heads, K key-value heads, G = H / K, C channels of a head, T tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from star.model.transformer import Block, RMSNorm, Transformer

__all__ = ["SingleSteps"]

# Products of so few rows are bound by reading the weights. Wide ones read them faster by columns: the
# 768 x 4096 of B take half the time at 2 rows, and a tenth more at 8.
FEW_ROWS = 4


class SingleSteps:
    """``decode(new_Bn, labels_B)`` -> logits (B, V): labels and no token first, then a token a call."""

    def __init__(self, model: Transformer, batch: int) -> None:
        config = model.config
        heads, channels = config.heads, config.head_dim
        kv_heads = config.kv_heads or heads
        self.model, self.length = model, 0
        self.blocks = [_Arranged(block, batch) for block in model.layers if isinstance(block, Block)]
        self.output_DV = _columns(model.output.weight, batch)
        # The scale of the logits goes into the queries' turn; values are not turned.
        turn_TF = torch.view_as_complex(model.rotary.float())
        self.turn_q_TF = turn_TF * channels**-0.5
        self.turn_kv_T2F = torch.stack([turn_TF, torch.ones_like(turn_TF)], dim=1)
        self.kv_L2BKTC = torch.empty(config.layers, 2, batch, kv_heads, config.tokens, channels)
        self.normed_BD = torch.empty(batch, config.width)
        self.eps_B11 = torch.full((batch, 1, 1), config.norm_eps)
        self.scale_B11 = torch.empty(batch, 1, 1)
        qkv_BA = torch.empty(batch, (heads + 2 * kv_heads) * channels)
        pairs = torch.view_as_complex(qkv_BA.view(batch, heads + 2 * kv_heads, channels // 2, 2))
        self.qkv_BA, self.q_in_BHF = qkv_BA, pairs[:, :heads]
        self.kv_in_2BKF = pairs[:, heads:].unflatten(1, (2, kv_heads)).transpose(0, 1)
        self.q_BKGC = torch.empty(batch * kv_heads, heads // kv_heads, channels)
        self.q_out_BHF = torch.view_as_complex(self.q_BKGC.view(batch, heads, channels // 2, 2))
        self.y_BKGC = torch.empty_like(self.q_BKGC)
        self.gate_BE = torch.empty(batch, config.ffn_width)
        self.up_BE = torch.empty(batch, config.ffn_width)

    @torch.no_grad()
    def __call__(self, new_Bn: Tensor, labels_B: Tensor | None) -> Tensor:
        assert new_Bn.shape[1] == (labels_B is None), new_Bn.shape
        if labels_B is None:
            x_BD = self.model.tok_embeddings(new_Bn[:, 0])
        else:
            x_BD = self.model.cls_embedding(labels_B)
        for block, kv_2BKTC in zip(self.blocks, self.kv_L2BKTC, strict=True):
            y_BD = self._attend(
                torch.mm(self._norm(x_BD, block.norm), block.qkv, out=self.qkv_BA), kv_2BKTC
            )
            x_BD.addmm_(y_BD, block.out)
            normed_BD = self._norm(x_BD, block.ffn_norm)
            gate_BE = F.silu(torch.mm(normed_BD, block.gate, out=self.gate_BE), inplace=True)
            gate_BE.mul_(torch.mm(normed_BD, block.up, out=self.up_BE))
            x_BD.addmm_(gate_BE, block.down)
        self.length += 1
        return torch.mm(self._norm(x_BD, self.model.norm), self.output_DV)

    def _norm(self, x_BD: Tensor, norm: RMSNorm) -> Tensor:
        """Root-mean-square norm; the sum of squares is a row times itself."""
        squares = (x_BD[:, None], x_BD[:, :, None])
        torch.baddbmm(self.eps_B11, *squares, alpha=1 / x_BD.shape[1], out=self.scale_B11)
        torch.mul(x_BD, self.scale_B11.rsqrt_()[:, 0], out=self.normed_BD)
        return self.normed_BD.mul_(norm.weight)

    def _attend(self, qkv_BA: Tensor, kv_2BKTC: Tensor) -> Tensor:
        """(B, D): turn what ``qkv_BA`` holds, keep keys and values, read all so far."""
        t = self.length
        pairs_2BKTF = torch.view_as_complex(kv_2BKTC.unflatten(-1, (-1, 2)))
        turn_2F = self.turn_kv_T2F[t][:, None, None]
        torch.mul(self.kv_in_2BKF, turn_2F, out=pairs_2BKTF[:, :, :, t])
        torch.mul(self.q_in_BHF, self.turn_q_TF[t], out=self.q_out_BHF)
        k_XTC, v_XTC = kv_2BKTC.flatten(1, 2)[:, :, : t + 1]
        rows_XGT = torch.bmm(self.q_BKGC, k_XTC.transpose(1, 2)).softmax(-1)
        return torch.bmm(rows_XGT, v_XTC, out=self.y_BKGC).view(len(qkv_BA), -1)


class _Arranged:
    """Weights of a block as right-hand sides of products."""

    def __init__(self, block: Block, rows: int) -> None:
        self.norm, self.ffn_norm = block.attention_norm, block.ffn_norm
        self.qkv = _columns(block.attention.wqkv.weight, rows)
        self.out = _columns(block.attention.wo.weight, rows)
        self.gate = _columns(block.feed_forward.w1.weight, rows)
        self.up = _columns(block.feed_forward.w3.weight, rows)
        self.down = _columns(block.feed_forward.w2.weight, rows)


def _columns(weight: Tensor, rows: int) -> Tensor:
    """The transpose, copied where that makes products of so many rows faster."""
    wide = weight.shape[0] > weight.shape[1]
    return weight.detach().t().contiguous() if wide and rows <= FEW_ROWS else weight.detach().t()
