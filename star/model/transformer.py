"""LlamaGen's class-conditional transformer over VQ tokens in raster order, open for dissection.

State-dict keys, numerics and sizes are those of the public LlamaGen code (RMSNorm in float32, SwiGLU,
2-D rotary positions with a zero row for the class token, no biases), so its checkpoints load as they
are. ``forward`` depends on its arguments alone: there is no train and eval mode, dropout, the token
mask and the cache are passed in, and capturing an activation never changes the result.

Shapes: B batch, n image tokens given, N = n + 1 positions (class first), T tokens of a whole image,
D width, H heads, C channels of a head, V codebook size. Position p predicts token p + 1.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from star.base.device import require_memory
from star.base.errors import UserError
from star.base.meta import embedding, give_memory
from star.model.attention import Visibility, attend, attention_rows, choose_kernel, visibility
from star.model.config import ModelConfig
from star.model.dropout import Dropout, drop
from star.model.head import next_token_nll
from star.model.kv_cache import KVCache
from star.model.rotary import apply_rotary, rotary_table

__all__ = ["Output", "Transformer", "build_model", "capture_names"]

ATTENTION_SITES = ("queries", "keys", "values", "attention")


@dataclass
class Output:
    """``logits`` (B, N, V) and ``nll`` (B, N), None if not asked for; captured activations by name."""

    logits: Tensor | None
    nll: Tensor | None = None
    captured: dict[str, Tensor] = field(default_factory=dict)


def capture_names(config: ModelConfig) -> list[str]:
    """Every name ``capture`` understands: ``embeddings``, ``layers.l``, ``layers.l.attention``, ...

    ``layers.l`` (l from 1 to L) is the output of block l, (B, N, D); its state-dict keys start with
    ``layers.{l-1}.``. ``layers.l.attention`` is (B, H, N, N); ``queries`` (after rotation) and
    ``values`` are (B, H, N, C), ``keys`` too (after rotation; keys and values repeated if heads are
    grouped).
    """
    names = ["embeddings"]
    for layer in range(1, config.layers + 1):
        names += [f"layers.{layer}", *(f"layers.{layer}.{site}" for site in ATTENTION_SITES)]
    return [*names, "norm"]


class RMSNorm(nn.Module):
    """Root-mean-square norm with float32 statistics."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), None, self.eps).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Multi-head causal attention with rotary positions and grouped keys and values."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.kv_heads = config.kv_heads or config.heads
        out = (config.heads + 2 * self.kv_heads) * config.head_dim
        self.wqkv = nn.Linear(config.width, out, bias=False)
        self.wo = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x_BND: Tensor, place: "Place") -> Tensor:
        heads, kv_heads = self.config.heads, self.kv_heads
        qkv = self.wqkv(x_BND).unflatten(-1, (heads + 2 * kv_heads, self.config.head_dim))
        qk_BNHC, v_BNHC = qkv.split([heads + kv_heads, kv_heads], dim=2)
        turned = apply_rotary(qk_BNHC, place.rotary).transpose(1, 2)
        (q, k), v = turned.split([heads, kv_heads], dim=1), v_BNHC.transpose(1, 2)
        if place.extend is not None:
            k, v = place.extend(k, v)
        if kv_heads != heads:
            k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        kernel = choose_kernel(q.device, q.dtype, k.shape[2])
        y_BHNC = attend(q, k, v, place.visible, kernel)
        for site in place.sites:
            some = place.capture_at is not None and site in ("attention", "queries")
            asked = q[:, :, place.capture_at] if some else q
            if site == "attention":
                rows = place.visible.rows(q.device)
                rows = rows[:, :, place.capture_at] if some else rows
                place.sites[site] = attention_rows(asked, k, rows)
            else:
                place.sites[site] = {"queries": asked, "keys": k, "values": v}[site]
        y_BND: Tensor = self.wo(y_BHNC.transpose(1, 2).flatten(2))
        return y_BND


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = nn.Linear(config.width, config.ffn_width, bias=False)
        self.w3 = nn.Linear(config.width, config.ffn_width, bias=False)
        self.w2 = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        y_BND: Tensor = self.w2(F.silu(self.w1(x_BND)) * self.w3(x_BND))
        return y_BND


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.ffn_norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, x_BND: Tensor, place: "Place") -> Tensor:
        attended = self.attention(self.attention_norm(x_BND), place)
        x_BND = x_BND + drop(attended, place.keep_attended, place.scale)
        expanded = self.feed_forward(self.ffn_norm(x_BND))
        return x_BND + drop(expanded, place.keep_expanded, place.scale)


