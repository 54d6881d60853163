"""Where probes get features and images from: splits, the model's states, codes and pixels, by loops."""

import dataclasses
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import SMALL, FakeStore, fake_store, small_model
from probing import CPU, splits_of

from probes.linear.pixels import small_pictures
from probes.linear.sources import CodeSource, ModelSource, PixelSource
from probes.linear.splits import ProbeSplits, probe_splits
from probes.reading.features import step_features
from star.base.errors import UserError
from star.codes.encode import tokenize
from star.codes.store import open_splits
from star.images.open import open_source
from star.images.views import view_set
from star.tokenizer.file import load_tokenizer
from star.tokenizer.model import VQModel, decode_tokens
from star.tokenizer.shape import vq_preset

STEPS = [1, 2, 4, 9]


def small_splits(**changes):
    stores = {
        "train": fake_store(images=24, **changes),
        "val": fake_store(images=8, views=1, seed=5),
        "test": fake_store(images=12, views=1, seed=6),
    }
    return probe_splits(stores)


# --- splits --------------------------------------------------------------------------------------


def test_a_data_set_with_three_splits_keeps_them():
    for seed in (0, 1):
        stores = small_splits().stores
        splits = probe_splits(dict(stores), seed)
        assert splits.rule == "the data's own"
        assert [splits.count(part) for part in ("train", "val", "test")] == [24, 8, 12]
        for part, store in stores.items():
            assert splits.stores[part] is store
            np.testing.assert_array_equal(splits.labels(part), store.labels)
    assert splits.classes == 4
    assert splits.describe()["images"] == {"train": 24, "val": 8, "test": 12}
    assert splits.describe()["data"]["test"] == stores["test"].manifest["sha256"]


@pytest.mark.parametrize("tested", ["val", "test"])
def test_validation_images_are_cut_from_train_by_the_seed(tested):
    train, other = fake_store(images=103), fake_store(images=12, seed=6)
    train.labels[:] = np.random.default_rng(0).integers(0, 4, 103)
    cuts = []
    for seed in (0, 0, 1):
        splits = probe_splits({"train": train, tested: other}, seed)
        kept, cut = splits.rows["train"], splits.rows["val"]
        assert len(cut) == 103 // 20
        assert sorted([*kept, *cut]) == list(range(103)), "disjoint, and all of them"
        assert (np.diff(kept) > 0).all() and (np.diff(cut) > 0).all()
        assert splits.stores["val"] is train and splits.stores["test"] is other
        np.testing.assert_array_equal(splits.labels("val"), train.labels[cut])
        np.testing.assert_array_equal(splits.labels("train"), train.labels[kept])
        assert splits.rule == (f"tested on {tested}; 5 validation images cut from train by seed {seed}")
        assert splits.describe()["rule"] == splits.rule
        cuts.append(cut)
    np.testing.assert_array_equal(cuts[0], cuts[1])
    assert (cuts[0] != cuts[2]).any()


def test_at_most_ten_thousand_images_are_cut():
    labels = np.arange(400_000) % 2
    train = FakeStore(**{**vars(fake_store(classes=2)), "labels": labels})
    splits = probe_splits({"train": train, "val": fake_store(classes=2)})
    assert splits.count("val") == 10_000 and splits.count("train") == 390_000


def test_chance_is_the_test_share_of_the_commonest_training_class():
    labels = {"train": np.array([2, 2, 0, 1]), "val": np.array([0]), "test": np.array([0, 0, 0, 2])}
    assert splits_of(labels, 3).chance == 0.25


