"""Speed measurements: what they alternate, compare and leave behind, never how long they took."""

import dataclasses
import json
import mmap

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import fake_store, refused, small_model
from small_runs import CPU, tiny

from probes.speed import probe as probes_bench
from probes.speed import sample as sampling
from probes.speed import step as steps
from probes.speed import tokenize as tokens_bench
from probes.speed.llamagen import LlamaGenStep, LlamaGenTransformer
from probes.speed.llamagen_sampling import LlamaGenSampler
from probes.speed.loader import ARMS, bench_loader
from probes.speed.sample import bytes_read
from probes.speed.timing import Ratio, Timings, alternate
from probes.stats.intervals import median_interval
from star.base.errors import UserError
from star.model.sampler import generate
from star.training.batches import TrainLoader
from star.training.learner import Learner


def test_arms_alternate_and_the_warm_up_is_not_counted():
    calls, seen = [], []
    arms = {name: lambda index, name=name: calls.append((name, index)) for name in "abc"}
    found = alternate(arms, rounds=3, warmup=1, on_round=lambda *progress: seen.append(progress))
    order = "".join(name for name, _ in calls)
    assert order == "abccbaabccba"
    assert [index for _, index in calls] == sorted(index for _, index in calls)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(len(values) == 3 and (values > 0).all() for values in found.seconds.values())


def test_a_ratio_is_the_median_over_rounds_and_its_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    drift = np.exp(np.linspace(0, 2, 15))  # a machine that slows down sevenfold moves both arms
    inside, widths = 0, []
    for _ in range(200):
        base = drift * np.exp(0.1 * rng.standard_normal(15))
        arm = 3 * drift * np.exp(0.1 * rng.standard_normal(15))
        found = Timings({"arm": arm, "base": base}).ratio("arm", "base")
        assert found == Ratio(*median_interval(arm / base))
        assert found.median == sorted(arm / base)[7] and found.low <= found.median <= found.high
        inside += found.low <= 3 <= found.high
        widths.append(found.high - found.low)
    # 96.5 % of 15 rounds; 200 tries have a standard error of 1.3 points.
    assert inside >= 186 and np.mean(widths) < 0.8


def test_the_reference_arm_computes_our_logits_and_our_loss():
    ours = small_model(seed=3)
    theirs = LlamaGenTransformer(ours.config)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(
        0, ours.config.vocab_size, (5, 8), generator=torch.Generator().manual_seed(0)
    )
    labels = torch.tensor([0, 1, 2, 3, 4])
    with torch.no_grad():
        expected = ours(tokens, labels).logits
        # The same float32 formulas in another order.
        torch.testing.assert_close(theirs(tokens, labels), expected, rtol=1e-4, atol=1e-5)