class ClassEmbedding(nn.Module):
    """One row a class and, as a rule, a last row for the null class."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding_table = embedding(config.class_rows, config.width)

    def forward(self, labels_B: Tensor) -> Tensor:
        rows_BD: Tensor = self.embedding_table(labels_B)
        return rows_BD


@dataclass
class Place:
    """What one block is given beside its input; nothing says which block it is.

    All blocks therefore run the same program, and compiling it once serves every layer.
    """

    rotary: Tensor
    visible: Visibility
    keep_attended: Tensor | None = None
    keep_expanded: Tensor | None = None
    scale: float = 1.0
    extend: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    sites: dict[str, Tensor | None] = field(default_factory=dict)  # names wanted, to be filled
    capture_at: Tensor | None = None


@dataclass
class Context:
    """What one forward pass shares between its blocks, and what it captures."""

    rotary: Tensor
    visible: Visibility
    wanted: frozenset[str]
    dropout: Dropout | None
    cache: KVCache | None
    capture_at: Tensor | None = None
    cut: Mapping[int, Tensor] = field(default_factory=dict)
    captured: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, name: str, value_BND: Tensor) -> None:
        """Keep ``value_BND``, or the positions asked for, if it is wanted."""
        if name in self.wanted:
            self.captured[name] = (
                value_BND if self.capture_at is None else value_BND[:, self.capture_at]
            )

    def run(self, block: nn.Module, layer: int, x_BND: Tensor) -> Tensor:
        """Output of block ``layer`` (from 1)."""
        sites = [site for site in ATTENTION_SITES if f"layers.{layer}.{site}" in self.wanted]
        visible = self.visible.without(self.cut[layer]) if layer in self.cut else self.visible
        place = Place(self.rotary, visible, sites=dict.fromkeys(sites), capture_at=self.capture_at)
        if self.dropout is not None:
            place.keep_attended = self.dropout.keep(x_BND.shape, x_BND.device, layer, 0)
            place.keep_expanded = self.dropout.keep(x_BND.shape, x_BND.device, layer, 1)
            place.scale = self.dropout.scale
        if self.cache is not None:
            place.extend = partial(self.cache.extend, layer - 1)
        y_BND: Tensor = block(x_BND, place)
        for site, value in place.sites.items():
            assert value is not None, site
            self.captured[f"layers.{layer}.{site}"] = value
        return y_BND


class Transformer(nn.Module):
    """The model; build it with ``build_model`` or load it with ``star.load_model``."""

    rotary: Tensor  # (1 + T, C / 2, 2)

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.cls_embedding = ClassEmbedding(config)
        self.tok_embeddings = embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.output = nn.Linear(config.width, config.vocab_size, bias=False)
        self.register_buffer("rotary", self._rotary(), persistent=False)

    def _rotary(self) -> Tensor:
        if self.output.weight.is_meta:  # the shape alone, for the reason given in ``embedding``
            return torch.empty(1 + self.config.tokens, self.config.head_dim // 2, 2, device="meta")
        return rotary_table(self.config.grid, self.config.head_dim, self.config.rope_base)

    def initialize(self, generator: torch.Generator) -> None:
        """LlamaGen's initialisation: normal(0, 0.02), norms 1, output layer 0."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
            elif name == "output.weight":
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def forward(
        self,
        tokens_Bn: Tensor,
        labels_B: Tensor | None,
        *,
        capture: Iterable[str] = (),
        capture_at: Tensor | None = None,
        cut: Mapping[int, Tensor] | None = None,
        masked_Bn: Tensor | None = None,
        mask_self: bool = False,
        dropout: Dropout | None = None,
        cache: KVCache | None = None,
        with_logits: bool = True,
        targets_BN: Tensor | None = None,
        recompute: bool = False,
    ) -> Output:
        """Predict the next token at every position.

        tokens_Bn: (B, n) int64, the first n tokens of each image, 0 <= n <= T. labels_B: (B,) int64,
        ``num_classes`` is the null class, if the model has one. capture: names to return
        (``capture_names``). capture_at: (K,) positions (step t is position t - 1) to which outputs,
        queries and attention rows are restricted when captured, so that a few rows never cost the
        memory of the whole pattern; keys and values are always whole. cut: layer (1 to L) to (S, S)
        bool, S >= N: True where that layer's query (row) may not read a key (column) although it is
        visible, in all heads ("attention knockout", Geva et al. 2023); a position always reads itself.
        masked_Bn: True where an image token is hidden in attention (Eq. 3). cache: positions already
        decoded; with a non-empty cache the tokens continue it and labels_B is None. targets_BN: the
        token that follows each position; asks for its negative log-likelihood, which needs no logits to
        be kept. recompute: keep only the blocks' inputs for the backward pass and compute the rest
        again there (less memory, a third more work).

        Raises ``UserError`` for an unknown capture name, more than T tokens, or a cut of a layer that
        does not exist or of a position from itself.
        """
        wanted = self._check_capture(capture)
        start = cache.length if cache is not None else 0
        assert (labels_B is None) == (start > 0), "labels belong to position 0 and to it alone"
        x_BND = self.tok_embeddings(tokens_Bn)
        if start == 0:
            x_BND = torch.cat([self.cls_embedding(labels_B)[:, None], x_BND], dim=1)
        end = start + x_BND.shape[1]
        if end > self.config.tokens + 1:
            raise UserError(
                f"{end - 1} tokens were given; the model's grid {self.config.grid} x "
                f"{self.config.grid} holds {self.config.tokens}"
            )
        if cache is not None:
            assert masked_Bn is None, "no token is masked while decoding"
            rotary, visible = cache.place(self.rotary, x_BND.shape[1])
        else:
            masked_BN = None if masked_Bn is None else F.pad(masked_Bn, (1, 0), value=False)
            rotary, visible = self.rotary[:end], visibility(end, masked_BN, mask_self, x_BND.device)
        cut = self._check_cut(cut or {}, start, end)
        context = Context(rotary, visible, wanted, dropout, cache, capture_at, cut)
        if dropout is not None:
            x_BND = dropout(x_BND, 0, 0)
        context.offer("embeddings", x_BND)
        for layer, block in enumerate(self.layers, start=1):
            if recompute:
                # Dropout's masks are a function of their key, so no random state needs restoring.
                x_BND = checkpoint(
                    context.run, block, layer, x_BND, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_BND = context.run(block, layer, x_BND)
            context.offer(f"layers.{layer}", x_BND)
        if cache is not None:
            cache.advance(end - start)
        out = Output(None, captured=context.captured)
        if with_logits or targets_BN is not None or "norm" in wanted:
            normed_BND = self.norm(x_BND)
            context.offer("norm", normed_BND)
            if with_logits:
                out.logits = self.output(normed_BND)
            if targets_BN is not None:
                out.nll = next_token_nll(normed_BND, self.output.weight, targets_BN)
        return out

    def _check_capture(self, capture: Iterable[str]) -> frozenset[str]:
        wanted = frozenset([capture] if isinstance(capture, str) else capture)
        unknown = sorted(wanted - set(capture_names(self.config)))
        if unknown:
            raise UserError(f"no activation {unknown[0]!r}; {describe_capture(self.config)}")
        return wanted

    def _check_cut(self, cut: Mapping[int, Tensor], start: int, end: int) -> dict[int, Tensor]:
        """The rows and columns of each layer's cut that belong to this pass, on the model's device."""
        check_layers(self.config, list(cut))
        parts = {}
        for layer, cut_SS in cut.items():
            if cut_SS.dtype != torch.bool or cut_SS.ndim != 2 or min(cut_SS.shape) < end:
                raise UserError(
                    f"the cut of layer {layer} is {cut_SS.dtype} {tuple(cut_SS.shape)}; expected bool "
                    f"of at least ({end}, {end})".replace("torch.", "")
                )
            if cut_SS.diagonal().any():
                raise UserError(f"the cut of layer {layer} hides a position from itself")
            parts[layer] = cut_SS[start:end, :end].to(self.output.weight.device)
        return parts


def describe_capture(config: ModelConfig) -> str:
    """One line that lists the valid capture names."""
    last = config.layers
    sites = ", ".join(f"layers.l.{site}" for site in ATTENTION_SITES)
    return (
        f"valid names: embeddings, layers.l, {sites} for l = 1 to {last} "
        f"(layers.{last} is the output of state-dict block layers.{last - 1}), norm"
    )


def check_layers(config: ModelConfig, layers: Sequence[int]) -> None:
    """Raise ``UserError`` unless every layer number is between 1 and L."""
    for layer in layers:
        if not 1 <= layer <= config.layers:
            raise UserError(
                f"layer {layer} does not exist; the model has layers 1 to {config.layers} "
                f"(layers.{config.layers} is state-dict block layers.{config.layers - 1})"
            )


def build_model(
    config: ModelConfig, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Transformer:
    """A model on ``device``; initialised from ``generator``, or with memory to be loaded into.

    ``generator`` is the CPU's: weights are drawn there and then moved, so that a seed gives the same
    model on every device.
    """
    drawn_on = device if generator is None else "cpu"
    for place in (device, drawn_on):
        require_memory(f"a model of {config.parameters:,} parameters", 4 * config.parameters, place)
    with torch.device("meta"):
        model = Transformer(config)
    give_memory(model, drawn_on)
    model.rotary = model._rotary().to(drawn_on)
    if generator is not None:
        model.initialize(generator)
    return model.to(device)
