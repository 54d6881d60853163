"""The transformer: parity with the public LlamaGen code, causality, capture, cache, sizes."""

import numpy as np
import pytest
import torch
from helpers import GOLDEN, SMALL, small_model

from star.base.errors import UserError
from star.model.attention import attend, attention_rows, missing_channels, visibility
from star.model.config import SIZES, ModelConfig
from star.model.kv_cache import KVCache
from star.model.rotary import apply_rotary, rotary_table
from star.model.transformer import ATTENTION_SITES, Transformer, capture_names
from star.training.checkpoint import load_model
from star.training.config import preset


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "llamagen_gpt_tiny.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def llamagen():
    return load_model(GOLDEN / "llamagen_gpt_tiny.pt")


def test_golden_logits_hidden_states_and_attention(golden, llamagen):
    layers = range(1, 4)
    names = [f"layers.{n}" for n in layers] + [f"layers.{n}.attention" for n in layers]
    out = llamagen(golden["idx"].long(), golden["cls"].long(), capture=names)
    # float32 on another order of summation: 1e-5 on values of order 1 to 10.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(out.logits, golden["logits"], **close)
    for n in layers:
        torch.testing.assert_close(out.captured[f"layers.{n}"], golden["hidden"][n - 1], **close)
        torch.testing.assert_close(
            out.captured[f"layers.{n}.attention"], golden["attention"][n - 1], **close
        )


def test_captured_rows_equal_the_golden_rows(golden, llamagen):
    at = torch.tensor([0, 5, 9, 15])
    names = [f"layers.{n}.attention" for n in (1, 2, 3)]
    options = {"capture": names, "capture_at": at, "with_logits": False}
    rows = llamagen(golden["idx"].long(), golden["cls"].long(), **options).captured
    for n, name in enumerate(names):
        torch.testing.assert_close(rows[name], golden["attention"][n][:, :, at], rtol=1e-5, atol=1e-5)


def test_state_dict_keys_are_llamagens(llamagen):
    expected = [
        line.split(" ", 1) for line in (GOLDEN / "llamagen_gpt_tiny_keys.txt").read_text().splitlines()
    ]
    found = [[key, str(tuple(value.shape))] for key, value in llamagen.state_dict().items()]
    assert found == expected


@pytest.mark.parametrize(
    ("size", "millions"), [("B", 111), ("L", 343), ("XL", 775), ("XXL", 1411), ("3B", 3097)]
)
def test_parameter_counts_of_the_published_sizes(size, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in Transformer(preset(size).model).parameters())
    assert round(count / 1e6) == millions


def test_tiny_preset_has_a_layer_six():
    assert preset("tiny").model.layers >= 6
    assert SIZES["tiny"] == (6, 4, 128)


def test_changing_a_token_changes_nothing_before_it():
    model = small_model()
    tokens = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 4])
    before = model(tokens, labels).logits
    for j in range(9):
        changed = tokens.clone()
        changed[:, j] = (changed[:, j] + 1) % 11
        after = model(changed, labels).logits
        assert torch.equal(after[:, : j + 1], before[:, : j + 1])
        assert not torch.allclose(after[:, j + 1 :], before[:, j + 1 :])


def test_train_and_eval_mode_agree_and_capture_changes_nothing():
    model = small_model()
    tokens, labels = torch.randint(0, 11, (2, 8)), torch.tensor([1, 2])
    plain = model.eval()(tokens, labels).logits
    assert torch.equal(model.train()(tokens, labels).logits, plain)
    everything = model(tokens, labels, capture=capture_names(SMALL))
    assert torch.equal(everything.logits, plain)
    assert set(everything.captured) == set(capture_names(SMALL))


def test_layer_l_is_the_output_of_state_dict_block_l_minus_1():
    model = small_model()
    tokens, labels = torch.randint(0, 11, (1, 4)), torch.tensor([0])
    base = model(tokens, labels, capture=("layers.1", "layers.2")).captured
    model.get_parameter("layers.1.feed_forward.w2.weight").data.mul_(2)
    changed = model(tokens, labels, capture=("layers.1", "layers.2")).captured
    assert torch.equal(changed["layers.1"], base["layers.1"])
    assert not torch.allclose(changed["layers.2"], base["layers.2"])


def test_an_unknown_capture_name_lists_the_valid_ones():
    with pytest.raises(UserError, match=r"no activation 'layers.4'.*l = 1 to 3.*block layers.2"):
        small_model()(torch.zeros(1, 2, dtype=torch.long), torch.tensor([0]), capture=["layers.4"])


