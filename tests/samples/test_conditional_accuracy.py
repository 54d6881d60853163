"""Conditional accuracy against counting in loops; its refusals; two sets of samples compared."""

import math

import numpy as np
import pytest
import torch

from probes.samples.classifier import (
    COMPARE_COLUMNS,
    CONDITIONAL_COLUMNS,
    Predictions,
    compare_conditional,
    conditional_accuracy,
    predict,
    require_classes,
)
from probes.stats.intervals import wilson_interval
from probes.stats.paired import paired_share_interval
from star.base.errors import UserError
from star.classifier.config import ClassifierShape
from star.classifier.model import new_classifier

NAMES = ("cat", "dog", "owl")


def predictions(seen, names=NAMES):
    """As if the classes ``seen`` were the most probable."""
    probabilities = np.full((len(seen), len(names or NAMES)), 0.1, dtype=np.float32)
    probabilities[np.arange(len(seen)), seen] = 0.8
    return Predictions(
        features=np.zeros((len(seen), 2)), probabilities=probabilities, class_names=names
    )


def counted(seen, asked, classes):
    """The table as loops, by the classifier's numbers."""
    rows = {}
    for chosen in ["all", *sorted(set(asked))]:
        rows_of = [i for i, label in enumerate(asked) if chosen in ("all", label)]
        hits = sum(seen[i] == asked[i] for i in rows_of)
        chance = 0.0
        for c in range(classes):
            asked_c = sum(asked[i] == c for i in rows_of) / len(rows_of)
            chance += asked_c * sum(s == c for s in seen) / len(seen)
        most = max(range(classes), key=lambda c: (sum(seen[i] == c for i in rows_of), -c))
        share = sum(seen[i] == most for i in rows_of) / len(rows_of)
        rows[chosen] = (hits / len(rows_of), *wilson_interval(hits, len(rows_of)), len(rows_of))
        rows[chosen] += (chance, NAMES[most], share)
    return rows


def test_the_table_is_what_counting_gives():
    rng = np.random.default_rng(0)
    asked, seen = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    seen[:90] = asked[:90]
    table = conditional_accuracy(predictions(seen), asked, NAMES)
    assert tuple(table.columns) == CONDITIONAL_COLUMNS
    assert list(table["class"]) == ["all", *NAMES] and list(table["label"]) == [-1, 0, 1, 2]
    assert set(table["chance"]) == {1 / 3}
    columns = ["accuracy", "low", "high", "n", "by_chance", "seen_most", "seen_most_share"]
    expected = counted(seen.tolist(), asked.tolist(), 3)
    for (_, row), values in zip(table.iterrows(), expected.values(), strict=True):
        for column, value in zip(columns, values, strict=True):
            assert row[column] == (pytest.approx(value, abs=1e-12) if column != "seen_most" else value)


def test_a_classifier_that_says_one_thing_has_no_more_than_its_control():
    table = conditional_accuracy(predictions([1] * 30), np.arange(30) % 3, NAMES)
    overall = table.iloc[0]
    assert overall["accuracy"] == overall["by_chance"] == pytest.approx(1 / 3)
    assert (overall["seen_most"], overall["seen_most_share"]) == ("dog", 1.0)
    assert list(table["accuracy"][1:]) == list(table["by_chance"][1:]) == [0, 1, 0]


def test_classes_are_matched_by_name():
    labels = np.array([0, 1, 2, 2])
    table = conditional_accuracy(predictions([2, 0, 1, 1]), labels, ["owl", "cat", "dog"])
    assert table["accuracy"].iloc[0] == 1 and list(table["class"]) == ["all", "owl", "cat", "dog"]
    wide = conditional_accuracy(predictions([2, 0]), np.array([1, 3]), ["yak", "owl", "elk", "cat"])
    assert wide["accuracy"].iloc[0] == 1  # only classes that were asked for must be known
    composed, decomposed = ("caf\u00e9", "dog"), ("cafe\u0301", "dog")
    found = conditional_accuracy(predictions([0, 1], composed), np.array([0, 1]), decomposed)
    assert found["accuracy"].iloc[0] == 1


def test_numbers_are_names_where_both_sides_have_them():
    digits = tuple("0123456789")
    some = conditional_accuracy(predictions([7, 3, 3], digits), np.array([1, 0, 1]), ["3", "7"])
    assert some["accuracy"].iloc[0] == pytest.approx(2 / 3)
    turned = conditional_accuracy(predictions([1, 0, 2], ("0", "1", "2")), np.arange(3), "102")
    assert turned["accuracy"].iloc[0] == 1


def test_all_classes_can_be_asked_for_by_name():
    classifier = new_classifier(ClassifierShape(classes=3, size=16, width=8), seed=0)
    classifier.class_names = ["cat", "cafe\u0301", "owl"]
    require_classes(classifier, ["owl", "caf\u00e9"])
    for names, unknown in ((["owl", "elk"], "elk"), (["0", "1", "2"], "0")):
        with pytest.raises(UserError, match=f"does not know the class {unknown}: the images are of"):
            require_classes(classifier, names)
    classifier.class_names = list("012")
    require_classes(classifier, ["2", "0"])
    with pytest.raises(UserError, match="does not know the class cat: .* it knows 0, 1, 2"):
        require_classes(classifier, ["cat", "dog", "owl"])


