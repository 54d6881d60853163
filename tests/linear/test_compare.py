"""Comparing two checkpoints: tests against slow references, and words that claim no more than they."""

import re

import numpy as np
import pytest

from probes.linear.classes import confusion, per_class_accuracy
from probes.linear.compare import COMPARE_COLUMNS, compare_hits
from probes.stats.intervals import averaged_hits_test, wilson_interval
from probes.stats.paired import holm, paired_share_interval
from star.base.errors import UserError

LAYERS, STEPS, NAMES = (1, 2, 3), (8, 16, 24, 32), ("AR", "ST-AR")


def hits(gain_LK, *, images=400, seeds=1):
    """Two models with the same hits, but for images (a share ``gain``) that only one gets right."""
    gain_LK = np.asarray(gain_LK, dtype=float)
    rng = np.random.default_rng(0)
    base_LKN = rng.random((*gain_LK.shape, images)) < 0.4
    extra_LKN = rng.random(base_LKN.shape) < np.abs(gain_LK)[..., None]
    ahead_LKN = extra_LKN | base_LKN
    first = np.where(gain_LK[..., None] < 0, ahead_LKN, base_LKN)
    second = np.where(gain_LK[..., None] > 0, ahead_LKN, base_LKN)
    return tuple(np.repeat(one[None], seeds, 0) for one in (first, second))


def compared(gain_LK, **options):
    first, second = hits(gain_LK, **options)
    return compare_hits(first, second, layers=LAYERS, steps=STEPS, names=NAMES)


def test_the_table_against_counting():
    first, second = np.random.default_rng(1).random((2, 2, 3, 4, 60)) < 0.5
    table = compare_hits(first, second, layers=LAYERS, steps=STEPS, names=NAMES).table
    assert tuple(table.columns) == COMPARE_COLUMNS
    assert len(table) == 3 * (4 + 1) + 1 and (table["n"] == 60).all()
    row = table[(table["layer"] == 2) & (table["step"] == 24)].iloc[0]
    assert row["first"] == pytest.approx(first[:, 1, 2].mean())
    assert row["second"] == pytest.approx(second[:, 1, 2].mean())
    assert row["difference"] == pytest.approx(second[:, 1, 2].mean() - first[:, 1, 2].mean())
    pairs = list(zip(first[0, 1, 2], second[0, 1, 2], strict=True))
    assert row["only_first"] == sum(a and not b for a, b in pairs)
    assert row["only_second"] == sum(b and not a for a, b in pairs)
    overall = table[(table["layer"] == 3) & (table["step"] == 0)].iloc[0]
    assert overall["difference"] == pytest.approx(second[:, 2].mean() - first[:, 2].mean())
    expected = averaged_hits_test((second[:, 2].astype(float) - first[:, 2]).mean((0, 1)))
    assert tuple(overall[["difference", "low", "high"]]) == pytest.approx(expected[:3])
    expected = averaged_hits_test((second[:, 1, 2].astype(float) - first[:, 1, 2]).mean(0))
    assert tuple(row[["difference", "low", "high"]]) == pytest.approx(expected[:3])
    of_one = compare_hits(first[:1], second[:1], layers=LAYERS, steps=STEPS, names=NAMES).table
    cell = of_one[(of_one["layer"] == 2) & (of_one["step"] == 24)].iloc[0]
    expected = paired_share_interval(first[0, 1, 2], second[0, 1, 2])
    assert tuple(cell[["difference", "low", "high"]]) == pytest.approx(expected)
    assert overall[["only_first", "p", "p_holm", "higher"]].isna().all()
    tested = table[table["step"] > 0]
    np.testing.assert_allclose(tested["p_holm"], holm(tested["p"].to_numpy()))


def test_twice_gives_the_same_table_and_swapping_the_models_the_opposite():
    first, second = hits(np.full((3, 4), 0.1))
    options = {"layers": LAYERS, "steps": STEPS}
    one, again = (compare_hits(first, second, names=NAMES, **options) for _ in range(2))
    assert one.table.equals(again.table) and one.sentences() == again.sentences()
    swapped = compare_hits(second, first, names=NAMES[::-1], **options).table
    np.testing.assert_allclose(swapped["difference"], -one.table["difference"])
    assert (swapped["higher"][:12] == one.table["higher"][:12]).all()


def test_words_when_one_is_ahead_everywhere():
    whole, cells = compared(np.full((3, 4), 0.2)).sentences()
    assert whole.startswith("ST-AR less AR, mean of all 12 cells: +1")
    assert cells == (
        "cell by cell, to explore: ST-AR ahead at 12 (layers 1 to 3, every step), of 12 cells "
        "(McNemar's exact test, Holm-corrected p < 0.05)"
    )


def test_words_when_nothing_differs():
    whole, cells = compared(np.zeros((3, 4))).sentences()
    # Even no discordant image among 400 leaves room for a difference.
    assert re.fullmatch(
        r"ST-AR less AR, mean of all 12 cells: \+0\.0 points \[-0\.\d, \+0\.\d\] "
        r"\(\d+\.\d less \d+\.\d %\) on these 400 images",
        whole,
    )
    assert cells.startswith("cell by cell, to explore: neither ahead anywhere, of 12 cells (McNemar")


def test_words_of_a_mixed_picture():
    gain = [[0, 0, 0, 0], [0, 0.2, 0.2, 0.2], [-0.2, 0, 0, 0]]
    _, cells = compared(gain, seeds=3).sentences()
    assert "ST-AR ahead at 3 (layer 2, steps 16 to 32), AR ahead at 1 (layer 3, step 8)," in cells


def test_layers_of_one_pattern_share_a_clause():
    _, cells = compared([[0, 0.3, 0, 0.1], [0, 0, 0, 0], [0, 0.2, 0, 0.2]]).sentences()
    assert "ST-AR ahead at 4 (layers 1 and 3, steps 16 and 32)," in cells


