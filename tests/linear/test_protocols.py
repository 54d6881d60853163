"""The protocols of a probe against scikit-learn, normal equations and loops; what is chosen by what."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from probing import ArraySource, blob_task, splits_of
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from probes.linear import attentive, protocols
from probes.linear.attentive import AttentiveBank, train_attentive
from probes.linear.knn import knn_predict
from probes.linear.logreg import fit_logreg, log_losses, predict
from probes.linear.mae import MaeConfig
from probes.linear.predictions import best_setting, choose, pieces
from probes.linear.protocols import PENALTIES, PROTOCOLS, STRENGTHS, ProtocolConfig, run_protocol
from probes.linear.ridge import Moments, fit_ridge
from star.base.errors import UserError

GROUPS = [(1, 4), (1, 9), (2, 4), (2, 9)]
MAE = MaeConfig(base_lrs=(0.5, 20.0), epochs=6, warmup_epochs=1, batch_size=16)


def config(name, **changes):
    return ProtocolConfig(name=name, **{"mae": MAE, **changes})


def label_sets(splits):
    labels = splits.labels("train")
    return np.stack([labels, np.random.default_rng(5).permutation(labels)])


def run(name, source, splits, **changes):
    return run_protocol(source, splits, label_sets(splits), config(name, **changes), seed=0)


def equal(a, b):
    return all(np.array_equal(x, vars(b)[name], equal_nan=True) for name, x in vars(a).items())


def arrays(source, part):
    """(G, N, D) float64 of the test view."""
    return source.parts[part][0].double().numpy()


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_reads_classes_where_they_are_and_not_where_they_are_not(name):
    source, splits = blob_task(GROUPS, spread=0.6, counts={"train": 120, "val": 60, "test": 90})
    rng = np.random.default_rng(3)
    # Layer 1 is noise; the attentive probe of a layer sees both steps.
    for part in source.parts.values():
        part[:, :2] = torch.from_numpy(rng.normal(size=part[:, :2].shape)).float()
    found = run(name, source, splits, mae=dataclasses.replace(MAE, epochs=60))
    assert found.predicted.shape == (2, 4, 90)
    assert found.val_accuracy.shape == found.choice.shape == (2, 4)
    accuracy_SG = (found.predicted == splits.labels("test")).mean(-1)
    assert (accuracy_SG[0, 2:] > 0.8).all()
    # Chance is 1/3; three standard errors of 90 images are 0.15, and the choice adds a little.
    assert (accuracy_SG[0, :2] < 0.55).all()
    assert (accuracy_SG[1, :2] < 0.55).all()
    # Three tight clouds that got shuffled labels are named by the small majority that each happens to
    # have, which may be the right class for one or two of them; not for all three here.
    assert (accuracy_SG[1, 2:] < accuracy_SG[0, 2:] - 0.1).all()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_result_is_a_function_of_its_inputs_and_of_no_test_label(name):
    source, splits = blob_task(GROUPS, spread=2.0)
    first = run(name, source, splits)
    splits.stores["test"].labels = splits.labels("test")[::-1].copy()
    assert equal(first, run(name, source, splits))


SETTINGS = {  # those that validation accuracy chooses from
    "mae": MAE.base_lrs,
    "ridge": PENALTIES,
    "attentive": attentive.RATES,
}


def with_one_setting(monkeypatch, name, setting, source, splits):
    if name == "mae":
        return run(name, source, splits, mae=dataclasses.replace(MAE, base_lrs=(setting,)))
    variable = {"ridge": "PENALTIES", "attentive": "RATES"}[name]
    with monkeypatch.context() as patch:
        patch.setattr(protocols, variable, (setting,))
        if name == "attentive":
            patch.setattr(attentive, variable, (setting,))
        return run(name, source, splits)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_choice_is_made_on_the_validation_images_not_on_the_test_images(monkeypatch, name):
    counts = {"train": 50, "val": 40, "test": 40}
    source, splits = blob_task(GROUPS[:1], spread=4.0, counts=counts)
    source.parts["val"] = source.parts["test"]  # so each setting predicts the same on both
    lowest, highest = SETTINGS[name][0], SETTINGS[name][-1]
    alone = {
        setting: with_one_setting(monkeypatch, name, setting, source, splits).predicted[0, 0]
        for setting in (lowest, highest)
    }
    assert (alone[lowest] != alone[highest]).any()
    for wanted, other in ((lowest, highest), (highest, lowest)):
        splits.stores["val"].labels = alone[wanted].astype(np.int64)
        splits.stores["test"].labels = alone[other].astype(np.int64)
        found = run(name, source, splits)
        assert found.val_accuracy[0, 0] == 1.0
        # A setting between may predict the same; of equals the first is taken.
        chosen = with_one_setting(monkeypatch, name, float(found.choice[0, 0]), source, splits)
        np.testing.assert_array_equal(chosen.predicted[0, 0], alone[wanted])
        np.testing.assert_array_equal(found.predicted[0, 0], alone[wanted])
        assert found.choice[0, 0] != other
        assert (found.predicted[0, 0] == splits.labels("test")).mean() < 1


def test_choose_takes_the_best_on_validation_and_of_equals_the_first():
    labels = {"train": np.zeros(2, int), "val": np.array([0, 1, 1, 0]), "test": np.array([1, 1])}
    splits = splits_of(labels, 2)
    val = np.array([[[[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]], [[1, 0, 0, 1]] * 3]])
    test = np.array([[[[1, 1], [0, 1], [1, 0]], [[0, 0], [1, 1], [1, 1]]]])
    found = choose(val, test, splits, [0.1, 1, 10])
    np.testing.assert_array_equal(found.predicted, [[[0, 1]], [[0, 0]]])
    np.testing.assert_array_equal(found.val_accuracy, [[0.75], [0.0]])
    np.testing.assert_array_equal(found.choice, [[1.0], [0.1]])
    np.testing.assert_array_equal(found.at_edge, [[False], [False]])  # the second: all are equal


def test_an_edge_is_the_first_or_last_setting_that_leads():
    scores = [[[3, 2, 1], [1, 2, 3], [1, 3, 2], [2, 2, 1], [1, 2, 2]], [[2, 1.5, 9]] * 5]
    best, at_edge = best_setting(np.array(scores, dtype=float))
    np.testing.assert_array_equal(best, [[0, 2, 1, 0, 1], [2] * 5])
    np.testing.assert_array_equal(at_edge, [[True, True, False, False, False], [True] * 5])
    assert not best_setting(np.array([[[3.0]]]))[1].any()  # one setting has no edge
    assert not best_setting(np.array([[[3.0, 2.9]]]), 0.2)[1].any()


@pytest.mark.parametrize(
    ("spread", "tried", "edge"),
    [(0.2, (0.01, 0.1), 0.1), (30.0, (0.1, 1.0), 0.1), (2.0, (0.001, 1.0, 1e4), None)],
)
def test_logreg_says_where_its_grid_was_too_narrow(monkeypatch, spread, tried, edge):
    """Clear classes want weights as large as the grid has, noise as small ones."""
    monkeypatch.setattr(protocols, "STRENGTHS", tried)
    source, splits = blob_task(GROUPS[:1], spread=spread, counts={"train": 90, "val": 60, "test": 30})
    found = run("logreg", source, splits)
    assert found.at_edge[0, 0] == (edge is not None)
    assert edge is None or found.choice[0, 0] == edge


def test_log_losses_are_those_of_loops():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(2, 7, 3)).astype(np.float32), rng.integers(0, 4, 7)
    weight, bias = rng.normal(size=(2, 3, 2, 5, 4)), rng.normal(size=(2, 2, 5, 4))
    given = (torch.from_numpy(array).float() for array in (weight, bias))
    found = log_losses(torch.from_numpy(x), torch.from_numpy(labels), *given)
    assert found.shape == (2, 2, 5)
    for g, s, c in np.ndindex(2, 2, 5):
        total = 0.0
        for n in range(7):
            logits = [x[g, n] @ weight[g, :, s, c, y] + bias[g, s, c, y] for y in range(4)]
            total -= logits[labels[n]] - math.log(sum(math.exp(each) for each in logits))
        assert found[g, s, c].item() == pytest.approx(total / 7, rel=1e-5)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_feature_that_never_changes_names_the_commonest_class(name):
    counts = {"train": 18, "val": 9, "test": 12}  # all of train are neighbours
    source, splits = blob_task(GROUPS, spread=0.5, counts=counts, views=1)
    labels = splits.labels("train")
    labels[labels == 2] = 1  # 6 of class 0, 12 of class 1, none of class 2
    splits.stores["train"].labels = labels
    before = run(name, source, splits)
    for part in source.parts.values():
        part[:, 0] = 0.3701171875  # the class position at step 1
        part[:, 2, :, 1] = 0
    found = run(name, source, splits, mae=dataclasses.replace(MAE, base_lrs=(0.5,), epochs=60))
    # NaN would count as the largest logit, and name class 0.
    assert (found.predicted[:, 0] == 1).all()
    assert set(np.unique(found.predicted)) <= {0, 1, 2}
    if name in ("logreg", "ridge", "knn"):
        np.testing.assert_array_equal(found.predicted[:, 1], before.predicted[:, 1])
    accuracy_G = (found.predicted[0] == np.minimum(splits.labels("test"), 1)).mean(-1)
    assert (accuracy_G[1:] > 0.6).all()


@pytest.mark.parametrize("name", ["logreg", "ridge", "knn"])
def test_groups_worked_on_one_at_a_time_give_the_same(name):
    source, splits = blob_task(GROUPS, spread=2.0)
    # The numbers before argmax differ by rounding; no image of this data lies that close to a border.
    assert equal(run(name, source, splits), run(name, source, splits, cache_gb=1e-9))


def test_pieces_cover_every_group_once():
    for groups in (1, 5, 12):
        for limit in (1, 10, 35, 1e9):
            found = pieces(groups, 10, limit)
            assert [g for some in found for g in range(groups)[some]] == list(range(groups))
            assert all(len(range(groups)[some]) <= max(1, limit // 10) for some in found)


def test_an_unknown_protocol_is_named():
    with pytest.raises(UserError, match="protocol .*'svm'.*mae"):
        ProtocolConfig(name="svm")
    assert ProtocolConfig().name == "logreg", "as the command's"


# --- logistic regression -------------------------------------------------------------------------


def standard(source, part, group):
    """Features of a group by the training part's moments, float64."""
    train = arrays(source, "train")[group]
    return (arrays(source, part)[group] - train.mean(0)) / train.std(0, ddof=1)


