"""Probing: features, intervals, attention numbers, token changes."""

import numpy as np
import pytest
import torch
from helpers import SMALL, fake_store, small_model
from PIL import Image

from probes.attention.maps import attention_at_steps, attention_maps
from probes.attention.result import maps_result
from probes.attention.rollout import attention_rollout
from probes.attention.stats import attention_stats
from probes.reading.features import (
    capture_steps,
    parse_layers,
    parse_steps,
    scattered_steps,
    step_features,
    uniform_steps,
)
from probes.tokens.augmentations import nudge
from star.base.errors import UserError


def test_uniform_and_scattered_steps():
    assert uniform_steps(256, 8) == [32, 64, 96, 128, 160, 192, 224, 256]
    assert uniform_steps(64, 7)[-1] == 64 and len(set(uniform_steps(64, 7))) == 7
    for bad in (0, -1, 65, 1000):
        with pytest.raises(UserError, match=f"steps is {bad}; expected 1 to 64"):
            uniform_steps(64, bad)
    for tokens, count in ((64, 8), (256, 8), (576, 12), (16, 16), (9, 4)):
        steps = scattered_steps(tokens, count)
        assert len(set(steps)) == count and steps == sorted(steps)
        assert steps[0] >= 1 and steps[-1] <= tokens
    columns = {(step - 2) % 8 for step in scattered_steps(64, 8)}
    assert len(columns) > 3, "current tokens lie in different columns"


def test_layer_and_step_lists():
    assert parse_layers("all", 3) == [1, 2, 3]
    assert parse_layers("2,3", 3) == [2, 3]
    assert parse_steps("9,1,4", 9) == [1, 4, 9]
    for text in ("six", "1,", ""):
        with pytest.raises(UserError, match="expected all, a number"):
            parse_layers(text, 3)
    with pytest.raises(UserError, match="step 10 does not exist; expected 1 to 9"):
        parse_steps("10", 9)


def test_features_are_the_null_class_hidden_states_at_position_t_minus_1():
    model, store = small_model(), fake_store(images=10)
    found = step_features(model, store, layers=[1, 3], steps=[1, 4, 9], batch_size=4)
    assert found.values.shape == (2, 3, 10, 16)
    tokens = torch.from_numpy(store.codes[:, 0].astype(np.int64))
    null = torch.full((10,), SMALL.num_classes)
    out = model(tokens, null, capture=("layers.1", "layers.3")).captured
    for a, layer in enumerate((1, 3)):
        for b, step in enumerate((1, 4, 9)):
            expected = out[f"layers.{layer}"][:, step - 1].detach().numpy()
            np.testing.assert_allclose(found.values[a, b], expected, rtol=1e-5, atol=1e-6)


def test_a_step_sees_nothing_of_its_own_token_or_the_label():
    model, store = small_model(), fake_store(images=6)
    before = step_features(model, store, layers=[3], steps=[4]).values
    changed = fake_store(images=6)
    changed.codes = store.codes.copy()
    changed.codes[:, :, 3:] = 0
    changed.labels = store.labels[::-1].copy()
    np.testing.assert_array_equal(step_features(model, changed, layers=[3], steps=[4]).values, before)
    changed.codes[:, :, 2] = (changed.codes[:, :, 2] + 1) % 11
    assert not np.allclose(step_features(model, changed, layers=[3], steps=[4]).values, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": 12}, "have vocabulary 12; the model was built for 11"),
        ({"grid": 4}, "have grid 4; the model was built for 3"),
    ],
)
def test_codes_that_do_not_fit_the_model(changes, message):
    with pytest.raises(UserError, match=message):
        step_features(small_model(), fake_store(**changes), layers=[1], steps=[1])


def test_features_may_be_of_images_of_other_classes_and_attention_under_a_class_may_not():
    model, store = small_model(), fake_store(classes=3)
    found = step_features(model, store, layers=[1], steps=[4])
    assert len(found.labels) == len(store) and found.labels.max() == 2
    with pytest.raises(UserError, match="have number of classes 3; the model was built for 4"):
        attention_stats(model, store, layers=[1], steps=[4])


def test_captured_steps_are_rows_of_the_whole_pass_up_to_the_last_of_them():
    model, tokens = small_model(), torch.from_numpy(fake_store().codes[:, 0].astype(np.int64))
    sites, labels = ["layers.2", "layers.1.attention"], torch.full((len(tokens),), 1)
    whole = capture_steps(model, tokens, labels, sites, None)
    some = capture_steps(model, tokens, 1, sites, [2, 5])
    assert set(some) == set(sites)
    # sums over 5 places in place of 10 round differently
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(some["layers.2"], whole["layers.2"][:, [1, 4]], **close)
    attention = whole["layers.1.attention"][:, :, [1, 4], :5]
    torch.testing.assert_close(some["layers.1.attention"], attention, **close)
    half = capture_steps(model, tokens, 1, ["layers.2"], [5], precision=torch.bfloat16)["layers.2"]
    assert not torch.equal(half.float()[:, 0], some["layers.2"][:, 1])
    hidden = torch.zeros(10, 10, dtype=torch.bool)
    hidden[4, 2] = True
    cut = capture_steps(model, tokens, 1, sites[1:], [5], cut={1: hidden})["layers.1.attention"]
    assert not cut[:, :, 0, 2].any() and some["layers.1.attention"][:, :, 1, 2].all()


def test_a_layer_that_does_not_exist():
    with pytest.raises(UserError, match=r"layer 99 does not exist; the model has layers 1 to 3"):
        step_features(small_model(), fake_store(), layers=[99], steps=[1])


