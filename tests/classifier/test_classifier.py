"""The classifier's network and file: shapes, resizing, round trip, what is refused, the shipped one."""

import json
import tomllib

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import ROOT, refused
from PIL import Image

from star.base.errors import UserError
from star.classifier.config import ClassifierConfig, ClassifierShape
from star.classifier.file import (
    classifier_path,
    classifier_sha256,
    load_classifier,
    rounded,
    save_classifier,
)
from star.classifier.model import new_classifier
from star.tokenizer.file import load_tokenizer, shipped_tokenizer_path, tokenizer_sha256
from star.training.inspect import describe

SHAPE = ClassifierShape(size=16, classes=3, width=4)
NAMES = ["ant", "bee", "caf\u00e9"]


def small(seed=0):
    """A classifier whose every number is something: norms and running statistics too."""
    model = new_classifier(SHAPE, seed)
    rng = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5, generator=rng)
        elif name == "head.weight":
            value.normal_(generator=rng)
    model.class_names = list(NAMES)
    return model.eval().requires_grad_(False)


def pictures(count, height, width, seed=0):
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 5, 5), generator=rng).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return smooth.to(torch.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "small.safetensors"
    model = small()
    save_classifier(model, path, {"accuracy": 0.5, "n": 10, "source": "made up", "name": "mine"})
    return model, path


# ---- the network -------------------------------------------------------------------------------


def test_features_are_the_means_that_the_head_reads():
    model = small()
    images = pictures(5, 16, 16)
    features, logits = model.features_and_logits(images)
    assert features.shape == (5, SHAPE.features) == (5, 32) and logits.shape == (5, 3)
    assert features.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits, features @ model.head.weight.T + model.head.bias)
    maps = model.body(images.float() / 127.5 - 1)
    assert maps.shape == (5, 32, 2, 2)
    torch.testing.assert_close(features, maps.mean((2, 3)))
    alone = torch.cat([model.features_and_logits(image[None])[0] for image in images])
    torch.testing.assert_close(alone, features, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.features_and_logits(images)[1], logits)