@pytest.fixture(scope="module")
def fitted():
    counts = {"train": 240, "val": 60, "test": 80}
    source, splits = blob_task(GROUPS[:2], width=10, classes=4, spread=1.5, counts=counts)
    x_GND = np.stack([standard(source, "train", group) for group in range(2)])
    x_GND[1] = x_GND[1] @ np.random.default_rng(1).normal(size=(10, 10))  # correlated features
    x_GND = x_GND.astype(np.float32)
    labels_SN = label_sets(splits)
    weight, bias = fit_logreg(torch.from_numpy(x_GND), torch.from_numpy(labels_SN), 4, STRENGTHS)
    assert weight.shape == (2, 10, 2, len(STRENGTHS), 4) and bias.shape == (2, 2, len(STRENGTHS), 4)
    return x_GND, labels_SN, weight, bias


def objective(x_ND, labels_N, weight_DY, bias_Y, c):
    """scikit-learn's objective divided by C N, float64."""
    logits = x_ND.astype(float) @ weight_DY + bias_Y
    peak = logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(logits - peak).sum(1)) + peak[:, 0]
    loss = (log_sum - logits[np.arange(len(labels_N)), labels_N]).mean()
    return loss + (weight_DY**2).sum() / (2 * c * len(labels_N))


def test_batched_logistic_regression_finds_scikit_learns_minimum(fitted):
    x_GND, labels_SN, weight, bias = fitted
    predicted = predict(torch.from_numpy(x_GND), weight, bias)
    for g in range(2):
        for s, labels in enumerate(labels_SN):
            for place, c in enumerate(STRENGTHS):
                x = x_GND[g].astype(float)
                expected = LogisticRegression(C=c, tol=1e-10, max_iter=10000).fit(x, labels)
                ours, theirs = weight[g, :, s, place].double().numpy(), expected.coef_.T
                constant, intercept = bias[g, s, place].double().numpy(), expected.intercept_
                values = (
                    objective(x, labels, ours, constant, c),
                    objective(x, labels, theirs, intercept, c),
                )
                # Within what float32 tells apart in the objective.
                assert values[0] <= values[1] * (1 + 1e-6)
                # The minimum is flat for large C: a gradient of 2e-5 is a step of some 1e-3.
                np.testing.assert_allclose(ours, theirs, atol=6e-3 * max(1, np.abs(theirs).max()))
                centred = (constant - constant.mean(), intercept - intercept.mean())
                np.testing.assert_allclose(*centred, atol=6e-3 * max(1, np.abs(centred[1]).max()))
                agree = (predicted[g, s, place].numpy() == expected.predict(x)).mean()
                assert agree > 0.99


