"""MAE's linear probing of stacked heads against one head at a time, and what may not change a head."""

import numpy as np
import pytest
import torch
from helpers import fake_store, small_model
from probing import CONFIG, CPU, GROUPS, blob_task, label_sets, trained
from reference.linprobe import Lars, LinearProbe, rate

from probes.linear.cached import CachedSource, cached
from probes.linear.lars import lars_step, linprobe_lr
from probes.linear.mae import HeadBank, MaeConfig, train_heads
from probes.linear.protocols import ProtocolConfig, run_protocol
from probes.linear.saving import BankFile
from probes.linear.sources import ModelSource
from probes.linear.splits import probe_splits
from star.base.errors import UserError


class NotingBank(HeadBank):
    """Notes the learning rates of every update."""

    rates: list[list[float]]

    def update(self, features_GBD, labels_SB, images, lrs_R):
        NotingBank.rates.append(list(lrs_R))
        super().update(features_GBD, labels_SB, images, lrs_R)


def same(a: HeadBank, b: HeadBank) -> bool:
    other = b.state()
    return all(torch.equal(value, other[name]) for name, value in a.state().items())


def test_lars_of_stacked_heads_is_lars_of_each_head_alone():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 5, 2, 3, 4))
    weight[1, :, 0, 2] = 0  # a head that starts at zero: ratio 1
    bias = rng.normal(size=(2, 2, 3, 4))
    heads = [(g, s, r) for g in range(2) for s in range(2) for r in range(3)]
    alone = {(g, s, r): Lars([weight[g, :, s, r].T.copy(), bias[g, s, r].copy()]) for g, s, r in heads}
    ours, our_bias = torch.from_numpy(weight.copy()), torch.from_numpy(bias.copy())
    velocity, bias_velocity = torch.zeros_like(ours), torch.zeros_like(our_bias)
    for step in range(6):
        gradient = rng.normal(size=weight.shape) * 10.0 ** rng.integers(-3, 3, (2, 1, 2, 3, 1))
        gradient[0, :, 1, 1] *= step != 2  # once a head has no gradient: ratio 1, momentum goes on
        bias_gradient = rng.normal(size=bias.shape)
        lrs = rng.uniform(0.1, 9, 3)
        lr_R1 = torch.from_numpy(lrs)[:, None]
        lars_step(ours, torch.from_numpy(gradient), velocity, lr_R1, head_dims=(1, 4), adapt=True)
        lars_step(our_bias, torch.from_numpy(bias_gradient), bias_velocity, lr_R1, adapt=False)
        for (g, s, r), lars in alone.items():
            lars.step([gradient[g, :, s, r].T, bias_gradient[g, s, r]], lrs[r])
    for (g, s, r), lars in alone.items():
        # float64 on both sides; only the order of a norm's sum differs.
        np.testing.assert_allclose(ours[g, :, s, r].T, lars.parameters[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(our_bias[g, s, r], lars.parameters[1], rtol=1e-12, atol=1e-12)


def test_lars_without_head_dims_is_one_head():
    rng = np.random.default_rng(1)
    weight, gradient = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    expected = Lars([weight.copy()])
    ours, velocity = torch.from_numpy(weight.copy()), torch.zeros(4, 5, dtype=torch.float64)
    for lr in (1.0, 30.0):
        lars_step(ours, torch.from_numpy(gradient), velocity, lr, adapt=True)
        expected.step([gradient], lr)
    # float64; only the order of a norm's sum differs.
    np.testing.assert_allclose(ours, expected.parameters[0], rtol=1e-12)


def test_the_schedule_at_its_ends_and_between():
    options = {"epochs": 90, "warmup_epochs": 10}
    assert linprobe_lr(0, 6.4, **options) == 0
    assert linprobe_lr(10, 6.4, **options) == 6.4
    assert linprobe_lr(5, 6.4, **options) == pytest.approx(3.2)
    assert linprobe_lr(50, 6.4, **options) == pytest.approx(3.2)
    assert linprobe_lr(90, 6.4, **options) == pytest.approx(0, abs=1e-12)
    for epoch in np.linspace(0, 90, 181):
        assert linprobe_lr(epoch, 6.4, **options) == pytest.approx(rate(epoch, 6.4, 10, 90), abs=1e-12)


def test_the_rate_changes_with_every_batch_and_follows_the_batch_size(monkeypatch):
    source, splits = blob_task(GROUPS)
    monkeypatch.setattr(NotingBank, "rates", [], raising=False)
    bank = NotingBank(source, 1, 2, 3, 0)
    train_heads(bank, source, label_sets(splits, 1), CONFIG, seed=0)
    found = np.array(NotingBank.rates)
    assert found.shape == (5 * 3, 2), "50 images fill three batches of 16, five times"
    for place, base in enumerate(CONFIG.base_lrs):
        expected = [rate(step / 3, base * 16 / 256, 2, 5) for step in range(15)]
        np.testing.assert_allclose(found[:, place], expected, rtol=1e-12)
        assert found[0, place] == 0 and found[:, place].argmax() == 6
        assert found[6, place] == base * 16 / 256
        assert (np.diff(found[:7, place]) > 0).all() and (np.diff(found[6:, place]) < 0).all()
        assert found[-1, place] < 0.05 * base * 16 / 256


@pytest.mark.parametrize(("size", "batch"), [(16384, 50), (50, 50), (16, 16), (26, 26)])
def test_a_batch_holds_at_most_all_images_and_what_does_not_fill_one_is_dropped(
    monkeypatch, size, batch
):
    source, splits = blob_task(GROUPS)
    monkeypatch.setattr(NotingBank, "rates", [], raising=False)
    config = MaeConfig(epochs=3, warmup_epochs=1, batch_size=size)
    bank = NotingBank(source, 1, 1, 3, 0)
    seen = []
    labels = label_sets(splits, 1)
    train_heads(bank, source, labels, config, seed=0, on_batch=lambda *counts: seen.append(counts))
    each = 50 // batch
    assert [len(images) for images, _ in source.calls] == [batch] * 3 * each
    assert [done for done, _ in seen] == [batch * (n + 1) for n in range(3 * each)]
    assert {total for _, total in seen} == {seen[-1][0]}
    assert max(lr for (lr,) in NotingBank.rates) == pytest.approx(0.1 * batch / 256)
    for epoch in range(3):
        of_epoch = np.concatenate([images for images, _ in source.calls[epoch * each :][:each]])
        assert len(set(of_epoch)) == len(of_epoch) and of_epoch.max() < 50


def test_order_and_views_change_from_epoch_to_epoch_and_belong_to_the_seed():
    source, splits = blob_task(GROUPS)
    config = MaeConfig(epochs=2, warmup_epochs=1, batch_size=50)
    for seed in (0, 0, 1):
        trained(source, label_sets(splits, 1), config, seed=seed)
    first, second, again, _, other, _ = source.calls
    assert (first[0] != second[0]).any() and (first[0] != other[0]).any()
    by_image = [views[images.argsort()] for images, views in (first, second, other)]
    assert (by_image[0] != by_image[1]).any() and (by_image[0] != by_image[2]).any()
    assert {view for views in by_image for view in views} == {0, 1, 2}
    np.testing.assert_array_equal(first, again)


def test_a_head_starts_as_mae_says():
    groups = [(1, 1), (1, 2)]
    source, _ = blob_task(groups, width=200)
    bank = HeadBank(source, 2, 3, 50, seed=4)
    assert bank.weight.shape == (2, 200, 2, 3, 50) and not bank.bias.any()
    assert (bank.weight == bank.weight[:, :, :1, :1]).all(), "the same for every label set and rate"
    assert (bank.weight[0] != bank.weight[1]).any()
    first = bank.weight[:, :, 0, 0]
    # Standard errors of mean and deviation of 20,000 numbers of deviation 0.01: 7e-5 and 5e-5.
    assert abs(first.mean()) < 4e-4 and abs(first.std() - 0.01) < 3e-4
    assert (bank.mean == 0).all() and (bank.variance == 1).all()
    assert (HeadBank(source, 2, 3, 50, seed=5).weight != bank.weight).any()


@pytest.fixture(scope="module")
def compared():
    """A trained bank, and the reference heads that saw the same batches, by (group, set, rate)."""
    source, splits = blob_task(GROUPS)
    labels_SN = label_sets(splits)
    first = HeadBank(source, 2, 2, 3, 7).weight.double().numpy()
    bank = trained(source, labels_SN)
    batches = 50 // 16
    heads = {}
    for g in range(len(GROUPS)):
        for s in range(2):
            for r, base in enumerate(CONFIG.base_lrs):
                head = LinearProbe(first[g, :, s, r].T)
                for step, (images, views) in enumerate(source.calls):
                    x_BD = source.parts["train"][:, g].numpy()[views, images].astype(np.float64)
                    lr = rate(step / batches, base * 16 / 256, 2, 5)
                    head.step(x_BD, labels_SN[s, images], lr)
                heads[g, s, r] = head
    return bank, heads, source


def test_stacked_heads_are_the_heads_trained_one_by_one(compared):
    bank, heads, source = compared
    assert len(heads) == 16
    predicted = bank.predict(source("test", np.arange(30), None))
    test_GND = source.parts["test"][0].double().numpy()
    for (g, s, r), head in heads.items():
        # 15 steps in float32 against float64. Seen: 5e-9 in weights of 0.02, 2e-7 in biases of 0.3,
        # 2e-7 of the moments; ten times that is allowed.
        weight, bias = head.lars.parameters
        np.testing.assert_allclose(bank.weight[g, :, s, r].T, weight, rtol=0, atol=5e-8)
        np.testing.assert_allclose(bank.bias[g, s, r], bias, rtol=0, atol=2e-6)
        np.testing.assert_allclose(bank.mean[g], head.norm.running_mean, rtol=2e-6)
        np.testing.assert_allclose(bank.variance[g], head.norm.running_var, rtol=2e-6)
        logits = head.predict(test_GND[g])
        sorted_NC = np.sort(logits, axis=1)
        sure = sorted_NC[:, -1] - sorted_NC[:, -2] > 1e-4  # the logits agree to about 1e-5
        assert sure.mean() > 0.9
        np.testing.assert_array_equal(predicted[g, s, r][sure], logits.argmax(1)[sure])


def test_the_compared_heads_have_moved_much_further_than_the_tolerance(compared):
    bank, heads, source = compared
    first = HeadBank(source, 2, 2, 3, 7)
    for (g, s, r), head in heads.items():
        moved = np.abs(head.lars.parameters[0] - first.weight[g, :, s, r].T.numpy()).max()
        assert moved > 2e-4 and np.abs(head.lars.parameters[1]).max() > 0.05
    assert bank.weight_velocity.abs().amax((1, 4)).min() > 0


def test_a_head_does_not_depend_on_the_others_trained_with_it():
    source, splits = blob_task(GROUPS)
    labels_SN = label_sets(splits)
    whole = trained(source, labels_SN)
    for group in (0, 3):
        parts = {part: values[:, [group]].numpy() for part, values in source.parts.items()}
        alone = type(source)(parts, [GROUPS[group]])
        for place, base in enumerate(CONFIG.base_lrs):
            config = MaeConfig(base_lrs=(base,), epochs=5, warmup_epochs=2, batch_size=16)
            for s in range(2):
                bank = trained(alone, labels_SN[s : s + 1], config)
                # Products of other sizes add up in another order: float32 rounding over 15 steps.
                weight, bias = whole.weight[group, :, s, place], whole.bias[group, s, place]
                torch.testing.assert_close(bank.weight[0, :, 0, 0], weight, rtol=0, atol=5e-8)
                torch.testing.assert_close(bank.bias[0, 0, 0], bias, rtol=0, atol=2e-6)
                assert torch.equal(bank.variance[0], whole.variance[group])


def test_working_in_pieces_changes_nothing(monkeypatch):
    source, splits = blob_task(GROUPS)
    whole = trained(source, label_sets(splits))
    features = source("test", np.arange(30), None)
    expected = whole.predict(features)
    monkeypatch.setattr("probes.linear.mae.PIECE", 1)
    pieces = trained(source, label_sets(splits))
    for name, value in whole.state().items():
        # A product of one group may add up in another order than one of four: float32 rounding.
        torch.testing.assert_close(pieces.state()[name], value, rtol=2e-6, atol=2e-6)
    assert torch.equal(whole.predict(features), expected), "the same heads, read in pieces"


def model_source():
    stores = {
        "train": fake_store(images=40),
        "val": fake_store(images=8, views=1, seed=5),
        "test": fake_store(images=12, views=1, seed=6),
    }
    splits = probe_splits(stores)
    return ModelSource(small_model(), splits, layers=[1, 3], steps=[1, 4, 9]), splits


def test_cached_and_streamed_features_give_the_same_heads_bit_for_bit():
    source, splits = blob_task(GROUPS)
    labels = label_sets(splits)
    streamed = trained(source, labels)
    from_cache = trained(CachedSource(source, splits.count("train")), labels)
    assert same(streamed, from_cache)


def test_cached_and_streamed_features_of_a_model_agree():
    source, splits = model_source()
    labels, classes = label_sets(splits), splits.classes
    streamed = trained(source, labels, classes=classes)
    from_cache = trained(CachedSource(source, splits.count("train")), labels, classes=classes)
    for name, value in streamed.state().items():
        # The model runs on other batches, whose products may round otherwise in float32.
        torch.testing.assert_close(from_cache.state()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_cache_asks_for_a_view_of_an_image_once_and_only_where_it_fits():
    source, splits = blob_task(GROUPS)
    kept = CachedSource(source, 50)
    trained(kept, label_sets(splits), MaeConfig(epochs=40, warmup_epochs=2))
    asked = [pair for call in source.calls for pair in zip(*call, strict=True)]
    assert len(asked) == len(set(asked)) <= 150
    size = 50 * 3 * 4 * 6 * 4 / 1e9  # images, views, groups, width, bytes
    assert isinstance(cached(source, 50, 1, size * 1.01), CachedSource)
    assert cached(source, 50, 1, size * 0.99) is source
    assert isinstance(cached(source, 50, 2, size * 0.51), CachedSource), "each process has half"


class Stopped(Exception):
    pass


def test_an_interrupted_bank_goes_on_to_the_same_heads(monkeypatch, tmp_path):
    monkeypatch.setattr("probes.linear.saving.SECONDS", 0.0)
    source, splits = blob_task(GROUPS)
    labels = label_sets(splits)
    straight = trained(source, labels)

    def bank_and_file():
        bank = HeadBank(source, 2, 2, 3, 7)
        return bank, BankFile(tmp_path / "bank.pt", CONFIG.epochs)

    bank, file = bank_and_file()
    assert file.load(bank) == 0

    def stop_in_the_fourth_epoch(done, total):
        if done > total * 0.7:
            raise Stopped

    with pytest.raises(Stopped):
        train_heads(
            bank,
            source,
            labels,
            CONFIG,
            seed=7,
            on_batch=stop_in_the_fourth_epoch,
            on_epoch=lambda done: file.save(bank, done),
        )
    bank, file = bank_and_file()
    first = file.load(bank)
    assert first == 3
    before = len(source.calls)
    train_heads(bank, source, labels, CONFIG, seed=7, first_epoch=first)
    assert len(source.calls) - before == 2 * 3
    assert same(bank, straight)


def test_a_protocol_goes_on_from_its_bank_file(monkeypatch, tmp_path):
    monkeypatch.setattr("probes.linear.saving.SECONDS", 0.0)
    source, splits = blob_task(GROUPS)
    options = {"config": ProtocolConfig(name="mae", mae=CONFIG), "seed": 3}
    expected = run_protocol(source, splits, label_sets(splits), **options)

    def stop(phase, done, total):
        if phase == "predict test":
            raise Stopped

    options["bank_file"] = tmp_path / "heads.pt"
    with pytest.raises(Stopped):
        run_protocol(source, splits, label_sets(splits), on_progress=stop, **options)
    source.calls.clear()
    found = run_protocol(source, splits, label_sets(splits), **options)
    assert len(source.calls) == 3, "the last epoch alone is done again"
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(vars(found)[name], value)


def test_the_state_of_a_bank_is_what_files_of_older_releases_hold():
    source, _ = blob_task(GROUPS)
    bank = HeadBank(source, 1, 1, 3, 0)
    names = ["weight", "bias", "weight_velocity", "bias_velocity", "mean", "variance"]
    assert list(bank.state()) == names
    bank.note = "not a tensor, and none of training's"
    HeadBank(source, 1, 1, 3, 1).load(bank.state())


def test_a_bank_file_that_does_not_fit_is_named(tmp_path):
    source, _ = blob_task(GROUPS)
    bank = HeadBank(source, 1, 1, 3, 0)
    path = tmp_path / "bank.pt"
    torch.save({"bank": {"weight": torch.zeros(1)}, "epoch": 2}, path)
    with pytest.raises(UserError, match="bank.pt is broken .*; delete it and start again"):
        BankFile(path, 5).load(bank)
    torch.save({"bank": HeadBank(source, 1, 2, 3, 0).state(), "epoch": 2}, path)
    with pytest.raises(UserError, match="bank.pt is broken"):
        BankFile(path, 5).load(bank)
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot read .*bank.pt"):
        BankFile(path, 5).load(bank)
    assert BankFile(None, 5).load(bank) == 0 and BankFile(tmp_path / "none.pt", 5).load(bank) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_lrs": ()}, "a base learning rate is nan"),
        ({"base_lrs": (0.1, 0.0)}, "a base learning rate is 0.0; expected numbers > 0"),
        ({"base_lrs": (float("inf"),)}, "a base learning rate is inf"),
        ({"batch_size": 1}, "batch_size is 1; expected at least 2"),
        ({"epochs": 10}, "epochs is 10, warm-up 10; expected 0 <= warm-up < epochs"),
        ({"warmup_epochs": -1}, "epochs is 90, warm-up -1"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        MaeConfig(**changes)


def test_without_warm_up_the_first_rate_is_the_peak():
    assert linprobe_lr(0, 2.0, epochs=4, warmup_epochs=0) == 2.0


def test_a_feature_that_never_changes_does_no_harm():
    source, splits = blob_task(GROUPS)
    for part in source.parts.values():
        part[:, 1] = 2.75  # the whole group, as at step 1
        part[:, 2, :, 3] = 0
    bank = trained(source, label_sets(splits))
    assert all(value.isfinite().all() for value in bank.state().values())
    predicted = bank.predict(source("test", np.arange(30), None))
    assert (predicted[1, 0, 0] == predicted[1, 0, 0, 0]).all(), "nothing to tell images apart by"
    assert bank.weight.device == CPU