def test_attention_rows_at_steps_are_rows_of_the_whole_pattern():
    model, store = small_model(), fake_store(images=5)
    tokens = torch.from_numpy(store.codes[:, 0].astype(np.int64))
    labels = torch.from_numpy(store.labels)
    rows = attention_at_steps(model, tokens, labels, layers=[1, 3], steps=[1, 5, 9])
    for a, layer in enumerate((1, 3)):
        name = f"layers.{layer}.attention"
        whole = model(tokens, labels, capture=[name]).captured[name]
        for b, step in enumerate((1, 5, 9)):
            torch.testing.assert_close(rows[a, :, :, b], whole[:, :, step - 1, :9])
    assert not rows[:, :, :, 0, 1:].any(), "step 1 sees the class only"


def test_attention_maps_heads_and_errors():
    model, store = small_model(), fake_store(images=1)
    tokens = torch.from_numpy(store.codes[0, 0].astype(np.int64))
    options = {"layers": [2], "steps": [3, 9]}
    each = [attention_maps(model, tokens, 1, **options, head=h).maps for h in (1, 2)]
    np.testing.assert_allclose(
        attention_maps(model, tokens, 1, **options).maps, np.mean(each, 0), rtol=1e-5
    )
    np.testing.assert_allclose(
        attention_maps(model, tokens, 1, **options, head="max").maps, np.max(each, 0), rtol=1e-5
    )
    every = attention_maps(model, tokens, 1, **options, head="all")
    assert every.maps.shape == (1, 2, 2, 9) and every.class_weights.shape == (1, 2, 2)
    np.testing.assert_array_equal(every.maps, np.stack(each, axis=1))
    rolled = attention_maps(model, tokens, 1, **options, head="rollout")
    rows = attention_rollout(model, tokens[None], torch.tensor([1]), layers=[2], steps=[3, 9])
    np.testing.assert_array_equal(rolled.maps[0, 1], [*rows[0, 0, 1, 1:].tolist(), 0.0])
    np.testing.assert_array_equal(rolled.class_weights, rows[:, 0, :, 0])
    found = attention_maps(model, tokens, 1, **options)
    np.testing.assert_allclose(found.maps.sum(-1) + found.class_weights, 1, rtol=1e-5)
    assert not found.maps[0, 0, 2:].any(), "step 3 has seen two tokens"
    for changes, message in (
        ({"head": 3}, "head is 3; expected mean, max, all, rollout or 1 to 2"),
        ({"head": "some"}, "head is 'some'; expected mean, max, all, rollout or 1 to 2"),
        ({"layers": [4]}, "layer 4 does not exist"),
        ({"steps": [10]}, "step 10 does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            attention_maps(model, tokens, 1, **{**options, **changes})
    with pytest.raises(UserError, match="class 9 does not exist"):
        attention_maps(model, tokens, 9, **options)
    with pytest.raises(UserError, match="token 99 does not exist"):
        attention_maps(model, torch.full((9,), 99), 1, **options)
    with pytest.raises(UserError, match=r"has \(4,\) tokens; the model expects 9"):
        attention_maps(model, tokens[:4], 1, **options)


def test_layers_captured_a_few_at_a_time_give_the_same_maps(monkeypatch):
    from probes.attention import maps as attention

    model, store = small_model(), fake_store(images=1)
    tokens = torch.from_numpy(store.codes[0, 0].astype(np.int64))
    options = {"layers": [3, 1, 2], "steps": list(range(1, 10)), "head": "all"}
    whole = attention_maps(model, tokens, 1, **options)
    calls = []

    def counted(*arguments, layers, steps):
        calls.append(layers)
        return attention_at_steps(*arguments, layers=layers, steps=steps)

    monkeypatch.setattr(attention, "attention_at_steps", counted)
    monkeypatch.setattr(attention, "MOST_ROWS", 2 * 9 * 9 * 2)  # heads, steps, positions, two layers
    parts = attention_maps(model, tokens, 1, **options)
    assert calls == [[3, 1], [2]]
    np.testing.assert_array_equal(parts.maps, whole.maps)
    np.testing.assert_array_equal(parts.class_weights, whole.class_weights)


def test_the_table_of_maps_holds_every_weight_that_a_query_could_give():
    model, store = small_model(), fake_store(images=1)
    tokens = torch.from_numpy(store.codes[0, 0].astype(np.int64))
    found = attention_maps(model, tokens, 1, layers=[3, 1], steps=[1, 4], head="all")
    table = maps_result({"A": found, "B": found}, "cat.jpg", "all", {}).table
    assert list(table) == ["model", "image", "layer", "head", "step", "place", "weight"]
    assert len(table) == 2 * 2 * 2 * (1 + 4)  # models, layers, heads; step t sees t places
    sums = table.groupby(["model", "layer", "head", "step"])["weight"].sum()
    assert len(sums) == 16
    np.testing.assert_allclose(sums, 1, rtol=1e-5)  # float32 softmax rows
    one = table.query("model == 'B' and layer == 1 and head == 2 and step == 4").set_index("place")
    np.testing.assert_array_equal(one["weight"][[1, 2, 3]], found.maps[1, 1, 1, :3])
    assert one["weight"][0] == found.class_weights[1, 1, 1]
    mean = attention_maps(model, tokens, 1, layers=[2], steps=[4])
    table = maps_result({"A": mean}, "cat.jpg", "mean", {}).table
    assert set(table["head"]) == {"mean"} and table["weight"].sum() == pytest.approx(1, rel=1e-5)


def test_a_nudge_moves_the_picture_and_zero_does_not():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(np.asarray(nudge(image, shift=0)), pixels)
    moved = np.asarray(nudge(image, shift=2))
    np.testing.assert_array_equal(moved[:, 2:], pixels[:, :-2])
    np.testing.assert_array_equal(moved[:, :2], pixels[:, :1].repeat(2, 1))