@pytest.mark.parametrize("kv_heads", [0, 1])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_chosen_positions_are_captured_under_any_kernel(kv_heads, precision, monkeypatch):
    model = small_model(ModelConfig(**{**vars(SMALL), "kv_heads": kv_heads}))
    tokens, labels, at = torch.randint(0, 11, (2, 8)), torch.tensor([1, 4]), torch.tensor([0, 3, 7])
    names = ["embeddings", "layers.2", "norm", *(f"layers.3.{site}" for site in ATTENTION_SITES)]
    for kernel in ("explicit", "fused"):
        monkeypatch.setattr("star.model.transformer.choose_kernel", lambda *_, kernel=kernel: kernel)
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            whole = model(tokens, labels, capture=names)
            few = model(tokens, labels, capture=names, capture_at=at)
        assert torch.equal(few.logits, whole.logits), "capturing never changes the result"
        for name in ("embeddings", "layers.2", "norm"):
            assert torch.equal(few.captured[name], whole.captured[name][:, at])
        for name in ("layers.3.keys", "layers.3.values"):
            assert torch.equal(few.captured[name], whole.captured[name])
        q, k = (whole.captured[f"layers.3.{site}"].float() for site in ("queries", "keys"))
        assert torch.equal(few.captured["layers.3.queries"].float(), q[:, :, at])
        logits = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(
            torch.ones(9, 9, dtype=torch.bool).triu(1), float("-inf")
        )
        rows = few.captured["layers.3.attention"]
        # Rows are float32 whatever the model computes in; the order of sums differs.
        assert rows.dtype is torch.float32
        torch.testing.assert_close(rows, logits.softmax(-1)[:, :, at], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rows, whole.captured["layers.3.attention"][:, :, at])


def test_a_cut_is_attention_without_the_keys_that_were_cut():
    model, tokens, labels = small_model(), torch.randint(0, 11, (2, 8)), torch.tensor([1, 4])
    cut = torch.zeros(9, 9, dtype=torch.bool)
    cut[5, [0, 2]] = True  # the query at position 5 may read neither the class nor position 2
    names = ["layers.1", "layers.2.attention", "layers.3"]
    before = model(tokens, labels, capture=names)
    after = model(tokens, labels, capture=names, cut={2: cut})
    assert torch.equal(after.captured["layers.1"], before.captured["layers.1"])
    expected = before.captured["layers.2.attention"].clone()
    expected[:, :, 5, [0, 2]] = 0
    expected[:, :, 5] /= expected[:, :, 5].sum(-1, keepdim=True)  # softmax of what is left
    torch.testing.assert_close(after.captured["layers.2.attention"], expected)
    # Nothing before position 5 can know; position 5 and those that read it do.
    assert torch.equal(after.logits[:, :5], before.logits[:, :5])
    assert not torch.allclose(after.logits[:, 5:], before.logits[:, 5:])
    with pytest.raises(UserError, match="the cut of layer 2 hides a position from itself"):
        model(tokens, labels, cut={2: torch.eye(9, dtype=torch.bool)})
    with pytest.raises(UserError, match="layer 4 does not exist; the model has layers 1 to 3"):
        model(tokens, labels, cut={4: cut})
    with pytest.raises(UserError, match=r"cut of layer 1 is float32 \(9, 9\); expected bool"):
        model(tokens, labels, cut={1: cut.float()})


def test_decoding_with_a_cache_obeys_a_cut():
    model, tokens, labels = small_model(), torch.randint(0, 11, (2, 8)), torch.tensor([1, 4])
    cut = {1: torch.ones(9, 9, dtype=torch.bool).tril(-2)}
    full = model(tokens, labels, cut=cut).logits
    cache = KVCache(model.config, 2, torch.device("cpu"), torch.float32)
    parts = [model(tokens[:, :0], labels, cache=cache, cut=cut).logits]
    parts += [model(tokens[:, a:b], None, cache=cache, cut=cut).logits for a, b in ((0, 5), (5, 8))]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=1e-5, atol=1e-6)


def test_more_tokens_than_the_grid_holds_is_an_error():
    with pytest.raises(UserError, match="10 tokens were given; the model's grid 3 x 3 holds 9"):
        small_model()(torch.zeros(1, 10, dtype=torch.long), torch.tensor([0]))


def test_no_tokens_at_all_predict_the_first_from_the_class():
    out = small_model()(torch.empty(2, 0, dtype=torch.long), torch.tensor([0, 4]))
    assert out.logits.shape == (2, 1, 11)