def test_heads_fitted_together_are_the_heads_fitted_alone(fitted):
    x_GND, labels_SN, weight, bias = fitted
    for g, s, place in ((0, 0, 0), (1, 1, 2), (1, 0, 4), (0, 1, 3)):
        x, labels = torch.from_numpy(x_GND[g : g + 1]), torch.from_numpy(labels_SN[s : s + 1])
        alone, constant = fit_logreg(x, labels, 4, STRENGTHS[place : place + 1])
        # The same path; products of other sizes round otherwise, which moves the point of arrival
        # within the tolerance of the stop.
        scale = max(1.0, weight[g, :, s, place].abs().max().item())
        torch.testing.assert_close(alone[0, :, 0, 0], weight[g, :, s, place], rtol=0, atol=2e-3 * scale)
        torch.testing.assert_close(constant[0, 0, 0], bias[g, s, place], rtol=0, atol=2e-3 * scale)


def test_logreg_protocol_is_scikit_learns_on_standardised_features():
    source, splits = blob_task(GROUPS, spread=3.0, counts={"train": 90, "val": 40, "test": 60})
    found = run("logreg", source, splits)
    for s, labels in enumerate(label_sets(splits)):
        for group in range(4):
            val, test = (standard(source, part, group) for part in ("val", "test"))
            models = [
                LogisticRegression(C=c, tol=1e-8, max_iter=10000).fit(
                    standard(source, "train", group), labels
                )
                for c in STRENGTHS
            ]
            losses = [log_loss(splits.labels("val"), model.predict_proba(val)) for model in models]
            place = STRENGTHS.index(found.choice[s, group])
            assert losses[place] <= min(losses) + 1e-3  # within what float32 tells apart
            # An image on the border may fall to the other side in float32: one of 40.
            accuracy = models[place].score(val, splits.labels("val"))
            assert abs(found.val_accuracy[s, group] - accuracy) <= 1 / 40 + 1e-9
            agree = (models[place].predict(test) == found.predicted[s, group]).mean()
            assert agree > 0.98
            edges = {0: losses[0] - losses[1], len(STRENGTHS) - 1: losses[-1] - losses[-2]}
            assert found.at_edge[s, group] == (edges.get(place, 0) < -1e-4)


