"""Our models as .safetensors: they load without options, say what they are, refuse contradictions."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
from foreign import ARGUMENTS, weights
from helpers import GOLDEN, SMALL, TINY_VQ, refused

from star.base.errors import UserError
from star.tokenizer.file import load_tokenizer, save_tokenizer
from star.tokenizer.model import VQModel
from star.training.checkpoint import open_model
from star.training.export import export_model
from star.training.inspect import describe


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    loaded = open_model(GOLDEN / "checkpoint_v1.pt")
    return export_model(loaded, tmp_path_factory.mktemp("model") / "m.safetensors", "safetensors")


def edited(exported, path, **changes):
    """The exported model with other metadata; None leaves an entry out."""
    with safetensors.safe_open(exported, "pt") as file:
        metadata = {**file.metadata(), **changes}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    safetensors.torch.save_file(safetensors.torch.load_file(exported), path, metadata=metadata)
    return path


def config_of(exported, **changes):
    with safetensors.safe_open(exported, "pt") as file:
        return json.dumps(json.loads(file.metadata()["config"]) | changes)


def test_an_exported_model_loads_without_options(exported):
    origin, loaded = open_model(GOLDEN / "checkpoint_v1.pt"), open_model(exported)
    assert loaded.model.config == origin.model.config
    state = origin.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.class_names == origin.class_names and loaded.tokenizer == origin.tokenizer
    assert loaded.objective_name == origin.objective_name and loaded.weights == "teacher"
    assert loaded.description == f"exported model (checkpoint_v1.pt, {origin.description})"


@pytest.mark.parametrize("given", [{"heads": 2}, {"heads": 8}, {"grid": 3}])
def test_an_exported_model_needs_no_heads_or_grid(exported, given):
    (name,) = given
    for call in (open_model, describe):
        with pytest.raises(
            UserError, match=f"but only a LlamaGen checkpoint may need it.*--{name} out"
        ):
            call(exported, **given)


def test_an_exported_model_holds_one_set_of_weights(tmp_path, exported):
    with pytest.raises(UserError, match="holds the teacher's weights alone; leave --weights out"):
        open_model(exported, weights="student")
    student = open_model(GOLDEN / "checkpoint_v1.pt", weights="student")
    path = export_model(student, tmp_path / "s.safetensors", "safetensors")
    loaded = open_model(path)  # the default asks for the teacher
    assert loaded.weights == "student" and "which holds no teacher weights" in loaded.description
    assert open_model(path, weights="student").weights == "student"


def test_inspect_calls_it_a_model(exported, star):
    facts = describe(exported)
    assert facts["kind"] == "model" and facts["model"]["width"] == 8
    assert facts["class_names"] == list(open_model(GOLDEN / "checkpoint_v1.pt").class_names)
    code, out, _ = star("inspect", exported)
    assert code == 0 and out.startswith("kind: model") and "grid: 3" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "star-transformer-2"}, "format star-transformer-2; this release reads star-trans"),
        ({"config": None}, "its metadata have no config"),
        ({"config": "{"}, "the config in its metadata is no JSON"),
        ({"config": "[" * 100_000}, "the config in its metadata is no JSON"),
        ({"config": "[1]"}, "the config in its metadata is a list, not an object"),
        ({"config": "{}"}, "its config does not say grid, heads, kv_heads, layers"),
        ({"weights": "best"}, "it holds 'best' weights"),
        ({"class_names": '["a"]'}, "it names 1 classes, its model has"),
        ({"class_names": "{}"}, "the class_names in its metadata is a dict, not a list"),
        ({"tokenizer": "3"}, "the tokenizer in its metadata is a int, not an object"),
    ],
)
def test_broken_metadata_are_named(tmp_path, exported, changes, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")) as refusal:
        open_model(edited(exported, tmp_path / "x.safetensors", **changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": True}, "unknown setting qk_norm"),
        ({"num_classes": "4"}, "num_classes is '4'; expected a value of type int"),
        ({"layers": 3}, "does not fit the model: missing layers.1."),
        ({"num_classes": 5}, "expected (6, 8)"),
        ({"null_class": False}, "does not fit the model: cls_embedding"),
        ({"heads": 3}, "is not a multiple of heads 3"),
    ],
)
def test_a_config_that_is_not_the_weights_is_refused(tmp_path, exported, changes, message):
    path = edited(
        exported, tmp_path / "x.safetensors", config=config_of(exported, **changes), class_names=None
    )
    with pytest.raises(UserError) as refusal:
        open_model(path)
    assert message in str(refusal.value)


def test_bare_weights_with_metadata_of_others(tmp_path):
    path = tmp_path / "bare.safetensors"
    state = {key: value.contiguous() for key, value in weights().items()}
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="does not say how many heads"):
        open_model(path)
    loaded = open_model(path, heads=2, grid=3)
    assert loaded.model.config == SMALL and "taken for the null class" in loaded.description
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    said = {key: str(value) for key, value in ARGUMENTS.items()}
    safetensors.torch.save_file(state, path, metadata=said)
    assert open_model(path).model.config == SMALL
    safetensors.torch.save_file(state, path, metadata=said | {"num_classes": "7"})
    with pytest.raises(UserError, match="says num_classes 7, which makes 7 or 8 rows.*has 5"):
        open_model(path)


def test_models_and_tokenizers_are_told_apart(tmp_path, exported):
    path = tmp_path / "vq.safetensors"
    save_tokenizer(VQModel(TINY_VQ), path, {"name": "tiny"})
    assert describe(path)["kind"] == "tokenizer"
    with pytest.raises(UserError, match="it is a VQ tokenizer: --tokenizer takes it"):
        open_model(path)
    with pytest.raises(UserError, match="is not a VQ tokenizer but a model"):
        load_tokenizer(exported)
    other = edited(path, tmp_path / "new.safetensors", format="star-vq-2")
    with pytest.raises(UserError, match="format star-vq-2; this release reads star-vq-1"):
        load_tokenizer(other)


def test_files_cut_short(tmp_path, exported, star):
    whole = exported.read_bytes()
    for name, content in (("empty", b""), ("cut", whole[: len(whole) // 2]), ("header", whole[:30])):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        for command in ("inspect", "sample"):
            assert refused(star(command, path), "as safetensors, it is truncated")
        assert refused(star("codebook", "digits", "--tokenizer", path), "it is truncated")
    safetensors.torch.save_file({}, tmp_path / "none.safetensors")
    assert refused(star("sample", tmp_path / "none.safetensors"), "it is empty")
