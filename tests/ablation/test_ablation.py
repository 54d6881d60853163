"""Cuts of attention: what they hide, and the measured changes against direct recomputation."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers import SMALL, fake_store, refused, small_model

from probes.ablation.accuracy import ablate_probe
from probes.ablation.cuts import CUTS, Cut, all_layers, reach_cuts, strict_window
from probes.ablation.nll import STRICT, ablate_nll, compare_ablations, strict_nll
from probes.ablation.weights import removed_weight
from probes.linear.protocols import ProtocolConfig, run_protocol
from probes.linear.sources import ModelSource
from probes.linear.splits import fewer_images, probe_splits
from probes.stats.intervals import mean_interval
from star.base.errors import UserError

GRID, LAYERS = 3, (1, 2, 3)


def trained_like(seed=0):
    """Weights large enough for attention that is far from even."""
    model = small_model(seed=seed)
    for block in model.layers:
        block.attention.wqkv.weight.data.mul_(20)
        block.attention.wo.weight.data.mul_(20)
    return model


def tokens_of(store):
    return torch.from_numpy(store.codes[:, 0].astype(np.int64)), torch.from_numpy(store.labels)


def offsets(query, key):
    (a, b), (c, d) = divmod(query - 1, GRID), divmod(key - 1, GRID)
    return a - c, b - d


def test_cuts_hide_what_they_say():
    near = Cut("neighbourhood", LAYERS).patterns(SMALL)[2]
    of_class = Cut("class", (2,)).patterns(SMALL)
    assert set(of_class) == {2}
    above, reach = (
        Cut("row_above", (1,)).patterns(SMALL)[1],
        Cut("beyond", (1,), reach=1).patterns(SMALL)[1],
    )
    both = Cut("class+beyond", (1,), reach=0).patterns(SMALL)[1]
    some = Cut("class", (1,), steps=(1, 4)).patterns(SMALL)[1]
    for query in range(10):
        for key in range(10):
            seen = 1 <= key < query
            rows, columns = offsets(query, key) if seen else (0, 0)
            assert near[query, key] == (seen and max(abs(rows), abs(columns)) == 1)
            assert above[query, key] == (seen and rows == 1)
            up, left = offsets(query + 1, key) if query < 9 else (rows, columns)  # what it predicts
            assert reach[query, key] == (seen and max(abs(up), abs(left)) > 1)
            assert of_class[2][query, key] == (key == 0 and query > 0)
            assert both[query, key] == (key < query), "everything but the position itself"
            assert some[query, key] == (key == 0 and query == 3), "step 4 is position 3; 1 is the class"


def test_the_random_cut_is_as_large_as_the_neighbourhood_where_it_can_be():
    near = Cut("neighbourhood", (1,)).patterns(SMALL)[1]
    drawn = [Cut("random", (1,), seed=seed).patterns(SMALL)[1] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    for query in range(10):
        others = [key for key in range(1, query) if not near[query, key]]
        assert drawn[0][query].sum() == min(int(near[query].sum()), len(others))
        assert set(drawn[0][query].nonzero().flatten().tolist()) <= set(others)


def test_with_all_but_class_and_self_cut_logits_know_class_current_token_and_place_alone():
    model = trained_like()
    cut = Cut("beyond", LAYERS, reach=0).patterns(SMALL)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 11, (6, 9), generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    before = model(tokens, labels, cut=cut).logits
    for place in range(9):
        others = torch.randint(0, 11, (6, 9), generator=generator)
        others[:, place] = tokens[:, place]
        after = model(others, labels, cut=cut).logits
        # The same sums of the same numbers.
        assert torch.equal(after[:, place + 1], before[:, place + 1])
        assert not torch.allclose(
            model(others, labels).logits[:, 9], model(tokens, labels).logits[:, 9]
        )
    current = tokens.clone()
    current[:, 4] = (current[:, 4] + 1) % 11
    assert not torch.allclose(model(current, labels, cut=cut).logits[:, 5], before[:, 5])
    assert not torch.allclose(model(tokens, labels.flip(0), cut=cut).logits[:, 5], before[:, 5])
    same = tokens[:, :1].expand(6, 9)
    placed = model(same, labels, cut=cut).logits
    # Its place is known through the attention to nothing but itself: rotary turns query and key alike,
    # and the class token's key is zero, so the place cancels out too.
    torch.testing.assert_close(placed[:, 3], placed[:, 7], rtol=1e-4, atol=1e-5)


def test_a_strict_window_lets_nothing_from_outside_in_by_any_route():
    model = trained_like()
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 4])
    step = 7  # predicts cell (2, 0); its current token 6 is cell (1, 2), across the image
    hops = Cut("beyond", LAYERS, reach=1).patterns(SMALL)
    strict = strict_window(SMALL, step, 1)
    for place in range(1, 7):
        changed = tokens.clone()
        changed[:, place - 1] = (changed[:, place - 1] + 1) % 11
        inside = place == 6 or max(map(abs, offsets(7, place))) <= 1
        assert inside == (place in (4, 5, 6))
        before, after = (model(t, labels, cut=strict).logits[:, -1] for t in (tokens, changed))
        assert torch.equal(before, after) != inside, place
        if not inside:
            before, after = (model(t, labels, cut=hops).logits[:, -1] for t in (tokens, changed))
            assert not torch.equal(before, after), "through three layers it comes in hops"
    whole = model(tokens, labels, cut=strict_window(SMALL, step, 2)).logits[:, -1]
    torch.testing.assert_close(whole, model(tokens, labels).logits[:, -1])
    first = model(tokens[:, :0], labels, cut=strict_window(SMALL, 1, 0)).logits
    torch.testing.assert_close(first, model(tokens[:, :0], labels).logits)


def direct_nll(model, store, cut=None):
    tokens, labels = tokens_of(store)
    with torch.no_grad():
        probability = model(tokens[:, :-1], labels, cut=cut).logits.softmax(-1)
    return -probability.gather(-1, tokens[..., None])[..., 0].log().numpy()


def test_the_change_of_nll_is_paired_by_image():
    model, store = trained_like(), fake_store(images=30)
    cuts = [
        Cut("class", LAYERS),
        Cut("neighbourhood", (2,), steps=(4, 9)),
        *reach_cuts(SMALL, LAYERS, [0, 1, 2]),
    ]
    reports = []
    found = ablate_nll(model, store, cuts, batch_size=7, on_progress=lambda *at: reports.append(at))
    assert reports == [(n, 7) for n in range(1, 8)]  # intact, weights, five cuts
    table = found.table()
    intact = direct_nll(model, store)
    for row, cut in zip(table.query("measure == 'nll'").itertuples(), cuts, strict=True):
        changed = direct_nll(model, store, cut.patterns(SMALL))
        assert row.intact == pytest.approx(intact.mean(), rel=1e-4)
        assert row.value == pytest.approx(changed.mean(), rel=1e-4)
        # differences of float32 numbers of order 1
        expected = mean_interval((changed - intact).mean(1))
        assert (row.difference, row.low, row.high) == pytest.approx(expected, abs=1e-5)
        assert row.n == 30
    at = table.query("measure == 'nll_cut_steps'").iloc[0]
    changed = direct_nll(model, store, cuts[1].patterns(SMALL))
    assert (at.cut, at.layers, at.steps) == ("neighbourhood", "2", "4,9")
    assert at.difference == pytest.approx((changed - intact)[:, [3, 8]].mean(), abs=1e-5)
    last = table.query("reach == 2").iloc[0]
    assert last.difference == 0 and last.p == 1, "the largest reach sees everything"
    assert table.query("reach == 0").iloc[0].difference != 0


def test_a_random_cut_is_the_mean_over_its_draws():
    model, store = trained_like(), fake_store(images=24)
    cut = Cut("random", LAYERS, seed=3, draws=4)
    row = ablate_nll(model, store, [cut]).table().iloc[0]
    drawn = [cut.patterns(SMALL, draw) for draw in range(4)]
    assert len({tuple(one[1].flatten().tolist()) for one in drawn}) == 4
    changed = np.mean([direct_nll(model, store, one) for one in drawn], axis=0)
    expected = mean_interval((changed - direct_nll(model, store)).mean(1))
    assert (row.difference, row.low, row.high) == pytest.approx(expected, abs=1e-5)
    assert len(Cut("class", LAYERS, draws=4).all_patterns(SMALL)) == 1, "nothing to draw"
    stores = {"train": fake_store(images=60), "test": fake_store(images=40, seed=1)}
    splits, at = probe_splits(stores), {"layer": 2, "steps": [9]}
    found = ablate_probe(model, splits, [cut], **at).table().set_index("measure")
    alone = [ablate_probe(model, splits, [cut_of(cut, one)], **at).table() for one in range(4)]
    for measure in ("accuracy_refit", "accuracy_fixed", "accuracy_fixed_step_9"):
        values = [table.set_index("measure").loc[measure, "value"] for table in alone]
        assert found.loc[measure, "value"] == pytest.approx(np.mean(values))
    assert len(set(values)) > 1


def cut_of(cut, draw):
    """One draw of a cut as a cut of its own."""

    class OfDraw(Cut):
        def patterns(self, config, ignored=0):
            return super().patterns(config, draw)

    return OfDraw(cut.what, cut.layers, seed=cut.seed)


def test_the_weight_that_a_cut_removes_is_summed_attention():
    model, store = trained_like(), fake_store(images=6)
    cuts = [
        Cut("class", (1, 3)),
        Cut("neighbourhood", (2,), steps=(4, 9)),
        Cut("random", LAYERS, draws=2),
    ]
    found = removed_weight(model, store, cuts)
    tokens, labels = tokens_of(store)
    names = [f"layers.{layer}.attention" for layer in LAYERS]
    with torch.no_grad():
        rows = model(tokens, labels, capture=names).captured
    for cut, weight_NT in zip(cuts, found, strict=True):
        for image in range(6):
            for step in range(1, 10):
                total, terms = 0.0, 0
                for pattern in cut.all_patterns(SMALL):
                    for layer in cut.layers:
                        for head in range(SMALL.heads):
                            row = rows[f"layers.{layer}.attention"][image, head, step - 1]
                            hidden = pattern[layer][step - 1].tolist()
                            total += sum(row[key].item() for key in range(step) if hidden[key])
                            terms += 1
                assert weight_NT[image, step - 1] == pytest.approx(total / terms, abs=1e-5)
    table = ablate_nll(model, store, cuts).table()
    row = table[table["cut"].eq("neighbourhood") & table["measure"].eq("nll_cut_steps")].iloc[0]
    weight = found[1][:, [3, 8]].mean(1)
    assert row.weight == pytest.approx(weight.mean(), rel=1e-5)
    assert row.per_weight == pytest.approx(row.difference / row.weight, rel=1e-4)
    assert row.per_weight_low < row.per_weight < row.per_weight_high
    whole = table[table["cut"].eq("neighbourhood") & table["measure"].eq("nll")].iloc[0]
    assert whole.weight == pytest.approx(found[1].mean(), rel=1e-5)


def test_the_strict_curve_is_the_nll_at_its_steps():
    model, store = trained_like(), fake_store(images=8)
    found = strict_nll(model, store, steps=[1, 5, 9], reaches=[0, 2], batch_size=3).table()
    tokens, labels = tokens_of(store)
    for reach, row in zip((0, 2), found.itertuples(), strict=True):
        assert (row.cut, row.reach, row.steps) == (STRICT, reach, "1,5,9")
        values = []
        for step in (1, 5, 9):
            logits = model(tokens[:, : step - 1], labels, cut=strict_window(SMALL, step, reach)).logits
            values.append(
                F.cross_entropy(logits[:, -1], tokens[:, step - 1], reduction="none").detach()
            )
        assert row.value == pytest.approx(float(torch.stack(values).mean()), rel=1e-4)
    intact = direct_nll(model, store)[:, [0, 4, 8]].mean()
    assert found["intact"].tolist() == pytest.approx([intact] * 2, rel=1e-4)
    assert found["difference"].iloc[1] == pytest.approx(0, abs=1e-5)


def test_two_models_are_compared_by_their_changes():
    store, cuts = fake_store(images=30), [Cut("class", LAYERS), Cut("beyond", LAYERS, reach=0)]
    first, second = (ablate_nll(trained_like(seed), store, cuts) for seed in (0, 1))
    table = compare_ablations(first, second, ("AR", "ST-AR"))
    gain = second.rows[0].difference - first.rows[0].difference
    row = table.iloc[0]
    assert (row.difference, row.low, row.high) == pytest.approx(mean_interval(gain))
    assert row["first"] == pytest.approx(first.rows[0].difference.mean())
    assert (table["p_holm"] >= table["p"]).all() and table["p_holm"].max() <= 1
    decided = table["p_holm"] < 0.05
    assert (table["higher"] == np.where(decided, np.where(table["difference"] > 0, "ST-AR", "AR"),
                                        "neither")).all()  # fmt: skip
    same = compare_ablations(first, first, ("AR", "ST-AR"))
    assert (same["difference"] == 0).all() and set(same["higher"]) == {"neither"}


def test_probe_accuracy_of_a_cut_model_refit_and_fixed():
    model = trained_like()
    stores = {"train": fake_store(images=60), "test": fake_store(images=40, seed=1)}
    splits = probe_splits(stores)
    cut, idle = Cut("beyond", LAYERS, reach=0), Cut("beyond", LAYERS, reach=2)
    options = {"layer": 2, "steps": [4, 9]}
    found = ablate_probe(model, splits, [cut, idle], **options)
    table = found.table().set_index(["reach", "measure"])

    def accuracy(source):
        labels = splits.labels("train")[None]
        predicted = run_protocol(source, splits, labels, ProtocolConfig(name="ridge"), seed=0).predicted
        return (predicted[0] == splits.labels("test")).mean(1)

    at = {"layers": [2], "steps": [4, 9]}
    intact = accuracy(ModelSource(model, splits, **at))
    pattern = cut.patterns(SMALL)
    refit = accuracy(ModelSource(model, splits, **at, cut=pattern))
    fixed = accuracy(ModelSource(model, splits, **at, cut=pattern, cut_parts=("test",)))
    for name, expected in (("accuracy_refit", refit), ("accuracy_fixed", fixed)):
        row = table.loc[(0, name)]
        assert (row.intact, row.value) == pytest.approx((intact.mean(), expected.mean()))
        assert table.loc[(0, f"{name}_step_9")].value == pytest.approx(expected[1])
        assert table.loc[(2, name)].difference == 0
    assert not np.array_equal(refit, intact)
    few = fewer_images(splits, 25, seed=0)
    assert few.count("train") == few.count("test") == 25
    assert set(few.rows["train"]) <= set(splits.rows["train"])


def test_refusals_of_cuts():
    model, store = small_model(), fake_store(images=4)
    for call, message in (
        (lambda: Cut("clas", (1,)), "cut is 'clas'"),
        (lambda: Cut("class", (1,), reach=1), "beyond needs a reach, no other has one"),
        (lambda: Cut("beyond", (1,)), "beyond needs a reach"),
        (lambda: Cut("beyond", (1,), reach=-1), "reach is -1; expected at least 0"),
        (lambda: Cut("random", (1,), draws=0), "draws of random cuts are 0; expected at least 1"),
        (lambda: Cut("class", (4,)).patterns(SMALL), "layer 4 does not exist"),
        (lambda: Cut("class", (1,), steps=(10,)).patterns(SMALL), "step 10 does not exist"),
        (lambda: reach_cuts(SMALL, (1,), [3]), "reach 3 is not on the grid; expected 0 to 2"),
        (lambda: strict_nll(model, store, steps=[10], reaches=[0]), "step 10 does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert all_layers(SMALL) == LAYERS
    assert set(CUTS) == {"class", "neighbourhood", "random", "row_above", "beyond"}
    model.output.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="predictions are not finite"):
        ablate_nll(model, store, [Cut("class", (1,))])


def test_the_command_cuts_probes_compares_and_writes(star, trained, tmp_path, monkeypatch):
    options = ("--images", "8", "--strict-steps", "2", "--reach", "0,7", "--steps", "2")
    code, out, err = star("ablate", trained, trained, *options, "--out", "a")
    assert code == 0, err
    assert "NLL" in out and "refit" in out and "by no route" in out
    assert "random: the mean over 5 draws" in out and "weight: attention that the cut takes away" in out
    assert "class cut in layers all, nll: ST-AR star again" in out and "difference +0.000" in out
    own = "ablate-layers-all-teacher-st-ar-star"
    table = pd.read_csv(tmp_path / "a" / f"{own}.csv")
    whole = table[table["reach"] == 7]
    assert len(whole) == 2 and whole["difference"].abs().max() < 1e-5, "d = 7 sees all of an 8 x 8 grid"
    assert set(table["cut"]) == {"class", "neighbourhood", "random", "beyond", STRICT}
    assert {"accuracy_refit", "accuracy_fixed_step_64"} <= set(table["measure"])
    names = {path.name for path in (tmp_path / "a").iterdir()}
    pictures = {f"{own}-cuts.png", f"{own}-reach.pdf", "ablate-layers-all-teacher-compared-reach.png"}
    assert pictures <= names
    assert f"{own.replace('-star', '-star-again')}-against-st-ar-star.csv" in names
    options = ("--layers", "each", "--at", "9,20", "--probe-layer", "0", "--reach", "none")
    code, out, err = star("ablate", trained, *options, "--cut", "class+neighbourhood", "--out", "b")
    assert code == 0, err
    table = pd.read_csv(tmp_path / "b" / "ablate-layers-each-teacher-at-9-20.csv")
    assert table["layers"].tolist() == [1, 1, 2, 2] and set(table["steps"]) == {"9,20"}
    assert table["measure"].tolist() == ["nll", "nll_cut_steps"] * 2
    assert (tmp_path / "b" / "ablate-layers-each-teacher-at-9-20-cuts.png").exists()


def test_command_refusals(star, trained, tmp_path):
    for options, message in (
        (("--cut", "clas"), "cut is 'clas'"),
        (("--cut", "beyond"), "is cut by --reach"),
        (("--cut", "none", "--reach", "none"), "nothing is cut"),
        (("--reach", "9"), "reach 9 is not on the grid; expected 0 to 7"),
        (("--reach", "x"), "reach is 'x'"),
        (("--layers", "9"), "layer 9 does not exist"),
        (("--at", "65"), "step 65 does not exist"),
        (("--probe-layer", "3"), "layer 3 does not exist"),
        (("--images", "1"), "images is 1; expected at least 2"),
        (("--strict-steps", "-1"), "strict-steps is -1"),
        (("--random-cuts", "0"), "random-cuts is 0; expected at least 1"),
        (("--strict-steps", "65"), "steps is 65; expected 1 to 64"),
    ):
        assert refused(star("ablate", trained, *options, "--out", "x"), message), options
        assert not (tmp_path / "x").exists()


def test_few_images_have_no_p_and_nothing_is_called_near_without_an_interval(star, trained):
    few = ablate_nll(trained_like(), fake_store(images=19), [Cut("class", LAYERS)]).table()
    assert few["p"].isna().all() and few["low"].notna().all()
    enough = ablate_nll(trained_like(), fake_store(images=20), [Cut("class", LAYERS)]).table()
    assert enough["p"].notna().all()
    one = ablate_nll(trained_like(), fake_store(images=1), reach_cuts(SMALL, LAYERS, [0, 2]))
    assert one.table()["low"].isna().all()
    options = ("--images", "4", "--probe-layer", "0", "--strict-steps", "0", "--cut", "none")
    code, out, err = star("ablate", trained, *options, "--out", "few")
    assert code == 0 and "note: 4 images; below 20 nothing is tested" in out, (out, err)
