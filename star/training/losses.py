"""The four losses of ST-AR as pure functions (Eqs. 2, 4, 6 and 7), computed in float32.

Shapes: B images of this process, G images of the global batch, M views, T steps, K sampled steps,
D width, S = B * M sequences.
"""

from typing import Literal, Required, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ContrastOptions", "ar_loss", "mim_loss", "step_loss", "view_loss"]


class ContrastOptions(TypedDict, total=False):
    """Options of both contrastive losses; see ``_contrast``."""

    temperature: Required[float]
    form: Literal["infonce", "ratio"]
    normalize: bool
    reduction: Literal["mean", "sum"]
    first_image: int


def ar_loss(nll_ST: Tensor) -> Tensor:
    """L_AR (Eq. 2): mean negative log-likelihood a token, in nats
    (``star.model.head.next_token_nll``).
    """
    return nll_ST.mean()


def mim_loss(
    student_STD: Tensor, teacher_STD: Tensor, distance: Literal["cosine", "l2"] = "cosine"
) -> Tensor:
    """L_MIM (Eq. 4): mean over steps of D(h, h^), D = 1 - cosine, or the squared L2 distance / D."""
    student, teacher = student_STD.float(), teacher_STD.detach().float()
    if distance == "l2":
        return F.mse_loss(student, teacher)
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


def step_loss(
    projected_BMKD: Tensor, teacher_GMKD: Tensor, **options: Unpack[ContrastOptions]
) -> Tensor:
    """L_step (Eq. 6): the positive is the teacher at another step of the same view.

    Negatives are the other images at the positive's view and step. Options: see ``_contrast``.
    """
    return _contrast(projected_BMKD, teacher_GMKD, **options)


def view_loss(
    projected_BMKD: Tensor, teacher_GMKD: Tensor, **options: Unpack[ContrastOptions]
) -> Tensor:
    """L_view (Eq. 7): the positive is the teacher at the same step of another view.

    Eq. 6 with the roles of views and steps exchanged. Options: see ``_contrast``.
    """
    return _contrast(projected_BMKD.transpose(1, 2), teacher_GMKD.transpose(1, 2), **options)


def _contrast(
    z_BXYD: Tensor,
    h_GXYD: Tensor,
    *,
    temperature: float,
    form: Literal["infonce", "ratio"] = "infonce",
    normalize: bool = True,
    reduction: Literal["mean", "sum"] = "mean",
    first_image: int = 0,
) -> Tensor:
    """Contrast along axis Y: (x, y) of the student against (x, y') of the teacher, y' != y.

    ``first_image`` is the place of this process's images in the global batch. ``infonce``: -log of
    the softmax over images; ``ratio``: minus that softmax, as printed. ``sum``: 1/B sum over b of the
    sum over all pairs, as printed; ``mean``: the mean over b and pairs.
    """
    z, h = z_BXYD.float(), h_GXYD.detach().float()
    if normalize:
        z, h = F.normalize(z, dim=-1), F.normalize(h, dim=-1)
    anchors_P, positives_P = _pairs(z.shape[2], z.device)
    # Autocast would do these products in bfloat16 and leave the loss three digits.
    with torch.autocast(z.device.type, enabled=False):
        similarity_XPBG = torch.einsum("bxpd,gxpd->xpbg", z[:, :, anchors_P], h[:, :, positives_P])
    logits_XPBG = similarity_XPBG / temperature
    own = torch.arange(z.shape[0], device=z.device) + first_image
    log_softmax = F.log_softmax(logits_XPBG, dim=-1)
    picked_XPB = log_softmax.gather(-1, own.expand(*logits_XPBG.shape[:2], -1)[..., None])[..., 0]
    losses_XPB = -picked_XPB if form == "infonce" else -picked_XPB.exp()
    return losses_XPB.mean() if reduction == "mean" else losses_XPB.sum() / z.shape[0]


def _pairs(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First and second place of every ordered pair of ``count`` places, made on the device."""
    number = torch.arange(count * (count - 1), device=device)
    first, second = number // (count - 1), number % (count - 1)
    return first, second + (second >= first)