# --- ridge ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [[90], [32, 32, 26], [1, 89]])
def test_ridge_solves_the_normal_equations_for_every_penalty(batches):
    source, splits = blob_task(GROUPS, spread=2.0, counts={"train": 90, "val": 20, "test": 30})
    source.parts["train"][:, 1] += 50  # a mean far from 0
    labels_SN = label_sets(splits)
    labels = torch.from_numpy(labels_SN)
    moments, start = Moments(2, 3), 0
    for size in batches:
        chosen = np.arange(start, start + size)
        moments.add(source("train", chosen, None).float(), labels[:, chosen])
        start += size
    weight, bias = fit_ridge(moments.gather(), PENALTIES)
    assert weight.shape == (4, 6, 2, len(PENALTIES), 3) and bias.shape == (4, 2, len(PENALTIES), 3)
    for group in range(4):
        x = arrays(source, "train")[group]
        mean, scale = x.mean(0), x.std(0)
        z = (x - mean) / scale
        for s in range(2):
            y = np.eye(3)[labels_SN[s]]
            for place, penalty in enumerate(PENALTIES):
                left = z.T @ z / len(z) + penalty * np.eye(6)
                direct = np.linalg.solve(left, z.T @ (y - y.mean(0)) / len(z))
                by_sklearn = Ridge(alpha=penalty * len(z)).fit(StandardScaler().fit_transform(x), y)
                np.testing.assert_allclose(by_sklearn.coef_.T, direct, atol=1e-9)  # both float64
                found = weight[group, :, s, place].double().numpy()
                # Products of a batch are in float32 (1e-7 of sums of size 1 a feature's variance).
                np.testing.assert_allclose(found * scale[:, None], direct, atol=2e-5)
                outputs = x @ found + bias[group, s, place].double().numpy()
                np.testing.assert_allclose(outputs, z @ direct + y.mean(0), atol=1e-4)


