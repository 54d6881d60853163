"""``star probe``: tables, pictures, comparisons, measures, refusals, and going on after a stop."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from asking import asked_from_python
from helpers import GOLDEN, refused

from figures.said.probing import at_edges
from figures.studies import measures, probing
from probes.reading.features import uniform_steps
from star.base.errors import UserError
from star.codes.open import PreparedData
from star.codes.store import open_splits
from star.images.open import open_source

CONTROLS = {"none", "random", "shuffled", "codes", "pixels"}
CELLS = ["layer", "step"]


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """One pixel a cell: the pixel control of 8 x 8 cells is 192 numbers wide, not 3,072."""
    monkeypatch.setattr("probes.linear.pixels.SIDE", 8)


def flat(text):
    return text.replace("\n", "")


@pytest.mark.slow
def test_probe_writes_table_provenance_and_pictures(star, trained, tmp_path):
    code, out, err = star("probe", trained, "--layer", "all", "--steps", "7", "--out", "p")
    assert code == 0, err
    stem = tmp_path / "p" / "probe-logreg-layer-all-teacher-steps-7"
    table = pd.read_csv(f"{stem}.csv")
    assert list(table.columns[:10]) == [
        "layer", "step", "protocol", "control", "seed", "split", "accuracy", "low", "high", "n",
    ]  # fmt: skip
    assert set(table["control"]) == CONTROLS
    own = table[table["control"] == "none"]
    assert len(own) == 14 and (table["n"] == 16).all()
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    info = json.loads(stem.with_suffix(".json").read_text())
    assert info["condition"] == "null class" and info["weights"] == "teacher" and info["complete"]
    assert info["pixels"] == "source" and info["splits"]["images"]["test"] == 16
    with np.load(f"{stem}-predictions.npz") as file:
        hits = (file["predicted"] == file["labels"]).mean(-1)
    cells = own.pivot(index="layer", columns="step", values="accuracy").to_numpy()
    np.testing.assert_allclose(hits[0], cells, atol=1e-6, err_msg="six digits in the table")
    classes = pd.read_csv(f"{stem}-classes.csv")
    assert set(classes["class_name"]) == {"zero", "one"}
    mean = classes.groupby(CELLS)["accuracy"].mean()  # 8 test images of each class
    np.testing.assert_allclose(mean, own.set_index(CELLS)["accuracy"].sort_index(), atol=1e-6)
    for name in ("", "-heatmap", "-confusion", "-by-class"):
        assert (tmp_path / "p" / f"{stem.name}{name}.png").stat().st_size > 5000
        assert (tmp_path / "p" / f"{stem.name}{name}.pdf").exists()
    for word in ("random", "shuffled", "tokens", "pixels", "best on validation", "mean over steps"):
        assert word in flat(out), word
    assert not list((tmp_path / "p").glob("*.work")), "what is done so far goes when all is written"


@pytest.mark.parametrize("protocol", ["mae", "ridge", "knn", "attentive"])
def test_every_protocol_by_name(star, trained, tmp_path, protocol):
    options = ["--epochs", "9", "--lr", "0.1,10"] if protocol == "mae" else []
    code, out, err = star(
        "probe", trained, "--steps", "2", "--protocol", protocol, "--out", "p", *options
    )
    assert code == 0, err
    table = pd.read_csv(tmp_path / "p" / f"probe-{protocol}-layer-1-teacher-steps-2.csv")
    assert set(table["control"]) == CONTROLS and set(table["protocol"]) == {protocol}
    info = json.loads((tmp_path / "p" / f"probe-{protocol}-layer-1-teacher-steps-2.json").read_text())
    assert bool(info["departures"]) == (protocol == "mae")
    if protocol == "mae":
        assert info["settings"] == {
            "base_lrs": [0.1, 10.0], "epochs": 9, "warmup_epochs": 1, "batch_size": 16384,
        }  # fmt: skip
        assert set(table["choice"]) <= {0.1, 10.0}
    assert ("best on validation" in flat(out)) == (protocol != "knn"), "kNN chooses nothing"


def test_few_updates_of_mae_are_said(star, trained):
    out = flat(star("probe", trained, "--steps", "1", "--protocol", "mae", "--out", "p")[1])
    assert "note: 46 training images make 90 updates at lr 0.1 x 46/256" in out


def test_settings_chosen_at_an_edge_are_said():
    rows = [("none", 1e5, True), ("none", 1.0, False), ("none", 1e-4, True), ("codes", 1e-4, True)]
    rows += [("shuffled", 1e-4, True), ("random", 1.0, False)]
    table = pd.DataFrame(rows, columns=["control", "choice", "at_edge"])
    assert at_edges(table, "logreg") == [
        "note: validation chose the first or last C of those tried in some cells: 2 of 3 of the model "
        "(0.0001, 100000), 1 of 1 of tokens (0.0001); a better one may lie beyond (column at_edge)"
    ]
    assert at_edges(table[table["control"].isin(["shuffled", "random"])], "ridge") == []


def test_several_seeds_are_averaged_with_their_spread(star, trained, tmp_path):
    line = ("probe", trained, "--steps", "2", "--seeds", "3", "--out", "p")
    code, out, err = star(*line, "--protocol", "mae", "--epochs", "9")
    assert code == 0 and "Means over 3 seeds of the probe; spread" in flat(out), err
    table = pd.read_csv(tmp_path / "p" / "probe-mae-layer-1-teacher-steps-2-seeds-3.csv")
    assert set(table["seed"]) == {0, 1, 2}
    random = table[table["control"] == "random"].pivot(index="seed", columns="step", values="accuracy")
    assert len(random) == 3
    # A closed form draws nothing: a spread would be 0 and say that the number is exact.
    code, out, err = star(*line, "--protocol", "ridge")
    assert code == 0 and "Means over 3 seeds, without a spread: ridge draws nothing" in flat(out), err
    assert "spread ┃" not in out


@pytest.mark.slow
def test_two_checkpoints_are_compared_on_the_same_images(star, trained, tmp_path):
    code, out, err = star(
        "probe", trained, trained / "ckpt.pt", "--layer", "all", "--steps", "2", "--out", "p",
        "--protocol", "ridge",
    )  # fmt: skip
    assert code == 0, err
    assert "neither ahead anywhere" in flat(out), "a checkpoint is as good as itself"
    assert "nothing here says whether other runs of the two recipes would differ so" in flat(out)
    names = {path.name for path in (tmp_path / "p").iterdir()}
    (pair,) = [name for name in names if "-against-" in name and name.endswith(".csv")]
    table = pd.read_csv(tmp_path / "p" / pair)
    assert (table["difference"] == 0).all() and set(table["higher"].dropna()) == {"neither"}
    assert any(name.endswith("-difference.png") for name in names)
    assert any("-compared-layer-" in name for name in names)
    # the controls of the data are measured once and are in both tables
    tables = [
        pd.read_csv(path) for path in sorted((tmp_path / "p").glob("*-teacher-steps-2-st-ar*.csv"))
    ]
    own = [table.query("control == 'codes'") for table in tables if "control" in table]
    assert len(own) == 2 and own[0].equals(own[1])


@pytest.mark.slow
def test_the_same_request_from_python(star, trained, tmp_path):
    mae = ("--protocol", "mae", "--lr", "0.1,10", "--epochs", "9", "--batch-size", "16")
    several = ("--layer", "1,2", "--steps", "2", "--weights", "student")
    ckpts = [trained, trained / "ckpt.pt"]
    code, out, err = star("probe", *ckpts, *several, *mae, "--out", "p")
    assert code == 0, err
    request = probing.Request(
        ckpts=ckpts, layer="1,2", steps=2, weights="student", out="p",
        protocol="mae", lr="0.1,10", epochs=9, batch_size=16,
    )  # fmt: skip
    answer = asked_from_python(probing.run, request, tmp_path / "p")
    assert all(sentence in out for sentence in answer.sentences) and len(answer.tables) == 2
    assert answer.result.info["settings"]["batch_size"] == 16
    steps = uniform_steps(answer.result.info["total_steps"], 2)
    assert answer.tables[0].rows[0][:2] == ["1", str(steps[0])] and len(answer.tables[0].rows) == 4


def test_the_same_measures_from_python(star, trained, tmp_path):
    options = ("--measure", "cka,uniformity", "--split", "train", "--layer", "all", "--steps", "2")
    code, out, err = star("probe", trained, *options, "--out", "m")
    assert code == 0, err
    request = measures.Request(
        ckpts=[trained], measure="cka,uniformity", split="train", layer="all", steps=2, out="m"
    )
    answer = asked_from_python(measures.run, request, tmp_path / "m")
    assert all(sentence in out for sentence in answer.sentences)
    assert set(answer.result.table["measure"]) == {"cka", "uniformity"}


def test_what_does_not_fit_the_second_is_refused_before_the_first_is_measured(
    star, trained, stores, digit_folder, tokenizer_file, tmp_path, monkeypatch
):
    options = ("--tokenizer", tokenizer_file, "--views", "plain", "--device", "cpu")
    assert star("tokenize", digit_folder, "plain", *options)[0] == 0
    first = PreparedData(open_splits(stores), None, open_source(digit_folder))
    alone = PreparedData(open_splits(tmp_path / "plain"), None, None)
    others = PreparedData(open_splits(stores), None, None)
    object.__setattr__(others.stores["test"], "manifest", {**others.stores["test"].manifest})
    others.stores["test"].manifest["source"] = {"fingerprint": "another"}
    monkeypatch.setattr(probing, "probe_atlas", lambda *a, **o: pytest.fail("measured"))
    request = probing.Request(ckpts=[trained, trained / "ckpt.pt"], steps=2)
    for second, why in ((alone, "holds codes alone"), (others, "test images differ; give --data")):
        prepared = iter((first, second))
        monkeypatch.setattr(probing, "run_data", lambda *a, left=prepared: next(left))
        with pytest.raises(UserError, match=why):
            probing.run(request)


def test_measures_of_one_and_of_two_checkpoints(star, trained, tmp_path):
    code, out, err = star(
        "probe", trained, trained / "ckpt.pt", "--measure", "cka,step_consistency,effective_rank",
        "--layer", "all", "--steps", "2", "--out", "m", "--split", "train",
    )  # fmt: skip
    assert code == 0, err
    (path,) = (tmp_path / "m").glob("measures-cka-step_consistency-effective_rank-train-against-*.csv")
    table = pd.read_csv(path)
    assert set(table["measure"]) == {"cka", "step_consistency", "effective_rank"}
    same = table.query("measure == 'cka' and against == 'checkpoint' and layer == layer_b")
    same = same[same["step"] == same["step_b"]]
    np.testing.assert_allclose(same["value"], 1, atol=1e-6, err_msg="the same weights")
    assert path.with_name(f"{path.stem}-effective-rank.png").exists()
    assert "effective_rank: RankMe" in flat(out)
    # the test split has one view of an image: property 3 is measured on training images
    code, out, err = star(
        "probe", trained, "--measure", "view_consistency", "--steps", "2", "--out", "v"
    )
    assert code == 0 and "of training images, which have several views" in flat(out), err


def test_probe_without_a_checkpoint_takes_the_newest_run_and_says_which(star, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs" / "mine")
    code, out, err = star("probe", "--steps", "2")
    assert code == 0 and "newest run: runs/mine/ckpt.pt" in flat(out), (out, err)
    assert (tmp_path / "runs" / "mine" / "probe" / "probe-logreg-layer-1-teacher-steps-2.csv").exists()


def test_an_interrupted_probe_goes_on(star, trained, tmp_path, monkeypatch):
    import probes.linear.atlas as atlas

    command = ("probe", trained, "--steps", "2", "--protocol", "ridge", "--out", "p")
    run, done = atlas.run_protocol, []

    def stop_at_the_third(*arguments, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(True)
        return run(*arguments, **options)

    monkeypatch.setattr(atlas, "run_protocol", stop_at_the_third)
    code, _, err = star(*command)
    assert code == 130 and err.strip() == "Interrupted."
    assert [path.suffix for path in (tmp_path / "p").iterdir()] == [".work"]
    done.clear()
    monkeypatch.setattr(atlas, "run_protocol", lambda *a, **o: (done.append(True), run(*a, **o))[1])
    assert star(*command)[0] == 0 and len(done) == 2, "two of four arms were done"
    went_on = (tmp_path / "p" / "probe-ridge-layer-1-teacher-steps-2.csv").read_text()
    assert star(*command)[0] == 0 and len(done) == 2 + 4
    assert (tmp_path / "p" / "probe-ridge-layer-1-teacher-steps-2.csv").read_text() == went_on


def test_features_that_are_not_finite_are_named_and_the_others_kept(star, trained, tmp_path):
    content = torch.load(trained / "ckpt.pt", weights_only=True)
    for part in ("w2", "w3"):  # finite weights, but the layer's output is not
        content["teacher"][f"layers.1.feed_forward.{part}.weight"] *= 1e25
    shutil.copytree(trained, tmp_path / "broken")
    torch.save(content, tmp_path / "broken" / "ckpt.pt")
    result = star("probe", "broken", "--layer", "all", "--steps", "2", "--out", "p")
    assert refused(result, "features are not finite at layer 2 at step", "marked incomplete")
    table = pd.read_csv(tmp_path / "p" / "probe-logreg-layer-all-teacher-steps-2.csv")
    assert set(table.query("control == 'none'")["layer"]) == {1}
    info = json.loads((tmp_path / "p" / "probe-logreg-layer-all-teacher-steps-2.json").read_text())
    assert not info["complete"] and info["broken"][0].startswith("layer 2 at step")
    with pytest.raises(UserError, match=r"not finite at layer 2 at step \d+ in [^;]*$"):
        probing.run(probing.Request(ckpts=["broken"], layer="2", steps=2))


def test_probe_refusals(star, trained, tmp_path):
    assert refused(star("probe"), "no run with a ckpt.pt below runs")
    assert refused(star("probe", trained, "--layer", "99"), "layer 99 does not exist", "layers 1 to 2")
    for steps in ("0", "1000"):
        assert refused(star("probe", trained, "--layer", "1", "--steps", steps), f"steps is {steps}")
    assert refused(star("probe", "nowhere.pt"), "no such file: nowhere.pt")
    assert refused(star("probe", GOLDEN / "llamagen_gpt_tiny.pt", "--layer", "1"), "give --data")
    assert refused(star("probe", trained, "--lr", "1"), "--lr: only for --protocol mae")
    mae = ("probe", trained, "--protocol", "mae")
    assert refused(star(*mae, "--lr", "fast"), "lr is 'fast'; expected numbers such as 0.1")
    assert refused(star(*mae, "--lr", "0"), "a base learning rate is 0.0; expected numbers > 0")
    assert refused(star(*mae, "--epochs", "0"), "epochs is 0")
    assert refused(star("probe", trained, "--seeds", "0"), "seeds is 0; expected at least 1")
    assert refused(star("probe", trained, "--cache-gb", "-1"), "cache-gb is -1.0")
    assert refused(star("probe", trained, "--preset", "B"), "have an effect only with --dry-run")
    assert refused(star("probe", trained, "--split", "val"), "have an effect only with --measure")
    assert refused(star("probe", trained, "--measure", "beauty"), "measure is 'beauty'", "cknna")
    idle = ("--lr", "1", "--seeds", "3", "--images", "digits", "--protocol", "mae", "--steps", "2")
    no_use = "--measure uses none of: --images, --lr, --protocol, --seeds; leave them out"
    assert refused(star("probe", trained, "--measure", "cka", *idle), no_use)
    assert refused(star("probe", trained, "--dry-run", "--measure", "cka"), "leave out --measure")
    assert refused(star("probe", *[trained] * 3, "--measure", "cka"), "one checkpoint or two; 3 were")
    encoder = ("probe", trained, "--measure", "cka", "--encoder", "resnet18")
    assert refused(star(*encoder), "--encoder and --encoder-weights belong together")
    assert refused(star("probe", trained, "--measure", "cka"), "need at least 20 images", "has 16")
    (tmp_path / "file").write_text("")
    assert refused(star("probe", trained, "--out", "file"), "--out file is a file; expected a folder")
    (tmp_path / "file").unlink()
    assert refused(star("probe", trained, "--images", "digits"), "are not those that")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_cost_and_computes_nothing(star, trained, tmp_path):
    command = ("probe", "--dry-run", "--preset", "B", "--layer", "all", "--protocol", "mae")
    code, out, err = star(*command, "--tflops", "100", "--nproc", "8")
    assert code == 0, err
    # 78 batches of 16,384 in each of 90 epochs, and 60,000 held out, of the model and the control
    assert f"{2 * (78 * 16384 * 90 + 60000):,} sequences" in out
    # float32 features of 12 layers x 8 steps x 768 of every training image
    assert f"{4 * 1281167 * 12 * 8 * 768 / 1e9:.1f} GB a view" in out
    assert "on 8 process(es), features streamed" in out
    code, out, err = star("probe", trained, "--dry-run")
    assert code == 0 and "46 training" in out and "time: give --tflops" in out, (out, err)
    assert refused(star(*command, "--tflops", "0"), "tflops is 0.0")
    assert list(tmp_path.iterdir()) == []
