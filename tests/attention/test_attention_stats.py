"""Attention statistics, rollout and their comparison against loops and known answers."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from asking import asked_from_python
from helpers import SMALL, fake_store, refused, small_model

from figures.requests.attention_stats import Request
from figures.studies import attention_stats as study
from probes.attention.compare import attention_sentences, compare_attention
from probes.attention.maps import attention_maps
from probes.attention.measures import MEASURES, row_measures, uniform_rows, value_norms
from probes.attention.places import cut_beyond, euclidean_distance, place_patterns
from probes.attention.rollout import attention_rollout, rollout
from probes.attention.stats import attention_stats
from probes.stats.intervals import mean_interval, paired_test
from star.base.errors import UserError
from star.model.config import ModelConfig
from viz.attention.stats import (
    attention_curves,
    attention_difference,
    attention_heads,
    attention_layers,
)

GRID = 3


def cell(position):
    return divmod(position - 1, GRID)


def brute_force(row, step, norms):
    """Every measure of one row of one head by its definition, place by place."""
    current = cell(step - 1)
    image = range(1, step)
    offsets = {p: (current[0] - cell(p)[0], current[1] - cell(p)[1]) for p in image}
    near = [p for p in image if max(abs(offsets[p][0]), abs(offsets[p][1])) <= 1]
    above = [p for p in image if offsets[p][0] == 1]
    weighted = [row[p] * norms[p] for p in range(step)]
    return {
        "class_share": row[0],
        "class_norm_share": weighted[0] / sum(weighted),
        "self_share": row[step - 1],
        "neighbourhood_share": sum(row[p] for p in near),
        "row_above_share": sum(row[p] for p in above),
        "first_share": row[1],
        "largest_share": max(row[p] for p in image),
        "distance": sum(row[p] * math.hypot(*offsets[p]) for p in image) / sum(row[p] for p in image),
        "entropy": -sum(row[p] * math.log(row[p]) for p in range(step)),
    }


@pytest.fixture(scope="module", params=[0, 1], ids=["heads", "grouped"])
def measured(request):
    """(statistics, all rows by layer, norms by layer): what the model's own pattern says."""
    model, store = small_model(ModelConfig(**{**vars(SMALL), "kv_heads": request.param})), fake_store()
    for block in model.layers:
        block.attention.wqkv.weight.data.mul_(20)  # far from even, as trained models are
    found = attention_stats(model, store, layers=[1, 3], steps=[1, 2, 4, 9], batch_size=7)
    tokens = torch.from_numpy(store.codes[:, 0].astype(np.int64))
    names = [f"layers.{layer}.{site}" for layer in (1, 3) for site in ("attention", "values")]
    captured = model(tokens, torch.from_numpy(store.labels), capture=names).captured
    rows, norms = {}, {}
    for layer in (1, 3):
        rows[layer] = captured[f"layers.{layer}.attention"].detach().double().numpy()
        values = captured[f"layers.{layer}.values"].detach()
        wo = model.layers[layer - 1].attention.wo.weight.detach()
        parts = [values[:, h] @ wo[:, 8 * h : 8 * h + 8].T for h in range(2)]
        norms[layer] = torch.stack(parts, dim=1).norm(dim=-1).numpy()
    return found, rows, norms


def test_every_measure_equals_its_definition_place_by_place(measured):
    found, rows, norms = measured
    assert set(found.values) == set(MEASURES)
    assert found.steps == [2, 4, 9], "step 1 sees the class alone"
    for a, layer in enumerate((1, 3)):
        for image in (0, 11, 23):
            for k, step in enumerate(found.steps):
                for head in range(2):
                    row = rows[layer][image, head, step - 1]
                    of_image = norms[layer][image, head]
                    even = brute_force(np.full(step, 1 / step), step, of_image)
                    for name, expected in brute_force(row, step, of_image).items():
                        # float32 sums of up to nine weights
                        value = found.values[name][image, a, k, head]
                        assert value == pytest.approx(expected, rel=2e-5, abs=1e-6), name
                        if name != "class_norm_share":
                            uniform = found.uniform[name][a, k, head]
                            assert uniform == pytest.approx(even[name], rel=2e-5, abs=1e-6), name
    uniform = [
        brute_force(np.full(4, 1 / 4), 4, norms[3][image, 1])["class_norm_share"] for image in range(24)
    ]
    assert found.uniform["class_norm_share"][1, 1, 1] == pytest.approx(np.mean(uniform), rel=1e-5)


