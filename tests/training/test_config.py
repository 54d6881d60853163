"""Configurations: presets, dictionaries and files, unknown keys, wrong types."""

from dataclasses import replace

import pytest

from star.base.errors import UserError
from star.base.settings import config_from_dict, config_to_dict, read_settings
from star.model.config import SIZES, ModelConfig
from star.training.config import TrainConfig, for_cuda, preset


@pytest.mark.parametrize("name", SIZES)
def test_presets_survive_a_round_trip(name):
    config = preset(name.lower())
    assert config_from_dict(config_to_dict(config), TrainConfig()) == config
    assert config.model.size_name == name


def test_large_presets_carry_llamagens_and_the_papers_numbers():
    config = preset("B")
    assert (config.lr, config.batch_size, config.schedule) == (1e-4, 256, "constant")
    assert (config.beta1, config.beta2, config.weight_decay, config.clip) == (0.9, 0.95, 0.05, 1.0)
    assert (config.model.vocab_size, config.model.tokens, config.model.num_classes) == (
        16384,
        256,
        1000,
    )
    objective = config.objective
    assert (objective.mim_weight, objective.contrast_weight) == (1.0, 0.5)
    assert (objective.mask_ratio, objective.contrast_steps, objective.views) == (0.25, 4, 2)
    assert objective.ema_decay == 0.9999


def test_an_unknown_preset_names_the_valid_ones():
    with pytest.raises(UserError, match="expected one of: tiny, B, L, XL, XXL, 3B"):
        preset("huge")


def test_settings_files(tmp_path):
    toml = tmp_path / "run.toml"
    toml.write_text("lr = 1\nseed = 7\n[objective]\nmask_ratio = 0.5\n[model]\nlayers = 2\n")
    config = config_from_dict(read_settings(toml), preset("tiny"))
    assert (config.lr, config.seed, config.objective.mask_ratio) == (1.0, 7, 0.5)
    assert (config.model.layers, config.model.width) == (2, 128)
    (tmp_path / "bad.toml").write_text("lr = ")
    with pytest.raises(UserError, match="is not valid TOML"):
        read_settings(tmp_path / "bad.toml")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UserError, match="holds a list"):
        read_settings(tmp_path / "bad.json")
    with pytest.raises(UserError, match="cannot read settings from .*missing.json"):
        read_settings(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1.0}, "unknown setting learning_rate; expected one of: model, objective"),
        ({"objective": {"masks": 1}}, "unknown setting objective.masks"),
        ({"objective": 3}, "objective must be a table"),
        ({"lr": "fast"}, "lr is 'fast'; expected a value of type float"),
        ({"max_steps": 1.5}, "max_steps is 1.5; expected a value of type int"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"max_steps": 0}, "max_steps is 0; expected at least 1"),
        ({"class_dropout": 1.0}, "class_dropout is 1.0"),
        ({"precision": "int8"}, "expected one of: auto, fp32, bf16"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        config_from_dict(values, TrainConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 100, "heads": 3}, "width 100 is not a multiple of heads 3"),
        ({"width": 12, "heads": 2}, "width / heads is 6"),
        ({"layers": 0}, "layers is 0"),
        ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
    ],
)
def test_bad_shapes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**values)


def test_fitting_to_data_changes_only_the_shape_of_the_data():
    config = TrainConfig().fitted_to(grid=5, vocab_size=7, num_classes=3)
    assert (config.model.grid, config.model.vocab_size, config.model.num_classes) == (5, 7, 3)
    assert config.model.layers == TrainConfig().model.layers


def test_a_gpu_gets_loader_processes_and_compiled_blocks_unless_chosen():
    tiny, large = preset("tiny"), preset("B")
    assert for_cuda(tiny, ()) == replace(tiny, workers=2)
    assert for_cuda(large, ()) == replace(large, workers=2, compile=True)
    few_codes = replace(large, model=replace(large.model, vocab_size=256))
    assert for_cuda(few_codes, ()).compile
    assert for_cuda(large, {"compile", "workers", "lr"}) == large
