"""A model without a null class: what conditions on it is refused with that reason, the rest works."""

import json

import numpy as np
import pytest
import torch
from foreign import CLASS_TABLE, arguments, weights, write
from helpers import refused, small_model

from probes.attention.stats import attention_stats
from probes.attribution.scores import StepScores
from probes.reading.features import step_features
from probes.representation.spatial import layer_lds
from star.base.errors import UserError
from star.model.config import ModelConfig
from star.model.sampler import generate
from star.training.checkpoint import open_model
from star.training.config import TrainConfig

# Fits the code stores and the tokenizer of the fixtures.
CONFIG = ModelConfig(
    layers=2, heads=2, width=16, grid=8, vocab_size=256, num_classes=2, null_class=False
)
NONE = "this model has none (its class table has 2 rows for 2 classes)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    said = arguments(n_head=2, num_classes=2, vocab_size=256, image_size=128, class_dropout_prob=0.0)
    folder = tmp_path_factory.mktemp("no-null")
    return write(folder / "c.pt", {"model": weights(config=CONFIG), "args": said})


def test_the_class_table_has_a_row_a_class():
    model = small_model(CONFIG)
    assert model.state_dict()[CLASS_TABLE].shape == (2, 16)
    assert CONFIG.parameters == sum(p.numel() for p in model.parameters())
    with pytest.raises(UserError, match="star train always makes a null class"):
        TrainConfig(model=CONFIG)


def test_library_functions_refuse_the_null_class_and_draw_without_it():
    model = small_model(CONFIG)
    for call in (
        lambda: generate(model, [0], seeds=[0]),
        lambda: step_features(model, None, layers=[1], steps=[2]),
        lambda: layer_lds(model, None, layers=[1]),
        lambda: attention_stats(model, None, layers=[1], steps=[2], null_class=True),
        lambda: StepScores(model, 5),
    ):
        with pytest.raises(UserError, match="needs the null class, and this model has none"):
            call_without_stores(call)
    with pytest.raises(UserError, match="label 2 does not exist; expected 0 to 1$"):
        generate(model, [2], seeds=[0], cfg_scale=1.0)
    twin = small_model(ModelConfig(**{**vars(CONFIG), "null_class": True}))
    state = model.state_dict()
    twin.load_state_dict({**state, CLASS_TABLE: torch.cat([state[CLASS_TABLE], torch.ones(1, 16)])})
    drawn = [generate(m, [0, 1], seeds=[0, 1], cfg_scale=1.0) for m in (model, twin)]
    assert torch.equal(*drawn)


def call_without_stores(call):
    """The null class is asked for before any code is read."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "probes.reading.features",
            "probes.representation.spatial",
            "probes.attention.stats",
        ):
            patch.setattr(f"{name}.check_store", lambda *given, **options: None)
        call()


def commands(tokenizer, stores):
    """What conditions on the null class, and what a user is told to do instead."""
    given = ["--tokenizer", tokenizer]
    data = ["--data", stores]
    return [
        (["sample", "--each", "1", *given], "give --cfg-scale 1"),
        (["sample", "--class", "null", "--cfg-scale", "1", *given], "class null is the null class"),
        (["sample", "--class", "2", "--cfg-scale", "1", *given], "class 2 is the null class"),
        (["attn-maps", "china.jpg", *given], "give --class"),
        (["attn-maps", "--sample", "1", *given], "give --class"),
        (["attn-maps", "--sample", "1", "--class", "1", *given], "give --cfg-scale 1"),
        (["probe", *data], "a probe needs"),
        (["probe", "--dry-run", *data], "a probe needs"),
        (["probe", "--measure", "cka", *data], "--measure needs"),
        (["attribute", "china.jpg", "--class", "1", *given], "attribution needs"),
        (["ablate", *data], "give --probe-layer 0"),
        (["attention-stats", "--null-class", *data], "--null-class needs"),
    ]


@pytest.mark.parametrize("number", range(12))
def test_commands_that_need_the_null_class_say_so_and_write_nothing(
    star, checkpoint, tokenizer_file, stores, tmp_path, number
):
    (command, *options), message = commands(tokenizer_file, stores)[number]
    result = star(command, checkpoint, *options)
    assert refused(result, message, *([] if "is the null class" in message else [NONE]))
    assert "no null class" in result[1] and not list(tmp_path.iterdir())


def test_the_rest_works(star, checkpoint, tokenizer_file, stores):
    given = ["--tokenizer", tokenizer_file]
    code, _, err = star(
        "sample", checkpoint, "--each", "1", "--cfg-scale", "1", "--class", "1,0", "--out", "s", *given
    )
    assert code == 0, err
    assert np.load("s/samples-teacher.npz")["labels"].tolist() == [1, 0]
    options = ["--layers", "1", "--at", "9", "--formats", "png", "--out", "m", *given]
    code, out, err = star("attn-maps", checkpoint, "digits/3", "--class", "1", *options)
    assert code == 0 and "the model is shown the class 1" in out, err
    options = ["--data", stores, "--cut", "class", "--layers", "1", "--reach", "none", "--images", "4"]
    code, out, err = star("ablate", checkpoint, *options, "--probe-layer", "0", "--out", "a")
    assert code == 0, err
    code, out, err = star("inspect", checkpoint)
    assert code == 0 and "no null class" in out and "null_class: False" in out


@pytest.mark.parametrize("form", ["llamagen", "safetensors"])
def test_an_export_keeps_that_there_is_none(star, checkpoint, form):
    path = f"x.{'pt' if form == 'llamagen' else 'safetensors'}"
    assert star("export", checkpoint, path, "--format", form)[0] == 0
    loaded = open_model(path)
    assert loaded.model.config == CONFIG and "no null class" in loaded.description
    code, out, _ = star("inspect", path, "--json")
    assert code == 0 and json.loads(out)["model"]["null_class"] is False
