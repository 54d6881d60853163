"""Attribution against slow references: path integrals by loops, direct occlusion, known answers."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import SMALL, fake_store, small_model

from probes.attention.maps import attention_at_steps
from probes.attribution.methods import (
    METHODS,
    AttributionConfig,
    attribute,
    attribute_embedded,
    occlusion_groups,
    one_input,
)
from probes.attribution.probe import StepProbe, fit_step_probe
from probes.attribution.quality import (
    attention_agreement,
    attribution_infidelity,
    attribution_sensitivity,
    spearman,
)
from probes.attribution.scores import StepScores
from probes.attribution.study import (
    Explained,
    attribution_study,
    check_attention_layers,
)
from probes.linear.splits import probe_splits
from probes.reading.features import step_features
from probes.reading.images import spread_images
from probes.stats.intervals import mean_interval, wilson_interval
from star.base.errors import UserError
from star.base.randomness import torch_generator
from star.training.checkpoint import Loaded

STEP, LABEL = 7, 2
TOKENS = torch.tensor([3, 0, 7, 7, 10, 1, 5, 2, 4])
TRUE = int(TOKENS[STEP - 1])
CONFIG = AttributionConfig()


def loud_model():
    """Embeddings of spread 0.4, as a trained model's; at the initial 0.02 RMSNorm's eps rules."""
    model = small_model()
    for table in (model.tok_embeddings, model.cls_embedding.embedding_table):
        table.weight.data.mul_(20)
    for block in model.layers:  # at the initial 0.02 no token would matter but the newest
        for linear in (block.attention.wqkv, block.attention.wo, block.feed_forward.w2):
            linear.weight.data.mul_(10)
    return model.requires_grad_(False)


def score_of(model, tokens_BnD, class_BD, index=TRUE, kind="logprob"):
    """Reference: the original model, its embeddings replaced through hooks."""
    hooks = [
        model.tok_embeddings.register_forward_hook(lambda *_: tokens_BnD),
        model.cls_embedding.register_forward_hook(lambda *_: class_BD),
    ]
    try:
        batch, seen = tokens_BnD.shape[:2]
        zeros = torch.zeros(batch, seen, dtype=torch.long)
        logits = model(zeros, zeros[:, 0]).logits[:, -1]
    finally:
        for hook in hooks:
            hook.remove()
    return (logits.log_softmax(-1) if kind == "logprob" else logits)[:, index]


def embeddings(model, label=LABEL):
    """Input and baseline, written out: (tokens, class) each."""
    tokens, classes = model.tok_embeddings.weight, model.cls_embedding.embedding_table.weight
    null = SMALL.num_classes
    nothing = classes[null] if label != null else classes[:null].mean(0)
    seen = STEP - 1
    return (
        (tokens[TOKENS[:seen]][None], classes[label][None]),
        (tokens.mean(0).expand(1, seen, -1), nothing[None]),
    )


def flat_model():
    """Blocks that add nothing: the hidden state at position t - 1 is the embedding of token t - 1."""
    model = loud_model()
    for block in model.layers:
        block.attention.wo.weight.data.zero_()
        block.feed_forward.w2.weight.data.zero_()
    return model


def fixed_probe(layer=2):
    rng = torch.Generator().manual_seed(3)
    return StepProbe(
        weight=torch.randn(16, 4, generator=rng), bias=torch.randn(4, generator=rng), layer=layer,
        step=STEP, penalty=0.1, accuracy=0.5, low=0.4, high=0.6, chance=0.25, counts={"train": 1},
    )  # fmt: skip


@pytest.mark.parametrize("label", [LABEL, SMALL.num_classes])
@pytest.mark.parametrize("kind", ["logprob", "logit"])
def test_integrated_gradients_are_the_path_integral(kind, label):
    model = loud_model()
    (found, *_) = attribute(StepScores(model, STEP, kind), TOKENS, label, TRUE, CONFIG)
    (tokens, classes), (tokens_0, classes_0) = embeddings(model, label)
    points = 2000
    sums_n, sum_class = torch.zeros(STEP - 1), torch.zeros(1)
    for block in torch.arange(points).split(200):
        share = ((block + 0.5) / points)[:, None]
        at_tokens = (tokens_0 + share[..., None] * (tokens - tokens_0)).requires_grad_()
        at_class = (classes_0 + share * (classes - classes_0)).requires_grad_()
        score = score_of(model, at_tokens, at_class, kind=kind).sum()
        by_tokens, by_class = torch.autograd.grad(score, (at_tokens, at_class))
        sums_n += (by_tokens.sum(0) * (tokens - tokens_0)[0]).sum(-1) / points
        sum_class += (by_class.sum(0) * (classes - classes_0)[0]).sum() / points
    # The midpoint rule's error falls with 1/points^2 and float32 sums err by about 1e-5 of the largest
    # contribution, which is about 1; a wrong baseline, sign or position moves them by 0.01 and more.
    np.testing.assert_allclose(found.tokens[: STEP - 1], sums_n, atol=2e-4)
    assert found.class_value == pytest.approx(float(sum_class), abs=2e-4)
    assert np.abs(found.tokens).max() > 0.1 and abs(found.class_value) > 0.001
    expected = score_of(model, tokens, classes, kind=kind)
    expected = expected - score_of(model, tokens_0, classes_0, kind=kind)
    assert found.difference == pytest.approx(float(expected), abs=1e-5), "one float32 forward pass"


def test_the_layers_and_the_embeddings_give_the_same_integral():
    scores = StepScores(loud_model(), STEP)
    (found, *_) = attribute(scores, TOKENS, LABEL, TRUE, CONFIG)
    indices = one_input(scores, TOKENS, LABEL)
    inputs, nothing = scores.embed(*indices), scores.embed(*scores.baselines(*indices))
    tokens, classes = attribute_embedded("integrated_gradients", scores, inputs, nothing, TRUE, CONFIG)
    # the same points and weights; only the order of float32 sums differs
    np.testing.assert_allclose(found.tokens[: STEP - 1], tokens[0], atol=1e-5)
    assert found.class_value == pytest.approx(float(classes[0]), abs=1e-5)


def test_the_completeness_gap_falls_with_the_points_and_not_with_the_batch():
    scores = StepScores(loud_model(), STEP)
    gaps = [
        attribute(scores, TOKENS, LABEL, TRUE, AttributionConfig(points=points))[0]
        for points in (2, 8, 32, 64, 128)
    ]
    sizes = [abs(found.gap) for found in gaps]
    assert sizes[0] > 4 * sizes[1] > 16 * sizes[2]
    # Gauss-Legendre quadrature of a smooth path: from 64 points on float32 rounding is what is left.
    assert gaps[3].relative_gap < 1e-4 and gaps[4].relative_gap < 1e-4
    other = attribute(scores, TOKENS, LABEL, TRUE, AttributionConfig(batch=5))[0]
    np.testing.assert_allclose(other.tokens, gaps[3].tokens, atol=1e-5)  # float32 sums in another order


def test_gradient_x_input_is_the_gradient_at_the_embeddings_times_them():
    model = loud_model()
    found = attribute(StepScores(model, STEP), TOKENS, LABEL, TRUE, CONFIG)[1]
    (tokens, classes), _ = embeddings(model)
    tokens, classes = tokens.clone().requires_grad_(), classes.clone().requires_grad_()
    by_tokens, by_class = torch.autograd.grad(score_of(model, tokens, classes).sum(), (tokens, classes))
    expected = (by_tokens * tokens).detach().sum(-1)[0]
    # one backward pass each; float32 sums over 16 channels in another order
    np.testing.assert_allclose(found.tokens[: STEP - 1], expected, atol=1e-6)
    assert found.class_value == pytest.approx(float((by_class * classes).detach().sum()), abs=1e-6)


@pytest.mark.parametrize("patch", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 64])
def test_occlusion_is_the_score_less_the_score_without_the_patch(patch, batch):
    model = loud_model()
    config = AttributionConfig(patch=patch, batch=batch)
    found = attribute(StepScores(model, STEP), TOKENS, LABEL, TRUE, config)[2]
    (tokens, classes), (tokens_0, classes_0) = embeddings(model)
    whole = score_of(model, tokens, classes)
    side = SMALL.grid
    for row in range(0, side, patch):
        for column in range(0, side, patch):
            cells = [
                r * side + c
                for r in range(row, min(row + patch, side))
                for c in range(column, min(column + patch, side))
                if r * side + c < STEP - 1
            ]
            if not cells:
                continue
            without = tokens.clone()
            without[:, cells] = tokens_0[:, cells]
            change = float(whole - score_of(model, without, classes))
            # two forward passes in batches of another size: float32 rounding of scores of about 5
            np.testing.assert_allclose(found.tokens[cells], change / len(cells), atol=1e-5)
            assert len(set(found.units[cells])) == 1
    change = float(whole - score_of(model, tokens, classes_0))
    assert found.class_value == pytest.approx(change, abs=1e-5)
    assert (found.units[STEP - 1 :] == -1).all()


def test_patches_cover_the_grid_row_by_row():
    expected = [[0, 0, 1], [0, 0, 1], [2, 2, 3]]
    assert occlusion_groups(3, 2).reshape(3, 3).tolist() == expected
    assert occlusion_groups(3, 1).tolist() == list(range(9))


def test_an_affine_score_of_one_embedding_has_known_contributions():
    model, probe = flat_model(), fixed_probe()
    scores = StepScores(model, STEP, "probe", probe)
    config = AttributionConfig(points=2, patch=1)
    table = model.tok_embeddings.weight
    newest, mean = table[TOKENS[STEP - 2]], table.mean(0)
    for index in range(4):
        path, gradient, occlusion = attribute(scores, TOKENS, scores.null, index, config)
        weight = probe.weight[:, index]
        difference = float(weight @ (newest - mean))
        for found, expected in (
            (path, difference), (gradient, float(weight @ newest)), (occlusion, difference),
        ):  # fmt: skip
            # a product of 16 float32 channels, of size about 1
            assert found.tokens[STEP - 2] == pytest.approx(expected, abs=1e-5), found.method
            others = np.delete(found.tokens, STEP - 2)
            assert not others.any() and found.class_value == 0, "the newest token alone is read"
            assert found.difference == pytest.approx(difference, abs=1e-5)
        assert abs(path.gap) < 1e-5 and abs(occlusion.gap) < 1e-5


def test_tokens_not_seen_are_exactly_zero_and_change_nothing():
    scores = StepScores(loud_model(), STEP)
    found = attribute(scores, TOKENS, LABEL, TRUE, CONFIG)
    changed = TOKENS.clone()
    changed[STEP:] = 9  # the step's own token, at STEP - 1, is what is predicted
    again = attribute(scores, changed, LABEL, TRUE, CONFIG)
    for one, other in zip(found, again, strict=True):
        assert not one.tokens[STEP - 1 :].any() and one.tokens[: STEP - 1].all()
        np.testing.assert_array_equal(one.tokens, other.tokens)
    assert [one.method for one in found] == list(METHODS)


def test_scores_are_the_models_own_and_the_model_stays_as_it_was():
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    seen, label = TOKENS[None, : STEP - 1], torch.tensor([LABEL])
    logits = model(seen, label).logits[:, -1]
    for kind, expected in (("logit", logits), ("logprob", logits.log_softmax(-1))):
        scores = StepScores(model, STEP, kind)
        # the same operations on one position instead of all
        torch.testing.assert_close(scores(seen, label), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            scores.embedded(*scores.embed(seen, label)), expected, rtol=1e-5, atol=1e-6
        )
        attribute(scores, TOKENS, LABEL, TRUE, CONFIG)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_baselines_are_the_mean_token_and_the_null_class_or_the_mean_class():
    model = loud_model()
    scores, null = StepScores(model, STEP), SMALL.num_classes
    seen = TOKENS[None, : STEP - 1].expand(2, -1)
    tokens, labels = scores.baselines(seen, torch.tensor([LABEL, null]))
    tokens_BnD, classes_BD = scores.embed(tokens, labels)
    table, classes = model.tok_embeddings.weight, model.cls_embedding.embedding_table.weight
    assert torch.equal(tokens_BnD, table.mean(0).expand_as(tokens_BnD))
    assert torch.equal(classes_BD[0], classes[null])
    assert torch.equal(classes_BD[1], classes[:null].mean(0))


def test_the_probe_target_is_the_probes_own_score():
    model, store = loud_model(), fake_store(images=60)
    test = fake_store(images=24, seed=1)
    splits = probe_splits({"train": store, "val": fake_store(images=20, seed=2), "test": test})
    probe = fit_step_probe(model, splits, layer=2, step=STEP, images=40)
    assert probe.counts == {"train": 40, "val": 20, "test": 24}
    features = step_features(model, test, layers=[2], steps=[STEP]).values[0, 0]
    own = features @ probe.weight.numpy() + probe.bias.numpy()
    scores = StepScores(model, STEP, "probe", probe)
    assert scores.layers == 2
    seen = torch.from_numpy(test.codes[:, 0, : STEP - 1].astype(np.int64))
    found = scores(seen, torch.full((24,), scores.null))
    # the same affine function of the same float32 features, in batches of another size
    np.testing.assert_allclose(found, own, atol=1e-5)
    hits = (own.argmax(1) == test.labels).sum()
    assert probe.accuracy == hits / 24 > 0.5, "the codes are learnable"
    assert (probe.low, probe.high) == wilson_interval(int(hits), 24)
    again = fit_step_probe(model, splits, layer=2, step=STEP, images=40)
    assert torch.equal(again.weight, probe.weight)
    other = fit_step_probe(model, splits, layer=2, step=STEP, images=40, seed=1)
    assert not torch.equal(other.weight, probe.weight), "other images"


def test_the_probe_is_the_ridge_of_the_penalty_that_the_validation_images_chose():
    model, store = loud_model(), fake_store(images=60)
    store.labels[::3] = (store.labels[::3] + 1) % 4  # noisy labels favour a strong penalty
    parts = {
        "train": store,
        "val": fake_store(images=40, seed=2),
        "test": fake_store(images=24, seed=1),
    }
    probe = fit_step_probe(model, probe_splits(parts), layer=2, step=STEP, images=60)
    assert probe.penalty > 1e-4, "not simply the first"
    found = {
        part: step_features(model, parts[part], layers=[2], steps=[STEP]).values[0, 0].astype(float)
        for part in parts
    }
    mean, spread = found["train"].mean(0), found["train"].std(0)
    x, y = (found["train"] - mean) / spread, np.eye(4)[store.labels]
    covariance = x.T @ x / 60 + probe.penalty * np.eye(16)
    weight = np.linalg.solve(covariance, x.T @ (y - y.mean(0)) / 60) / spread[:, None]
    # closed forms of the same float32 features: moments in float32 products against float64
    np.testing.assert_allclose(probe.weight, weight, atol=2e-3 * np.abs(weight).max())
    np.testing.assert_allclose(probe.bias, y.mean(0) - mean @ weight, atol=5e-3)


def test_spearman_against_counting_and_its_textbook_formula():
    rng = np.random.default_rng(0)
    for ties in (3, 1000):
        a, b = rng.integers(0, ties, (2, 20))
        ranks = [
            np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])
            for values in (a, b)
        ]
        # both are exact in float64 but for rounding
        assert spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)
    a, b = rng.permutation(30), rng.permutation(30)
    textbook = 1 - 6 * ((a - b) ** 2).sum() / (30 * (30**2 - 1))
    assert spearman(a, b) == pytest.approx(textbook, abs=1e-12)
    assert spearman(np.arange(5), np.exp(np.arange(5.0))) == pytest.approx(1)
    assert np.isnan(spearman(np.ones(5), np.arange(5))) and np.isnan(spearman(a[:1], b[:1]))


def test_agreement_ranks_absolute_contributions_of_what_was_scored_together():
    scores = StepScores(loud_model(), STEP)
    path, _, patches = attribute(scores, TOKENS, LABEL, TRUE, CONFIG)
    attention = np.r_[0.3, 0.1, 0.05, 0.2, 0.15, 0.2, 0, 0, 0]
    seen = STEP - 1
    assert attention_agreement(path, attention) == spearman(
        np.abs(path.tokens[:seen]), attention[:seen]
    )
    assert attention_agreement(path, np.abs(path.tokens)) == pytest.approx(1)
    # grid 3, patches of 2: tokens 0, 1, 3, 4 and tokens 2, 5 are seen
    sums = np.array([attention[[0, 1, 3, 4]].sum(), attention[[2, 5]].sum()])
    own = np.abs([patches.tokens[[0, 1, 3, 4]].sum(), patches.tokens[[2, 5]].sum()])
    assert attention_agreement(patches, attention) == spearman(own, sums)


def test_infidelity_is_zero_where_contributions_add_up_and_a_variance_where_there_are_none():
    scores = StepScores(flat_model(), STEP, "probe", fixed_probe())
    config = AttributionConfig(patch=1, draws=8)
    given = scores, TOKENS, scores.null, 1
    path = attribute(*given, config)[0]
    error = attribution_infidelity(*given, path, config)
    change = attribution_infidelity(*given, None, config)
    # exact additivity but for float32 rounding, squared
    assert error < 1e-9 < change
    # each set holds the newest token with probability 1/2 on average: half of the squared difference;
    # 80 sets, so within 4 standard errors of sqrt(1/4 / 80)
    assert change / path.difference**2 == pytest.approx(0.5, abs=0.23)


def test_infidelity_is_a_function_of_the_seed_and_equals_a_loop_over_the_same_sets():
    model = loud_model()
    scores = StepScores(model, STEP)
    config = AttributionConfig(draws=3)
    given = scores, TOKENS, LABEL, TRUE
    found = attribute(*given, config)[0]
    first = attribution_infidelity(*given, found, config)
    assert attribution_infidelity(*given, found, config) == first
    for batch in (1, 7):  # other sums in float32
        again = attribution_infidelity(*given, found, AttributionConfig(draws=3, batch=batch))
        assert again == pytest.approx(first, rel=1e-4)
    other = attribution_infidelity(*given, found, AttributionConfig(draws=3, seed=1))
    assert other != pytest.approx(first, rel=1e-2)

    drawn = torch.rand(30, STEP + 1, generator=torch_generator(0, "infidelity"))
    (tokens, classes), (tokens_0, classes_0) = embeddings(model)
    errors, changes = [], []
    for row in drawn:
        taken = row[1:] < row[0]
        changed = torch.where(taken[1:][None, :, None], tokens_0, tokens)
        shown = classes_0 if taken[0] else classes
        change = float(score_of(model, tokens, classes) - score_of(model, changed, shown))
        own = np.r_[found.class_value, found.tokens[: STEP - 1]]
        errors.append((own[taken.numpy()].sum() - change) ** 2)
        changes.append(change**2)
    # scores of about 5 in float32, squared differences of about 0.1
    assert first == pytest.approx(np.mean(errors), rel=1e-3)
    change = attribution_infidelity(*given, None, config)
    assert change == pytest.approx(np.mean(changes), rel=1e-3)


def test_sensitivity_of_an_affine_score_is_that_of_its_weights_and_seeded():
    model, probe = flat_model(), fixed_probe()
    scores = StepScores(model, STEP, "probe", probe)
    config = AttributionConfig(points=2, patch=1, draws=6, noise=0.1)
    given = scores, TOKENS, scores.null, 1
    for found in attribute(*given, config):
        value = attribution_sensitivity(*given, found.method, config)
        # The only contribution, weight @ (newest - its baseline), moves by weight @ noise.
        rng = torch_generator(0, "sensitivity")
        radius = 0.1 * float(model.tok_embeddings.weight.std())
        moves = []
        for _ in range(6):
            noise_1nD = 2 * torch.rand(1, STEP - 1, 16, generator=rng) - 1
            torch.rand(1, 16, generator=rng)  # the class's
            moves.append(abs(float(noise_1nD[0, -1] @ probe.weight[:, 1])) * radius)
        # differences of float32 contributions of about 1, a hundred times larger than the moves
        expected = max(moves) / abs(found.tokens[STEP - 2])
        assert value == pytest.approx(expected, rel=1e-3)
        assert attribution_sensitivity(*given, found.method, config) == value
        louder = AttributionConfig(points=2, patch=1, draws=6, noise=0.2)
        # affine: twice the noise moves it twice as far, up to float32 rounding
        twice = attribution_sensitivity(*given, found.method, louder)
        assert twice == pytest.approx(2 * value, rel=1e-3)
        seeded = AttributionConfig(points=2, patch=1, draws=6, noise=0.1, seed=1)
        assert attribution_sensitivity(*given, found.method, seeded) != value


def test_nothing_random_is_global():
    state = torch.get_rng_state()
    scores = StepScores(loud_model(), STEP)
    config = AttributionConfig(draws=1, points=4)
    found = attribute(scores, TOKENS, LABEL, TRUE, config)
    attribution_infidelity(scores, TOKENS, LABEL, TRUE, found[0], config)
    attribution_sensitivity(scores, TOKENS, LABEL, TRUE, "occlusion", config)
    assert torch.equal(torch.get_rng_state(), state)


def study_of(images, tmp_path, model=None, **settings):
    model = model or loud_model()
    path = tmp_path / "ckpt.pt"
    path.write_bytes(b"weights")
    loaded = Loaded(model, path, "teacher", "a model")
    scores = StepScores(model, STEP)
    config = AttributionConfig(points=8, draws=1, **settings)
    return attribution_study(loaded, scores, images, config, attention_layers=[1, 3])


def test_a_study_holds_every_place_and_measure_with_means_over_images(tmp_path):
    store = fake_store(images=12)
    rows, tokens, labels = spread_images(store, 6)
    assert rows.tolist() == [0, 2, 4, 6, 8, 10]
    images = [
        Explained(f"image {row}", codes, int(label), int(codes[STEP - 1]))
        for row, codes, label in zip(rows, tokens, labels, strict=True)
    ]
    study = study_of(images, tmp_path)
    places = study.places.table
    assert len(places) == 6 * 3 * 10 and set(places["method"]) == set(METHODS)
    assert (places.query("place >= @STEP")[["attribution", "attention"]] == 0).all(axis=None)
    last = places.query("place == 6").iloc[0]
    assert (last["row"], last["column"]) == (2, 3)
    assert places.query("place == 0")["row"].isna().all()
    total = places.groupby("image")["attention"].sum() / 3
    np.testing.assert_allclose(total, 1, atol=1e-6)  # a softmax row in float32
    rows_LBHKN = attention_at_steps(
        loud_model(), tokens[:1], torch.tensor([images[0].label]), layers=[1, 3], steps=[STEP]
    )
    expected = rows_LBHKN[:, 0, :, 0].mean((0, 1))
    np.testing.assert_allclose(study.attention[0, :STEP], expected, atol=1e-7)

    measures = study.measures.table
    per_image = measures[measures["image"] != "mean"]
    for method in METHODS:
        mine = per_image[per_image["method"] == method].set_index("measure")["value"]
        mean = measures.query("image == 'mean' and method == @method").set_index("measure")
        expected = mean_interval(mine["rank_correlation"].to_numpy())
        assert tuple(mean.loc["rank_correlation", ["value", "low", "high"]]) == pytest.approx(expected)
        gaps, differences = mine["gap"].abs().sum(), mine["difference"].abs().sum()
        assert mean.loc["gap", "value"] == pytest.approx(gaps / 6)
        assert mean.loc["relative_gap", "value"] == pytest.approx(gaps / differences)
        assert (mean["n"] == 6).all() and (mean["low"] <= mean["value"]).all()
    info = study.places.info
    assert info["settings"]["points"] == 8 and len(info["images"]) == 6
    assert info["baseline"]["class"] == "null class" and info["checkpoint_sha256"]
    assert (info["weights"], info["model"]) == ("teacher", "a model")
    assert info["checkpoint_step"] is None and "training_step" not in info


def test_one_image_has_no_means_and_no_draws_leave_two_measures_out(tmp_path):
    image = Explained("one", TOKENS, LABEL, TRUE)
    table = study_of([image], tmp_path).measures.table
    assert set(table["image"]) == {"one"} and "sensitivity" in set(table["measure"])
    quiet = study_of([image], tmp_path, seed=1)
    assert isinstance(quiet.measures.table, pd.DataFrame)
    loaded = Loaded(loud_model(), tmp_path / "ckpt.pt", "teacher", "a model")
    without = attribution_study(
        loaded, StepScores(loaded.model, STEP), [image], AttributionConfig(draws=0),
        attention_layers=[1],
    )  # fmt: skip
    assert not {"sensitivity", "infidelity"} & set(without.measures.table["measure"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: StepScores(m, 10), "step 10 does not exist; expected 2 to 9"),
        (lambda m: StepScores(m, 1), "step 1 has seen only the class"),
        (lambda m: StepScores(m, 3, "beauty"), "target is 'beauty'; expected one of: logprob"),
        (lambda m: StepScores(m, 3, "probe"), "a probe belongs to the target probe"),
        (lambda m: StepScores(m, 3, "logit", fixed_probe()), "a probe belongs to the target probe"),
        (
            lambda m: StepScores(m, 3, "probe", fixed_probe()),
            "fitted at step 7; the step explained is 3",
        ),
        (lambda m: attribute(StepScores(m, 3), TOKENS[:4], 0, 0, CONFIG), "the model expects 9"),
        (lambda m: attribute(StepScores(m, 3), TOKENS + 5, 0, 0, CONFIG), "the model knows 0 to 10"),
        (lambda m: attribute(StepScores(m, 3), TOKENS, 5, 0, CONFIG), "class 5 does not exist"),
        (lambda m: attribute(StepScores(m, 3), TOKENS, 0, 11, CONFIG), "score 11 does not exist"),
        (lambda m: AttributionConfig(points=1), "points is 1; expected at least 2"),
        (lambda m: AttributionConfig(patch=0), "patch is 0; expected at least 1"),
        (lambda m: AttributionConfig(batch=0), "batch is 0; expected at least 1"),
        (lambda m: AttributionConfig(noise=0.0), "noise is 0.0; expected a number > 0"),
        (lambda m: AttributionConfig(noise=float("nan")), "noise is nan"),
        (lambda m: spread_images(fake_store(images=4), 5), "images is 5; expected 1 to 4"),
        (lambda m: check_attention_layers(SMALL, [3], 2), "depend on layers 1 to 2 alone"),
        (lambda m: check_attention_layers(SMALL, [4], 3), "layer 4 does not exist"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(UserError, match=message):
        make(small_model())


def test_scores_that_are_not_finite_are_refused():
    model = small_model()
    model.layers[1].feed_forward.w2.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="scores at step 7 are not finite; the checkpoint is broken"):
        attribute(StepScores(model, STEP), TOKENS, LABEL, TRUE, CONFIG)