def test_the_table_holds_cells_and_means_over_heads_steps_and_layers(measured):
    found, _, _ = measured
    table = found.table.set_index(["measure", "layer", "step", "head"])
    values = found.values["entropy"]
    for at, where in (
        ((3, 4, 2), (1, 1, 1)),
        ((3, 4, 0), (1, 1, slice(None))),
        ((1, 0, 1), (0, slice(None), 0)),
        ((1, 0, 0), (0, slice(None), slice(None))),
        ((0, 9, 0), (slice(None), 2, slice(None))),
        ((0, 0, 0), (slice(None),) * 3),
    ):
        row = table.loc[("entropy", *at)]
        expected = mean_interval(values[:, *where].reshape(24, -1).mean(1))
        assert (row.value, row.low, row.high) == pytest.approx(expected)
        assert row.uniform == pytest.approx(found.uniform["entropy"][where].mean())
        assert row.n == 24
    assert not found.table.duplicated(["measure", "layer", "step", "head"]).any()
    # 2 layers x (3 steps + mean) x (2 heads + mean), 3 steps over layers, and the mean of all
    assert len(found.table) == len(MEASURES) * (2 * 4 * 3 + 3 + 1)
    assert found.overall("entropy") == pytest.approx(table.loc[("entropy", 0, 0, 0)].value)


def test_weight_received_by_place_and_sinks(measured):
    found, rows, _ = measured
    places = found.places.set_index(["layer", "head", "place"])
    for place in range(9):
        seeing = [step for step in (2, 4, 9) if step > place]
        of_images = np.mean([rows[3][:, 1, step - 1, place] for step in seeing], axis=0)
        row = places.loc[(3, 2, place)]
        assert (row.value, row.low, row.high) == pytest.approx(mean_interval(of_images), rel=1e-4)
        assert row.uniform == pytest.approx(np.mean([1 / step for step in seeing]))
        assert row.seen_by == len(seeing)
        assert row.sink == (of_images.mean() > 0.3 and len(seeing) >= 2)
        if place:
            assert (row.row - 1, row.column - 1) == cell(place)
        else:
            assert pd.isna(row.row) and pd.isna(row.column)
    assert places["sink"].any() and not places["sink"].all(), "the check above sees both"


def test_patterns_of_places_and_distances():
    patterns, far = place_patterns(GRID), euclidean_distance(GRID)
    for query in range(10):
        for key in range(10):
            seen = 1 <= key <= query
            rows, columns = np.subtract(cell(query), cell(key)) if seen else (99, 99)
            assert patterns["class"][query, key] == (key == 0)
            assert patterns["self"][query, key] == (key == query)
            assert patterns["image"][query, key] == seen
            assert patterns["first"][query, key] == (seen and key == 1)
            assert patterns["row_above"][query, key] == (seen and rows == 1)
            near = seen and max(abs(rows), abs(columns)) <= 1
            assert patterns["neighbourhood"][query, key] == near
            target = cell(query + 1) if query < 9 else cell(query)
            up, left = np.subtract(target, cell(key)) if seen else (0, 0)
            for reach in range(3):
                beyond = seen and max(abs(up), abs(left)) > reach
                assert cut_beyond(GRID, reach)[query, key] == beyond
            if seen:
                assert float(far[query, key]) == pytest.approx(math.hypot(rows, columns))
    assert not cut_beyond(GRID, 2).any()


