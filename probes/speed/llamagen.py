"""The model and a plain AR training step computed the way LlamaGen's public code does, as a yardstick.

The same function as ``star.model.transformer`` (parameters have the same names, so weights load either
way) by other means: fused attention with ``is_causal``, rotary sums written out in float32, the norm as
separate operations, ``nn.Dropout``, an EMA updated tensor by tensor. Autocast, AdamW and clipping are
alike. It exists for ``star bench`` and nothing else (sampling: ``probes.speed.llamagen_sampling``).
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.base.device import autocast, resolve_precision
from star.base.randomness import torch_generator
from star.model.config import ModelConfig
from star.model.rotary import rotary_table
from star.model.transformer import build_model
from star.training.batches import TrainBatch
from star.training.config import TrainConfig

__all__ = ["Cached", "LlamaGenStep", "LlamaGenTransformer"]


@dataclass(frozen=True)
class Cached:
    """A layer's keys and values for all T positions, those that are computed, and what they may see."""

    k_BKTC: Tensor
    v_BKTC: Tensor
    at_N: Tensor
    mask_B1NT: Tensor


class _Norm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(torch.mean(y * y, dim=-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight


def _rotate(x_BNHC: Tensor, table_NF2: Tensor) -> Tensor:
    pairs = x_BNHC.float().reshape(*x_BNHC.shape[:-1], -1, 2)
    cos, sin = table_NF2[None, :, None, :, 0], table_NF2[None, :, None, :, 1]
    turned = torch.stack(
        [
            pairs[..., 0] * cos - pairs[..., 1] * sin,
            pairs[..., 1] * cos + pairs[..., 0] * sin,
        ],
        dim=-1,
    )
    return turned.flatten(3).type_as(x_BNHC)


class _Attention(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float):
        super().__init__()
        self.heads, self.channels = config.heads, config.head_dim
        self.kv_heads = config.kv_heads or config.heads
        out = (self.heads + 2 * self.kv_heads) * self.channels
        self.wqkv = nn.Linear(config.width, out, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, table_NF2: Tensor, cached: "Cached | None" = None) -> Tensor:
        batch, length, width = x_BND.shape
        sizes = [count * self.channels for count in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = self.wqkv(x_BND).split(sizes, dim=-1)
        q = _rotate(q.view(batch, length, self.heads, self.channels), table_NF2).transpose(1, 2)
        k = _rotate(k.view(batch, length, self.kv_heads, self.channels), table_NF2).transpose(1, 2)
        v = v.view(batch, length, self.kv_heads, self.channels).transpose(1, 2)
        mask = None
        if cached is not None:
            cached.k_BKTC[:, :, cached.at_N] = k
            cached.v_BKTC[:, :, cached.at_N] = v
            k, v, mask = cached.k_BKTC, cached.v_BKTC, cached.mask_B1NT
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.drop(self.wo(y.transpose(1, 2).contiguous().view(batch, length, width)))


class _FeedForward(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float):
        super().__init__()
        self.w1 = nn.Linear(config.width, config.ffn_width, bias=False)
        self.w3 = nn.Linear(config.width, config.ffn_width, bias=False)
        self.w2 = nn.Linear(config.ffn_width, config.width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.drop(self.w2(F.silu(self.w1(x_BND)) * self.w3(x_BND)))


class _Block(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float):
        super().__init__()
        self.attention = _Attention(config, dropout)
        self.feed_forward = _FeedForward(config, dropout)
        self.attention_norm = _Norm(config.width, config.norm_eps)
        self.ffn_norm = _Norm(config.width, config.norm_eps)

    def forward(self, x_BND: Tensor, table_NF2: Tensor, cached: "Cached | None" = None) -> Tensor:
        h = x_BND + self.attention(self.attention_norm(x_BND), table_NF2, cached)
        return h + self.feed_forward(self.ffn_norm(h))


class _ClassEmbedding(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.width)


class LlamaGenTransformer(nn.Module):
    """Logits (B, N, V) of tokens (B, n) and labels (B,); dropout in train mode."""

    table: Tensor

    def __init__(self, config: ModelConfig, dropout: float = 0.0):
        super().__init__()
        self.cls_embedding = _ClassEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(_Block(config, dropout) for _ in range(config.layers))
        self.norm = _Norm(config.width, config.norm_eps)
        self.output = nn.Linear(config.width, config.vocab_size, bias=False)
        self.drop = nn.Dropout(dropout)
        table = rotary_table(config.grid, config.head_dim, config.rope_base)
        self.register_buffer("table", table, persistent=False)

    def forward(self, tokens_Bn: Tensor, labels_B: Tensor) -> Tensor:
        classes = self.cls_embedding.embedding_table(labels_B)[:, None]
        x = self.drop(torch.cat([classes, self.tok_embeddings(tokens_Bn)], dim=1))
        for block in self.layers:
            x = block(x, self.table[: x.shape[1]])
        return self.output(self.norm(x)).float()


class LlamaGenStep:
    """One plain AR optimiser step on the sequences of a batch: forward, backward, clip, AdamW, EMA."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.precision = resolve_precision(config.precision, device)
        self.model = LlamaGenTransformer(config.model, config.dropout)
        start = build_model(config.model, torch_generator(config.seed, "init"))
        self.model.load_state_dict(start.state_dict())
        self.model.to(device)
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.lr, betas=(config.beta1, config.beta2), fused=True
        )

    def update(self, batch: TrainBatch) -> float:
        """Do one step; returns the loss."""
        config = self.config
        tokens_ST = batch.tokens_BMT.flatten(0, 1).to(self.device)
        labels_S = batch.labels(config.model.num_classes, "same").to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            logits_STV = self.model(tokens_ST[:, :-1], labels_S)
            loss = F.cross_entropy(logits_STV.flatten(0, 1), tokens_ST.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
        self.optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                decay = config.objective.ema_decay
                mine.mul_(decay).add_(theirs.detach(), alpha=1 - decay)
        return loss.item()