@pytest.mark.parametrize(
    ("stores", "message"),
    [
        ({"train": fake_store()}, "the splits are train; probing needs train and val or test"),
        ({"val": fake_store(), "test": fake_store()}, "the splits are val, test; probing needs"),
        ({}, "the splits are none"),
        (
            {"train": fake_store(classes=1), "val": fake_store(), "test": fake_store()},
            "the 24 training images in fake are of one class; a probe needs two classes or more",
        ),
        (
            {"train": fake_store(), "val": fake_store(), "test": fake_store(images=3)},
            "fake has 3 test images for 4 classes; a probe needs at least one test image a class",
        ),
    ],
)
def test_splits_that_cannot_be_probed(stores, message):
    with pytest.raises(UserError, match=message):
        probe_splits(stores)


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [256, 5])
def test_the_models_features_are_those_of_every_stored_view_in_float32(batch_size):
    splits, model = small_splits(), small_model()
    options = {"layers": [3, 1], "steps": STEPS}
    source = ModelSource(model, splits, **options, batch_size=batch_size)
    assert source.groups == [(3, 1), (3, 2), (3, 4), (3, 9), (1, 1), (1, 2), (1, 4), (1, 9)]
    assert source.width == SMALL.width and source.views == 4
    rng = np.random.default_rng(0)
    images, views = rng.permutation(24)[:17], rng.integers(0, 4, 17)
    found = source("train", images, views)
    assert found.dtype == torch.float32 and found.shape == (8, 17, 16)
    train = splits.stores["train"]
    for view in range(4):
        one_view = FakeStore(**{**vars(train), "test_view": view})
        # (L, K, N, D) to (G, N, D), float32
        expected = step_features(model, one_view, **options).values.reshape(8, 24, 16)
        chosen = views == view
        # Products over other batches may round otherwise: float32's last bits.
        np.testing.assert_allclose(
            found[:, chosen].numpy(), expected[:, images[chosen]], rtol=1e-5, atol=1e-6
        )
    assert not source.broken


def test_test_views_and_rows_of_a_cut_part():
    train, test = fake_store(images=60), fake_store(images=12, seed=6)
    train.test_view = test.test_view = 2
    splits, model = probe_splits({"train": train, "test": test}), small_model()
    source = ModelSource(model, splits, layers=[2], steps=[4, 9])
    for part, store in (("val", train), ("train", train), ("test", test)):
        rows = splits.rows[part]
        expected = step_features(model, store, layers=[2], steps=[4, 9]).values[0]
        found = source(part, np.arange(len(rows)), None)
        # As above: the last bits.
        np.testing.assert_allclose(found.numpy(), expected[:, rows], rtol=1e-5, atol=1e-6)


def test_labels_never_reach_the_features():
    splits = small_splits()
    other = small_splits()
    for store in other.stores.values():
        store.labels = store.labels[::-1].copy()
    images, views = np.arange(24), np.arange(24) % 4
    for kind in (
        lambda chosen: ModelSource(small_model(), chosen, layers=[1, 3], steps=STEPS),
        lambda chosen: CodeSource(chosen, STEPS, CPU),
    ):
        assert torch.equal(kind(splits)("train", images, views), kind(other)("train", images, views))
    # and the condition is the null class, the last row of the table
    changed = small_model()
    changed.cls_embedding.embedding_table.weight.data[:-1] += 1

    def features(model):
        return ModelSource(model, splits, layers=[1], steps=STEPS)("test", np.arange(12), None)

    expected = features(small_model())
    assert torch.equal(features(changed), expected)
    changed.cls_embedding.embedding_table.weight.data[-1] += 1
    assert not torch.equal(features(changed), expected)


def test_a_step_sees_the_tokens_before_it():
    splits, changed = small_splits(), small_splits()
    changed.stores["test"].codes[:, :, 3:] = 0  # tokens 4 and later
    for kind in (
        lambda chosen: ModelSource(small_model(), chosen, layers=[3], steps=[4, 5]),
        lambda chosen: CodeSource(chosen, [4, 5], CPU),
    ):
        before, after = (kind(chosen)("test", np.arange(12), None) for chosen in (splits, changed))
        assert torch.equal(before[0], after[0]), "step 4 has seen tokens 1 to 3"
        assert not torch.equal(before[1], after[1]), "step 5 has seen token 4"


def test_what_is_not_finite_is_marked_and_0_and_the_rest_goes_on():
    splits, model = small_splits(), small_model()
    fine = ModelSource(model, splits, layers=[1, 2, 3], steps=[1, 9])
    expected = fine("test", np.arange(12), None)
    broken = small_model()
    broken.layers[1].feed_forward.w2.weight.data[0, 0] = float("nan")
    source = ModelSource(broken, splits, layers=[1, 2, 3], steps=[1, 9])
    found = source("test", np.arange(12), None)
    assert source.broken == {2, 3, 4, 5} and found.isfinite().all()
    assert torch.equal(found[:2], expected[:2]) and not found[2:].any()
    large = small_model()
    large.layers[0].feed_forward.w2.weight.data *= 1e9  # large, but finite
    source = ModelSource(large, splits, layers=[1], steps=[1, 9])
    assert source("test", np.arange(12), None).isfinite().all() and not source.broken