def test_attention_to_one_place_has_the_known_numbers():
    """All weight on the token right above the current one."""
    steps = [5, 9]
    rows = torch.zeros(1, 1, 1, 2, 9)
    rows[..., 0, 5 - 1 - GRID] = 1  # position 4 is cell (1, 0); above it, position 1
    rows[..., 1, 9 - 1 - GRID] = 1  # position 8 is cell (2, 1); above it, position 5
    names = [name for name in MEASURES if name != "class_norm_share"]
    found = {
        name: value.flatten().tolist()
        for name, value in row_measures(rows, steps=steps, grid=GRID, names=names).items()
    }
    assert found == {
        "class_share": [0, 0], "self_share": [0, 0], "neighbourhood_share": [1, 1],
        "row_above_share": [1, 1], "first_share": [1, 0], "largest_share": [1, 1], "distance": [1, 1],
        "entropy": [0, 0],
    }  # fmt: skip


def test_a_model_whose_keys_are_zero_attends_evenly_to_what_it_sees():
    """Known answer through the whole model: every number equals its uniform baseline."""
    model, store = small_model(), fake_store(images=8)
    for block in model.layers:
        block.attention.wqkv.weight.data[: 2 * 16] = 0  # queries and keys
    found = attention_stats(model, store, layers=[1, 2, 3], steps=[2, 5, 9])
    for name, values in found.values.items():
        np.testing.assert_allclose(values.mean(0), found.uniform[name], rtol=1e-5, atol=1e-6)


def test_a_model_built_to_look_at_one_token_is_seen_to_do_so():
    """Known answer through the whole model: layer 1 reads token 7 and nothing else, wherever it is."""
    model = small_model()
    wanted, width = 7, 16
    model.tok_embeddings.weight.data[:] = 0
    model.tok_embeddings.weight.data[:, 0] = 1  # every token asks
    model.tok_embeddings.weight.data[wanted, 1] = 1  # one answers
    wqkv = model.layers[0].attention.wqkv.weight.data
    wqkv[: 2 * width] = 0
    for head in range(2):
        # The last pair of each half of a head's channels turns by a hundredth of a radian a cell.
        for channel in (2, 6):
            wqkv[8 * head + channel, 0] = 10  # queries
            wqkv[width + 8 * head + channel, 1] = 10  # keys
    store = fake_store(images=6)
    store.codes[:] = 2
    place = 4  # cell (1, 0)
    store.codes[:, 0, place - 1] = wanted
    found = attention_stats(model, store, layers=[1], steps=[3, 7, 9])
    mean = {name: values.mean((0, 3))[0] for name, values in found.values.items()}
    # e^-100 and less is left for other places; before token 4 is seen, attention is even.
    even = 1 / 3
    np.testing.assert_allclose(mean["class_share"], [even, 0, 0], atol=1e-6)
    np.testing.assert_allclose(mean["largest_share"], [even, 1, 1], rtol=1e-5)
    expected = [np.mean([1, 0]), np.hypot(0, 2), np.hypot(1, 1)]  # from cells (0, 1), (1, 2), (2, 1)
    np.testing.assert_allclose(mean["distance"], expected, rtol=1e-4)
    np.testing.assert_allclose(mean["row_above_share"], [0, 0, 1], atol=1e-5)
    sinks = found.places[found.places["sink"]]
    assert set(sinks["place"]) == {place} and set(sinks["head"]) == {1, 2}
    tokens = torch.from_numpy(store.codes[0, 0].astype(np.int64))
    maps = attention_maps(model, tokens, 0, layers=[1], steps=[9]).maps[0, 0]
    assert maps.argmax() == place - 1 and maps.sum() == pytest.approx(1, abs=1e-5)


