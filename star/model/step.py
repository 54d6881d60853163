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

# oneDNN's products with weights that it has packed beat torch's own from some size on: at 2 rows the
# 768 x 2304 of B take a fourth of the time, at 16 rows a half; the 128 x 384 of tiny take no less.
PACKED_FROM = 2**17  # weights of a matrix
PACKED_BYTES = 2**32  # of all copies: beyond them a model is sampled from its own weights
# Products of so few rows are bound by reading the weights, and wide ones read them faster by columns.
FEW_ROWS = 4


class SingleSteps:
    """``decode(new_Bn, labels_B)`` -> logits (B, V): labels and no token first, then a token a call."""

    def __init__(self, model: Transformer, batch: int) -> None:
        config = model.config
        heads, channels = config.heads, config.head_dim
        kv_heads = config.kv_heads or heads
        self.model, self.length = model, 0
        packs = _packs(model)
        self.blocks = [_Arranged(b, batch, packs) for b in model.layers if isinstance(b, Block)]
        self.output = _Product(model.output.weight, batch, packs)
        # The scale of the logits goes into the queries' turn; values are not turned.
        turn_TF = torch.view_as_complex(model.rotary.float())
        self.turn_q_TF = turn_TF * channels**-0.5
        self.turn_kv_T2F = torch.stack([turn_TF, torch.ones_like(turn_TF)], dim=1)
        self.kv_L2BKTC = torch.empty(config.layers, 2, batch, kv_heads, config.tokens, channels)
        self.normed_BD = torch.empty(batch, config.width)
        self.eps_B11 = torch.full((batch, 1, 1), config.norm_eps)
        self.scale_B11 = torch.empty(batch, 1, 1)
        self.qkv_shape = (batch, heads + 2 * kv_heads, channels // 2, 2)
        self.q_BKGC = torch.empty(batch * kv_heads, heads // kv_heads, channels)
        self.q_out_BHF = torch.view_as_complex(self.q_BKGC.view(batch, heads, channels // 2, 2))
        self.y_BKGC = torch.empty_like(self.q_BKGC)

    @torch.no_grad()
    def __call__(self, new_Bn: Tensor, labels_B: Tensor | None) -> Tensor:
        assert new_Bn.shape[1] == (labels_B is None), new_Bn.shape
        if labels_B is None:
            x_BD = self.model.tok_embeddings(new_Bn[:, 0])
        else:
            x_BD = self.model.cls_embedding(labels_B)
        for block, kv_2BKTC in zip(self.blocks, self.kv_L2BKTC, strict=True):
            y_BD = self._attend(block.qkv(self._norm(x_BD, block.norm)), kv_2BKTC)
            block.out.add_to(x_BD, y_BD)
            normed_BD = self._norm(x_BD, block.ffn_norm)
            gate_BE = F.silu(block.gate(normed_BD), inplace=True)
            block.down.add_to(x_BD, gate_BE.mul_(block.up(normed_BD)))
        self.length += 1
        return self.output(self._norm(x_BD, self.model.norm)).clone()

    def _norm(self, x_BD: Tensor, norm: RMSNorm) -> Tensor:
        """Root-mean-square norm; the sum of squares is a row times itself."""
        squares = (x_BD[:, None], x_BD[:, :, None])
        torch.baddbmm(self.eps_B11, *squares, alpha=1 / x_BD.shape[1], out=self.scale_B11)
        torch.mul(x_BD, self.scale_B11.rsqrt_()[:, 0], out=self.normed_BD)
        return self.normed_BD.mul_(norm.weight)

    def _attend(self, qkv_BA: Tensor, kv_2BKTC: Tensor) -> Tensor:
        """(B, D): turn what ``qkv_BA`` holds, keep keys and values, read all so far."""
        t, heads = self.length, self.q_out_BHF.shape[1]
        pairs = torch.view_as_complex(qkv_BA.view(self.qkv_shape))
        kv_in_2BKF = pairs[:, heads:].unflatten(1, (2, -1)).transpose(0, 1)
        pairs_2BKTF = torch.view_as_complex(kv_2BKTC.unflatten(-1, (-1, 2)))
        turn_2F = self.turn_kv_T2F[t][:, None, None]
        torch.mul(kv_in_2BKF, turn_2F, out=pairs_2BKTF[:, :, :, t])
        torch.mul(pairs[:, :heads], self.turn_q_TF[t], out=self.q_out_BHF)
        k_XTC, v_XTC = kv_2BKTC.flatten(1, 2)[:, :, : t + 1]
        rows_XGT = torch.bmm(self.q_BKGC, k_XTC.transpose(1, 2)).softmax(-1)
        return torch.bmm(rows_XGT, v_XTC, out=self.y_BKGC).view(len(qkv_BA), -1)


class _Arranged:
    """Weights of a block, ready for products."""

    def __init__(self, block: Block, rows: int, packs: bool) -> None:
        self.norm, self.ffn_norm = block.attention_norm, block.ffn_norm
        self.qkv = _Product(block.attention.wqkv.weight, rows, packs)
        self.out = _Product(block.attention.wo.weight, rows, packs)
        self.gate = _Product(block.feed_forward.w1.weight, rows, packs)
        self.up = _Product(block.feed_forward.w3.weight, rows, packs)
        self.down = _Product(block.feed_forward.w2.weight, rows, packs)


class _Product:
    """``x_BD`` times the transpose of a weight, by the means that is fastest for its size.

    The next call may overwrite the result of this one.
    """

    def __init__(self, weight_ND: Tensor, rows: int, packs: bool) -> None:
        weight_ND = weight_ND.detach()
        self.packed: Tensor | None = None
        if packs and weight_ND.numel() >= PACKED_FROM:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_ND, rows)
            return
        wide = weight_ND.shape[0] > weight_ND.shape[1]
        self.weight_DN = weight_ND.t().contiguous() if wide and rows <= FEW_ROWS else weight_ND.t()
        self.result_BN = weight_ND.new_empty(rows, len(weight_ND))

    def __call__(self, x_BD: Tensor) -> Tensor:
        if self.packed is not None:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x_BD, self.packed, None, "none", [], "")
            return result
        return torch.mm(x_BD, self.weight_DN, out=self.result_BN)

    def add_to(self, sum_BN: Tensor, x_BD: Tensor) -> None:
        """Add the product to ``sum_BN``."""
        if self.packed is None:
            sum_BN.addmm_(x_BD, self.weight_DN)
        else:
            sum_BN.add_(self(x_BD))


def _packs(model: Transformer) -> bool:
    """Whether oneDNN is there and copies of all weights stay below ``PACKED_BYTES``."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and sum(4 * p.numel() for p in model.parameters()) <= PACKED_BYTES
