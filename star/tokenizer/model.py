"""The VQ tokenizer: image -> grid of codebook indices -> image.

A convolutional encoder halves the image between levels, a 1x1 convolution maps to the code dimension,
each vector is replaced by the codebook entry of largest cosine similarity, and a mirrored decoder draws
the image. The architecture and the state-dict keys are those of LlamaGen's VQ-16 and VQ-8 (Sun et al.
2024, arXiv 2406.06525; the code after VQGAN, Esser et al. 2021, and ViT-VQGAN for the normalised
codes), so that the published files load as they are.

Both sides are L2-normalised, so |z - e|^2 = 2 - 2 z.e and the nearest code is an argmax of a matmul.

Shape suffixes: B images, C channels, H W pixels, E code dimension, V codebook size, g grid (rows and
columns may differ), N = B g g vectors, T = g g positions.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from star.base.device import exact_float32
from star.base.errors import UserError
from star.base.meta import embedding
from star.base.record import Record
from star.images.views import to_model_range
from star.tokenizer.shape import GROUPS, PRESETS, VQConfig

__all__ = ["VQModel", "decode_tokens", "encode_images", "to_uint8"]

USAGE_WINDOW = 65536  # length of LlamaGen's buffer of recently used codes
INTEGER_TYPES = (torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64)
SIMILARITY_ELEMENTS = 2**24  # at most 64 MB of float32 similarities at a time


class VQModel(nn.Module):
    """Encoder, codebook and decoder. Images are float (B, 3, H, W) in [-1, 1], tokens int64 (B, g, g).

    ``model.quantize(z_BEgg)`` is the codebook itself: it returns the nearest codes and their indices.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.name = next((name for name, preset in PRESETS.items() if preset == config), "custom")
        self.card: Record = {}  # what the weights were trained on and how well they do, if known
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = _Codebook(config.codebook_size, config.codebook_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def encode_features(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Vectors (B, E, g, g) before quantisation and normalisation.

        Raises ``UserError`` unless the images are float (B, 3, H, W) with H and W multiples of the
        stride.
        """
        self._check_images(images_BCHW)
        images_BCHW = images_BCHW.to(self.quant_conv.weight.dtype)
        z_BEgg: torch.Tensor = self.quant_conv(self.encoder(images_BCHW))
        return z_BEgg

    @torch.no_grad()
    @exact_float32()
    def encode(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Indices (B, g, g) of the nearest codes, the same on every device but for the order of sums.

        Errors as ``encode_features``.
        """
        indices_Bgg: torch.Tensor = self.quantize(self.encode_features(images_BCHW))[1]
        return indices_Bgg

    def lookup(self, indices_Bgg: torch.Tensor) -> torch.Tensor:
        """Normalised codes (B, E, g, g) of indices of any integer type.

        Raises ``UserError`` on another shape or type and on an index outside the codebook.
        """
        self._check_indices(indices_Bgg)
        return self.quantize.lookup(indices_Bgg.long())

    def decode_codes(self, codes_BEgg: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) drawn from normalised codes, about [-1, 1], not clamped."""
        images_BCHW: torch.Tensor = self.decoder(self.post_quant_conv(codes_BEgg))
        return images_BCHW

    @exact_float32()
    def decode(self, indices_Bgg: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) of a grid of tokens, about [-1, 1], not clamped; errors as ``lookup``."""
        return self.decode_codes(self.lookup(indices_Bgg))

    @exact_float32()
    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Reconstruction of the images through their nearest codes."""
        codes_BEgg, _ = self.quantize(self.encode_features(images_BCHW))
        return self.decode_codes(codes_BEgg)

    def _check_images(self, images: torch.Tensor) -> None:
        if not isinstance(images, torch.Tensor) or not images.is_floating_point():
            kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
            raise UserError(f"images are {kind}; expected a float tensor with values in [-1, 1]")
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"images have shape {tuple(images.shape)}; expected (B, 3, H, W)")
        height, width = images.shape[2:]
        stride = self.config.stride
        if height % stride or width % stride or not height or not width:
            raise UserError(
                f"images are {height} x {width} pixels; this tokenizer needs multiples of {stride}"
            )

    def _check_indices(self, indices: torch.Tensor) -> None:
        if not isinstance(indices, torch.Tensor) or indices.dtype not in INTEGER_TYPES:
            kind = indices.dtype if isinstance(indices, torch.Tensor) else type(indices).__name__
            raise UserError(f"token indices are {kind}; expected an integer tensor")
        if indices.ndim != 3 or not indices.shape[1] or not indices.shape[2]:
            raise UserError(f"token indices have shape {tuple(indices.shape)}; expected (B, g, g)")
        if not indices.numel():
            return
        low, high = (int(value) for value in torch.aminmax(indices.long()))
        if low < 0 or high >= self.config.codebook_size:
            raise UserError(
                f"token indices run from {low} to {high}; the codebook has entries 0 to "
                f"{self.config.codebook_size - 1}"
            )


def to_uint8(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Pixels (B, H, W, 3) uint8 of images in [-1, 1]: 127.5 x + 128, clamped and truncated."""
    pixels_BHWC = images_BCHW.detach().float().permute(0, 2, 3, 1)
    return (127.5 * pixels_BHWC + 128.0).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def encode_images(tokenizer: VQModel, images_NHWC: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """(N, g, g) indices of uint8 images."""
    device = tokenizer.quant_conv.weight.device
    parts = [
        tokenizer.encode(to_model_range(images_NHWC[start : start + batch_size], device)).cpu().numpy()
        for start in range(0, len(images_NHWC), batch_size)
    ]
    return np.concatenate(parts)


@torch.no_grad()
def decode_tokens(tokenizer: VQModel, tokens_BT: torch.Tensor, grid: int) -> np.ndarray:
    """(B, H, W, 3) uint8 images of (B, T) token sequences in raster order."""
    device = tokenizer.quant_conv.weight.device
    images_BCHW = tokenizer.decode(tokens_BT.view(-1, grid, grid).to(device))
    return to_uint8(images_BCHW).cpu().numpy()


class _Codebook(nn.Module):
    """V codes of dimension E, compared and returned with L2 norm 1."""

    codebook_used: torch.Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        # Published files carry it; it is the window of codes seen last and changes no result.
        self.register_buffer("codebook_used", torch.zeros(USAGE_WINDOW))
        self.embedding = embedding(size, dim)

    def forward(self, z_BEgg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Nearest codes (B, E, g, g), with gradient to the codebook only, and indices (B, g, g)."""
        batch, dim, rows, columns = z_BEgg.shape
        z_NE = z_BEgg.detach().permute(0, 2, 3, 1).reshape(-1, dim)
        indices_Bgg = self.nearest(z_NE).view(batch, rows, columns)
        return self.lookup(indices_Bgg), indices_Bgg

    @torch.no_grad()
    def nearest(self, z_NE: torch.Tensor) -> torch.Tensor:
        """Index (N,) of the code with the largest cosine similarity to each vector."""
        # A rounded similarity would change tokens: float32 whatever the caller's autocast.
        with torch.autocast(z_NE.device.type, enabled=False):
            z_NE = F.normalize(z_NE.float(), dim=-1)
            codes_EV = F.normalize(self.embedding.weight.float(), dim=-1).t()
            rows = max(1, SIMILARITY_ELEMENTS // codes_EV.shape[1])
            parts = [(part_NE @ codes_EV).argmax(dim=-1) for part_NE in z_NE.split(rows)]
        return torch.cat(parts)

    def lookup(self, indices_Bgg: torch.Tensor) -> torch.Tensor:
        codes_BggE = F.normalize(self.embedding(indices_Bgg), dim=-1)
        # contiguous: see the note on strides in _Attention
        return codes_BggE.permute(0, 3, 1, 2).contiguous()


class _Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        inputs = [config.channels, *widths[:-1]]
        last = len(widths) - 1
        self.conv_blocks = nn.ModuleList(
            _Level(
                inputs[level],
                widths[level],
                blocks=config.encoder_blocks,
                attention=level == last,
                downsample=level != last,
            )
            for level in range(len(widths))
        )
        self.mid = _middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(hidden)
        for block in (*self.conv_blocks, *self.mid):
            hidden = block(hidden)
        out: torch.Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return out


class _Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.multipliers)]
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        inputs = [widths[0], *widths[:-1]]
        self.conv_blocks = nn.ModuleList(
            _Level(
                inputs[level],
                widths[level],
                blocks=config.decoder_blocks,
                attention=level == 0,
                upsample=level != len(widths) - 1,
            )
            for level in range(len(widths))
        )
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(hidden)
        for block in (*self.mid, *self.conv_blocks):
            hidden = block(hidden)
        out: torch.Tensor = self.conv_out(F.silu(self.norm_out(hidden)))
        return out


class _Level(nn.Module):
    """Residual blocks of one resolution, with attention at the lowest, then the change of size."""

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        blocks: int,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(_Residual(width if i else inputs, width) for i in range(blocks))
        self.attn = nn.ModuleList(_Attention(width) for _ in range(blocks if attention else 0))
        if downsample:
            self.downsample = _Downsample(width)
        if upsample:
            self.upsample = _Upsample(width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.res):
            hidden = block(hidden)
            if self.attn:
                hidden = self.attn[i](hidden)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                hidden = getattr(self, name)(hidden)
        return hidden


class _Residual(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1)
        self.norm2 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if inputs != width:
            self.nin_shortcut = nn.Conv2d(inputs, width, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        update = self.conv1(F.silu(self.norm1(hidden)))
        update = self.conv2(F.silu(self.norm2(update)))
        kept = self.nin_shortcut(hidden) if hasattr(self, "nin_shortcut") else hidden
        out: torch.Tensor = kept + update
        return out


class _Attention(nn.Module):
    """Single-head attention over all positions of the grid, as 1x1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, hidden_BCgg: torch.Tensor) -> torch.Tensor:
        normed_BCgg = self.norm(hidden_BCgg)
        q_B1TC, k_B1TC, v_B1TC = (
            projection(normed_BCgg).flatten(2).transpose(1, 2).unsqueeze(1)
            for projection in (self.q, self.k, self.v)
        )
        mixed_B1TC = F.scaled_dot_product_attention(q_B1TC, k_B1TC, v_B1TC)
        # Without the copy the strides are those of channels_last, which would spread to every layer
        # after this one; group norm's backward is 15 times slower there on a CPU.
        mixed_BCgg = mixed_B1TC.squeeze(1).mT.contiguous().view(hidden_BCgg.shape)
        update_BCgg: torch.Tensor = self.proj_out(mixed_BCgg)
        return hidden_BCgg + update_BCgg


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # padded on the right and below only
        halved: torch.Tensor = self.conv(F.pad(hidden, (0, 1, 0, 1)))
        return halved


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        doubled: torch.Tensor = self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return doubled


def _middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([_Residual(width, width), _Attention(width), _Residual(width, width)])


class _GroupNorm(nn.GroupNorm):
    """Group norm that also takes a single value a group (one image of one token)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.group_norm(hidden, self.num_groups, self.weight, self.bias, self.eps)


def _norm(width: int) -> nn.GroupNorm:
    return _GroupNorm(GROUPS, width, eps=1e-6)