def test_no_images_give_no_features():
    splits = small_splits()
    nothing = np.empty(0, dtype=np.int64)
    pixels = {part: np.zeros((splits.count(part), 1, 3, 3, 3), np.uint8) for part in splits.stores}
    for source in (
        ModelSource(small_model(), splits, layers=[1], steps=STEPS),
        CodeSource(splits, STEPS, CPU),
        PixelSource(splits, STEPS, pixels, CPU),
    ):
        assert source("train", nothing, nothing).shape == (4, 0, source.width)


def test_a_token_outside_the_codebook_is_refused():
    splits = small_splits()
    splits.stores["test"].codes[3, 0, 2] = 11
    for source in (
        ModelSource(small_model(), splits, layers=[1], steps=STEPS),
        CodeSource(splits, STEPS, CPU),
    ):
        with pytest.raises(UserError, match="fake has code 11; expected 0 to 10"):
            source("test", np.arange(12), None)


# --- codes and pixels ----------------------------------------------------------------------------


def test_the_bag_of_codes_counts_the_tokens_seen():
    splits = small_splits()
    source = CodeSource(splits, STEPS, CPU)
    assert source.groups == [(0, step) for step in STEPS] and source.width == 11
    images, views = np.arange(23, -1, -1), np.arange(24) % 4
    for part, chosen, found in (
        ("train", views, source("train", images, views)),
        ("test", np.zeros(12, int), source("test", np.arange(12), None)),
    ):
        rows = images if part == "train" else np.arange(12)
        for place, (row, view) in enumerate(zip(rows, chosen, strict=True)):
            tokens = splits.stores[part].codes[row, view]
            for group, step in enumerate(STEPS):
                counts = Counter(tokens[: step - 1].tolist())
                for code in range(11):
                    share = counts[code] / (step - 1) if step > 1 else 0
                    assert found[group, place, code] == np.float32(share)


@pytest.mark.parametrize("pictures", [1, len(STEPS)])
def test_the_pixels_of_cells_not_seen_are_0(pictures):
    splits = small_splits()
    rng = np.random.default_rng(0)
    pixels = {
        part: rng.integers(0, 256, (splits.count(part), pictures, 6, 6, 3), dtype=np.uint8)
        for part in ("train", "val", "test")
    }
    source = PixelSource(splits, STEPS, pixels, CPU)
    assert source.width == 6 * 6 * 3 and source.views == 1
    images = np.array([5, 0, 11])
    found = source("test", images, None).reshape(4, 3, 6, 6, 3)
    for group, step in enumerate(STEPS):
        picture = group if pictures > 1 else 0
        for place, image in enumerate(images):
            for row in range(6):
                for column in range(6):
                    token = row // 2 * 3 + column // 2 + 1  # of a 3 x 3 grid, counted from 1
                    for channel in range(3):
                        value = pixels["test"][image, picture, row, column, channel] / 127.5 - 1
                        expected = value if token <= step - 1 else 0
                        # Two roundings to float32 of numbers up to 2.
                        assert abs(float(found[group, place, row, column, channel]) - expected) < 1e-6
    assert not source("train", np.arange(3), np.zeros(3, int))[0].any(), "step 1 sees nothing"


def cut_splits(stores):
    """Test on test/, validation images cut from train."""
    opened = open_splits(stores)
    return probe_splits({"train": opened["train"], "test": opened["test"]}, seed=3)


@pytest.mark.parametrize("own", [True, False])
def test_pictures_are_the_test_views_of_the_sources_images(stores, digit_folder, own):
    splits = probe_splits(open_splits(stores)) if own else cut_splits(stores)
    source = open_source(digit_folder)
    seen = []
    pictures, said = small_pictures(splits, (64,), source, None, lambda *counts: seen.append(counts))
    assert said == "source" and seen[-1] == (64 if own else 62,) * 2
    in_source = {"train": "train", "val": "val" if own else "train", "test": "test"}
    for part in ("train", "val", "test"):
        rows, split = splits.rows[part], source.splits[in_source[part]]
        assert pictures[part].shape == (len(rows), 1, 32, 32, 3)
        for picture, row in zip(pictures[part], rows, strict=True):
            views = view_set("ten-crop", 32)(split.load(row), row)
            np.testing.assert_array_equal(picture[0], views[4])  # the centre crop


