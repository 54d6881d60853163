"""The whole chain, tiny everything: images in, figures and a comparison out, resumable."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from figures.compare import Measured, comparison, training_seconds, verdict
from figures.reproduce import Plan, plan_for, reproduce
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


def measured(name, hit_rate, nll, rng):
    attention = pd.DataFrame(
        {
            "layer": [0, 0], "step": [0, 0], "measure": ["class_share", "distance"],
            "value": [0.5, 2.0], "low": [0.4, 1.9], "high": [0.6, 2.1], "uniform": [0.1, 3.0],
            "n": [9, 9],
        }
    )  # fmt: skip
    return Measured(
        name=name,
        lr=1e-3,
        steps=5,
        seconds=10.0,
        layer=3,
        correct=rng.random((8, 400)) < hit_rate,
        nll=nll + 0.1 * rng.normal(size=100),
        attention=attention,
    )


def test_the_verdict_follows_the_paired_intervals():
    rng = np.random.default_rng(0)
    low, high = measured("AR", 0.5, 3.0, rng), measured("ST-AR", 0.7, 2.5, rng)
    won = verdict(low, high)
    assert "ST-AR reads the class better than AR: " in won[0] and "higher" in won[0]
    assert "ST-AR predicts tokens better than AR" in won[1]
    lost = verdict(measured("AR", 0.7, 2.5, rng), measured("ST-AR", 0.5, 3.0, rng))
    assert all("ST-AR does NOT win here" in sentence and "worse" in sentence for sentence in lost)
    tied = verdict(measured("AR", 0.6, 3.0, rng), measured("ST-AR", 0.6, 3.0, rng))
    assert "neither better nor worse" in tied[0]


def test_the_comparison_table_reports_means_with_intervals():
    rng = np.random.default_rng(1)
    model = measured("AR", 0.5, 3.0, rng)
    table = comparison([model]).set_index("measure")
    late = table.loc["probe accuracy, layer 3, last 4 steps"]
    assert late["value"] == pytest.approx(100 * model.correct[4:].mean())
    assert late["low"] < late["value"] < late["high"] and late["n"] == 400
    assert table.loc["attention on the class token", "value"] == 50.0
    assert table.loc["mean attention distance", "high"] == 2.1


def test_training_seconds_come_from_the_metrics(tmp_path):
    rows = [{"step": 2, "sequences_per_second": 8.0}, {"step": 6, "sequences_per_second": 16.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert training_seconds(tmp_path, sequences=4) == pytest.approx(2 * 4 / 8 + 4 * 4 / 16)


def test_the_recipe_is_one_of_small_batches_and_a_fixed_rate():
    plan = plan_for("digits", seed=3)
    model, config = plan.config.model, plan.config
    assert (model.layers, model.width, config.batch_size, config.max_steps) == (4, 64, 16, 3000)
    assert plan.learning_rates == (config.lr,) and config.seed == 3
    both = plan.configs()
    assert dataclasses.replace(both["AR"], objective=config.objective) == both["ST-AR"]
    assert plan_for("x", max_steps=7, batch_size=4).config.max_steps == 7
