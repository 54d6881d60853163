"""Rollouts, their NLL and entropy, distances and histograms against loops; what the command refuses."""

import math

import numpy as np
import pytest
import torch
from asking import asked_from_python
from helpers import fake_store, refused, small_model

from figures.studies import exposure as study
from probes.likelihood.exposure import compare_exposures, exposure, spans
from probes.likelihood.histograms import pair_images, total_variation, variation
from probes.likelihood.rollouts import default_starts, parse_starts, partners
from probes.reading.images import draw
from probes.results import read_result
from probes.stats.intervals import mean_interval
from star.base.errors import UserError
from star.base.randomness import generator


@torch.no_grad()
def one_image(model, codes, label, start, seed):
    """A rollout token by token, each from a forward pass of its own; NLL and entropy of each."""
    uniform, tokens, nll, entropy = generator(seed, "sample").random(9), [], [], []
    for t in range(9):
        seen = torch.tensor([tokens], dtype=torch.long)
        p = model(seen, torch.tensor([label])).logits[0, -1].double().softmax(-1)
        token = int(codes[t]) if t < start else int((p.cumsum(0) <= uniform[t]).sum())
        tokens.append(token)
        nll.append(-math.log(p[token]))
        entropy.append(-float((p * p.log()).sum()))
    return tokens, nll, entropy


def test_rollouts_and_what_is_measured_on_them_are_those_of_loops():
    model, images = small_model(), draw(fake_store(images=12), 7, 0, "test images")
    rng = np.random.default_rng(0)
    codes_VE = rng.standard_normal((11, 3))
    codes_VE /= np.linalg.norm(codes_VE, axis=1, keepdims=True)
    others = draw(fake_store(images=12, seed=4), 7, 0, "test images")
    alone = np.arange(7) == 2
    found = exposure(
        model, images, [0, 4], seed=5, codes_VE=codes_VE, others=others, alone=alone, batch_size=3
    )
    table = found.table().set_index(["measure", "start", "span", "begin"])
    for place, start in enumerate((0, 4)):
        excess, changed, far, ceiling = [], [], [], []
        for i in range(7):
            codes, label = images.codes[i, 0], int(images.labels[i])
            tokens, nll, entropy = one_image(model, codes, label, start, 5 + i)
            _, real_nll, real_entropy = one_image(model, codes, label, 9, 5 + i)
            assert found.rollout_NKT[i, place].tolist() == tokens
            np.testing.assert_allclose(found.rollout_nll_NKT[i, place], nll, rtol=1e-4)
            excess.append(np.subtract(nll, real_nll)[start:])
            changed.append(np.subtract(entropy, real_entropy)[start:])
            if i != 2:
                far.append([1 - codes_VE[a] @ codes_VE[b] for a, b in zip(tokens, codes, strict=True)])
                theirs = others.codes[i, 0]
                ceiling.append(
                    [1 - codes_VE[a] @ codes_VE[b] for a, b in zip(theirs, codes, strict=True)]
                )
        row = table.loc[("nll", start, "all", 1)]
        expected = mean_interval(np.mean(excess, axis=1))
        assert tuple(row[["difference", "low", "high"]]) == pytest.approx(expected, abs=1e-4)
        third = table.loc[("nll", start, "step", 3), "difference"]
        assert third == pytest.approx(np.mean(excess, axis=0)[2], abs=1e-4)
        assert table.loc[("entropy", start, "step", 1), "difference"] == 0, "the same prefix"
        last = table.loc[("entropy", start, "step", 9 - start), "difference"]
        assert last == pytest.approx(np.mean(changed, axis=0)[-1], abs=1e-4)
        row = table.loc[("code_distance", start, "step", 2)]
        assert row["rollout"] == pytest.approx(np.mean(far, axis=0)[start + 1])
        assert row["real"] == pytest.approx(np.mean(ceiling, axis=0)[start + 1]) and row["n"] == 6
        grown = np.mean(excess, axis=0)
        row = table.loc[("nll_growth", start, "step", 2)]
        assert row["difference"] == pytest.approx(grown[1] - grown[0], abs=1e-4)
    same = compare_exposures(found, found, ("a", "b"))
    assert (same["difference"] == 0).all() and same["p"].isna().all(), "too few images for a test"
    assert same.groupby(["start", "measure"]).ngroups == 2 * 3