def test_the_reference_arm_takes_the_step_that_ours_takes():
    config = dataclasses.replace(
        tiny(objective=tiny().objective.baseline(), dropout=0.0, clip=0.5), weight_decay=0.0
    )
    loader = TrainLoader(fake_store(), config)
    ours, theirs = Learner(config, CPU), LlamaGenStep(config, CPU)
    theirs.model.load_state_dict(ours.student.model.state_dict())
    for group in theirs.optimizer.param_groups:
        group["weight_decay"] = 0.0
    for step in range(3):
        loss = ours.update(loader.batch(step), step).losses["loss"]
        for group in theirs.optimizer.param_groups:
            group["lr"] = ours.optimizer.param_groups[0]["lr"]
        assert theirs.update(loader.batch(step)) == pytest.approx(loss, rel=1e-5)
    for a, b in zip(ours.student.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_step_memory_grows_with_the_batch_as_the_activations_do():
    ballast = np.ones(1 << 27)  # 1 GiB of the process that asks is none of the step's
    model = dataclasses.replace(tiny().model, grid=8, width=64)
    config = dataclasses.replace(tiny(), model=model, precision="fp32")
    sizes = [dataclasses.replace(config, batch_size=size) for size in (32, 256)]
    small, large = (steps._in_fresh_process(config, "cpu") for config in sizes)
    assert 0 < small < ballast.nbytes / 8 and large > 3 * small


def test_step_bench_through_the_command_line(star, monkeypatch):
    monkeypatch.setattr(steps, "_in_fresh_process", lambda config, device: config.batch_size * 1000)
    code, out, err = star("bench", "step", "--images", 4, "--rounds", 2, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert set(found["seconds"]) == set(steps.ARMS)
    assert all(len(values) == 2 and min(values) > 0 for values in found["seconds"].values())
    assert found["memory_ratio"] == 1 and found["sequences"] == 8
    for ratio in found["ratios"].values():
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    code, out, err = star("bench", "step", "--rounds", 1)
    assert code == 2 and err == "Error: rounds is 1; expected at least 2, for an interval\n"


@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
def test_the_sampling_arms_draw_the_same_tokens_where_nothing_is_drawn_by_lot(cfg_scale):
    model = small_model(seed=3)
    labels = torch.tensor([0, 3, 1])
    theirs = LlamaGenSampler(model).generate(labels, cfg_scale=cfg_scale, greedy=True)
    ours = generate(model, labels, seeds=range(3), cfg_scale=cfg_scale, greedy=True)
    assert torch.equal(theirs, ours) and len(ours.unique()) > 2


def test_the_reference_sampler_draws_from_the_model_s_distribution():
    """The first tokens of many draws come as often as the definition's probabilities say."""
    model = small_model(seed=3)
    model.output.weight.data.mul_(20)  # far from even
    labels = torch.full((4000,), 2)
    expected = model(torch.empty(1, 0, dtype=torch.long), labels[:1]).logits[0, -1].softmax(-1)
    torch.manual_seed(0)
    drawn = LlamaGenSampler(model).generate(labels, cfg_scale=1.0)[:, 0]
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    wanted = 4000 * expected.detach().double()
    seen = wanted > 5
    chi2 = ((counts - wanted)[seen] ** 2 / wanted[seen]).sum()
    assert seen.sum() > 2 and scipy.stats.chi2.sf(chi2, int(seen.sum()) - 1) > 1e-3


def test_what_decoding_must_read_is_counted_step_by_step():
    model = small_model()
    config, rows = model.config, 6
    weights = sum(p.numel() for name, p in model.named_parameters() if "embedding" not in name)
    weights -= config.width  # the last norm's, left out
    row = config.layers * 2 * (config.kv_heads or config.heads) * config.head_dim
    expected = sum(4 * (weights + rows * row * seen) for seen in range(1, config.tokens + 1))
    assert bytes_read(model, rows) == expected


def test_the_sampling_bench_through_the_command_line(star):
    code, out, err = star("bench", "sample", "--images", 2, "--rounds", 2, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert set(found["seconds"]) == set(sampling.ARMS) and found["images"] == 2
    for arm in sampling.ARMS:
        seconds = np.median(found["seconds"][arm])
        assert found["tokens a second"][arm] == pytest.approx(2 * 64 / seconds, rel=0.01)
        share = found["tokens a second"][arm] / found["memory-bandwidth limit, tokens a second"]
        assert found["share of the limit"][arm] == pytest.approx(share, abs=0.001)
    code, out, err = star("bench", "sample", "--cfg-scale", -1)
    assert code == 2 and err == "Error: cfg_scale is -1; expected a number >= 0 (1 is no guidance)\n"
    code, out, err = star("bench", "sample", "--images", 0)
    assert code == 2 and err == "Error: images is 0; expected at least 1\n"


def test_loader_bench_reads_a_store_and_files_and_removes_them(tmp_path):
    found = bench_loader(tmp_path, images=3000, views=3, grid=4, batch=16, files=40, rounds=3)
    assert set(found.timings.seconds) == set(ARMS)
    assert found.store_bytes >= 3000 * 3 * 16 * 2 and found.files == 40
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="files is 8; expected a batch \\(16\\) to all images"):
        bench_loader(tmp_path, images=3000, batch=16, files=8)


def test_random_access_is_announced_for_mapped_codes():
    told = []

    class Mapped(np.ndarray):
        @property
        def base(self):
            return self.mapping

    class Mapping(mmap.mmap):
        def madvise(self, option):
            told.append(option)

    store = fake_store()
    mapping = Mapping(-1, 4096)
    store.codes = store.codes.view(Mapped)
    store.codes.mapping = mapping
    TrainLoader(store, tiny()).batch(0)
    assert told == [mmap.MADV_RANDOM]


def test_the_probe_bench_trains_the_same_heads_in_every_arm(monkeypatch):
    seen = []
    run = probes_bench.train_heads

    def note(bank, source, *arguments, **options):
        seen.append(sorted(source.groups))
        run(bank, source, *arguments, **options)

    monkeypatch.setattr(probes_bench, "train_heads", note)
    found = probes_bench.bench_probe(tiny(), CPU, layer=1, steps=3, images=12, rounds=1)
    layers = tiny().model.layers
    steps = sorted({step for _, step in seen[0]})
    assert len(steps) == 3 and found.heads == layers * 3 and found.layers == layers
    warm_up = [[(layer, step) for layer in range(1, layers + 1) for step in steps]]
    warm_up += [[(1, step) for step in steps], *[[(1, step)] for step in steps]]
    assert seen[:5] == warm_up
    assert set(found.timings.seconds) == set(probes_bench.ARMS)


def test_the_probe_bench_refuses_what_does_not_exist(star):
    assert refused(star("bench", "probe", "--layer", "9"), "layer 9 does not exist")
    assert refused(star("bench", "probe", "--images", "1"), "images is 1; expected at least 2")
    assert refused(star("bench", "probe", "--rounds", "1"), "rounds is 1; expected at least 2")


def test_the_tokenize_bench_gives_the_same_tokens_both_ways(star, tmp_path):
    small = ("bench", "tokenize", "--size", 16, "--images", 3, "--rounds", 2, "--workers", 0)
    code, out, err = star(*small, "--device", "cpu", "--json")
    assert code == 0, err
    found = json.loads(out)
    # float32 sums of calls of 10 and of 30 views may differ; near ties of random weights are rare
    assert found["equal tokens"] > 0.99 and found["images"] == 3
    assert set(found["seconds"]) == set(tokens_bench.ARMS)
    assert list(tmp_path.iterdir()) == []
    assert refused(star("bench", "tokenize", "--images", 1), "images is 1; expected at least 2")
    assert refused(star("bench", "tokenize", "--size", 18), "multiple of the tokenizer's stride 4")
    assert refused(star("bench", "tokenize", "--tokenizer", "huge"), "no such file: huge")
