"""Decoding: the static cache and its replay give what the growing one gives, halves are copies."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from helpers import SMALL, small_model

from star.model.config import ModelConfig
from star.model.decoder import _Recorded, decoder, in_precision, record_graph
from star.model.kv_cache import KVCache, StaticCache, cache_bytes
from star.model.sampler import generate
from star.model.step import FEW_ROWS, PACKED_FROM, SingleSteps

CPU = torch.device("cpu")


def decoded(decode, tokens_BT, labels_B):
    """(B, T, V) logits of each next token when the tokens are given one by one."""
    empty = tokens_BT[:, :0]
    steps = [decode(empty, labels_B)]
    for t in range(tokens_BT.shape[1] - 1):
        steps.append(decode(tokens_BT[:, t : t + 1], None))
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("kv_heads", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_of_decoding_gives_the_logits_of_one_pass(kv_heads, dtype):
    config = ModelConfig(layers=3, heads=2, width=16, grid=3, vocab_size=11, num_classes=4,
                         kv_heads=kv_heads)  # fmt: skip
    model = in_precision(small_model(config).requires_grad_(False), dtype)
    tokens, labels = torch.randint(0, 11, (3, 9), generator=torch.manual_seed(0)), torch.arange(3)
    whole = model(tokens[:, :-1], labels).logits.float()
    recorded = []

    def record(step, device):
        assert device == CPU
        recorded.append(step)
        return step

    with torch.no_grad():
        growing = decoded(decoder(model, 3), tokens, labels)
        static = decoded(_Recorded(model, 3, record), tokens, labels)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(growing, whole, **close)
    torch.testing.assert_close(static, whole, **close)
    assert len(recorded) == 1, "recorded once, then replayed"


@pytest.mark.parametrize("kv_heads", [0, 2])
@pytest.mark.parametrize("batch", [1, FEW_ROWS, FEW_ROWS + 1])
def test_single_steps_give_the_logits_of_one_pass(kv_heads, batch):
    """With wide weights by columns (few rows) and as they are; keys and values of one head or two."""
    config = ModelConfig(layers=2, heads=4, width=32, grid=3, vocab_size=40, num_classes=6,
                         kv_heads=kv_heads)  # fmt: skip
    model = small_model(config)  # with gradients on, as a caller may have them
    tokens = torch.randint(0, 40, (batch, 9), generator=torch.manual_seed(1))
    labels = torch.arange(batch)
    steps = decoder(model, batch)
    assert isinstance(steps, SingleSteps)
    found = decoded(steps, tokens, labels)
    assert not found.requires_grad
    expected = model(tokens[:, :-1], labels).logits.detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed_bytes", [2**32, 0])
@pytest.mark.parametrize("batch", [1, 3])
def test_wide_weights_are_packed_and_give_the_same_logits(batch, packed_bytes, monkeypatch):
    config = ModelConfig(layers=2, heads=4, width=256, grid=2, vocab_size=600, num_classes=6)
    assert config.width * 600 >= PACKED_FROM > config.width**2  # some of them, not all
    monkeypatch.setattr("star.model.step.PACKED_BYTES", packed_bytes)
    model = small_model(config)
    tokens = torch.randint(0, 600, (batch, 4), generator=torch.manual_seed(1))
    labels = torch.arange(batch)
    steps = decoder(model, batch)
    found = [product.packed is not None for product in (steps.output, steps.blocks[0].out)]
    assert found == [torch.backends.mkldnn.is_available() and packed_bytes > 0, False]
    expected = model(tokens[:, :-1], labels).logits.detach()
    torch.testing.assert_close(decoded(steps, tokens, labels), expected, rtol=1e-4, atol=1e-5)


def test_a_replay_changes_memory_in_place_and_nothing_else():
    """What a CUDA graph needs: the same tensors at every step, no number of the step in Python."""
    model = small_model().requires_grad_(False)
    made = _Recorded(model, 2, lambda step, device: step)
    tokens, labels = torch.randint(0, 11, (2, 9)), torch.tensor([0, 1])
    made(tokens[:, :0], labels)

    def places():
        tensors = [
            made.cache.at,
            made.token_B1,
            *(part for layer in made.cache.layers for part in layer),
        ]
        return [tensor.data_ptr() for tensor in tensors]

    before = places()
    for t in range(7):
        made.cache.length = 1  # Python's count may not matter: a graph does not see it
        made(tokens[:, t : t + 1], None)
    assert int(made.cache.at) == 8 and places() == before


def test_caches_take_the_bytes_they_say():
    for dtype in (torch.float32, torch.bfloat16):
        for kind in (KVCache, StaticCache):
            held = sum(part.nbytes for layer in kind(SMALL, 3, CPU, dtype).layers for part in layer)
            assert held == cache_bytes(SMALL, 3, dtype)


def test_a_model_in_half_precision_is_a_copy_with_exact_positions():
    model = small_model().requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    half = in_precision(model, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.rotary.dtype is torch.float32 and {p.dtype for p in model.parameters()} == {
        torch.float32
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert in_precision(model, torch.float32) is model
    tokens = generate(half, [0, 1], seeds=range(2), cfg_scale=1.5)
    assert tokens.shape == (2, 9)
    assert torch.equal(tokens, generate(half, [0, 1], seeds=range(2), cfg_scale=1.5))


def test_a_recording_does_not_forbid_other_threads_their_work(monkeypatch):
    """On an H200 the strict mode ended a thread that pinned memory meanwhile, and the recording."""
    modes = []

    def graph(recorded, **options):
        modes.append(options["capture_error_mode"])
        return contextlib.nullcontext()

    replayed = SimpleNamespace(replay=lambda: modes.append("replayed"))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: replayed)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    replay = record_graph(lambda: torch.ones(2), torch.device("cuda"))
    assert replay().tolist() == [1, 1] and modes == ["thread_local", "replayed"]
