"""Weights as trainers leave them: words in keys, prefixes, entries, arguments; and what contradicts."""

import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from foreign import ARGUMENTS, CLASS_TABLE, arguments, in_blocks, in_front, weights, write
from helpers import GOLDEN, SMALL, TINY_VQ

from star.base.errors import UserError
from star.model.state_keys import TRANSFORMER, find_states
from star.tokenizer.file import load_tokenizer
from star.tokenizer.model import VQModel
from star.training.checkpoint import open_model

OTHER = {"criterion.weight": torch.ones(3), "step": torch.tensor(4)}


def same(model, state):
    return all(torch.equal(model.state_dict()[key], value.float()) for key, value in state.items())


def wrapped(state):
    """A compiled and checkpointed block inside FSDP inside DDP."""
    inside = in_blocks(in_blocks(state, "_orig_mod"), "_checkpoint_wrapped_module", 3)
    return in_front(in_blocks(inside, "_fsdp_wrapped_module"), "module._fsdp_wrapped_module.")


LAYOUTS = {
    "blocks compiled": lambda s: {"model": in_blocks(s, "_orig_mod")},
    "everything": lambda s: {"module": wrapped(s)},
    "a word at the end": lambda s: {"model": in_blocks(s, "_checkpoint_wrapped_module", 4)},
    "fairscale": lambda s: {"model": in_front(in_blocks(s, "_fpw_module"), "_fsdp_wrapped_module.")},
    "fabric": lambda s: {"model": in_front(s, "_forward_module._orig_mod.")},
    "lightning": lambda s: {"state_dict": in_front(s, "model.") | OTHER},
    "a name of one's own": lambda s: {"state_dict": in_front(s, "net.transformer.") | OTHER},
    "composer": lambda s: {"state": {"model": in_front(s, "model.module.")}},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"x": s}},
    "any entry": lambda s: {"weights": s},
    "averaged": lambda s: {"ema_state_dict": {"n_averaged": torch.tensor(7), **in_front(s, "module.")}},
    "caches": lambda s: {
        "model": {**s, "freqs_cis": torch.ones(2), "layers.0.attention.kv_cache.k_cache": torch.ones(2)}
    },
    "the same twice": lambda s: {"model": s, "state_dict": dict(s)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_weights_wherever_they_lie(tmp_path, layout):
    state = weights()
    path = write(tmp_path / "c.pt", {**LAYOUTS[layout](state), "args": arguments()})
    for chosen in ("teacher", "student"):
        loaded = open_model(path, weights=chosen)
        assert loaded.model.config == SMALL and same(loaded.model, state)


AVERAGES = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "modelEMA", "teacher")


@pytest.mark.parametrize("entry", AVERAGES)
def test_a_moving_average_is_the_teacher_by_any_name(tmp_path, entry):
    plain, ema = weights(0), weights(1)
    path = write(tmp_path / "c.pt", {"model": plain, entry: ema, "args": arguments()})
    assert same(open_model(path).model, ema) and repr(entry) in open_model(path).description
    assert same(open_model(path, weights="student").model, plain)


def test_a_moving_average_beside_the_weights_in_one_state_dict(tmp_path):
    plain, ema = weights(0), weights(1)
    both = {**in_front(plain, "online_model."), **in_front(ema, "ema_model.module."), **OTHER}
    path = write(tmp_path / "c.pt", {"state_dict": both, "args": arguments()})
    loaded = open_model(path)
    assert same(loaded.model, ema) and "(keys ema_model.*)" in loaded.description
    student = open_model(path, weights="student")
    assert same(student.model, plain) and "(keys online_model.*)" in student.description


