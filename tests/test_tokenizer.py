"""Tokenizer files, their identity, what is refused, and the small training run."""

import argparse
import dataclasses
import json
import math
import pickle

import pytest
import safetensors.torch
import torch
from reference.fill import fill_

import star.tokenizer_training as training
from star.errors import UserError
from star.tokenizer import default_tokenizer_path, load_tokenizer, save_tokenizer, tokenizer_sha256
from star.tokenizer_training import (
    TokenizerTrainConfig,
    digits_tokenizer,
    evaluate_tokenizer,
    reconstruction_psnr,
    train_tokenizer,
)
from star.vq import VQModel
from star.vq_config import VQConfig

TINY = VQConfig(
    channels=32,
    multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=2,
    z_channels=16,
    codebook_size=32,
    codebook_dim=4,
)
CARD = {"data": "nothing", "steps": 0, "psnr": 12.5}


@pytest.fixture(scope="module")
def tiny() -> VQModel:
    return fill_(VQModel(TINY)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """64 blurred random images, uint8 (64, 3, 8, 8)."""
    rng = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 256, (64, 3, 3, 3), generator=rng).float()
    smooth = torch.nn.functional.interpolate(coarse, size=8, mode="bilinear", align_corners=True)
    return smooth.to(torch.uint8)


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


def test_default_tokenizer_comes_from_the_cache(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"star reproduce digits.*--tokenizer"):
        load_tokenizer()
    assert default_tokenizer_path().parent == tmp_path
    save_tokenizer(tiny, default_tokenizer_path(), CARD)
    assert tokenizer_sha256(load_tokenizer()) == tokenizer_sha256(tiny)
    # a cached file is taken as it is, wherever the cache was named
    model, path = digits_tokenizer()
    assert path == default_tokenizer_path()
    assert tokenizer_sha256(model) == tokenizer_sha256(tiny)
    before = default_tokenizer_path()
    monkeypatch.setattr(training, "DIGITS_TRAIN", TokenizerTrainConfig(steps=7))
    assert default_tokenizer_path() != before  # a changed recipe is another file


# ---- training ------------------------------------------------------------------------------------

QUICK = TokenizerTrainConfig(steps=40, batch_size=16, warmup_steps=5, revive_every=5)


def _run(images, config=QUICK, precision="fp32"):
    lines = []
    model = train_tokenizer(
        images,
        config,
        TINY,
        precision=precision,
        on_step=lambda step, steps, metrics: lines.append((step, steps, metrics)),
    )
    return model, lines


@pytest.fixture(scope="module")
def quick(pictures):
    return _run(pictures)


def test_training_lowers_the_loss_and_says_so(quick, pictures):
    model, lines = quick
    assert [line[0] for line in lines] == list(range(1, 41))
    assert lines[0][1] == 40
    assert set(lines[0][2]) == {"loss", "l1", "l2", "codebook", "commitment", "codes_used"}
    first, last = (sum(line[2]["l2"] for line in part) / 3 for part in (lines[:3], lines[-3:]))
    assert last < 0.5 * first
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    untrained = evaluate_tokenizer(fill_(VQModel(TINY)), pictures)
    assert reconstruction_psnr(model, pictures) > untrained["psnr"] + 3


def test_training_is_a_function_of_the_seed_and_leaves_global_randomness_alone(quick, pictures):
    short = dataclasses.replace(QUICK, steps=6)
    state = torch.get_rng_state()
    first, _ = _run(pictures, short)
    again, _ = _run(pictures, short)
    assert torch.equal(torch.get_rng_state(), state)
    assert tokenizer_sha256(first) == tokenizer_sha256(again)
    other, _ = _run(pictures, dataclasses.replace(short, seed=1))
    assert tokenizer_sha256(other) != tokenizer_sha256(first)


def test_images_may_come_from_a_function_and_as_floats(pictures):
    short = dataclasses.replace(QUICK, steps=3)
    floats, steps = pictures.float() / 127.5 - 1, []

    def batches(step: int) -> torch.Tensor:
        steps.append(step)
        return pictures[:16]

    from_function, _ = _run(batches, short)
    assert steps == [0, 1, 2]
    from_floats, _ = _run(lambda step: floats[:16], short, precision="fp32")
    assert tokenizer_sha256(from_function) == tokenizer_sha256(from_floats)


@pytest.mark.parametrize("good", [0, 2])
def test_a_loss_that_is_not_finite_stops_before_the_update(pictures, good):
    def batches(step: int) -> torch.Tensor:
        return pictures[:8].float() / 127.5 - 1 if step < good else torch.full((8, 3, 8, 8), math.nan)

    lines = []
    with pytest.raises(UserError, match=f"not finite at step {good + 1}"):
        train_tokenizer(
            batches, QUICK, TINY, precision="fp32", on_step=lambda *line: lines.append(line[0])
        )
    assert lines == [1, 2][:good]


