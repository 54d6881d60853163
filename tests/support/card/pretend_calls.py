"""What the pretended device does with whole Python functions, where its C++ would be another branch.

Autocast's lists are those of torch's ``autocast_mode.h`` for CUDA, by the names of Python's functions;
attention and group norm are taken apart as torch does for CPU tensors.
"""

import math

import torch
from pretend_rules import flat
from torch import Tensor
from torch._prims_common import suggest_memory_format

__all__ = ["attention", "autocast", "group_norm"]

HALF = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "addbmm",
    "baddbmm", "addr", "einsum", "prelu", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "scaled_dot_product_attention",
}  # fmt: skip
FLOAT32 = {
    "softmax", "log_softmax", "softmin", "layer_norm", "group_norm", "norm", "vector_norm",
    "matrix_norm", "sum", "prod", "cumsum", "cumprod", "exp", "expm1", "log", "log2", "log10", "log1p",
    "pow", "__pow__", "__rpow__", "rsqrt", "reciprocal", "sinh", "cosh", "tan", "acos", "asin",
    "erfinv", "softplus", "dist", "renorm", "logsumexp", "cdist", "pdist", "nll_loss", "cross_entropy",
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "cosine_similarity",
    "cosine_embedding_loss", "soft_margin_loss", "poisson_nll_loss", "binary_cross_entropy_with_logits",
}  # fmt: skip
WIDEST = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sample", "index_put", "tensordot",
    "scatter_add", "cat", "stack",
}  # fmt: skip


def autocast(name: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments of the function ``name`` as autocast on the card hands them on."""
    if name in HALF:
        dtype = torch.get_autocast_dtype("cuda")
    elif (name in FLOAT32 and kwargs.get("dtype") is None) or name in WIDEST:
        dtype = torch.float32
    else:
        return args, kwargs

    def cast(value):
        if isinstance(value, (list, tuple)):
            return type(value)(map(cast, value))
        if not isinstance(value, Tensor) or not (value.is_cuda and value.is_floating_point()):
            return value
        return value if value.dtype == torch.float64 else value.to(dtype)

    if name in WIDEST and torch.float32 not in {t.dtype for t in flat([*args, *kwargs.values()])}:
        return args, kwargs
    return cast(args), {key: cast(value) for key, value in kwargs.items()}


def attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
) -> Tensor:
    """``scaled_dot_product_attention`` by the kernel that CPU tensors would get."""
    below = [getattr(t, "wrapped", t) for t in (query, key, value, attn_mask)]
    options = {"scale": scale, "enable_gqa": enable_gqa}
    choice = torch._fused_sdp_choice(*below, dropout_p, is_causal, **options)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        hidden = attn_mask.logical_not()
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(hidden, -math.inf)
    if choice == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, **options
    )[0]


def group_norm(
    x: Tensor, num_groups: int, weight=None, bias=None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Tensor:
    """``group_norm`` in the memory format of ``x``, which older releases keep for CPU tensors alone."""
    x = x.contiguous(memory_format=suggest_memory_format(x))
    batch, channels = x.shape[:2]
    sizes = batch, channels, x[0, 0].numel(), num_groups
    return torch.native_group_norm(x, weight, bias, *sizes, eps)[0]
