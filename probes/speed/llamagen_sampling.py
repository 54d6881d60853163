"""Sampling computed the way LlamaGen's public ``generate`` computes it, as a yardstick.

The class first, then a token a call; keys and values lie in buffers of full length, and every step
attends over all of them through a mask, with attention written out (its code switches the fused kernels
off). Both halves of guidance are computed from their tokens on. It exists for ``star bench sample``.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from probes.speed.llamagen import Cached, LlamaGenTransformer
from star.model.transformer import Transformer

__all__ = ["LlamaGenSampler"]


class LlamaGenSampler:
    """Samples from a copy of ``model``, in its precision and on its device."""

    def __init__(self, model: Transformer) -> None:
        weight = model.output.weight
        self.config = model.config
        self.model = LlamaGenTransformer(model.config).eval()
        self.model.load_state_dict(model.state_dict())
        self.model.to(weight.device, weight.dtype)
        self.model.table = self.model.table.float()  # positions stay in float32, as theirs

    @torch.no_grad()
    def generate(self, labels_B: Tensor, *, cfg_scale: float, greedy: bool = False) -> Tensor:
        """(B, T) tokens; draws come from torch's global generator, as theirs do."""
        config, device = self.config, labels_B.device
        guided = cfg_scale > 1.0
        if guided:
            labels_B = torch.cat([labels_B, torch.full_like(labels_B, config.num_classes)])
        caches, visible_BTT = self._caches(len(labels_B))
        x_BND = self.model.cls_embedding.embedding_table(labels_B)[:, None]
        drawn = []
        for t in range(config.tokens):
            at_N = torch.tensor([t], device=device)
            logits_BV = self._step(x_BND, at_N, caches, visible_BTT)
            if guided:
                cond_BV, uncond_BV = logits_BV.chunk(2)
                logits_BV = uncond_BV + (cond_BV - uncond_BV) * cfg_scale
            probs_BV = logits_BV.softmax(-1)
            new_B1 = probs_BV.topk(1).indices if greedy else torch.multinomial(probs_BV, num_samples=1)
            drawn.append(new_B1.clone())
            x_BND = self.model.tok_embeddings(torch.cat([new_B1, new_B1]) if guided else new_B1)
        return torch.cat(drawn, dim=1)

    def _caches(self, batch: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Empty keys and values of every layer, and which position sees which."""
        config, weight = self.config, self.model.output.weight
        length = -8 * (-(config.tokens + 1) // 8)  # to a multiple of eight, as theirs
        shape = (batch, config.kv_heads or config.heads, length, config.head_dim)
        caches = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(config.layers)]
        visible_TT = torch.ones(length, length, dtype=torch.bool, device=weight.device).tril()
        return caches, visible_TT.repeat(batch, 1, 1)

    def _step(
        self,
        x_BND: Tensor,
        at_N: Tensor,
        caches: list[tuple[Tensor, Tensor]],
        visible_BTT: Tensor,
    ) -> Tensor:
        """Float32 logits (B, V) after the positions ``at_N``."""
        table_NF2, mask_B1NT = self.model.table[at_N], visible_BTT[:, None, at_N]
        with sdpa_kernel(SDPBackend.MATH):
            for block, (k_BKTC, v_BKTC) in zip(self.model.layers, caches, strict=True):
                x_BND = block(x_BND, table_NF2, Cached(k_BKTC, v_BKTC, at_N, mask_B1NT))
        logits: Tensor = self.model.output(self.model.norm(x_BND))
        return logits[:, -1].float()