@pytest.mark.parametrize("kv_heads", [0, 1])
def test_decoding_with_a_cache_equals_the_full_pass(kv_heads):
    model = small_model(ModelConfig(**{**vars(SMALL), "kv_heads": kv_heads}))
    tokens, labels = torch.randint(0, 11, (3, 8)), torch.tensor([0, 1, 4])
    full = model(tokens, labels).logits
    cache = KVCache(model.config, 3, torch.device("cpu"), torch.float32)
    parts = [model(tokens[:, :0], labels, cache=cache).logits]
    parts += [model(tokens[:, a:b], None, cache=cache).logits for a, b in ((0, 1), (1, 5), (5, 8))]
    # The same sums over fewer rows at a time: float32 rounding only.
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=1e-5, atol=1e-6)


def test_both_kernels_and_the_recomputed_rows_equal_an_explicit_softmax():
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 6, 4, generator=generator) for _ in range(3))
    masked = torch.zeros(2, 6, dtype=torch.bool)
    masked[0, 2] = masked[1, [1, 4]] = True
    visible = visibility(6, masked, False, q.device)
    expected = torch.zeros_like(q)
    for b in range(2):
        for h in range(3):
            for n in range(6):
                allowed = [s for s in range(n + 1) if not masked[b, s] or s == n]
                scores = torch.stack([q[b, h, n] @ k[b, h, s] / 2.0 for s in allowed])
                weights = scores.exp() / scores.exp().sum()
                expected[b, h, n] = sum(w * v[b, h, s] for w, s in zip(weights, allowed, strict=True))
    for kernel in ("explicit", "fused"):
        torch.testing.assert_close(attend(q, k, v, visible, kernel), expected)
    every = visible.rows(q.device)
    rows = attention_rows(q, k, every)
    torch.testing.assert_close(rows @ v, expected)
    torch.testing.assert_close(attention_rows(q[:, :, 4:5], k, every[:, :, 4:5]), rows[:, :, 4:5])


def test_heads_are_padded_to_what_fused_kernels_of_a_gpu_take():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for dtype in (torch.bfloat16, torch.float16):
        missing = [missing_channels(cuda, dtype, channels) for channels in (64, 100, 104, 4)]
        assert missing == [0, 4, 0, 4]
    assert missing_channels(cuda, torch.float32, 100) == missing_channels(cpu, torch.half, 100) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_heads_attend_as_those_without_padding(monkeypatch, dtype):
    """The 3B model's 100 channels, padded as on a GPU: output and all gradients."""
    rng = torch.Generator()
    masked_BS = torch.zeros(2, 7, dtype=torch.bool)
    masked_BS[:, 3] = True
    visible = visibility(7, masked_BS, False, torch.device("cpu"))
    found = []
    for more in (0, 4):
        monkeypatch.setattr("star.model.attention.missing_channels", lambda *_, more=more: more)
        rng.manual_seed(0)
        q, k, v = (
            torch.randn(2, 3, 7, 100, generator=rng).to(dtype).requires_grad_() for _ in range(3)
        )
        y = attend(q, k, v, visible, "fused")
        (y * torch.arange(100)).sum().backward()
        found.append((y, q.grad, k.grad, v.grad))
    assert found[1][0].shape == (2, 3, 7, 100)
    for plain, padded in zip(*found, strict=True):
        # The same products, summed with four zeros more.
        tolerance = (
            {"rtol": 1e-5, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 0.02, "atol": 0.1}
        )
        torch.testing.assert_close(padded, plain, **tolerance)


def test_rotary_against_its_definition_pair_by_pair():
    grid, channels = 3, 8
    table = rotary_table(grid, channels, 10000.0)
    x = torch.randn(1, 10, 1, channels, dtype=torch.float64).float()
    y = apply_rotary(x, table)
    assert torch.equal(y[:, 0], torch.zeros_like(y[:, 0])), "the class token's row is zero"
    for position in range(1, 10):
        row, column = divmod(position - 1, grid)
        for pair in range(channels // 2):
            half = channels // 4
            place = row if pair < half else column
            angle = place / 10000.0 ** (2 * (pair % half) / (channels // 2))
            a, b = x[0, position, 0, 2 * pair].item(), x[0, position, 0, 2 * pair + 1].item()
            turned = [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
            # float32 cosines of angles up to 2 radians
            np.testing.assert_allclose(y[0, position, 0, 2 * pair : 2 * pair + 2], turned, atol=2e-6)


def test_the_class_tokens_attention_logit_is_zero(llamagen, golden):
    captured = llamagen(
        golden["idx"].long(), golden["cls"].long(), capture=("layers.2.keys", "layers.2.queries")
    ).captured
    assert not captured["layers.2.keys"][:, :, 0].any()
    assert not captured["layers.2.queries"][:, :, 0].any()
    assert captured["layers.2.keys"][:, :, 1:].any()