def test_rollout_is_row_stochastic_causal_and_the_product_of_the_layers():
    model, store = small_model(), fake_store(images=4)
    tokens = torch.from_numpy(store.codes[:, 0].astype(np.int64))[:, :8]
    labels = torch.from_numpy(store.labels)
    names = [f"layers.{layer}.attention" for layer in (1, 2, 3)]
    patterns = model(tokens, labels, capture=names).captured
    found = attention_rollout(model, tokens, labels, layers=[3, 1], steps=[1, 4, 9])
    for image in range(4):
        through = np.eye(9)
        for layer in (1, 2, 3):
            mean = patterns[f"layers.{layer}.attention"][image].mean(0).detach().double().numpy()
            mixed = 0.5 * mean + 0.5 * np.eye(9)
            through = np.array(
                [
                    [sum(mixed[i, k] * through[k, j] for k in range(9)) for j in range(9)]
                    for i in range(9)
                ]
            )
            if layer in (1, 3):
                rows = found[0 if layer == 3 else 1, image].numpy()
                # float32 against float64
                np.testing.assert_allclose(rows, through[[0, 3, 8]], rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(2, 4, 3)), "rows sum to one"
    assert not found[:, :, 1, 4:].any(), "step 4 has seen the class and three tokens"
    assert (found > 0).any()
    even = torch.full((2, 1, 3, 3), 0.0)
    even[:, 0] = torch.eye(3)
    assert torch.equal(rollout(even)[-1, 0], torch.eye(3)), "attention to oneself alone goes nowhere"


def test_statistics_of_rollout_rows():
    model, store = small_model(), fake_store(images=5)
    found = attention_stats(model, store, layers=[2], steps=[4, 9], rollout=True)
    assert "class_norm_share" not in found.values
    tokens, labels = (
        torch.from_numpy(store.codes[:, 0].astype(np.int64)),
        torch.from_numpy(store.labels),
    )
    rows = attention_rollout(model, tokens, labels, layers=[2], steps=[4, 9])
    np.testing.assert_allclose(found.values["class_share"][:, 0, :, 0], rows[0, ..., 0], rtol=1e-5)
    with pytest.raises(UserError, match="class_norm_share is not defined for attention rollout"):
        attention_stats(model, store, layers=[2], steps=[4], rollout=True, names=["class_norm_share"])


def test_the_null_class_and_half_precision_are_asked_for_not_assumed():
    model, store = small_model(), fake_store(images=6)
    own = attention_stats(model, store, layers=[2], steps=[9])
    null = attention_stats(model, store, layers=[2], steps=[9], null_class=True)
    assert not np.allclose(own.values["class_norm_share"], null.values["class_norm_share"])
    store.labels[:] = 4  # the null class of a model of four
    store.num_classes = 5
    again = attention_stats(model, store, layers=[2], steps=[9], null_class=True)
    np.testing.assert_array_equal(again.values["entropy"], null.values["entropy"])
    half = attention_stats(
        model, store, layers=[2], steps=[9], null_class=True, precision=torch.bfloat16
    )
    # bfloat16 queries and keys (three digits), rows in float32
    np.testing.assert_allclose(half.values["entropy"], null.values["entropy"], rtol=2e-2)
    assert not np.array_equal(half.values["entropy"], null.values["entropy"])


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_model_alone_is_rounded(precision):
    model, store = small_model(), fake_store(images=6)
    options = {"layers": [1, 3], "steps": [4, 9], "null_class": True}
    whole, half = (
        attention_stats(model, store, **options, rollout=True, precision=each)
        for each in (torch.float32, precision)
    )
    assert half.values["entropy"].dtype == np.float32
    seen = half.received * half.seen_by  # the rows' weight by place, summed over steps
    np.testing.assert_allclose(seen.sum(-1), len(options["steps"]), rtol=1e-5)
    np.testing.assert_allclose(half.values["entropy"], whole.values["entropy"], rtol=2e-2)
    values = torch.linspace(-300, 300, 2 * 2 * 5 * 8).view(2, 2, 5, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=precision):
        found = value_norms(model, 2, values)
    with torch.no_grad():
        assert torch.equal(found, value_norms(model, 2, values))