def test_ridge_protocol_is_scikit_learns_with_the_penalty_of_validation():
    source, splits = blob_task(GROUPS, spread=3.0, counts={"train": 90, "val": 40, "test": 60})
    found = run("ridge", source, splits)
    for s, labels in enumerate(label_sets(splits)):
        for group in range(4):
            train, val, test = (arrays(source, part)[group] for part in ("train", "val", "test"))
            scaler = StandardScaler().fit(train)
            models = [
                Ridge(alpha=penalty * 90).fit(scaler.transform(train), np.eye(3)[labels])
                for penalty in PENALTIES
            ]
            accuracies = [
                (model.predict(scaler.transform(val)).argmax(1) == splits.labels("val")).mean()
                for model in models
            ]
            assert found.val_accuracy[s, group] == pytest.approx(max(accuracies), abs=1e-12)
            assert found.choice[s, group] == PENALTIES[int(np.argmax(accuracies))]
            expected = models[int(np.argmax(accuracies))].predict(scaler.transform(test)).argmax(1)
            np.testing.assert_array_equal(found.predicted[s, group], expected)


# --- nearest neighbours --------------------------------------------------------------------------


def test_knn_protocol_is_scikit_learns_and_a_loop():
    source, splits = blob_task(GROUPS, spread=2.0)
    found = run("knn", source, splits)
    assert np.isnan(found.val_accuracy).all() and np.isnan(found.choice).all()
    for s, labels in enumerate(label_sets(splits)):
        for group in range(4):
            train, test = (arrays(source, part)[group] for part in ("train", "test"))
            theirs = KNeighborsClassifier(
                20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
            ).fit(train, labels)
            np.testing.assert_array_equal(found.predicted[s, group], theirs.predict(test))
            for place in range(5):
                votes = np.zeros(3)
                cosines = [
                    np.dot(x, test[place]) / np.linalg.norm(x) / np.linalg.norm(test[place])
                    for x in train
                ]
                for index in np.argsort(cosines)[::-1][:20]:
                    votes[labels[index]] += math.exp(cosines[index] / 0.07)
                assert found.predicted[s, group, place] == votes.argmax()


