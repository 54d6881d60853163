"""The table of representation measures, the encoders it compares with, and its drawings."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from helpers import fake_store, small_model
from safetensors.torch import save_file

from probes.linear.knn import knn_predict
from probes.reading.features import step_features
from probes.reading.images import draw
from probes.representation.encoders import encode_pooled, load_encoder
from probes.representation.geometry import effective_rank, pair_consistency, uniformity
from probes.representation.measures import MEASURE_COLUMNS, MEASURES, measure, measure_checkpoint
from probes.representation.similarity import cka, cknna, mutual_knn, nearest
from probes.representation.spatial import layer_lds
from probes.results import read_result, write_result
from probes.stats.intervals import mean_interval
from star.base.errors import UserError
from star.model.config import ModelConfig
from star.tokenizer.model import VQModel
from star.tokenizer.shape import vq_preset
from viz.base.style import save
from viz.measures import measure_curves, measure_figures, measure_heatmap

CONFIG = ModelConfig(layers=3, heads=2, width=16, grid=4, vocab_size=11, num_classes=4)
CELLS = {"layers": [1, 3], "steps": [4, 9, 16]}


def store_of(images=60, views=3, seed=0):
    store = fake_store(images=images, views=views, grid=4, seed=seed)
    store.view_names = ("centre", "left", "right")[:views]
    return store


@pytest.fixture(scope="module")
def result():
    options = {"images": 40, "train": store_of(50, seed=3), "other": small_model(CONFIG, seed=1)}
    return measure(small_model(CONFIG), store_of(), **CELLS, **options)


@pytest.fixture(scope="module")
def cells():
    """Features (by layer and step) of the sample that the result is of, and of its second view."""
    model, store = small_model(CONFIG), store_of()
    found = {}
    for view in (0, 1):
        sample = draw(store, 40, 0, "measures images", view=view)
        values = step_features(model, sample, **CELLS).values
        found[view] = {
            (layer, step): values[a, b]
            for a, layer in enumerate(CELLS["layers"])
            for b, step in enumerate(CELLS["steps"])
        }
    return found


def rows_of(result, name, against=None):
    rows = result.table[result.table["measure"] == name]
    return rows if against is None else rows[rows["against"] == against]


def row_of(result, name, **where):
    rows = rows_of(result, name)
    for key, value in where.items():
        rows = rows[rows[key] == value]
    assert len(rows) == 1, (name, where, len(rows))
    return rows.iloc[0]


def test_every_measure_has_rows_in_one_table(result):
    assert list(result.table.columns) == list(MEASURE_COLUMNS)
    assert set(result.table["measure"]) == set(MEASURES)
    assert not result.table.duplicated(list(MEASURE_COLUMNS[:6])).any()
    assert (result.table["n"] == 40).all() and result.info["left_out"] == {}
    assert np.isfinite(result.table[["value", "low", "high"]]).all(axis=None)
    assert (result.table["low"] <= result.table["value"] + 1e-12).all()
    assert (result.table["value"] <= result.table["high"] + 1e-12).all()
    assert result.info["other_view"] == "left" and result.info["knn"]["references"] == 50
    json.dumps(result.info)


def test_numbers_of_one_cloud_are_those_of_the_functions(result, cells):
    for (layer, step), x in cells[0].items():
        at = {"layer": layer, "step": step}
        assert row_of(result, "effective_rank", **at).value == effective_rank(x)
        assert row_of(result, "uniformity", **at).value == uniformity(x)[0]
        within, between = pair_consistency(x, cells[1][layer, step])
        view = row_of(result, "view_consistency", **at)
        assert (view.value, view.low, view.high) == mean_interval(within)
        assert view.baseline == between.mean()
        # |u - v|^2 = 2 - 2 cos
        distance = row_of(result, "alignment", **at)
        assert (distance.value, distance.baseline) == pytest.approx(
            (2 - 2 * within.mean(), 2 - 2 * between.mean())
        )


def test_step_consistency_of_pairs_of_a_step_and_of_all(result, cells):
    x = cells[0]
    of_pairs = {(a, b): pair_consistency(x[3, a], x[3, b]) for a, b in ((4, 9), (4, 16), (9, 16))}
    for (step, step_b), pairs in (
        ((4, 9), [(4, 9)]),
        ((9, 0), [(4, 9), (9, 16)]),
        ((0, 0), list(of_pairs)),
    ):
        row = row_of(result, "step_consistency", layer=3, step=step, step_b=step_b)
        expected = mean_interval(np.mean([of_pairs[pair][0] for pair in pairs], axis=0))
        assert (row.value, row.low, row.high) == pytest.approx(expected)
        assert row.baseline == pytest.approx(np.mean([of_pairs[pair][1] for pair in pairs]))


def test_pairs_share_a_layer_or_a_step(result, cells):
    for name in ("cka", "mutual_knn", "cknna"):
        own, theirs = rows_of(result, name, "self"), rows_of(result, name, "checkpoint")
        assert len(own) == 9 and len(theirs) == 24
        for rows in (own, theirs):
            assert ((rows["layer"] == rows["layer_b"]) | (rows["step"] == rows["step_b"])).all()
    a, b = cells[0][1, 9], cells[0][3, 9]
    near = [nearest(x, 10)[0] for x in (a, b)]
    at = {"against": "self", "layer": 1, "step": 9, "layer_b": 3, "step_b": 9}
    assert row_of(result, "cka", **at).value == pytest.approx(cka(a, b))
    assert row_of(result, "mutual_knn", **at).value == mutual_knn(*near).mean()
    assert row_of(result, "mutual_knn", **at).baseline == 10 / 39
    assert row_of(result, "cknna", **at).value == pytest.approx(cknna(*near))
    sample = draw(store_of(), 40, 0, "measures images")
    other = step_features(small_model(CONFIG, seed=1), sample, layers=[3], steps=[16]).values[0, 0]
    at = {"against": "checkpoint", "layer": 1, "step": 16, "layer_b": 3, "step_b": 16}
    assert row_of(result, "cka", **at).value == pytest.approx(cka(cells[0][1, 16], other))


def test_knn_looks_at_training_images(result, cells):
    train = store_of(50, seed=3)
    known = step_features(small_model(CONFIG), draw(train, 5000, 0, "measures reference"), **CELLS)
    labels = draw(store_of(), 40, 0, "measures images").labels
    found = knn_predict(known.values[1, 2], known.labels, cells[0][3, 16])
    row = row_of(result, "knn", layer=3, step=16)
    assert row.value == (found == labels).mean()
    assert row.baseline == np.bincount(labels).max() / 40


def test_lds_reads_the_state_at_each_tokens_own_position(result, monkeypatch):
    model, sample = small_model(CONFIG), draw(store_of(), 40, 0, "measures images")
    tokens = torch.from_numpy(sample.codes[:, 0].astype(np.int64))
    null = torch.full((40,), CONFIG.num_classes)
    hidden = model(tokens, null, capture=["layers.3"]).captured["layers.3"][:, 1:].detach().numpy()
    unit = hidden / np.linalg.norm(hidden, axis=2, keepdims=True)
    cells = [divmod(token, 4) for token in range(16)]
    apart = np.array([[abs(a - c) + abs(b - d) for c, d in cells] for a, b in cells])

    def local_less_distant(first, second):
        cosines = first @ second.T
        return cosines[apart == 1].mean() - cosines[apart >= 6].mean()

    within = [local_less_distant(one, one) for one in unit]
    between = [local_less_distant(unit[i], unit[j]) for i in range(40) for j in range(40) if i != j]
    row = row_of(result, "lds", layer=3)
    # float32 sums
    assert (row.value, row.low, row.high) == pytest.approx(mean_interval(np.array(within)), abs=1e-6)
    assert row.baseline == pytest.approx(np.mean(between), abs=1e-6)
    monkeypatch.setattr("probes.representation.spatial.FLOATS", 1)  # one image a batch
    values, baseline = layer_lds(model, sample, layers=[3])
    assert (values.mean(), baseline[0]) == pytest.approx((row.value, row.baseline), abs=1e-6)
    foreign = replace(sample, num_classes=sample.num_classes + 3)  # under the null class, any images do
    np.testing.assert_array_equal(layer_lds(model, foreign, layers=[3])[0], values)


def test_the_same_seed_gives_the_same_table_and_another_another():
    model, store = small_model(CONFIG), store_of()
    options = {**CELLS, "names": ["effective_rank", "cknna", "step_consistency"], "images": 30}
    first, again, other = (measure(model, store, **options, seed=seed).table for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first["value"], other["value"])
    state = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    measure(model, store, **options)
    assert (np.random.get_state()[1] == state[0]).all()  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), state[1])


def test_what_cannot_be_measured_is_noted_or_refused():
    model, store = small_model(CONFIG), store_of(views=1)
    found = measure(model, store, layers=[2], steps=[16])
    assert set(found.info["left_out"]) == set(MEASURES) - {"uniformity", "effective_rank", "lds"}
    assert found.info["other_view"] is None
    for names, message in (
        (["view_consistency"], "has one view of each image.*--eval-views all"),
        (["alignment"], "has one view of each image"),
        (["knn"], "kNN looks its neighbours up among training images.*give a train split"),
        (["step_consistency"], "compares two steps or more; give more steps"),
        (["cka"], "one layer at one step has nothing to be compared with"),
    ):
        with pytest.raises(UserError, match=message):
            measure(model, store, layers=[2], steps=[16], names=names)
    with pytest.raises(UserError, match="distant tokens are 7 cells apart.*at most 6"):
        measure(model, store, **CELLS, names=["lds"], far=7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["ckaa"]}, "measure is 'ckaa'; expected one of: step_consistency, view_consistency"),
        ({"images": 19}, "at least 20 images; 19 were asked for"),
        ({"neighbours": 31}, "at least 62 images; fake has 60"),
        ({"neighbours": 1}, "neighbours is 1; expected at least 2"),
        ({"references": 0}, "references is 0"),
        ({"view": "top"}, "view is 'top'; expected one of: left, right"),
        ({"layers": [4]}, "layer 4 does not exist; the model has layers 1 to 3"),
        ({"other_layers": [9]}, "layer 9 does not exist"),
        ({"steps": [17]}, "step 17 does not exist; expected 1 to 16"),
        ({"encoder": "any"}, "the encoder needs pixels"),
    ],
)
def test_arguments_that_cannot_work(options, message):
    options = {**CELLS, "other": small_model(CONFIG), **options}
    with pytest.raises(UserError, match=message):
        measure(small_model(CONFIG), store_of(), **options)


def test_broken_weights_are_named_by_layer_and_step():
    model = small_model(CONFIG)
    model.layers[2].feed_forward.w2.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="features of layer 3 at step 4 are not finite"):
        measure(model, store_of(), **CELLS, names=["cka"])
    with pytest.raises(UserError, match="features of layer 3 are not finite"):
        measure(model, store_of(), **CELLS, names=["lds"])


def test_the_first_step_has_no_likeness():
    found = measure(small_model(CONFIG), store_of(), layers=[1, 2], steps=[1, 16])
    for name in ("cka", "mutual_knn", "cknna"):
        rows = rows_of(found, name)
        first = (rows["step"] == 1) | (rows["step_b"] == 1)
        assert rows["value"].isna().equals(first)
    assert row_of(found, "effective_rank", layer=1, step=1).value == pytest.approx(1, abs=1e-6)


def test_a_checkpoint_with_provenance(trained, stores):
    from star.codes.store import open_splits
    from star.training.checkpoint import open_model

    loaded, splits = open_model(trained), open_splits(stores)
    steps = [4, loaded.model.config.tokens]
    options = {"layers": [1, 2], "steps": steps, "names": ["step_consistency", "knn"], "neighbours": 2}
    if len(splits["test"]) < 20:
        with pytest.raises(UserError, match="at least 20 images"):
            measure_checkpoint(loaded, splits, **options)
    found = measure_checkpoint(loaded, splits, split="train", other=loaded, **options | {
        "names": ["step_consistency", "view_consistency", "cka"]
    })  # fmt: skip
    assert len(found.info["checkpoint_sha256"]) == 64 == len(found.info["other_checkpoint_sha256"])
    for key in ("checkpoint", "checkpoint_step", "weights", "model"):
        assert found.info[key] == found.info[f"other_{key}"]
    assert found.info["checkpoint_step"] == loaded.step and found.info["weights"] == "teacher"
    assert found.info["split"] == "train" and set(found.info["data"]) == {"train"}
    same = rows_of(found, "cka", "checkpoint")
    same = same[(same["layer"] == same["layer_b"]) & (same["step"] == same["step_b"])]
    assert len(same) == 4 and np.allclose(same["value"], 1)
    with pytest.raises(UserError, match="split is 'tset'; expected one of: train, val, test"):
        measure_checkpoint(loaded, splits, split="tset", **options)
    model = VQModel(vq_preset("small"))
    with pytest.raises(UserError, match="was made by another tokenizer than"):
        measure_checkpoint(loaded, splits, split="train", tokenizer=model, **options)


def test_the_second_view_can_be_named(cells):
    model, store = small_model(CONFIG), store_of()
    options = {**CELLS, "names": ["view_consistency"], "images": 40}
    found = [measure(model, store, **options, view=view) for view in (None, "left", "right")]
    assert [result.info["other_view"] for result in found] == ["left", "left", "right"]
    pd.testing.assert_frame_equal(found[0].table, found[1].table)
    assert not np.allclose(found[0].table["value"], found[2].table["value"])


def pictures(count=3, size=16):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    path = tmp_path_factory.mktemp("encoder") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return model, path


def test_an_encoder_gives_what_its_classifier_reads(resnet, tmp_path):
    model, path = resnet
    before = torch.random.get_rng_state()
    encoder = load_encoder("resnet18", path)
    assert torch.equal(torch.random.get_rng_state(), before)
    features = encode_pooled(encoder, pictures(), batch_size=2)
    assert features.shape == (3, 512) and features.dtype == np.float32
    x = torch.from_numpy(pictures()).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", align_corners=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    read = []
    model.fc.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        model((x - mean[:, None, None]) / std[:, None, None])
    # float32 through 18 layers, in batches of another size
    np.testing.assert_allclose(features, read[0].numpy(), rtol=1e-3, atol=1e-4)
    bare = {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}
    torch.save({"state_dict": {f"module.{k}": v for k, v in bare.items()}}, tmp_path / "bare.pt")
    save_file(bare, tmp_path / "bare.safetensors")
    for name in ("bare.pt", "bare.safetensors"):
        same = encode_pooled(load_encoder("resnet18", tmp_path / name), pictures(), batch_size=2)
        np.testing.assert_array_equal(same, features)


class Pooled(torch.nn.Module):
    """Stands for a network of timm built without its classifier: the mean of each channel."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(3))
        self.pretrained_cfg = {"classifier": "head"}

    def forward(self, images):
        self.side = images.shape[-1]
        return images.mean((2, 3)) * self.scale


