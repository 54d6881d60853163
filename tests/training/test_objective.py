"""The objective as a whole: Eq. 8 from its parts, every open point selectable, gradients, teacher."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import SMALL, small_model
from reference import losses as reference

from star.base.errors import UserError
from star.model.config import ModelConfig
from star.training.batches import TrainBatch, draw_token_masks
from star.training.config import ObjectiveConfig, TrainConfig
from star.training.objective import compute_losses
from star.training.student import GlobalBatchNorm, Projector, Student
from star.training.teacher import Teacher

B, M, T, K = 4, 2, 9, 3


def make(config: ObjectiveConfig, seed: int = 0):
    """Student, teacher with other weights, and a batch."""
    rng = np.random.default_rng(seed)
    student = Student(small_model(seed=1), config)
    teacher = Teacher(small_model(seed=2), decay=0.9, warmup=False)
    batch = TrainBatch(
        tokens_BMT=torch.from_numpy(rng.integers(0, 11, (B, M, T))),
        labels_B=torch.from_numpy(rng.integers(0, 4, B)),
        dropped_BM=torch.from_numpy(rng.random((B, M)) < 0.5),
        masked_BMn=torch.from_numpy(
            draw_token_masks(B * M, T, config.mask_ratio, rng).reshape(B, M, T - 1)
        ),
        steps_K=torch.tensor([2, 5, 9]),
    )
    return student, teacher, batch


def config(**changes) -> ObjectiveConfig:
    return ObjectiveConfig(**{"contrast_steps": K, "contrast_layer": 2, **changes})


def hidden(model, batch, labels, masked, mask_self=False):
    """Last and contrast-layer outputs and logits, by a plain call of the model."""
    out = model(
        batch.tokens_BMT.flatten(0, 1)[:, :-1],
        labels,
        masked_Bn=masked,
        mask_self=mask_self,
        capture=("layers.2", "layers.3"),
    )
    return out.logits, out.captured["layers.2"], out.captured["layers.3"]


def student_labels(batch):
    labels = batch.labels_B[:, None].repeat(1, M)
    labels[batch.dropped_BM] = SMALL.num_classes
    return labels.flatten()


CASES = [
    {},
    {"mask_self": True},
    {"mask_ratio": 0.0},
    {"mask_ratio": 0.6},
    {"student_pass": "two"},
    {"mim_distance": "l2"},
    {"teacher_class": "always"},
    {"teacher_class": "never"},
    {"contrast_form": "ratio"},
    {"normalize": False},
    {"temperature": 1.0},
    {"reduction": "sum"},
    {"negatives": "local"},
    {"mim_weight": 0.3, "contrast_weight": 2.0},
    {"projector_layers": 1},
    {"projector_ratio": 2},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda c: "-".join(map(str, c.values())) or "default")
def test_the_total_is_eq_8_of_terms_computed_by_loops(changes):
    cfg = config(**changes)
    student, teacher, batch = make(cfg)
    total, terms = compute_losses(student, teacher, batch, cfg)

    labels, masked = student_labels(batch), batch.masked_BMn.flatten(0, 1)
    first_mask = None if cfg.student_pass == "two" else masked
    logits, middle, last = hidden(student.model, batch, labels, first_mask, cfg.mask_self)
    if cfg.student_pass == "two":
        last = hidden(student.model, batch, labels, masked, cfg.mask_self)[2]
    seen = {
        "same": labels,
        "always": batch.labels_B.repeat_interleave(M),
        "never": torch.full((B * M,), SMALL.num_classes),
    }[cfg.teacher_class]
    _, teacher_middle, teacher_last = hidden(teacher.model, batch, seen, None)

    tokens = batch.tokens_BMT.flatten(0, 1)
    expected = {"ar": reference.ar(logits.detach().double().numpy(), tokens.numpy())}
    if cfg.mim_distance == "l2":
        expected["mim"] = float((last - teacher_last).detach().square().mean())
    else:
        expected["mim"] = reference.mim(last.detach().double().numpy(), teacher_last.double().numpy())
    z = student.projector(middle[:, batch.steps_K - 1].flatten(0, 1)).detach()
    for kind in ("step", "view"):
        expected[f"{kind}_contrast"] = reference.contrast(
            z.view(B, M, K, -1).double().numpy(),
            teacher_middle[:, batch.steps_K - 1].view(B, M, K, -1).double().numpy(),
            kind=kind,
            temperature=cfg.temperature,
            form=cfg.contrast_form,
            normalize=cfg.normalize,
            reduction=cfg.reduction,
        )
    assert set(terms) == set(expected)
    for name, value in expected.items():
        # float32 forward passes against float64 loops over their outputs
        np.testing.assert_allclose(float(terms[name].detach()), value, rtol=5e-5, atol=1e-6)
    weighted = (
        expected["ar"]
        + cfg.mim_weight * expected["mim"]
        + cfg.contrast_weight / 2 * (expected["step_contrast"] + expected["view_contrast"])
    )
    np.testing.assert_allclose(float(total.detach()), weighted, rtol=5e-5)


def test_gradients_reach_the_student_and_its_projector_only():
    cfg = config()
    student, teacher, batch = make(cfg)
    total, _ = compute_losses(student, teacher, batch, cfg)
    total.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())


def test_a_term_of_weight_zero_is_not_computed():
    for changes, names in (
        ({"mim_weight": 0.0}, {"ar", "step_contrast", "view_contrast"}),
        ({"contrast_weight": 0.0}, {"ar", "mim"}),
    ):
        cfg = config(**changes)
        assert set(compute_losses(*make(cfg), cfg)[1]) == names


def test_the_baseline_is_plain_next_token_prediction():
    cfg = config().baseline()
    student, teacher, batch = make(cfg)
    assert student.projector is None
    teacher.features = None  # the baseline must not ask for it
    total, terms = compute_losses(student, teacher, batch, cfg)
    logits = student.model(batch.tokens_BMT.flatten(0, 1)[:, :-1], student_labels(batch)).logits
    expected = reference.ar(logits.detach().double().numpy(), batch.tokens_BMT.flatten(0, 1).numpy())
    assert set(terms) == {"ar"}
    np.testing.assert_allclose(float(total.detach()), expected, rtol=1e-5)


def test_contrast_layer_defaults():
    for layers, heads, width, expected in (
        (12, 12, 768, 6),
        (24, 16, 1024, 18),
        (36, 20, 1280, 18),
        (6, 4, 128, 3),
        (1, 1, 8, 1),
    ):
        model = ModelConfig(layers=layers, heads=heads, width=width)
        assert ObjectiveConfig().resolved_contrast_layer(model) == expected
    assert ObjectiveConfig(contrast_layer=2).resolved_contrast_layer(SMALL) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 1.0}, "mask ratio is 1.0; expected 0 <= ratio < 1"),
        ({"mask_ratio": -0.1}, "mask ratio"),
        ({"mask_ratio": float("nan")}, "mask ratio"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"views": 1}, "L_view needs at least 2 views"),
        ({"contrast_steps": 1}, "L_step needs at least 2 steps"),
        ({"teacher_class": "sometimes"}, "expected one of: same, always, never"),
        ({"contrast_form": "x"}, "infonce, ratio"),
        ({"ema_decay": 1.5}, "ema_decay"),
        ({"mim_weight": float("inf")}, "mim_weight"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ObjectiveConfig(**changes)


def test_more_steps_than_tokens_and_a_batch_of_one_are_refused():
    with pytest.raises(UserError, match="contrast_steps is 10; only 9 steps"):
        ObjectiveConfig(contrast_steps=10).check_model(SMALL)
    with pytest.raises(UserError, match="contrast_steps is 8; only 7 steps from min_step 3"):
        ObjectiveConfig(contrast_steps=8, min_step=3).check_model(SMALL)
    with pytest.raises(UserError, match="contrast_layer is 4; the model has layers 1 to 3"):
        ObjectiveConfig(contrast_layer=4).check_model(SMALL)
    with pytest.raises(UserError, match="batch_size is 1; .* negatives"):
        TrainConfig(batch_size=1)
    assert TrainConfig(batch_size=1, objective=ObjectiveConfig().baseline()).batch_size == 1


def test_batch_norm_equals_torchs_in_training_mode():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    ours, theirs = GlobalBatchNorm(6, affine=True), torch.nn.BatchNorm1d(6)
    for module in (ours, theirs):
        torch.nn.init.uniform_(module.weight, generator=torch.Generator().manual_seed(1))
        torch.nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(2))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(ours(a), theirs(b))
    ours(a).square().sum().backward()
    theirs(b).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_the_projector_has_the_papers_shape():
    names = [type(part).__name__ for part in Projector(8, 3, 4)]
    assert names == ["Linear", "GlobalBatchNorm", "ReLU"] * 2 + ["Linear", "GlobalBatchNorm"]
    linears = [part for part in Projector(8, 3, 4) if isinstance(part, torch.nn.Linear)]
    assert [tuple(part.weight.shape) for part in linears] == [(32, 8), (32, 32), (8, 32)]
    assert Projector(8, 3, 4)[-1].weight is None, "the last norm has no affine part"


@pytest.mark.parametrize("warmup", [False, True])
def test_the_teacher_follows_its_closed_form(warmup):
    model = small_model()
    teacher = Teacher(model, decay=0.7, warmup=warmup)
    history = [model.output.weight.detach().double().clone()]
    decays = []
    for n in range(6):
        model.output.weight.data.add_(torch.randn_like(model.output.weight))
        decays.append(min(0.7, (1 + n) / (10 + n)) if warmup else 0.7)
        teacher.update(model)
        history.append(model.output.weight.detach().double().clone())
    expected = history[0] * np.prod(decays)
    for n in range(6):
        expected = expected + (1 - decays[n]) * np.prod(decays[n + 1 :]) * history[n + 1]
    torch.testing.assert_close(teacher.model.output.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert teacher.updates == 6


def test_replaced_configs_stay_checked():
    with pytest.raises(UserError, match="mask ratio"):
        dataclasses.replace(ObjectiveConfig(), mask_ratio=2.0)