def test_knn_with_fewer_images_than_neighbours_and_with_zeros():
    x = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0, 0]], dtype=np.float32)
    labels = np.array([2, 2, 1, 1])
    queries = np.array([[2.0, 0.1], [0, 3], [0, 0]], dtype=np.float32)
    found = knn_predict(x, labels, queries, k=4)
    # A zero is at cosine 0 of everything: two votes of 1 each, the smaller class.
    np.testing.assert_array_equal(found, [2, 1, 1])


# --- the attentive probe -------------------------------------------------------------------------


def random_bank(source, steps=3, sets=2, classes=4):
    bank = AttentiveBank(source, steps, sets, classes, seed=0)
    rng = torch.Generator().manual_seed(0)
    for value in bank.parameters():
        value.normal_(generator=rng)
    bank.mean.normal_(generator=rng)
    bank.variance.uniform_(0.5, 2, generator=rng)
    return bank


THREE = [(layer, step) for layer in (1, 2) for step in (2, 5, 9)]


def test_attentive_logits_against_loops():
    source, _ = blob_task(THREE, width=5, classes=4)
    bank = random_bank(source)
    features = source("test", np.arange(4), None)
    mean, variance = bank.mean.double().numpy(), bank.variance.double().numpy()
    x_GBD = (features.double().numpy() - mean[:, None]) / np.sqrt(variance + 1e-6)[:, None]
    predicted = bank.predict(features)
    for rate in range(len(attentive.RATES)):
        found = bank.logits(bank.normalise(features, None), rate)
        assert found.shape == (2, 3, 2, 4, 4)
        for layer in range(2):
            for k in range(3):
                for s in range(2):
                    for image in range(4):
                        seen = [x_GBD[3 * layer + j, image] for j in range(k + 1)]
                        query = bank.queries[rate][layer, k, s].double().numpy()
                        scores = [np.exp(np.dot(query, x) / math.sqrt(5)) for x in seen]
                        pooled = sum(a * x for a, x in zip(scores, seen, strict=True)) / sum(scores)
                        weight = bank.weights[rate][layer, k, s].double().numpy()
                        expected = pooled @ weight + bank.biases[rate][layer, k, s, 0].double().numpy()
                        # float32 against float64, numbers of size 1 to 10
                        np.testing.assert_allclose(found[layer, k, s, image], expected, atol=1e-4)
                        assert predicted[3 * layer + k, s, rate, image] == expected.argmax()


def test_an_attentive_head_sees_nothing_of_later_steps_or_other_layers():
    source, splits = blob_task(THREE, spread=2.0)
    before = run("attentive", source, splits)
    rng = np.random.default_rng(9)
    for part in source.parts.values():  # step 9 of layer 1
        part[:, 2] = torch.from_numpy(rng.normal(size=part[:, 2].shape)).float()
    after = run("attentive", source, splits)
    for group in (0, 1, 3, 4, 5):
        np.testing.assert_array_equal(after.predicted[:, group], before.predicted[:, group])
        np.testing.assert_array_equal(after.val_accuracy[:, group], before.val_accuracy[:, group])
    assert (after.predicted[:, 2] != before.predicted[:, 2]).any()


def test_batch_moments_are_those_of_each_step():
    source, splits = blob_task(THREE)
    bank = AttentiveBank(source, 3, 1, 3, seed=0)
    features = source("train", np.arange(32), np.zeros(32, int))
    reference = torch.nn.BatchNorm1d(6, affine=False, eps=1e-6).double()
    found = bank.normalise(features, 32)
    for group in range(6):
        reference.reset_running_stats()
        expected = reference(features[group].double())
        # float32 against float64
        torch.testing.assert_close(found[group].double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            bank.mean[group].double(), reference.running_mean, rtol=1e-5, atol=1e-6
        )
        # torch's running variance is the unbiased one, ours is not: 32 / 31 of what was added.
        ours = (bank.variance[group].double() - 0.9) * 32 / 31 + 0.9
        torch.testing.assert_close(ours, reference.running_var, rtol=1e-5, atol=1e-6)
    assert splits.classes == 3