def test_an_encoder_of_timm_takes_its_own_size_and_moments(tmp_path, monkeypatch):
    wish = {
        "input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic",
    }  # fmt: skip
    timm = SimpleNamespace(
        is_model=lambda name: name == "small",
        create_model=lambda name, pretrained, num_classes: Pooled(),
        data=SimpleNamespace(resolve_model_data_config=lambda module: wish),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    torch.save({"scale": torch.full((3,), 2.0), "head.weight": torch.ones(5, 3)}, tmp_path / "w.pt")
    encoder = load_encoder("timm/small", tmp_path / "w.pt")
    grey = np.full((2, 16, 16, 3), 191, dtype=np.uint8)
    # 2 (191 / 255 - 0.5) / 0.5
    np.testing.assert_allclose(encode_pooled(encoder, grey), np.full((2, 3), 0.99608), atol=1e-4)
    assert encoder.module.side == 8 and encoder.interpolation == "bicubic"
    with pytest.raises(UserError, match="timm knows no 'large'"):
        load_encoder("timm/large", tmp_path / "w.pt")


def test_encoders_that_cannot_be_loaded(resnet, tmp_path, monkeypatch):
    _, path = resnet
    monkeypatch.setitem(sys.modules, "timm", None)
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    for name, file, message in (
        ("resnet81", path, "encoder is 'resnet81'; expected a classifier of torchvision"),
        ("resnet34", path, "does not fit the model: missing layer1.2.conv1.weight"),
        ("squeezenet1_0", path, "has no linear classifier"),
        ("timm/vit_tiny_patch16_224", path, "needs timm, which is not installed: pip install timm"),
        ("resnet18", tmp_path / "none.pth", "no such file"),
        ("resnet18", tmp_path / "none.safetensors", "no such file"),
        ("resnet18", tmp_path / "cut.safetensors", "cannot read .* as safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            load_encoder(name, file)
    with pytest.raises(UserError, match=r"images are float64 \(1, 4, 4, 3\); expected uint8"):
        encode_pooled(load_encoder("resnet18", path), np.zeros((1, 4, 4, 3)))


class Tokenizer(torch.nn.Module):
    """Draws each token as one flat 2 x 2 block of grey."""

    def __init__(self):
        super().__init__()
        self.quant_conv = torch.nn.Conv2d(1, 1, 1)

    def decode(self, indices):
        grey = indices[:, None].float() / 5 - 1
        return grey.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


def test_an_encoder_is_compared_with_every_cell(resnet):
    encoder = load_encoder("resnet18", resnet[1])
    store = store_of(24)
    found = measure(
        small_model(CONFIG), store, **CELLS, names=["cka"], encoder=encoder, tokenizer=Tokenizer()
    )
    rows = rows_of(found, "cka", "encoder")
    assert len(rows) == 6 and (rows[["layer_b", "step_b"]] == 0).all(axis=None)
    grey = (127.5 * (store.codes[:, 0].reshape(-1, 4, 4) / 5 - 1) + 128).astype(np.uint8)
    pixels = grey.repeat(2, 1).repeat(2, 2)[..., None].repeat(3, 3)
    x = step_features(small_model(CONFIG), store, layers=[1], steps=[9]).values[0, 0]
    value = row_of(found, "cka", against="encoder", layer=1, step=9).value
    # grey levels may differ by one
    assert value == pytest.approx(cka(x, encode_pooled(encoder, pixels)), abs=0.02)
    assert found.info["encoder"]["sha256"] == encoder.sha256


def test_a_written_table_is_drawn(result, tmp_path):
    write_result(result, tmp_path / "measures.csv")
    table = read_result(tmp_path / "measures.csv").table
    drawn = dict(measure_figures(table, total_steps=16))
    assert {name.split("-")[0] for name in drawn} >= {"step", "view", "uniformity", "knn", "lds", "cka"}
    assert {"cka-self-layers-at-step-16", "cka-checkpoint", "cka-checkpoint-steps-at-layer-3"} <= set(
        drawn
    )
    for name, figure in drawn.items():
        [path] = save(figure, tmp_path / name, ("png",))
        assert path.stat().st_size > 5000


def test_a_curve_a_layer_and_a_symmetric_map_with_ones(result):
    axes = measure_curves(result.table, "uniformity", total_steps=16).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(curves) == 2
    expected = rows_of(result, "uniformity").query("layer == 3").sort_values("step")["value"]
    np.testing.assert_allclose(curves[1].get_ydata(), expected)
    axes = measure_heatmap(result.table, "cka", layer=1).axes[0]
    shown = axes.collections[0].get_array().reshape(3, 3)
    np.testing.assert_allclose(shown, shown.T)
    np.testing.assert_allclose(np.diag(shown), 1)
    at = {"against": "self", "layer": 1, "step": 4, "layer_b": 1, "step_b": 16}
    assert shown[0, 2] == row_of(result, "cka", **at).value


def test_one_layer_at_one_step_and_constant_features_are_drawn(tmp_path):
    options = {"other": small_model(CONFIG, seed=1), "images": 30}
    for layers, steps in (([2], [16]), ([1, 2], [1]), ([2], [1, 16])):
        found = measure(small_model(CONFIG), store_of(), layers=layers, steps=steps, **options)
        names = [name for name, _ in measure_figures(found.table, total_steps=16)]
        assert "uniformity" in names and ("cka-checkpoint" in names) == (16 in steps)


def test_drawings_say_what_they_lack(result):
    table = result.table
    for draw_it, message in (
        (
            lambda: measure_curves(table, "cka", total_steps=16, against="encoder"),
            "name one with against",
        ),
        (lambda: measure_curves(table, "speed", total_steps=16), "measure is 'speed'; expected one of"),
        (lambda: measure_curves(table, "uniformity", total_steps=9), "steps outside 1..9"),
        (lambda: measure_curves(table[:0], "uniformity", total_steps=9), "has no rows"),
        (lambda: measure_curves(table[["step"]], "cka", total_steps=9), "lacks the columns measure"),
        (lambda: measure_heatmap(table, "cka"), "either a layer or a step"),
        (lambda: measure_heatmap(table, "alignment", layer=1, against="view"), "against is 'view'"),
        (lambda: measure_heatmap(table, "cka", layer=2), "has no cka with self at layer 2"),
    ):
        with pytest.raises(UserError, match=message):
            draw_it()
