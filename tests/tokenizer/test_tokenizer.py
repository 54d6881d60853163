"""Tokenizer files, their identity, and what is refused."""

import argparse
import dataclasses
import json
import math
import pickle

import pytest
import safetensors.torch
import torch
from helpers import TINY_VQ as TINY
from reference.fill import fill_

from star.base.errors import UserError
from star.tokenizer.file import load_tokenizer, save_tokenizer, tokenizer_sha256
from star.tokenizer.model import VQModel

CARD = {"data": "nothing", "steps": 0, "psnr": 12.5}


@pytest.fixture(scope="module")
def tiny() -> VQModel:
    return fill_(VQModel(TINY)).eval().requires_grad_(False)


# ---- files ---------------------------------------------------------------------------------------


def test_round_trip_is_exact(tiny, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_tokenizer(tiny, path, CARD)
    loaded = load_tokenizer(path)
    assert loaded.config == TINY
    assert loaded.card == CARD
    assert loaded.name == tiny.name
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for key, value in tiny.state_dict().items():
        if key != "quantize.codebook_used":
            assert torch.equal(loaded.state_dict()[key], value), key
    assert tokenizer_sha256(loaded) == tokenizer_sha256(tiny)
    save_tokenizer(tiny, path, {**CARD, "name": "blurs"})
    assert load_tokenizer(path).name == "blurs"


def test_identity_is_that_of_config_and_weights(tiny):
    identity = tokenizer_sha256(tiny)
    assert len(identity) == 64
    other = fill_(VQModel(TINY))
    other.quantize.codebook_used.fill_(7)
    assert tokenizer_sha256(other) == identity  # the usage buffer changes no result
    with torch.no_grad():
        other.decoder.conv_out.bias[0] += 1e-6
    assert tokenizer_sha256(other) != identity
    wider = fill_(VQModel(dataclasses.replace(TINY, codebook_size=33)))
    assert tokenizer_sha256(wider) != identity


@pytest.mark.parametrize("container", ["model", "ema", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_llamagens_files_load_with_the_shape_read_off(tiny, tmp_path, container, prefix):
    weights = {prefix + key: value for key, value in tiny.state_dict().items()}
    content = weights if container is None else {container: weights, "steps": 3}
    if container is not None:
        content["args"] = argparse.Namespace(vq_model="VQ-16")
    path = tmp_path / "vq_ds2_c2i.pt"
    torch.save(content, path)
    loaded = load_tokenizer(path)
    assert loaded.config == TINY
    assert loaded.card == {}
    assert loaded.name == "vq_ds2_c2i"
    assert tokenizer_sha256(loaded) == tokenizer_sha256(tiny)
    # a copy in our format keeps the name and the identity
    save_tokenizer(loaded, tmp_path / "tokenizer.safetensors", loaded.card)
    copy = load_tokenizer(tmp_path / "tokenizer.safetensors")
    assert (copy.name, tokenizer_sha256(copy)) == (loaded.name, tokenizer_sha256(tiny))


def test_bare_safetensors_and_half_precision_load(tiny, tmp_path):
    path = tmp_path / "bare.safetensors"
    weights = {key: value.bfloat16() for key, value in tiny.state_dict().items()}
    del weights["quantize.codebook_used"]  # without knowledge, hence optional
    safetensors.torch.save_file(weights, path)
    loaded = load_tokenizer(path)
    assert loaded.config == TINY
    assert loaded.quant_conv.weight.dtype == torch.float32
    assert torch.equal(loaded.quant_conv.weight, tiny.quant_conv.weight.bfloat16().float())


class _Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_harmful_truncated_and_foreign_files_are_refused(tiny, tmp_path, capsys):
    harmful = tmp_path / "harmful.pt"
    torch.save({"model": tiny.state_dict(), "more": _Harmful()}, harmful)
    plain_pickle = tmp_path / "pickle.pt"
    plain_pickle.write_bytes(pickle.dumps(_Harmful(), protocol=2))
    saved = tmp_path / "good.safetensors"
    save_tokenizer(tiny, saved, {})
    torch.save(tiny.state_dict(), tmp_path / "good.pt")
    broken = [harmful, plain_pickle, tmp_path / "missing.pt", tmp_path / "missing.safetensors"]
    for good in (saved, tmp_path / "good.pt"):
        for size in (0, 5, good.stat().st_size // 2, good.stat().st_size - 10):
            path = tmp_path / f"cut-{size}{good.suffix}"
            path.write_bytes(good.read_bytes()[:size])
            broken.append(path)
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "foreign.pt")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    broken += [
        tmp_path / "foreign.pt",
        tmp_path / "foreign.safetensors",
        tmp_path / "list.pt",
        tmp_path,
    ]
    for path in broken:
        with pytest.raises(UserError, match=str(path)) as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "metadata",
    [
        {"config": "not json"},
        {"config": "[1]"},
        {"config": json.dumps({"channels": 48})},
        {"config": json.dumps({"colour": 1})},
        {"config": "{}", "card": "[]"},
    ],
)
def test_broken_metadata_is_refused(tiny, tmp_path, metadata):
    path = tmp_path / "broken.safetensors"
    safetensors.torch.save_file(dict(tiny.state_dict()), path, metadata=metadata)
    with pytest.raises(UserError, match=r"metadata of .*broken"):
        load_tokenizer(path)


def test_keys_that_do_not_fit_are_named_on_both_sides(tiny, tmp_path):
    weights = dict(tiny.state_dict())
    weights["decoder.conv_out.scale"] = weights.pop("decoder.conv_out.bias")
    weights["quant_conv.bias"] = torch.zeros(5)
    path = tmp_path / "other.pt"
    torch.save({"model": weights}, path)
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    message = str(caught.value)
    assert "missing decoder.conv_out.bias" in message
    assert "unexpected decoder.conv_out.scale" in message
    assert "quant_conv.bias has shape (5,), expected (4,)" in message


def test_saving_is_atomic_and_in_one_format(tiny, tmp_path):
    path = tmp_path / "kept.safetensors"
    save_tokenizer(tiny, path, CARD)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        save_tokenizer(tiny, path, {"psnr": math.nan})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["kept.safetensors"]
    with pytest.raises(UserError, match=r"\.safetensors"):
        save_tokenizer(tiny, tmp_path / "mine.pt", CARD)