def test_pictures_are_area_averages(stores, digit_folder, monkeypatch):
    splits = probe_splits(open_splits(stores))
    whole, _ = small_pictures(splits, (64,), open_source(digit_folder), None)
    monkeypatch.setattr("probes.linear.pixels.SIDE", 20)  # two pixels a cell of the 8 x 8 grid
    found, _ = small_pictures(splits, (64,), open_source(digit_folder), None)
    assert found["test"].shape == (16, 1, 16, 16, 3)
    for part, images in whole.items():
        for small, image in zip(found[part][:, 0], images[:, 0], strict=True):
            for row in range(16):
                for column in range(16):
                    block = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    mean = block.astype(float).mean((0, 1))
                    # Rows and columns are averaged in turn, each rounded to whole numbers.
                    assert np.abs(small[row, column] - mean).max() <= 1


def test_without_a_source_the_tokens_are_decoded(stores, tokenizer_file):
    splits, tokenizer = cut_splits(stores), load_tokenizer(tokenizer_file)
    pictures, said = small_pictures(splits, (65, 20), None, tokenizer)
    assert said == "seen tokens decoded"
    for part in ("train", "val", "test"):
        store, rows = splits.stores[part], splits.rows[part]
        for picture, row in list(zip(pictures[part], rows, strict=True))[:4]:
            codes = store.codes[row, store.test_view].astype(np.int64)
            expected = decode_tokens(tokenizer, torch.from_numpy(codes)[None], 8)[0]
            # A batch of another size may round otherwise, and truncation to whole numbers shows it.
            assert np.abs(picture[0].astype(int) - expected).max() <= 1, "step 65 would see all tokens"
            assert np.abs(picture[1].astype(int) - expected).max() > 1


def test_decoded_pictures_of_a_step_know_nothing_of_later_tokens(stores, tokenizer_file):
    """A decoder draws every cell from the tokens around it: unseen ones must not be given to it."""
    splits, tokenizer = cut_splits(stores), load_tokenizer(tokenizer_file)
    before, _ = small_pictures(splits, (20, 40), None, tokenizer)
    codes = np.array(splits.stores["test"].codes)
    codes[:, :, 25:] = (codes[:, :, 25:] + 1) % 256  # tokens 26 on: after step 20, before step 40
    changed = dataclasses.replace(splits.stores["test"], codes=codes)
    splits = dataclasses.replace(splits, stores={**splits.stores, "test": changed})
    after, _ = small_pictures(splits, (20, 40), None, tokenizer)
    np.testing.assert_array_equal(after["test"][:, 0], before["test"][:, 0])
    assert (after["test"][:, 1] != before["test"][:, 1]).any()


def test_pictures_need_the_images_the_codes_were_made_from(stores):
    splits = probe_splits(open_splits(stores))
    with pytest.raises(UserError, match=r"holds codes alone; .*--images FOLDER.*--tokenizer FILE"):
        small_pictures(splits, (64,), None, None)
    with pytest.raises(UserError, match=r"images of digits are not those that .* was made from"):
        small_pictures(splits, (64,), open_source("digits"), None)
    splits = small_splits()
    with pytest.raises(UserError, match="are not those that fake was made from"):
        small_pictures(splits, (64,), open_source("digits"), None)


def test_images_that_were_skipped_shift_nothing(tmp_path, digit_folder, tokenizer_file):
    folder = tmp_path / "images"
    for split, each in (("train", 5), ("test", 2)):
        for name in ("zero", "one"):
            (folder / split / name).mkdir(parents=True)
            for file in sorted((digit_folder / split / name).iterdir())[:each]:
                shutil.copy(file, folder / split / name)
    bad = [folder / "train/one/0000.png", folder / "train/zero/zzzz.png", folder / "test/one/1.png"]
    for path in bad:
        path.write_bytes(b"not an image")
    source = open_source(folder)
    options = {"views": "plain", "skip_bad": True}
    made = tokenize(source, load_tokenizer(tokenizer_file), tmp_path / "codes", **options)
    splits = ProbeSplits(made, {part: np.arange(len(made[part])) for part in made}, "own")
    left_out = sum(len(store.skipped) for store in made.values())
    assert left_out == 3
    pictures, _ = small_pictures(splits, (64,), source, None)
    for part, split in source.splits.items():
        readable = [i for i in range(len(split)) if split.name(i) not in made[part].skipped]
        assert len(pictures[part]) == len(readable)
        for picture, index in zip(pictures[part], readable, strict=True):
            np.testing.assert_array_equal(picture[0], np.asarray(split.load(index)))


def test_another_tokenizer_cannot_draw_the_codes(stores):
    splits, other = cut_splits(stores), VQModel(vq_preset("small"))
    with pytest.raises(
        UserError, match="was made by another tokenizer than small, which cannot decode"
    ):
        small_pictures(splits, (64,), None, other)
