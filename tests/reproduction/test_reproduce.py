"""The whole chain, tiny everything: images in, figures and a comparison out, resumable."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from figures.reproduction.compare import Measured, comparison, differences, verdict
from figures.reproduction.reproduce import Plan, plan_for, reproduce
from star import load_model
from star.base.errors import UserError
from star.model.config import ModelConfig
from star.training.config import ObjectiveConfig, TrainConfig


def tiny_plan(folder):
    config = TrainConfig(
        model=ModelConfig(layers=2, heads=2, width=32),
        objective=ObjectiveConfig(ema_decay=0.9),
        data=str(folder),
        batch_size=8,
        max_steps=4,
        warmup_steps=1,
        precision="fp32",
        validate_every=4,
        save_every=2,
    )
    return Plan(
        config=config,
        seeds=(0,),
        learning_rates=(1e-3, 4e-3),
        pilot_steps=2,
        probe_steps=4,
        attention_images=8,
        samples_a_class=2,
    )


@pytest.mark.slow
def test_the_chain_end_to_end_and_again(tmp_path, digit_folder, tokenizer_file):
    plan, device = tiny_plan(digit_folder), torch.device("cpu")
    stages, messages = [], []
    options = {"tokenizer": tokenizer_file, "device": device}
    summary = reproduce(
        plan,
        tmp_path / "out",
        on_progress=lambda stage, done, total: stages.append((stage, done, total)),
        on_message=messages.append,
        **options,
    )
    names = {path.name for path in summary.figures}
    for figure in (
        "figure1a",
        "figure1b",
        "figure1c",
        "figure2",
        "figure4",
        "figure5",
        "samples",
        "overview",
    ):
        assert {f"{figure}.png", f"{figure}.pdf"} <= names
    assert all(path.stat().st_size > 1000 for path in summary.figures)
    assert set(summary.table["model"]) == {"AR", "ST-AR"}
    for stage in {name for name, _, _ in stages}:
        last = [(done, total) for name, done, total in stages if name == stage][-1]
        assert last[0] == last[1], f"{stage} ended at {last}"
    assert sum("learning rate" in message for message in messages) == 2
    assert (tmp_path / "out" / "st-ar" / "tokenizer.safetensors").exists(), "star sample needs it"
    probes = pd.read_csv(tmp_path / "out" / "results" / "probe-st-ar.csv")
    assert len(probes[probes["control"] == "none"]) == 2 * 4
    assert set(probes["control"]) == {"none", "random", "shuffled", "codes", "pixels"}
    info = json.loads((tmp_path / "out" / "results" / "comparison.json").read_text())
    assert info["verdict"] == summary.verdict and info["plan"]["pilot_steps"] == 2

    saved = (tmp_path / "out" / "ar" / "ckpt.pt").stat().st_mtime_ns
    again = reproduce(plan, tmp_path / "out", **options)
    assert (tmp_path / "out" / "ar" / "ckpt.pt").stat().st_mtime_ns == saved, "nothing is trained twice"
    first = summary.table.set_index(["model", "measure"])["value"]
    pd.testing.assert_series_equal(again.table.set_index(["model", "measure"])["value"], first)
    with pytest.raises(UserError, match="holds the work of other settings"):
        reproduce(dataclasses.replace(plan, pilot_steps=3), tmp_path / "out", **options)

    more = reproduce(dataclasses.replace(plan, seeds=(0, 1)), tmp_path / "out", **options)
    assert (tmp_path / "out" / "ar" / "ckpt.pt").stat().st_mtime_ns == saved, "the first seed is kept"
    second = load_model(tmp_path / "out" / "st-ar-seed-1" / "ckpt.pt").state_dict()
    first_model = load_model(tmp_path / "out" / "st-ar" / "ckpt.pt").state_dict()
    assert any(not torch.equal(first_model[key], second[key]) for key in second)
    assert set(more.table["runs"]) == {2} and "2 runs and new images" in more.verdict[0]
    assert "Seeds 0, 1" in more.notes[0] and "seed-1" not in str([p.name for p in more.figures])
    for name in ("probe-ar-seed-1", "attention-st-ar-seed-1"):
        assert (tmp_path / "out" / "results" / f"{name}.csv").exists()


def measured(name, hit_rate, nll, rng, seed=0):
    return Measured(
        name=name,
        seed=seed,
        lr=1e-3,
        steps=5,
        flops=2e9,
        layer=3,
        correct=rng.random((8, 400)) < hit_rate,
        nll=nll + 0.1 * rng.normal(size=400),
        distance=2 + 0.1 * rng.normal(size=400),
        class_share=np.full(400, 0.5),
    )


def arms_of(hit_rates, nlls, seeds=5, spread=0.0):
    """Two arms; runs differ by ``spread`` in both numbers."""
    rng = np.random.default_rng(0)
    return [
        [
            measured(name, rate + spread * rng.normal(), nll + spread * rng.normal(), rng, seed)
            for seed in range(seeds)
        ]
        for name, rate, nll in zip(("AR", "ST-AR"), hit_rates, nlls, strict=True)
    ]


def test_the_verdict_is_one_over_runs():
    late, nll, distance = verdict(*arms_of((0.5, 0.7), (3.0, 2.5), spread=0.01))
    assert late.startswith("probe accuracy, layer 3, last 4 steps: ST-AR less AR: +")
    assert "over 5 runs and new images: differs" in late and "test NLL: ST-AR less AR: -0.5" in nll
    assert "mean attention distance" in distance and "not resolved" in distance
    # The same gain, drowned in what runs differ by; images alone would have found it.
    noisy = arms_of((0.55, 0.6), (3.0, 2.98), seeds=3, spread=0.1)
    assert all("not resolved" in sentence for sentence in verdict(*noisy))
    alone = verdict(*arms_of((0.5, 0.7), (3.0, 2.5), seeds=1))
    assert all("nothing here says whether other runs" in sentence for sentence in alone)
    assert not any("differs" in sentence for sentence in alone)


def test_endpoints_are_the_means_of_runs_and_corrected_together():
    plain, improved = arms_of((0.5, 0.7), (3.0, 2.5), seeds=3, spread=0.05)
    found = {endpoint.name: value for endpoint, value in differences(plain, improved).items()}
    late = [
        100 * (b.correct[4:].mean() - a.correct[4:].mean())
        for a, b in zip(plain, improved, strict=True)
    ]
    (name,) = [name for name in found if "last {late} steps" in name]
    assert 100 * found[name].value == pytest.approx(np.mean(late))
    assert 100 * found[name].spread.between == pytest.approx(np.std(late, ddof=1))
    assert all(value.p_holm >= value.p for value in found.values())
    with pytest.raises(AssertionError):
        differences(plain, list(reversed(improved)))


def test_the_comparison_table_reports_means_with_intervals():
    plain, _ = arms_of((0.5, 0.7), (3.0, 2.5), seeds=3, spread=0.05)
    table = comparison({"AR": plain}).set_index("measure")
    late = table.loc["probe accuracy, layer 3, last 4 steps"]
    means = [100 * run.correct[4:].mean() for run in plain]
    assert late["value"] == pytest.approx(np.mean(means)) and late["n"] == 400 and late["runs"] == 3
    assert late["spread"] == pytest.approx(np.std(means, ddof=1))
    assert late["low"] < min(means) and late["high"] > max(means), "three runs: Student's t is wide"
    assert table.loc["attention on the class token", "value"] == 50.0
    alone = comparison({"AR": plain[:1]}).set_index("measure")
    one = alone.loc["probe accuracy, layer 3, last 4 steps"]
    assert one["low"] < means[0] < one["high"] and np.isnan(one["spread"])
    assert one["high"] - one["low"] < late["high"] - late["low"]
    assert alone.loc["FLOPs of a training step", "value"] == 2


def test_the_recipe_is_one_of_small_batches_and_a_fixed_rate():
    plan = plan_for("digits", seed=3, seeds=2)
    model, config = plan.config.model, plan.config
    assert (model.layers, model.width, config.batch_size, config.max_steps) == (4, 64, 16, 3000)
    assert plan.learning_rates == (config.lr,) and config.seed == 3
    assert plan.seeds == (3, 4) and plan.configs(4)["AR"].seed == 4
    assert [plan.folder("ST-AR", seed) for seed in plan.seeds] == ["st-ar", "st-ar-seed-4"]
    with pytest.raises(UserError, match="seeds is 0; expected at least 1"):
        plan_for("digits", seeds=0)
    both = plan.configs(3)
    assert dataclasses.replace(both["AR"], objective=config.objective) == both["ST-AR"]
    assert plan_for("x", max_steps=7, batch_size=4).config.max_steps == 7
