"""The probing atlas: a whole table with its controls, broken layers, interruptions, two processes."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import SMALL, small_model
from probing import CPU, LAYERS, MAE, STEPS, atlas_of, config, loaded, splits, tokenizer

from probes.linear import saving
from probes.linear.atlas import DRAWS, probe_atlas
from probes.linear.knn import knn_predict
from probes.linear.protocols import PROTOCOLS, ProtocolConfig
from probes.linear.splits import probe_splits
from probes.reading.features import step_features
from probes.results import PROBE_COLUMNS, read_result, write_result
from probes.stats.intervals import wilson_interval
from star.base.errors import UserError
from star.base.randomness import torch_generator
from star.codes.store import open_splits
from star.images.open import open_source
from star.model.config import ModelConfig
from star.model.transformer import build_model
from star.training.config import TrainConfig
from star.training.learner import Learner


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def small_pictures_of_tokens(monkeypatch):
    """One pixel a cell, so that the pixel control is 27 numbers wide, not 2,700; three values of C."""
    monkeypatch.setattr("probes.linear.pixels.SIDE", 3)
    monkeypatch.setattr("probes.linear.protocols.STRENGTHS", (0.01, 1.0, 100.0))


def rows(atlas, control, **where) -> pd.DataFrame:
    table = atlas.result.table
    for column, value in {"control": control, **where}.items():
        table = table[table[column] == value]
    return table.reset_index(drop=True)


# --- what the table holds ------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_layer_and_step_has_a_row_beside_its_four_controls(tmp_path, name):
    seeds = (0, 4) if name in ("ridge", "mae") else (2,)
    atlas = atlas_of(tmp_path, config=config(name, seeds=seeds))
    table, labels = atlas.result.table, splits().labels("test")
    assert list(table.columns) == [*PROBE_COLUMNS, "val_accuracy", "choice", "at_edge"]
    found = [tuple(row) for row in table[["layer", "step", "control", "seed"]].itertuples(index=False)]
    expected = [
        *((layer, step, control, seed) for layer in LAYERS for step in STEPS for seed in seeds
          for control in ("none", "random", "shuffled")),
        *((0, step, control, seed) for step in STEPS for seed in seeds
          for control in ("codes", "pixels")),
    ]  # fmt: skip
    assert sorted(found) == sorted(expected)
    assert set(table["protocol"]) == {name} and set(table["split"]) == {"test"}
    assert set(table["n"]) == {24}
    for row in table.itertuples():
        parts = DRAWS if row.control == "random" else 1  # the mean of draws
        hits = round(row.accuracy * 24 * parts) / parts
        assert row.accuracy == pytest.approx(hits / 24)
        assert (row.low, row.high) == pytest.approx(wilson_interval(hits, 24))
    assert table["val_accuracy"].isna().all() == (name == "knn")
    assert atlas.predicted_SLKN.shape == (len(seeds), 2, 3, 24)
    np.testing.assert_array_equal(atlas.labels_N, labels)
    np.testing.assert_array_equal(atlas.hits_SLKN, atlas.predicted_SLKN == labels)
    for s, seed in enumerate(seeds):
        for a, layer in enumerate(LAYERS):
            for k, step in enumerate(STEPS):
                row = rows(atlas, "none", layer=layer, step=step, seed=seed).iloc[0]
                assert row.accuracy == atlas.hits_SLKN[s, a, k].mean()
    info = atlas.result.info
    assert info["complete"] is True and info["broken"] == atlas.broken == []
    assert info["protocol"] == name and info["seeds"] == list(seeds) and info["total_steps"] == 9
    assert info["splits"]["images"] == {"train": 40, "val": 16, "test": 24}
    assert info["chance"] == 0.25 and info["pixels"] == "seen tokens decoded"
    written = write_result(atlas.result, tmp_path / "atlas.csv")
    again = read_result(written[0])
    assert again.info == info
    pd.testing.assert_frame_equal(again.table, table, rtol=1e-5)  # six digits are written


def test_predictions_are_those_of_the_layer_and_step_they_are_filed_under(tmp_path):
    """Neighbours by hand; of the same float32 features."""
    layers, steps = (3, 1), (2, 4, 9)
    atlas = atlas_of(tmp_path, config=config("knn", layers=layers, steps=steps))
    parts, model = splits(), small_model()
    options = {"layers": list(layers), "steps": list(steps)}
    train, test = (
        step_features(model, parts.stores[part], **options).values for part in ("train", "test")
    )
    labels = parts.labels("train")
    for a in range(2):
        for k in range(3):
            expected = knn_predict(
                train[a, k].astype(np.float32), labels, test[a, k].astype(np.float32)
            )
            np.testing.assert_array_equal(atlas.predicted_SLKN[0, a, k], expected)


def test_each_control_depends_on_what_it_is_made_of_alone(tmp_path):
    first = atlas_of(tmp_path)
    other = atlas_of(tmp_path, model=small_model(seed=9))
    for control in ("random", "codes", "pixels"):
        pd.testing.assert_frame_equal(rows(first, control), rows(other, control))
    for control in ("none", "shuffled"):
        assert not rows(first, control).equals(rows(other, control))
    # The seed draws the random weights and the shuffled labels; closed-form probes have no other use.
    seeded = atlas_of(tmp_path, config=config(seeds=(1,)))
    for control in ("none", "codes", "pixels"):
        left, right = (rows(atlas, control).drop(columns="seed") for atlas in (first, seeded))
        pd.testing.assert_frame_equal(left, right)
    for control in ("random", "shuffled"):
        left, right = (rows(atlas, control).drop(columns="seed") for atlas in (first, seeded))
        assert not left.equals(right)
    # Of several seeds each is what it is alone.
    both = atlas_of(tmp_path, config=config(seeds=(0, 1)))
    for alone, seed in ((first, 0), (seeded, 1)):
        for control in ("none", "random", "shuffled", "codes", "pixels"):
            pd.testing.assert_frame_equal(rows(both, control, seed=seed), rows(alone, control))


def test_a_run_that_has_not_begun_is_its_own_random_control(tmp_path):
    run = TrainConfig(model=SMALL, seed=5)
    untrained = dataclasses.replace(loaded(tmp_path, Learner(run, CPU).student.model), config=run)
    atlas = probe_atlas(untrained, splits(), config("knn"), tokenizer=tokenizer())
    left, right = (rows(atlas, control).drop(columns="control") for control in ("none", "random"))
    pd.testing.assert_frame_equal(left, right)
    assert atlas.result.info["random_weights"] == "those that the run began with"
    other = dataclasses.replace(untrained, config=dataclasses.replace(run, seed=6))
    atlas = probe_atlas(other, splits(), config("knn"), tokenizer=tokenizer())
    assert not rows(atlas, "random").drop(columns="control").equals(right)


def test_without_a_run_random_weights_are_the_mean_of_five_draws(tmp_path):
    atlas = atlas_of(tmp_path, config=config("knn"))
    assert atlas.result.info["random_weights"] == "the mean of 5 draws of initial weights"
    alone = []
    for draw in range(5):
        model = build_model(SMALL, torch_generator(0, "probe control", draw))
        alone.append(rows(atlas_of(tmp_path, model=model, config=config("knn")), "none"))
    found = rows(atlas, "random")
    np.testing.assert_allclose(found["accuracy"], np.mean([each["accuracy"] for each in alone], axis=0))
    assert len({tuple(each["accuracy"]) for each in alone}) > 1
    for row in found.itertuples():
        assert (row.low, row.high) == pytest.approx(wilson_interval(24 * row.accuracy, 24))


def test_seeds_that_draw_nothing_are_not_run_again(tmp_path):
    stages = []
    options = {
        "config": config("ridge", seeds=(0, 1)),
        "on_stage": lambda *told: stages.append(told[0]),
    }
    atlas = atlas_of(tmp_path, **options)
    arms = {stage.split(":")[0] for stage in stages if "seed 1" in stage}
    assert arms == {"model, seed 1", *(f"random, seed 1, draw {draw} of 5" for draw in range(1, 6))}
    for control in ("none", "codes", "pixels"):
        first, second = (rows(atlas, control, seed=seed).drop(columns="seed") for seed in (0, 1))
        pd.testing.assert_frame_equal(first, second)
    stages.clear()
    atlas_of(tmp_path, **options | {"config": config("mae", seeds=(0, 1))})
    assert {"codes, seed 1", "pixels, seed 1"} <= {stage.split(":")[0] for stage in stages}


def test_real_stores_and_their_images(tmp_path, stores, digit_folder):
    shape = ModelConfig(layers=2, heads=2, width=16, grid=8, vocab_size=256, num_classes=2)
    atlas = probe_atlas(
        loaded(tmp_path, small_model(shape)),
        probe_splits(open_splits(stores)),
        config(layers=(2,), steps=(1, 32, 64)),
        images=open_source(digit_folder),
    )
    assert atlas.result.info["pixels"] == "source" and len(atlas.result.table) == 15
    # Zeros and ones by their pixels: easy.
    assert rows(atlas, "pixels", step=64)["accuracy"][0] > 0.8
    assert rows(atlas, "pixels", step=1)["accuracy"][0] == 0.5


# --- what is refused, what is broken -------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (4,)}, "layer 4 does not exist; the model has layers 1 to 3"),
        ({"layers": (0, 1)}, "layer 0 does not exist"),
        ({"steps": (1, 10)}, "step 10 does not exist; expected 1 to 9"),
        ({"steps": (0,)}, "step 0 does not exist"),
        ({"steps": (9, 4)}, r"steps are \(9, 4\); expected ascending"),
        ({"steps": (4, 4)}, r"steps are \(4, 4\); expected ascending"),
        ({"steps": ()}, r"steps are \(\); expected"),
    ],
)
def test_layers_and_steps_that_cannot_be_probed(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        atlas_of(tmp_path, config=config(**changes))


def test_codes_that_the_model_was_not_made_for(tmp_path):
    of_other = dataclasses.replace(loaded(tmp_path), tokenizer={"sha256": "f" * 64})
    with pytest.raises(UserError, match=r"another tokenizer .* trained with \(sha256 ffffffffffff\)"):
        probe_atlas(of_other, splits(), config(), tokenizer=tokenizer())
    larger = small_model(dataclasses.replace(SMALL, vocab_size=12))
    with pytest.raises(UserError, match="have vocabulary 11; the model was built for 12"):
        atlas_of(tmp_path, model=larger)
    with pytest.raises(UserError, match="the pixel control needs the images"):
        probe_atlas(loaded(tmp_path), splits(), config())


@pytest.mark.parametrize("name", ["mae", "ridge"])
def test_a_broken_layer_is_named_and_the_others_are_finished(tmp_path, name):
    model = small_model()
    model.layers[1].attention.wo.weight.data[3, 2] = float("nan")
    work, options = tmp_path / "work", {"config": config(name, layers=(1, 2, 3))}
    whole = atlas_of(tmp_path, **options)
    broken = atlas_of(tmp_path, model=model, work=work, **options)
    named = [f"layer {layer} at step {step}" for layer in (2, 3) for step in STEPS]
    assert broken.broken == broken.result.info["broken"] == named
    assert broken.result.info["complete"] is False
    for control in ("none", "shuffled"):
        assert set(rows(broken, control)["layer"]) == {1}
        # Not bit for bit the same: heads trained beside others round in another order.
        left, right = (rows(atlas, control, layer=1) for atlas in (whole, broken))
        np.testing.assert_allclose(left["accuracy"], right["accuracy"], atol=1 / 24 + 1e-9)
    for control in ("random", "codes", "pixels"):
        pd.testing.assert_frame_equal(rows(whole, control), rows(broken, control))
    again = atlas_of(tmp_path, model=model, work=work, **options)  # read from the folder
    assert again.broken == named
    pd.testing.assert_frame_equal(again.result.table, broken.result.table)


def test_a_control_that_is_broken_at_one_seed_has_no_rows_there(tmp_path, monkeypatch):
    def broken_at_seed_0(config, random, device):
        model = build_model(config, random, device)
        if random.initial_seed() == torch_generator(0, "probe control", 2).initial_seed():
            model.layers[2].ffn_norm.weight.data[:] = float("inf")
        return model

    monkeypatch.setattr("probes.linear.atlas.build_model", broken_at_seed_0)
    atlas = atlas_of(tmp_path, config=config(seeds=(0, 1)))
    named = [f"layer 3 at step {step} of the random control" for step in STEPS]
    assert atlas.broken == named and atlas.result.info["complete"] is False
    assert set(rows(atlas, "random", seed=0)["layer"]) == {1}
    assert set(rows(atlas, "none", seed=0)["layer"]) == {1, 3}


# --- the work folder -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae", "ridge", "logreg"])
def test_an_interrupted_atlas_goes_on_to_the_same_table(tmp_path, monkeypatch, name):
    monkeypatch.setattr(saving, "SECONDS", 0.0)
    settings = config(name, seeds=(0, 1))
    straight = atlas_of(tmp_path, config=settings)
    work, stages = tmp_path / "work", []

    def stop_at(wanted):
        def on_stage(stage, done, total):
            stages.append(stage)
            if stage.startswith(wanted) and done >= 0.6 * total:
                raise Stopped

        return on_stage

    for wanted, done in (
        ("model, seed 1", {"model, seed 0"}),
        ("random, seed 1, draw 2", {"model, seed 0", "model, seed 1", "random, seed 0, draw 5 of 5"}),
        ("pixels, seed 0", {"model, seed 0", "random, seed 1, draw 5 of 5", "codes, seed 0"}),
    ):
        with pytest.raises(Stopped):
            atlas_of(tmp_path, config=settings, work=work, on_stage=stop_at(wanted))
        stages.clear()
        with pytest.raises(Stopped):  # at once: an interruption of the interrupted
            atlas_of(tmp_path, config=settings, work=work, on_stage=stop_at(wanted))
        assert not {stage.split(":")[0] for stage in stages} & done, "arms done are not repeated"
    found = atlas_of(tmp_path, config=settings, work=work)
    pd.testing.assert_frame_equal(found.result.table, straight.result.table)
    np.testing.assert_array_equal(found.predicted_SLKN, straight.predicted_SLKN)

    def never(*arguments, **options):
        raise AssertionError("everything is done")

    monkeypatch.setattr("probes.linear.atlas.run_protocol", never)
    pd.testing.assert_frame_equal(
        atlas_of(tmp_path, config=settings, work=work).result.table, straight.result.table
    )
    (folder,) = work.iterdir()
    assert not list(folder.glob("*.pt")), "heads in training go when their arm is done"


def test_another_seed_takes_over_what_is_done(tmp_path):
    stages = []

    def note(stage, done, total):
        stages.append(stage)

    first = atlas_of(tmp_path, work=tmp_path / "work").result.table
    both = atlas_of(tmp_path, config=config(seeds=(0, 1)), work=tmp_path / "work", on_stage=note)
    pd.testing.assert_frame_equal(both.result.table.query("seed == 0").reset_index(drop=True), first)
    assert any("model, seed 1" in stage for stage in stages)
    assert not any("seed 0" in stage for stage in stages)


def test_another_setting_works_in_another_folder(tmp_path):
    work = tmp_path / "work"
    changes = [
        {},
        {"layers": (1,)},
        {"steps": (4, 9)},
        {"protocol": ProtocolConfig(name="knn")},
        {"protocol": ProtocolConfig(name="mae", mae=MAE)},
        {"protocol": ProtocolConfig(name="mae", mae=dataclasses.replace(MAE, epochs=7))},
        {"protocol": ProtocolConfig(name="mae", mae=dataclasses.replace(MAE, base_lrs=(0.5,)))},
        {"precision": torch.bfloat16},
    ]

    def folders():
        return {path.name for path in work.iterdir()} if work.exists() else set()

    def stop(stage, done, total):
        if stage != "pixels":
            raise Stopped

    for number, change in enumerate(changes, start=1):
        for _ in range(2):
            with pytest.raises(Stopped):
                atlas_of(tmp_path, config=config(**change), work=work, on_stage=stop)
            assert len(folders()) == number, change
    # The same weights under another name are the same work, other weights or other data are not.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(Stopped):
        atlas_of(elsewhere, work=work, on_stage=stop)
    assert len(folders()) == len(changes)
    student = dataclasses.replace(loaded(tmp_path), weights="student")
    retrained = loaded(elsewhere)
    retrained.path.write_bytes(b"another checkpoint")
    other_data = splits()
    other_data.stores["test"].manifest["sha256"]["codes.npy"] = "changed"
    for number, (checkpoint, data) in enumerate(
        ((student, splits()), (retrained, splits()), (loaded(tmp_path), other_data)), start=1
    ):
        with pytest.raises(Stopped):
            probe_atlas(checkpoint, data, config(), tokenizer=tokenizer(), work=work, on_stage=stop)
        assert len(folders()) == len(changes) + number
    settings = [json.loads(path.read_text()) for path in work.glob("*/settings.json")]
    assert len(settings) == len(changes) + 3 and all(kept["checkpoint_sha256"] for kept in settings)