def test_of_one_cell_the_words_are_its_own():
    first, second = hits([[0.3]])
    result = compare_hits(first, second, layers=(2,), steps=(8,), names=NAMES)
    row = result.table.iloc[0]
    assert result.sentences()[0].startswith(
        f"ST-AR less AR, one cell: {100 * row.difference:+.1f} points [{100 * row.low:+.1f}, "
    )


def test_the_mean_over_all_cells_is_not_that_of_chosen_ones():
    """The fault that this mends: an average over cells that a test chose leans to large differences."""
    rng = np.random.default_rng(5)
    first = rng.random((1, 3, 4, 360)) < 0.5
    second = first ^ (rng.random(first.shape) < 0.3)
    second |= rng.random(first.shape) < 0.06  # +3 points, and many images that differ
    result = compare_hits(first, second, layers=LAYERS, steps=STEPS, names=NAMES)
    whole = result.table[result.table["layer"].eq(0)].iloc[0]
    gain = (second.astype(float) - first).mean((0, 1, 2))
    assert tuple(whole[["difference", "low", "high"]]) == pytest.approx(averaged_hits_test(gain)[:3])
    chosen = result.table[result.table["p"] < 0.05]
    assert chosen["difference"].mean() > 1.5 * whole["difference"] > 0
    assert f"{100 * chosen['difference'].mean():+.1f}" not in " ".join(result.sentences())


def test_a_difference_that_the_correction_takes_away_is_not_claimed():
    first, second = hits(np.zeros((3, 4)))
    gained = np.flatnonzero(~second[0, 0, 0])[:7]
    second[0, 0, 0, gained] = True
    result = compare_hits(first, second, layers=LAYERS, steps=STEPS, names=NAMES)
    cell = result.table.iloc[0]
    assert cell["p"] == pytest.approx(2 / 2**7) and cell["p"] < 0.05 < cell["p_holm"]
    assert cell["low"] > 0 and cell["higher"] == "neither"
    assert "neither ahead anywhere" in result.sentences()[1]


def test_a_gain_of_seed_0_alone_is_not_claimed():
    first, second = hits(np.full((3, 4), 0.3), seeds=3)
    first[1:], second[1:] = second[1:].copy(), first[1:].copy()
    result = compare_hits(first, second, layers=LAYERS, steps=STEPS, names=NAMES)
    tested = result.table[result.table["step"] > 0]
    assert (tested["p_holm"] < 0.05).all() and (tested["difference"] < 0).all()
    assert (tested["higher"] == "neither").all()


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        (np.ones((1, 3, 4, 9), bool), {}, r"are \(1, 3, 4, 8\) of AR and \(1, 3, 4, 9\) of ST-AR"),
        (np.ones((2, 3, 4, 8), bool), {}, "a paired comparison needs the same"),
        (np.ones((1, 3, 4, 8), int), {}, "hits of ST-AR are int64 .* expected bool"),
        (np.ones((1, 3, 4, 8), bool), {"layers": (1, 2)}, "hold 3 layers x 4 steps; 2 layers and 4"),
        (np.ones((1, 3, 4, 8), bool), {"names": ("AR", "AR")}, "expected two different model names"),
    ],
)
def test_hits_that_do_not_fit_are_refused(second, options, message):
    options = {"layers": LAYERS, "steps": STEPS, "names": NAMES} | options
    with pytest.raises(UserError, match=message) as raised:
        compare_hits(np.ones((1, 3, 4, 8), bool), second, **options)
    assert "\n" not in str(raised.value)


def predictions(seeds=3, classes=5):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, classes - 1, 80)  # the last class has no image
    predicted = rng.integers(0, classes, (seeds, 2, 3, 80))
    return np.where(rng.random(predicted.shape) < 0.5, labels, predicted), labels


def test_per_class_accuracy_against_a_loop():
    predicted, labels = predictions()
    table = per_class_accuracy(predicted, labels, 5, layers=(4, 6), steps=(8, 16, 24))
    assert list(table.columns) == ["layer", "step", "class", "accuracy", "low", "high", "n"]
    assert len(table) == 2 * 3 * 5
    for row in table.itertuples(index=False):
        layer, step, label, accuracy, low, high, n = row
        own = [i for i in range(80) if labels[i] == label]
        cell = predicted[:, (4, 6).index(layer), (8, 16, 24).index(step)]
        right = [np.mean([cell[s, i] == label for s in range(3)]) for i in own]
        assert n == len(own)
        if n:
            assert (accuracy, low, high) == pytest.approx(
                (np.mean(right), *wilson_interval(sum(right), n))
            )
        else:
            assert np.isnan([accuracy, low, high]).all()


def test_confusion_against_a_loop():
    predicted, labels = predictions()
    counts = confusion(predicted[:, 1, 2], labels, 5)
    expected = np.zeros((5, 5), int)
    for guesses in predicted[:, 1, 2]:
        for label, guess in zip(labels, guesses, strict=True):
            expected[label, guess] += 1
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == 3 * 80


def test_predictions_that_do_not_fit_are_refused():
    predicted, labels = predictions()
    with pytest.raises(UserError, match=r"shape \(3, 2, 3, 80\); expected \(seeds, 2, 4, 80\)"):
        per_class_accuracy(predicted, labels, 5, layers=(4, 6), steps=(8, 16, 24, 32))
    with pytest.raises(UserError, match="predictions are int64 from 0 to 4; .* within 0..3"):
        confusion(predicted[:, 0, 0], labels, 4)
    with pytest.raises(UserError, match="expected whole numbers"):
        confusion(predicted[:, 0, 0] / 2, labels, 5)