def test_classes_without_names_are_matched_by_number():
    seen, labels = [2, 0, 1], np.array([2, 0, 0])
    digits = ("0", "1", "2")
    for own, given in ((None, NAMES), (NAMES, None), (None, None), (NAMES, digits), (digits, NAMES)):
        table = conditional_accuracy(predictions(seen, own), labels, given)
        assert table["accuracy"].iloc[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1], ["cat", "elk"], "does not know the class elk: .* of cat, elk, it knows cat, dog, owl"),
        ([0, 3], None, "images are of 4 classes and the classifier knows 3 .cat, dog, owl."),
        ([0, 1], ["0", "1"], "images are of 2 classes and the classifier knows 3"),
        ([0, 2], ["cat", "dog"], "a label is 2, but 2 classes have names: cat, dog"),
        ([0, -1], NAMES, "a label is -1"),
        ([0, 1, 2], NAMES, "3 labels for 2 images"),
    ],
)
def test_classes_that_do_not_fit_are_refused(labels, names, message):
    with pytest.raises(UserError, match=message):
        conditional_accuracy(predictions([0, 1]), np.array(labels), names)


def test_two_sets_of_samples_are_compared_place_by_place():
    labels = np.repeat([0, 1], 50)
    first, second = labels.copy(), labels.copy()
    first[:20] = 2  # cats: 20 lost by the first alone, of which 5 by both
    second[15:20] = 2
    second[60:62] = 0  # dogs: 2 lost by the second alone
    table = compare_conditional(
        predictions(first), predictions(second), labels, NAMES, sides=("a", "b")
    ).set_index("class")
    assert tuple(table.reset_index()[list(COMPARE_COLUMNS)].columns) == COMPARE_COLUMNS
    cat, dog, overall = table.loc["cat"], table.loc["dog"], table.loc["all"]
    assert (cat["first"], cat["second"], cat["only_first"], cat["only_second"]) == (0.6, 0.9, 0, 15)
    assert cat["p"] == pytest.approx(2 * 0.5**15) and cat["higher"] == "b"
    assert (dog["only_first"], dog["only_second"], dog["p"]) == (2, 0, 0.5)
    assert dog["higher"] == "neither" and dog["low"] < 0 < dog["high"]
    assert overall["difference"] == pytest.approx(13 / 100) and overall["n"] == 100
    assert 0 < overall["low"] < overall["difference"] < overall["high"]
    assert overall["p_holm"] == pytest.approx(2 * overall["p"])  # the second smallest of three


def newcombe(e, f, g, h):
    """Method 10 of Newcombe (1998) for p1 - p2, in the paper's own letters, as a literal reference."""
    n, z = e + f + g + h, 1.959963984540054

    def wilson(successes):
        a = 2 * successes + z**2
        b = z * math.sqrt(z**2 + 4 * successes * (n - successes) / n)
        return (a - b) / (2 * (n + z**2)), (a + b) / (2 * (n + z**2))

    (l2, u2), (l3, u3) = wilson(e + f), wilson(e + g)
    dl2, du2 = (e + f) / n - l2, u2 - (e + f) / n
    dl3, du3 = (e + g) / n - l3, u3 - (e + g) / n
    below = (e + f) * (g + h) * (e + g) * (f + h)
    a = e * h - f * g
    c = a - n / 2 if a > n / 2 else 0 if a >= 0 else a
    phi = c / math.sqrt(below) if below else 0
    delta = math.sqrt(dl2**2 - 2 * phi * dl2 * du3 + du3**2)
    epsilon = math.sqrt(du2**2 - 2 * phi * du2 * dl3 + dl3**2)
    return (f - g) / n - delta, (f - g) / n + epsilon


@pytest.mark.parametrize(
    "cells",
    [(36, 12, 2, 0), (2, 14, 0, 0), (0, 0, 0, 10), (54, 0, 0, 0), (3, 5, 20, 7), (40, 1, 9, 30)],
)
def test_the_interval_of_paired_shares_is_newcombes(cells):
    pairs = [(1, 1)] * cells[0] + [(1, 0)] * cells[1] + [(0, 1)] * cells[2] + [(0, 0)] * cells[3]
    one_N, two_N = np.array(pairs, dtype=bool).T
    difference, low, high = paired_share_interval(two_N, one_N)
    expected = newcombe(*cells)
    assert difference == pytest.approx((cells[1] - cells[2]) / sum(cells))
    assert (low, high) == pytest.approx(expected, abs=1e-12)
    assert -1 <= low <= difference <= high <= 1
    if cells == (36, 12, 2, 0):  # as the paper's table II prints it
        assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)
    back = paired_share_interval(one_N, two_N)
    assert back == pytest.approx((-difference, -high, -low), abs=1e-12)


def test_predictions_are_those_of_the_classifier_in_order():
    model = new_classifier(ClassifierShape(size=8, classes=3, width=2), seed=0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    model.eval()
    model.class_names = list(NAMES)
    images = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    images = images.to(torch.uint8)
    done = []
    found = predict(model, iter(images.split(2)), done.append)
    assert done == [2, 4, 5] and found.class_names == NAMES
    assert found.features.dtype == np.float64 and found.features.shape == (5, 16)
    features, logits = model.features_and_logits(images)
    np.testing.assert_allclose(found.features, features.numpy(), rtol=1e-5, atol=1e-6)
    expected = logits.softmax(1).detach().numpy()
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4, atol=1e-6)
    assert found.seen_N.tolist() == expected.argmax(1).tolist()
    with pytest.raises(UserError, match="no images"):
        predict(model, [])