def test_a_comparison_is_paired_and_corrected():
    first = attention_stats(small_model(), fake_store(images=40), layers=[1, 2], steps=[4, 9])
    second = attention_stats(small_model(seed=1), fake_store(images=40), layers=[1, 2], steps=[4, 9])
    table = compare_attention(first, second, ("one", "two"))
    row = table.query("measure == 'entropy' and layer == 2 and step == 9").iloc[0]
    gain = second.values["entropy"][:, 1, 1].mean(1) - first.values["entropy"][:, 1, 1].mean(1)
    assert (row.difference, row.low, row.high) == pytest.approx(mean_interval(gain), rel=1e-3)
    assert row.p == pytest.approx(paired_test(gain)[3], rel=1e-2, abs=1e-12)
    cells = table[table["step"] > 0]
    assert (cells["p_holm"] >= cells["p"]).all()
    decided = cells["p_holm"] < 0.05
    ahead = np.where(cells["difference"] > 0, "two", "one")
    assert (cells["higher"] == np.where(decided, ahead, "neither")).all()
    assert table.loc[table["step"] == 0, "higher"].isna().all()
    mean = table.query("measure == 'distance' and layer == 0").iloc[0]
    assert mean.second == pytest.approx(second.overall("distance"), rel=1e-5)
    sentences = attention_sentences(table, ("one", "two"))
    assert len(sentences) == len(MEASURES)
    assert f"of {2 * 2} cells" in sentences[0]
    same = compare_attention(first, first, ("one", "other"))
    assert (same["difference"] == 0).all() and (same.query("step > 0")["higher"] == "neither").all()