def marked(rng, images, steps=4, width=6):
    """Only the state with a mark tells the class, by its sign; the others carry random signs."""
    labels = rng.integers(0, 2, images)
    where = rng.integers(0, steps - 1, images)  # never the newest
    x_KND = 0.1 * rng.normal(size=(steps, images, width))
    signs = rng.choice([-1.0, 1.0], (steps, images))
    signs[where, np.arange(images)] = 2 * labels - 1
    x_KND[:, :, 0] += signs
    x_KND[:, :, 1] -= 1
    x_KND[where, np.arange(images), 1] += 2
    return x_KND[None], labels


def test_the_attentive_probe_finds_what_no_linear_head_on_the_newest_state_can():
    rng = np.random.default_rng(0)
    made = {part: marked(rng, images) for part, images in (("train", 640), ("val", 100), ("test", 200))}
    groups = [(1, step) for step in (2, 4, 6, 8)]
    source = ArraySource({part: x for part, (x, _) in made.items()}, groups)
    splits = splits_of({part: labels for part, (_, labels) in made.items()}, 2)
    accuracy = {}
    for name in ("attentive", "logreg"):
        predicted = run(name, source, splits).predicted
        accuracy[name] = (predicted == splits.labels("test")).mean(-1)
    assert accuracy["attentive"][0, 3] > 0.9
    # Chance is 0.5 with a standard error of 0.035.
    assert accuracy["logreg"][0, 3] < 0.62 and accuracy["attentive"][1, 3] < 0.62


def test_attentive_training_is_adamw_on_every_head_alone():
    """One head of layer 2, set 1, the second rate; torch's own modules, in float64."""
    source, splits = blob_task(THREE, spread=2.0)
    labels_SN = label_sets(splits)
    bank = AttentiveBank(source, 3, 2, 3, seed=0)
    query = bank.queries[1][1, 2, 1].clone().double().requires_grad_()
    train_attentive(bank, source, labels_SN, seed=0, epochs=4)
    weight = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW(
        [{"params": [weight], "weight_decay": 0.1}, {"params": [query, bias], "weight_decay": 0.0}]
    )
    assert len(source.calls) == 4, "50 images: one batch of 32 an epoch"
    for epoch, (images, views) in enumerate(source.calls):
        x_JBD = source.parts["train"][views, 3:, images].transpose(0, 1).double()
        x_JBD = (x_JBD - x_JBD.mean(1, keepdim=True)) / (
            x_JBD.var(1, keepdim=True, correction=0) + 1e-6
        ).sqrt()
        shares = (x_JBD @ query / math.sqrt(6)).softmax(0)
        logits = (shares[..., None] * x_JBD).sum(0) @ weight + bias
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels_SN[1, images]))
        optimizer.zero_grad()
        loss.backward()
        factor = epoch / 2 if epoch < 2 else 0.5 * (1 + math.cos(math.pi * (epoch - 2) / 2))
        for group in optimizer.param_groups:
            group["lr"] = attentive.RATES[1] * factor
        optimizer.step()
    # float32 against float64 over four steps of at most 0.01 an element; AdamW divides by small
    # gradients, so rounding comes out larger than 1e-7.
    close = {"rtol": 0, "atol": 2e-5}
    assert weight.abs().max() > 1e-3
    torch.testing.assert_close(bank.weights[1][1, 2, 1].double(), weight.detach(), **close)
    torch.testing.assert_close(bank.biases[1][1, 2, 1, 0].double(), bias.detach(), **close)
    torch.testing.assert_close(bank.queries[1][1, 2, 1].double(), query.detach(), **close)
