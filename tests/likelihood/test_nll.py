"""Likelihoods against loops: with and without the class, by class, calibration, gap, comparison."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import SMALL, fake_store, small_model

from probes.likelihood import calibration as calibrated
from probes.likelihood.calibration import Calibration, next_token_confidence
from probes.likelihood.nll import compare_likelihoods, likelihood, train_gap
from probes.reading.images import draw
from probes.stats.intervals import mean_interval, wilson_interval
from probes.stats.paired import mcnemar
from star.base.errors import UserError
from star.model.config import ModelConfig


def sample(images=24, seed=0):
    return draw(fake_store(images=images, seed=seed), images, 0, "test images")


@torch.no_grad()
def token_by_token(model, codes, label):
    """-log p of each token of one image, from a forward pass of its own each; the guess and its p."""
    nll, guess, sure = [], [], []
    for t, token in enumerate(codes):
        seen = torch.from_numpy(codes[:t].astype(np.int64))[None]
        p = model(seen, torch.tensor([label])).logits[0, -1].double().softmax(-1)
        nll.append(-math.log(p[int(token)]))
        guess.append(int(p.argmax()))
        sure.append(float(p.max()))
    return nll, guess, sure


def test_nll_with_the_class_without_it_and_under_every_class_is_that_of_loops():
    model, images, train = small_model(), sample(), sample(seed=3)
    found = likelihood(model, images, train=train, class_images=10, pixels=36, batch_size=5)
    codes = images.codes[:, 0]
    own = [token_by_token(model, x, c)[0] for x, c in zip(codes, images.labels, strict=True)]
    none = [token_by_token(model, x, SMALL.num_classes)[0] for x in codes]
    trained = [
        token_by_token(model, x, c)[0] for x, c in zip(train.codes[:, 0], train.labels, strict=True)
    ]
    np.testing.assert_allclose(found.own_NT, own, rtol=1e-4)  # float32 logits against float64 loops
    np.testing.assert_allclose(found.none_NT, none, rtol=1e-4)
    np.testing.assert_allclose(found.train_NT, trained, rtol=1e-4)
    assert len(found.classified) == 10 and list(found.classified) != list(range(10))
    hits = []
    for place, row in enumerate(found.classified):
        of_classes = [sum(token_by_token(model, codes[row], c)[0]) for c in range(4)]
        np.testing.assert_allclose(9 * found.classes_nll[place], of_classes, rtol=1e-4)
        hits.append(int(np.argmin(of_classes)) == images.labels[row])
    assert found.hits.tolist() == hits
    table = found.table().set_index(["measure", "split", "class", "step"])
    own = np.array(own)
    assert tuple(table.loc[("nll", "held out", "own", 0), ["value", "low", "high"]]) == pytest.approx(
        mean_interval(own.mean(1)), rel=1e-4
    )
    assert table.loc[("nll", "held out", "own", 7), "value"] == pytest.approx(own[:, 6].mean(), 1e-4)
    bits = own.sum(1).mean() / math.log(2) / 36  # of the whole image, over its pixels
    assert table.loc[("bits_a_pixel", "held out", "own", 0), "value"] == pytest.approx(bits, 1e-4)
    gain = (np.array(none) - own).mean()
    assert table.loc[("class_gain", "held out", "own", 0), "value"] == pytest.approx(gain, 1e-3)
    gap = own.mean() - np.mean(trained)
    assert table.loc[("train_gap", "held out", "own", 0), "value"] == pytest.approx(gap, abs=1e-5)
    accuracy = table.loc[("class_accuracy", "held out", "each", 0)]
    assert accuracy["value"] == np.mean(hits) and accuracy["n"] == 10
    assert tuple(accuracy[["low", "high"]]) == wilson_interval(sum(hits), 10)
    most = np.bincount(images.labels[found.classified]).max() / 10
    assert accuracy["control"] == most


def test_the_gap_is_welch_s_interval_of_two_samples():
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 1, 50), rng.normal(0.2, 2, 80)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert train_gap(a, b) == pytest.approx((a.mean() - b.mean(), expected.low, expected.high))
    assert math.isnan(train_gap(a[:1], b)[1])


def test_what_is_not_there_is_left_out():
    config = ModelConfig(**{**vars(SMALL), "null_class": False})
    found = likelihood(small_model(config), sample())
    assert found.none_NT is None and found.train_NT is None and found.bits is None
    table = found.table()
    assert set(table["measure"]) == {"nll"} and set(table["class"]) == {"own"}
    broken = small_model()
    broken.output.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="predictions are not finite"):
        likelihood(broken, sample())
    with pytest.raises(UserError, match="grid"):
        likelihood(small_model(ModelConfig(**{**vars(SMALL), "grid": 4})), sample())


def test_confidences_and_hits_are_those_of_loops():
    model, images = small_model(), sample(images=7)
    confidence, right = next_token_confidence(model, images, batch_size=3)
    for row, (codes, label) in enumerate(zip(images.codes[:, 0], images.labels, strict=True)):
        _, guess, sure = token_by_token(model, codes, label)
        np.testing.assert_allclose(confidence[row], sure, rtol=1e-4)
        assert right[row].tolist() == (np.array(guess) == codes).tolist()


def made_up(images=60, tokens=25, excess=0.0):
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.05, 0.9, (images, tokens)).astype(np.float32)
    return Calibration(confidence, rng.random(confidence.shape) < confidence + excess)


def test_calibration_error_and_reliability_against_loops():
    found = made_up(excess=0.08)
    flat, right = found.confidence_NT.ravel(), found.right_NT.ravel()
    order = np.argsort(flat)
    error, rows = 0.0, found.table().itertuples()
    for inside, row in zip(np.array_split(order, calibrated.BINS), rows, strict=True):
        share, sure = right[inside].mean(), flat[inside].astype(float).mean()
        error += len(inside) / len(flat) * abs(share - sure)
        assert (row.right, row.confidence, row.predictions) == pytest.approx((share, sure, 100))
        assert (row.least, row.most) == (flat[inside].min(), flat[inside].max())
        assert row.low < share < row.high
    value, low, high = found.error()
    assert value == pytest.approx(error) and low < value < high
    assert value == pytest.approx(0.08, abs=0.02)


def test_the_jackknife_of_the_error_leaves_whole_images_out():
    found = made_up(images=5, tokens=40)
    bins = found.bins_NT
    left = []
    for image in range(5):
        keep = np.arange(5) != image
        surplus = [
            (found.right_NT[keep] - found.confidence_NT[keep].astype(float))[bins[keep] == b].sum()
            for b in range(calibrated.BINS)
        ]
        left.append(np.abs(surplus).sum() / found.right_NT[keep].size)
    value, _, high = found.error()
    error = math.sqrt(4 / 5 * np.square(left - np.mean(left)).sum())
    assert high - value == pytest.approx(2.7764451 * error)  # Student's t, 4 degrees of freedom
    assert math.isnan(Calibration(found.confidence_NT[:1], found.right_NT[:1]).error()[1])


def test_a_calibrated_model_s_error_is_about_its_floor_and_not_zero():
    found = made_up(images=400)
    assert 0 < found.error()[0] < 2 * found.floor() < 0.03
    assert made_up(images=400, excess=0.08).error()[0] > 5 * found.floor()


def test_few_predictions_fill_a_bin_each():
    found = Calibration(np.array([[0.2, 0.9, 0.5]], np.float32), np.array([[False, True, True]]))
    table = found.table()
    assert table["confidence"].tolist() == pytest.approx([0.2, 0.5, 0.9])
    assert table["right"].tolist() == [0, 1, 1] and table["low"].isna().all()
    assert found.error()[0] == pytest.approx((0.2 + 0.5 + 0.1) / 3)


def test_two_models_are_compared_on_the_same_images():
    images = sample(images=40)
    first = likelihood(small_model(), images, class_images=40)
    second = likelihood(small_model(seed=1), images, class_images=40)
    table = compare_likelihoods(first, second, ("AR", "ST-AR"))
    rows = table.set_index(["measure", "class", "step"])
    difference = (second.own_NT.astype(float) - first.own_NT).mean(1)
    found = rows.loc[("nll", "own", 0)]
    expected = mean_interval(difference)
    assert tuple(found[["difference", "low", "high"]]) == pytest.approx(expected)
    at_step = rows.loc[("nll", "none", 4)]
    assert at_step["difference"] == pytest.approx(
        second.none_NT[:, 3].mean() - first.none_NT[:, 3].mean(), abs=1e-6
    )
    assert math.isnan(at_step["p"]) and pd.isna(at_step["higher"]), "steps are not tested"
    a, b = first.hits, second.hits
    accuracy = rows.loc[("class_accuracy", "each", 0)]
    assert accuracy["p"] == mcnemar((a & ~b).sum(), (b & ~a).sum())
    assert accuracy["difference"] == pytest.approx(b.mean() - a.mean())
    assert table["p_holm"].notna().sum() == 4  # two NLLs, the class's gain, the accuracy
    with pytest.raises(UserError, match="different images"):
        compare_likelihoods(first, likelihood(small_model(), sample(images=24)), ("AR", "ST-AR"))