def test_the_network_is_its_formula():
    """The body written out with plain functions, from the weights by their names."""
    model, images = small(), pictures(2, 16, 16)
    state = model.state_dict()

    def layer(x, name, stride=1):
        x = torch.nn.functional.conv2d(x, state[f"{name}.0.weight"], stride=stride, padding=1)
        mean, var = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return (
            x * state[f"{name}.1.weight"][:, None, None] + state[f"{name}.1.bias"][:, None, None]
        ).relu()

    x = layer(images.float() / 127.5 - 1, "body.0")
    for place in (1, 3, 5):
        x = layer(x, f"body.{place}", stride=2)
        x = x + layer(layer(x, f"body.{place + 1}.branch.0"), f"body.{place + 1}.branch.1")
    torch.testing.assert_close(
        model.features_and_logits(images)[0], x.mean((2, 3)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("shape", [(16, 16), (40, 40), (10, 10), (40, 24), (24, 41)])
def test_images_of_other_sizes_are_cut_to_a_square_and_resized_as_pillow_does(shape):
    """Pillow's bicubic is antialiased too; it rounds to whole values, which moves features a little."""
    model, images = small(), pictures(3, *shape) // 2 + 60  # Pillow clips between its two passes
    side = min(shape)
    fitted = []
    for image in images:
        top, left = ((length - side) // 2 for length in shape)
        square = Image.fromarray(
            image[:, top : top + side, left : left + side].permute(1, 2, 0).numpy()
        )
        resized = square.resize((16, 16), Image.Resampling.BICUBIC)
        fitted.append(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
    expected = model._fitted(torch.stack(fitted))
    # Pillow rounds after each of its two passes, and the second weighs the first's error by up to 1.4.
    torch.testing.assert_close(model._fitted(images), expected, rtol=0, atol=1.2 / 127.5)
    assert model._fitted(images).abs().max() <= 1


def test_initial_weights_are_a_function_of_the_seed():
    before = torch.get_rng_state()
    one, again, other = (new_classifier(SHAPE, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["body.0.0.weight"], other["body.0.0.weight"])
    assert one["body.3.0.weight"].std() == pytest.approx((2 / (8 * 9)) ** 0.5, rel=0.05)
    assert not one["head.weight"].any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 7}, "classifier size is 7; expected a whole number, 8 to 1,024"),
        ({"classes": 1}, "classifier classes is 1"),
        ({"width": 0}, "classifier width is 0"),
        ({"classes": 2.0}, "classifier classes is 2.0"),
    ],
)
def test_shapes_that_cannot_be(values, message):
    with pytest.raises(UserError, match=message):
        ClassifierShape(**{"size": 16, "classes": 3, "width": 4, **values})


def test_what_depends_on_the_source_is_filled_in():
    config = ClassifierConfig().completed(images=47_500, native_size=32, default_views="ten-crop")
    assert (config.max_steps, config.size, config.views) == (4454, 32, "crop-flip")
    assert config.warmup_steps == 668 and config.shape(10) == ClassifierShape(size=32, classes=10)
    config = ClassifierConfig(views="plain").completed(
        images=100, native_size=500, default_views="affine"
    )
    assert (config.max_steps, config.size, config.views) == (200, 64, "plain")
    config = ClassifierConfig(max_steps=5, size=24).completed(
        images=100, native_size=4, default_views="affine"
    )
    assert (config.max_steps, config.size, config.views) == (5, 24, "affine")
    for name, value in (("lr", 0), ("momentum", 1), ("keep", 1), ("batch_size", 0), ("size", 4)):
        with pytest.raises(UserError, match=f"classifier {name} is {value}"):
            ClassifierConfig(**{name: value})


# ---- the file ----------------------------------------------------------------------------------


def test_what_is_saved_comes_back(saved):
    model, path = saved
    loaded = load_classifier(path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert loaded.config == SHAPE and loaded.class_names == NAMES and loaded.name == "mine"
    assert loaded.facts == {
        "accuracy": 0.5, "n": 10, "source": "made up", "name": "mine",
        "sha256": classifier_sha256(model),
    }  # fmt: skip
    images = pictures(4, 16, 16)
    measured, back = (m.features_and_logits(images)[1] for m in (rounded(model), loaded))
    assert torch.equal(measured, back)
    exact = model.features_and_logits(images)[1]
    assert not torch.equal(exact, back)  # half precision
    torch.testing.assert_close(exact, back, rtol=1e-2, atol=1e-2)
    again = path.with_name("again.safetensors")
    save_classifier(loaded, again, {})
    assert classifier_sha256(load_classifier(again)) == loaded.facts["sha256"]
    assert load_classifier(again).name == "again"


def test_its_identity_is_that_of_weights_and_classes(saved):
    same = classifier_sha256(small())
    assert same == classifier_sha256(rounded(small())) == load_classifier(saved[1]).facts["sha256"]
    renamed = small()
    renamed.class_names = ["ant", "bee", "cat"]
    assert len({same, classifier_sha256(renamed), classifier_sha256(small(seed=1))}) == 3


def _damaged(path, out, change):
    """A copy of the file with other metadata or weights."""
    with safetensors.safe_open(path, framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    change(weights, metadata)
    safetensors.torch.save_file(weights, out, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, m: m.pop("format"), "not a classifier of star train-classifier"),
        (lambda w, m: m.update(format="star-classifier-2"), "star-classifier-2; this release reads"),
        (lambda w, m: m.update(config="{"), "metadata .* is not a classifier's"),
        (lambda w, m: m.pop("config"), "metadata .* is not a classifier's"),
        (lambda w, m: m.update(config=json.dumps({"size": 16, "classes": 10**9})), "classes is"),
        (lambda w, m: m.update(class_names='["a", "b"]'), "class names are not 3 texts"),
        (lambda w, m: m.update(class_names='["a", "b", 3]'), "class names are not 3 texts"),
        (lambda w, m: m.update(card="[]"), "the card is not an object"),
        (
            lambda w, m: m.update(config=json.dumps({"size": 16, "classes": 3, "width": 5})),
            "body.0.0.weight has shape",
        ),
        (lambda w, m: w.pop("head.bias"), "missing head.bias"),
        (lambda w, m: w.update({"head.bias": torch.full((3,), torch.nan)}), "not finite"),
    ],
)
def test_files_that_are_no_whole_classifier(saved, tmp_path, change, message):
    out = tmp_path / "bad.safetensors"
    _damaged(saved[1], out, change)
    with pytest.raises(UserError, match=message) as error:
        load_classifier(out)
    assert "\n" not in str(error.value) and "bad.safetensors" in str(error.value)


def test_files_of_other_kinds(saved, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(saved[1].read_bytes()[:2000])
    (tmp_path / "lfs.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3900000\n"
    )
    for path, message in (
        (tmp_path / "cut.safetensors", "truncated or of another format"),
        (tmp_path / "lfs.safetensors", "pointer of Git LFS.*git lfs pull"),
        (shipped_tokenizer_path(), "not a classifier"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.safetensors", "no such file.*cifar10"),
    ):
        with pytest.raises(UserError, match=message):
            load_classifier(path)
    with pytest.raises(UserError, match="not a VQ tokenizer"):
        load_tokenizer(saved[1])
    with pytest.raises(UserError, match="does not end in .safetensors"):
        save_classifier(small(), tmp_path / "a.pt", {})
    with pytest.raises(UserError, match="no classifier called 'imagenet'"):
        classifier_path("imagenet")


def test_inspect_knows_a_classifier(star, saved):
    found = describe(saved[1])
    assert found["kind"] == "classifier" and found["class_names"] == NAMES
    assert (found["classes"], found["size"], found["features"]) == (3, 16, 32)
    assert found["card"]["source"] == "made up"
    code, out, err = star("inspect", saved[1])
    assert code == 0 and "kind: classifier" in out and "accuracy: 0.5" in out, err
    assert refused(star("inspect", saved[1], "--grid", "8"), "grid")
    assert refused(star("sample", saved[1]), "small.safetensors")


# ---- the one in the package --------------------------------------------------------------------


def test_the_shipped_file_is_small_and_part_of_the_package():
    path = classifier_path("cifar10")
    assert path.stat().st_size <= 4_000_000
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    globs = settings["package-data"]["star"]
    assert any(path in (ROOT / "star").glob(glob) for glob in globs)


def test_its_card_says_what_it_saw_and_how_often_it_is_right():
    model = load_classifier("cifar10")
    facts = model.facts
    assert model.name == "cifar10" and model.config.size == 32 and model.config.features == 256
    assert model.class_names[:3] == ["airplane", "automobile", "bird"] and len(model.class_names) == 10
    assert facts["command"].startswith("star train-classifier cifar10 --through cifar10")
    assert "47500 images" in facts["data"] and facts["measured_on"].endswith("test, 10000 images")
    for numbers in (facts, facts["through"]):
        assert numbers["low"] < numbers["accuracy"] < numbers["high"] and numbers["n"] == 10_000
    assert facts["accuracy"] > 0.86 and facts["through"]["accuracy"] > 0.78
    # It was measured through the tokenizer that ships.
    assert facts["through"]["sha256"] == tokenizer_sha256(load_tokenizer())


def test_the_shipped_weights_give_what_they_gave():
    """Logits of seeded noise, as when it was trained; 0.02: another order of summing."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, 32, 32), generator=rng).to(torch.uint8)
    logits = load_classifier("cifar10").features_and_logits(noise)[1]
    expected = [
        [-0.499, -0.93, 0.403, -0.693, 0.822, -1.027, 4.39, -1.234, -0.721, -0.484],
        [-0.795, -1.14, 1.105, -0.399, 0.788, -1.096, 3.857, -1.667, -0.73, 0.113],
    ]
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=0, atol=0.02)


def test_a_file_of_that_name_goes_first(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()  # images of that name are no classifier
    assert load_classifier("cifar10").name == "cifar10"
    (tmp_path / "cifar10").rmdir()
    (tmp_path / "cifar10").write_bytes(saved[1].read_bytes())
    assert load_classifier("cifar10").class_names == NAMES
