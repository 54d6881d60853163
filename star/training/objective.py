"""The ST-AR objective: L = L_AR + alpha L_MIM + beta/2 (L_step + L_view), Eq. 8.

One masked student pass gives all terms (or, with ``student_pass="two"``, L_MIM alone while an unmasked
pass gives the others); one teacher pass without mask gives the targets. A term of weight 0 costs
nothing. Nothing here calls backward.

Shapes: B images of this process, M views, T tokens, K sampled steps, S = B * M sequences, D width.
"""

from torch import Tensor, nn

from star.model.dropout import Dropout
from star.parallel.processes import gather_images, rank
from star.training.batches import TrainBatch
from star.training.config import ObjectiveConfig
from star.training.losses import ContrastOptions, ar_loss, mim_loss, step_loss, view_loss
from star.training.student import StudentOutput
from star.training.teacher import Teacher

__all__ = ["compute_losses"]


def compute_losses(
    student: nn.Module,
    teacher: Teacher,
    batch: TrainBatch,
    config: ObjectiveConfig,
    dropout: Dropout | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss and the unweighted terms ``ar``, ``mim``, ``step_contrast``, ``view_contrast``.

    ``student`` may be wrapped (DDP); gradients reach the student and its projector only.
    """
    model = teacher.model.config
    tokens_ST = batch.tokens_BMT.flatten(0, 1)
    inputs_Sn = tokens_ST[:, :-1]
    masked_Sn = batch.masked_BMn.flatten(0, 1) if config.mask_ratio else None
    steps_K = batch.steps_K if config.contrast_weight else None
    labels_S = batch.labels(model.num_classes, "same")
    wants_last = bool(config.mim_weight)

    def run(
        masked: Tensor | None, targets: Tensor | None, last: bool, steps: Tensor | None
    ) -> StudentOutput:
        output: StudentOutput = student(
            inputs_Sn,
            labels_S,
            masked_Sn=masked,
            dropout=dropout,
            targets_ST=targets,
            last=last,
            steps_K=steps,
        )
        return output

    if config.student_pass == "one" or not wants_last:
        out = masked_out = run(masked_Sn, tokens_ST, wants_last, steps_K)
    else:
        out, masked_out = run(None, tokens_ST, False, steps_K), run(masked_Sn, None, True, None)

    assert out.nll is not None  # its targets were given; below, what else was asked for
    terms = {"ar": ar_loss(out.nll)}
    total = terms["ar"]
    if not config.uses_teacher:
        return total, terms

    contrast_layer = config.resolved_contrast_layer(model)
    layers = {model.layers} if config.mim_weight else set()
    layers |= {contrast_layer} if config.contrast_weight else set()
    targets = teacher.features(inputs_Sn, batch.labels(model.num_classes, config.teacher_class), layers)
    if config.mim_weight:
        assert masked_out.last is not None
        terms["mim"] = mim_loss(masked_out.last, targets[model.layers], config.mim_distance)
        total = total + config.mim_weight * terms["mim"]
    if config.contrast_weight:
        assert out.projected is not None
        targets_SKD = targets[contrast_layer][:, batch.steps_K - 1]
        terms |= _contrastive_terms(out.projected, targets_SKD, batch, config)
        total = total + config.contrast_weight / 2 * (terms["step_contrast"] + terms["view_contrast"])
    return total, terms


def _contrastive_terms(
    projected_SKD: Tensor, targets_SKD: Tensor, batch: TrainBatch, config: ObjectiveConfig
) -> dict[str, Tensor]:
    images, views = batch.tokens_BMT.shape[:2]
    projected_BMKD = projected_SKD.unflatten(0, (images, views))
    targets_BMKD = targets_SKD.unflatten(0, (images, views))
    everywhere = config.negatives == "global"
    options: ContrastOptions = {
        "temperature": config.temperature,
        "form": config.contrast_form,
        "normalize": config.normalize,
        "reduction": config.reduction,
        "first_image": rank() * images if everywhere else 0,
    }
    targets_GMKD = gather_images(targets_BMKD) if everywhere else targets_BMKD
    return {
        "step_contrast": step_loss(projected_BMKD, targets_GMKD, **options),
        "view_contrast": view_loss(projected_BMKD, targets_GMKD, **options),
    }