def test_histograms_of_a_perfect_model_differ_as_real_halves_do_and_of_another_more():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(50), 2)
    labels = np.repeat(np.arange(4), 100)
    pairs = pair_images(labels, 0)
    assert (
        sorted(pairs.ravel()) == list(range(400)) and (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
    )
    real, perfect = rng.choice(50, (2, 400, 8), p=p)
    other = rng.choice(50, (400, 8), p=q)
    found = variation(perfect, real, pairs)
    counts = [np.bincount(real[pairs[:, half]].ravel(), minlength=50) for half in (0, 1)]
    assert found.real == pytest.approx(np.abs(counts[0] - counts[1]).sum() / 2 / 1600)
    _, low, high = found.interval()
    assert low < 0 < high and found.rollout > 0.03, "chance alone is above 0"
    found = variation(other, real, pairs)
    assert found.interval()[1] > 0 and found.difference == found.rollout - found.real
    assert found.rollout == pytest.approx(total_variation(p, q), abs=0.03)


def test_partners_are_other_images_of_the_class():
    labels = np.array([0, 1, 0, 2, 1, 0])
    rows = np.array([0, 3, 4, 5])
    found = np.array([partners(labels, rows, seed) for seed in range(40)])
    assert (found[:, 1] == 3).all(), "alone in its class"
    assert set(found[:, 0]) == {2, 5} and set(found[:, 2]) == {1} and set(found[:, 3]) == {0, 2}


def test_starts_and_spans():
    assert default_starts(64) == [0, 8, 16, 24, 32, 40, 48, 56] and default_starts(4) == [0, 1, 2, 3]
    assert parse_starts("32, 0,32", 64) == [0, 32]
    windows = [each[1:] for each in spans(20, 15) if each[0] == "window"]
    assert windows == [(1, 2), (3, 4), (5, 5)] and next(spans(20, 15)) == ("all", 1, 5)
    for text, message in (
        ("64", "start 64 cannot be; expected 0 to 63"),
        ("-1", "start -1"),
        ("a", "'a'"),
    ):
        with pytest.raises(UserError, match=message):
            parse_starts(text, 64)


def test_the_command_and_a_notebook(star, trained, stores, tmp_path):
    asked = ("--starts", "0,40", "--images", "8", "--data", stores, "--out", "e")
    code, out, err = star("exposure", trained, trained, *asked)
    assert code == 0, err
    said = " ".join(out.split())
    assert "only growth with distance is exposure bias" in said
    assert "nothing here says whether other runs" in said and "rollouts were not drawn" not in said
    path = next((tmp_path / "e").glob("exposure-teacher-from-*-star.csv"))
    result = read_result(path)
    assert result.info["starts"] == [0, 40] and result.info["sampling"]["temperature"] == 1
    assert set(result.table["start"]) == {0, 40} and "code_distance" in set(result.table["measure"])
    request = study.Request(
        ckpts=[trained, trained], starts="0,40", images=8, data=str(stores), out=tmp_path / "e"
    )
    asked_from_python(study.run, request, tmp_path / "e")


def test_refusals(star, trained, tmp_path):
    for options, message in (
        (("--images", "1"), "images is 1; expected at least 2"),
        (("--starts", "64"), "start 64 cannot be; expected 0 to 63"),
        (("--temperature", "0"), "temperature is 0"),
        (("--seed", "-1"), "seed is -1"),
    ):
        assert refused(star("exposure", trained, *options, "--out", "x"), message), options
        assert not (tmp_path / "x").exists()