def test_only_schemas_are_not_moving_averages():
    for name, ema in (("schema", False), ("cinema", False), ("ema_0.9999", True), ("EMA", True)):
        (found,) = find_states({name: weights()}, TRANSFORMER, "x.pt")
        assert found.ema == ema, name


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (lambda a, b: {"model": a, "state_dict": b}, ("2 different models", "'model'", "'state_dict'")),
        (lambda a, b: {"model": in_front(a, "one.") | in_front(b, "two.")}, ("one.*", "two.*")),
        (lambda a, b: {"ema": a, "ema_slow": b}, ("2 different models", "'ema'", "'ema_slow'")),
        (
            lambda a, b: {"model": in_front(a, "module.") | in_front(b, "_orig_mod.")},
            ("twice, as module.", "and as _orig_mod."),
        ),
        (
            lambda a, b: {"model": a | {"layers.0._orig_mod.attention.wo.weight": torch.ones(16, 16)}},
            ("holds layers.0.attention.wo.weight twice",),
        ),
    ],
)
def test_two_models_in_one_file_are_refused(tmp_path, content, parts):
    path = write(tmp_path / "c.pt", {**content(weights(0), weights(1)), "args": arguments()})
    with pytest.raises(UserError) as refusal:
        open_model(path)
    for part in parts:
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_weights_of_another_precision_become_float32(tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in weights().items()}
    model = open_model(write(tmp_path / "c.pt", {"model": state, "args": arguments()})).model
    assert same(model, state)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((16,), 1e300, dtype=torch.float64), "not finite in float32"),
        (torch.ones(16, dtype=torch.int8), "norm.weight holds int8; expected floating-point"),
        (torch.ones(16, dtype=torch.complex64), "norm.weight holds complex64"),
        (torch.ones(16, device="meta"), "norm.weight has no values"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path, value, message):
    state = {**weights(), "norm.weight": value}
    with pytest.raises(UserError, match=message):
        open_model(write(tmp_path / "c.pt", {"model": state, "args": arguments()}))


SAID = {
    "dictionary": {"args": ARGUMENTS},
    "hyper_parameters": {"hyper_parameters": ARGUMENTS},
    "hparams": {"hparams": Namespace(**ARGUMENTS)},
    "tables": {"config": {"model": {"n_head": 2, "num_classes": 4},
                          "data": {"image_size": [48, 48], "downsample_size": 16}}},
    "tables of tables": {"cfg": {"model": {"params": {"gpt": {"n_head": 2, "block_size": 9}}}}},
    "a namespace inside": {"hyper_parameters": {"args": arguments(), "lr": 1e-4}},
    "texts": {"config": {key: str(value) for key, value in ARGUMENTS.items()}},
    "numpy": {"args": Namespace(n_head=np.int64(2), image_size=np.float64(48), downsample_size=16.0)},
    "twice": {"args": arguments(), "config": ARGUMENTS},
    "model arguments": {"model_args": {"n_head": 2, "block_size": 9, "num_classes": 4, "n_layer": 3}},
}  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_arguments_of_any_kind_are_believed(tmp_path, said):
    loaded = open_model(write(tmp_path / "c.pt", {"model": weights(), **SAID[said]}))
    assert loaded.model.config == SMALL


def test_numerics_that_a_file_says_are_used(tmp_path):
    path = write(
        tmp_path / "c.pt", {"model": weights(), "args": arguments(norm_eps=1e-6, rope_base=500)}
    )
    config = open_model(path).model.config
    assert (config.norm_eps, config.rope_base) == (1e-6, 500.0)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"args": arguments(n_head=5)}, {}, "heads is 5; expected a divisor of the width 16"),
        ({"args": arguments(n_head="many")}, {}, "says n_head 'many' in its args; expected a number"),
        ({"args": arguments(n_head=0)}, {}, "says n_head 0; expected a whole number of at least 1"),
        ({"args": arguments(num_classes=4.5)}, {}, "says num_classes 4.5; expected a whole number"),
        ({"args": arguments(n_layer=12)}, {}, "says n_layer 12, its weights have 3 layers"),
        ({"args": arguments(vocab_size=16384)}, {}, "vocab_size 16384, its weights have 11 rows"),
        ({"args": arguments(n_head=None, gpt_model="GPT-B")}, {}, "it says GPT-B (12 layers of width"),
        ({"args": arguments(n_kv_head=1)}, {}, "says n_kv_head 1, its weights have 2 with 2 heads"),
        ({"args": arguments(block_size=16)}, {}, "make 3 x 3 tokens, block_size is 16"),
        ({"args": arguments(cls_token_num=4)}, {}, "says cls_token_num 4; only models of 1"),
        ({"args": arguments(), "config": {"n_head": 4}}, {}, "n_head is 2 in its args and 4 in its"),
        ({"args": arguments(image_size=None)}, {}, "does not say its token grid; give --grid"),
        ({"hparams": ARGUMENTS}, {"heads": 8}, "heads is 8; .* says 2: leave --heads out"),
        ({"config": {"a": {"n_head": 2}, "b": {"n_head": 4}}}, {"grid": 3}, "does not say how many"),
    ],
)  # fmt: skip
def test_what_a_file_says_is_held_against_its_weights(tmp_path, content, options, message):
    path = write(tmp_path / "c.pt", {"model": weights(), **content})
    with pytest.raises(UserError, match=message.replace("(", re.escape("("))):
        open_model(path, **options)