def test_refusals_of_statistics():
    model, store = small_model(), fake_store(images=24)
    few = attention_stats(model, store, layers=[1], steps=[4], limit=19)
    other = attention_stats(model, store, layers=[2], steps=[4], limit=19)
    assert few.images == 19
    for call, message in (
        (lambda: attention_stats(model, store, layers=[4], steps=[2]), "layer 4 does not exist"),
        (lambda: attention_stats(model, store, layers=[1], steps=[10]), "step 10 does not exist"),
        (lambda: attention_stats(model, store, layers=[1], steps=[1]), "give a step above 1"),
        (lambda: attention_stats(model, store, layers=[1], steps=[2], names=["x"]), "measure is 'x'"),
        (lambda: compare_attention(few, other, ("a", "b")), "not measured at the same layers"),
        (lambda: compare_attention(few, few, ("a", "b")), "at least 20 images; 19 were measured"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    model.layers[1].attention.wqkv.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="attention of layer 2 at step 4 is not finite"):
        attention_stats(model, store, layers=[1, 2], steps=[4])


def test_uniform_rows_see_what_a_step_sees():
    expected = [[0.5, 0.5, 0, 0], [0.25] * 4]
    assert uniform_rows([2, 4]).tolist() == expected
    assert isinstance(attention_stats(small_model(), fake_store(images=2), layers=[1], steps=[4]).table,
                      pd.DataFrame)  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_tables_pictures_and_a_comparison(star, trained, tmp_path, monkeypatch):
    options = ("--at", "1,9,30", "--images", "12", "--layers", "2", "--out", "s")
    code, out, err = star("attention-stats", trained, trained, *options)
    assert code == 0, err
    assert "sinks (get more than 0.3 on average)" in out
    assert "not compared: a comparison needs at least 20 images; 12 were measured" in out
    names = {path.name for path in (tmp_path / "s").iterdir()}
    stem = "attention-teacher-layers-2-at-1-9-30"
    own, again = f"{stem}-st-ar-star", f"{stem}-st-ar-star-again"
    suffixes = ("-steps.png", "-layers.png", "-heads.pdf", ".csv", ".json", "-places.csv")
    assert {f"{stem}{suffix}" for stem in (own, again) for suffix in suffixes} <= names
    assert f"{stem}-compared.png" in names
    stats = pd.read_csv(tmp_path / "s" / f"{own}.csv")
    assert set(stats["step"]) == {0, 9, 30}, "step 1 sees the class alone"
    assert set(stats["layer"]) == {0, 2} and set(stats["n"]) == {12}
    assert stats["value"].between(-1e-6, 11).all() and stats["uniform"].notna().all()
    info = json.loads((tmp_path / "s" / f"{own}.json").read_text())
    assert info["condition"] == "each image's class" and info["images"] == 12
    for module in ("attention.compare", "stats.intervals"):
        monkeypatch.setattr(f"probes.{module}.FEWEST", 12)
    code, out, err = star("attention-stats", trained, trained, *options)
    assert code == 0, err
    assert "entropy: ST-AR star again" in out and "at 0 of 2 cells" in out
    assert (tmp_path / "s" / f"{again}-against-st-ar-star.png").exists()


def test_the_command_measures_rollout_and_refuses_what_it_cannot(star, trained, tmp_path):
    code, _, err = star("attention-stats", trained, "--rollout", "--null-class", "--out", "r")
    assert code == 0, err
    table = pd.read_csv(tmp_path / "r" / "rollout-teacher-null-class.csv")
    assert set(table["head"]) == {0} and "class_norm_share" not in set(table["measure"])
    for options, message in (
        (("--images", "1"), "images is 1; expected at least 2, for an interval"),
        (("--images", "12", "--seed", "-1"), "seed is -1; expected at least 0"),
        (("--at", "1"), "give a step above 1"),
        (("--at", "65"), "step 65 does not exist"),
        (("--layers", "9"), "layer 9 does not exist"),
        (("--data", "nowhere"), "nowhere"),
        (("--no-rollout",), "o such option: --no-rollout"),
    ):
        assert refused(star("attention-stats", trained, *options, "--out", "x"), message)
        assert not (tmp_path / "x").exists()


def test_python_asks_what_the_command_asks(star, trained, tmp_path):
    options = ("--at", "9,30", "--images", "12", "--layers", "2", "--seed", "4")
    code, out, err = star("attention-stats", trained, trained, *options, "--out", "s")
    assert code == 0, err
    asked = Request(
        ckpts=[trained, trained], at="9,30", images=12, layers="2", seed=4, out=tmp_path / "other"
    )
    answer = asked_from_python(study.run, asked, tmp_path)
    assert not set(answer.sentences) - set(out.splitlines())
    assert set(answer.result.table["step"]) == {0, 9, 30} and set(answer.result.table["n"]) == {12}
    assert answer.result.info["checkpoint_step"] == 4 and answer.result.info["seed"] == 4
    assert len(answer.figures) == 2 * 3 + 1 and len(answer.tables) == 2
    assert sum(said.startswith("entropy: ") for said in answer.sentences) == 1


def test_drawings_show_the_table(measured):
    found, _, _ = measured
    figure = attention_layers(found.table, title="t")
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Entropy (nats)")
    cells = found.table.query("measure == 'entropy' and head == 0 and layer > 0 and step > 0")
    assert [text.get_text() for text in panel.texts] == [f"{value:.1f}" for value in cells["value"]]
    colours = panel.images[0].get_array().ravel()  # less than even attention
    np.testing.assert_allclose(colours, cells["value"] - cells["uniform"], rtol=1e-6)
    figure = attention_heads(found.table, title="t")
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Distance (cells)")
    assert len(panel.texts) == 2 * 2, "layers x heads"
    figure = attention_curves({"AR": found.table, "ST-AR": found.table}, total_steps=9)
    panel = figure.axes[0]
    dashed = panel.lines[1].get_ydata()
    np.testing.assert_allclose(dashed, [1 / 2, 1 / 4, 1 / 9], rtol=1e-5)
    with pytest.raises(UserError, match="lacks the columns"):
        attention_curves({"AR": found.table.drop(columns="uniform")}, total_steps=9)
    with pytest.raises(UserError, match="no single heads"):
        attention_heads(found.table[found.table["head"] == 0], title="t")


def test_the_difference_map_marks_what_the_test_decided(measured):
    found, _, _ = measured
    other = attention_stats(small_model(seed=3), fake_store(), layers=[1, 3], steps=[2, 4, 9])
    table = compare_attention(found, other, ("AR", "ST-AR"))
    figure = attention_difference(table, ("AR", "ST-AR"))
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "Entropy (nats)")
    cells = table.query("measure == 'entropy' and step > 0")
    dots = panel.collections[0].get_offsets()
    assert len(dots) == (cells["higher"] != "neither").sum() > 0
    np.testing.assert_allclose(panel.images[0].get_array().ravel(), cells["difference"], rtol=1e-6)