def test_revival_moves_dead_codes_onto_badly_represented_vectors():
    model = fill_(VQModel(TINY))
    weight = model.quantize.embedding.weight
    with torch.no_grad():
        weight[:] = torch.tensor([1.0, 0, 0, 0])  # every code in the same direction
    before = weight.detach().clone()
    z_BEgg = torch.zeros(1, 4, 4, 4)
    z_BEgg[0, 0] = 1.0  # represented already
    z_BEgg[0, :, 1, 2] = torch.tensor([0, 1.0, 0, 0])
    z_BEgg[0, :, 3, 0] = torch.tensor([0, 0, -1.0, 0])
    dead_V = torch.zeros(32, dtype=torch.bool)
    dead_V[[4, 20]] = True
    training._revive(model, z_BEgg, dead_V, seed=0, step=0)
    assert torch.equal(weight[~dead_V], before[~dead_V])
    revived = {tuple(code) for code in weight[dead_V].tolist()}
    assert revived == {(0, 1.0, 0, 0), (0, 0, -1.0, 0)}


def test_revival_keeps_more_codes_in_use(pictures):
    """The same run, with codes that start where no encoder output is."""
    used = {}
    for every in (0, 5):
        _, lines = _run(pictures, dataclasses.replace(QUICK, steps=30, revive_every=every))
        used[every] = sum(line[2]["codes_used"] for line in lines[-5:])
    assert used[5] > used[0]


def test_first_codes_are_encoder_outputs(pictures):
    model = training._new_model(TINY, 0)
    z_BEgg = torch.nn.functional.normalize(
        model.encode_features(pictures[:8].float() / 127.5 - 1), dim=1
    )
    training._revive(model, z_BEgg.detach(), torch.ones(32, dtype=torch.bool), seed=0, step=0)
    vectors_NE = z_BEgg.detach().permute(0, 2, 3, 1).reshape(-1, 4)
    codes_VE = model.quantize.embedding.weight.detach()
    for code_E in codes_VE:
        assert (code_E == vectors_NE).all(dim=1).any()
    assert len(codes_VE.unique(dim=0)) == len(codes_VE)


def test_evaluation_matches_the_definitions(tiny, pictures):
    images_NCHW = pictures.double().float() / 127.5 - 1
    drawn_NCHW = tiny(images_NCHW).clamp(-1, 1).double()
    psnr = [
        10 * math.log10(4 / (drawn_NCHW[i] - images_NCHW[i]).pow(2).mean().item()) for i in range(64)
    ]
    counts = torch.unique(tiny.encode(images_NCHW), return_counts=True)[1].double()
    share = counts / counts.sum()
    values = evaluate_tokenizer(tiny, pictures, batch_size=10)
    assert values["psnr"] == pytest.approx(sum(psnr) / 64, abs=1e-4)
    assert values["codes_used"] == len(counts)
    assert values["perplexity"] == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-9)
    json.dumps(values, allow_nan=False)


def test_bad_training_settings_are_refused(pictures):
    for change in ({"steps": 0}, {"lr": 0.0}, {"lr": math.nan}, {"revive_until": 2.0}, {"seed": -1}):
        with pytest.raises(UserError, match=next(iter(change))):
            TokenizerTrainConfig(**change)
    with pytest.raises(UserError, match="auto, fp32, bf16"):
        _run(pictures, precision="fp8")
    with pytest.raises(UserError, match="no images"):
        _run(pictures[:0])
    with pytest.raises(UserError, match="no images"):
        evaluate_tokenizer(VQModel(TINY), pictures[:0])


def test_digits_tokenizer_is_trained_once_and_kept(tmp_path, monkeypatch):
    """The whole chain with a recipe of three steps; the real one is measured by its card."""
    recipe = TokenizerTrainConfig(steps=3, batch_size=4)
    monkeypatch.setattr(training, "DIGITS_TRAIN", recipe)
    monkeypatch.setattr(training, "DIGITS_VIEWS", "plain")
    steps = []
    model, path = digits_tokenizer(tmp_path, lambda step, total, metrics: steps.append((step, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert path.parent == tmp_path
    assert path.stat().st_size < 4_000_000
    assert model.name == "digits"
    assert {"data", "steps", "seed", "psnr", "codes_used", "perplexity", "seconds", "versions"} <= set(
        model.card
    )
    assert "1297" in model.card["data"]
    again, _ = digits_tokenizer(tmp_path, lambda *line: steps.append(line))
    assert len(steps) == 3
    assert tokenizer_sha256(again) == tokenizer_sha256(model)