# --- the null class: rows of the class table against what the arguments say


def with_rows(rows: int) -> dict:
    state = weights()
    table = state[CLASS_TABLE]
    state[CLASS_TABLE] = torch.cat([table, table])[:rows].clone()
    return state


@pytest.mark.parametrize(
    ("rows", "said", "classes", "null", "words"),
    [
        (5, {}, 4, True, None),
        (5, {"class_dropout_prob": 0.1}, 4, True, None),
        (5, {"class_dropout_prob": 0.0}, 4, True, None),  # a row all the same, as ours
        (4, {}, 4, False, "no null class"),
        (4, {"class_dropout_prob": 0.0}, 4, False, "no null class"),
        (5, {"num_classes": None}, 4, True, "the last class row taken for the null class"),
        (5, {"num_classes": None, "class_dropout_prob": 0.1}, 4, True, None),
        (5, {"num_classes": None, "class_dropout_prob": 0}, 5, False, "no null class"),
    ],
)
def test_whether_there_is_a_null_class_follows_from_the_file(
    tmp_path, rows, said, classes, null, words
):
    path = write(tmp_path / "c.pt", {"model": with_rows(rows), "args": arguments(**said)})
    loaded = open_model(path)
    config = loaded.model.config
    assert (config.num_classes, config.null_class, config.class_rows) == (classes, null, rows)
    for phrase in ("null class",) if words is None else (words,):
        assert (phrase in loaded.description) == (words is not None)


@pytest.mark.parametrize(
    ("rows", "said", "message"),
    [
        (6, {}, "says num_classes 4, which makes 4 or 5 rows, and its class table has 6"),
        (3, {}, "which makes 4 or 5 rows, and its class table has 3"),
        (4, {"class_dropout_prob": 0.1}, "class_dropout_prob 0.1, which makes 5 .* has 4"),
    ],
)
def test_classes_that_contradict_the_class_table_are_refused(tmp_path, rows, said, message):
    path = write(tmp_path / "c.pt", {"model": with_rows(rows), "args": arguments(**said)})
    with pytest.raises(UserError, match=message):
        open_model(path)


# --- the same reading for tokenizers


@pytest.fixture(scope="module")
def tokenizer_weights():
    return VQModel(TINY_VQ).state_dict()


@pytest.mark.parametrize(
    "layout",
    [
        lambda s, other: {"model": s, "ema": other},  # LlamaGen reads the plain weights
        lambda s, other: {"ema": s},
        lambda s, other: {"state_dict": in_front(s, "vq.") | {"loss.weight": torch.ones(2)}},
        lambda s, other: {"model_state_dict": in_front(s, "module._orig_mod.")},
        lambda s, other: {
            k.replace("encoder.", "encoder._fsdp_wrapped_module."): v for k, v in s.items()
        },
    ],
)
def test_tokenizers_are_found_in_the_same_places(tmp_path, tokenizer_weights, layout):
    other = {key: value + 1 for key, value in tokenizer_weights.items()}
    found = load_tokenizer(write(tmp_path / "vq.pt", layout(tokenizer_weights, other)))
    expected = {key: value for key, value in tokenizer_weights.items() if "used" not in key}
    assert found.config == TINY_VQ and same(found, expected)


def test_two_tokenizers_in_one_file_are_refused(tmp_path, tokenizer_weights):
    other = {key: value + 1 for key, value in tokenizer_weights.items()}
    both = in_front(tokenizer_weights, "a.") | in_front(other, "b.")
    with pytest.raises(UserError, match=r"2 different models, under 'model' \(keys a.\*\)"):
        load_tokenizer(write(tmp_path / "vq.pt", {"model": both}))


def test_a_model_and_a_tokenizer_are_not_taken_for_each_other(tmp_path, tokenizer_weights):
    path = write(tmp_path / "vq.pt", {"model": tokenizer_weights})
    with pytest.raises(UserError, match="it is a VQ tokenizer: --tokenizer takes it"):
        open_model(path)
    for file in (write(tmp_path / "c.pt", {"model": weights()}), GOLDEN / "checkpoint_v1.pt"):
        with pytest.raises(UserError, match="is not a VQ tokenizer but a model"):
            load_tokenizer(file)
    joint = {"state_dict": in_front(weights(), "gpt.") | in_front(tokenizer_weights, "vq.")}
    path = write(tmp_path / "joint.pt", {**joint, "args": arguments()})
    assert same(open_model(path).model, weights()) and load_tokenizer(path).config == TINY_VQ
