"""``star attn-maps``: several images and checkpoints, all heads, samples, GIFs, data, and refusals."""

import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from asking import asked_from_python
from helpers import GOLDEN, refused
from PIL import Image

from figures.requests.attention_maps import Request
from figures.studies import attention_maps as study
from figures.studies.attention_maps_plan import split_names
from star.base.errors import UserError
from star.training.checkpoint import load_model
from viz.base import style


@pytest.fixture(scope="module")
def baseline(tmp_path_factory, trained):
    """A checkpoint of the same shape that calls itself AR, with other queries, keys and values."""
    content = torch.load(trained / "ckpt.pt", weights_only=True)
    content["config"]["objective"]["mask_ratio"] = 0.0
    content["config"]["objective"] |= {"mim_weight": 0.0, "contrast_weight": 0.0}
    generator = torch.Generator().manual_seed(0)
    for key, value in content["teacher"].items():
        if key.endswith("wqkv.weight"):
            content["teacher"][key] = torch.randn(value.shape, generator=generator)
    run = tmp_path_factory.mktemp("runs") / "plain"
    run.mkdir()
    torch.save(content, run / "ckpt.pt")
    (run / "tokenizer.safetensors").write_bytes((trained / "tokenizer.safetensors").read_bytes())
    return run


def tables(folder):
    return {path.stem: pd.read_csv(path) for path in sorted(folder.glob("*.csv"))}


def test_names_are_checkpoints_then_images(tmp_path):
    (tmp_path / "run").mkdir()
    run, image = str(tmp_path / "run"), str(tmp_path / "a.png")
    checkpoints, images = split_names([run, "b.pt", "c.pth", image, "digits/3"])
    assert [path.name for path in checkpoints] == ["run", "b.pt", "c.pth"]
    assert images == [image, "digits/3"]
    assert split_names(["flower.jpg"]) == ([], ["flower.jpg"]) and split_names([]) == ([], [])
    with pytest.raises(UserError, match="b.pt is named after the image .*; name checkpoints first"):
        split_names([run, image, "b.pt"])
    with pytest.raises(UserError, match="no such checkpoint or image: runs/typo"):
        split_names(["runs/typo"])


def test_several_images_get_a_picture_each_under_names_of_their_own(star, trained, tmp_path):
    (tmp_path / "x").mkdir()
    picture = Image.new("RGBA", (50, 40), (200, 30, 30, 128))
    picture.save(tmp_path / "x" / "a b.png")
    picture.convert("L").save(tmp_path / "x" / "a-b.png")
    options = ("--layers", "2", "--steps", "2", "--out", "maps")
    code, out, err = star("attn-maps", trained, "x/a b.png", "x/a-b.png", *options)
    assert code == 0 and "from 50 x 40, transparent parts on white" in out, (out, err)
    assert out.count("transparent parts") == 1
    stems = ("attn-maps-x-a-b-png-teacher", "attn-maps-x-a-b-png-teacher-2")
    expected = {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf", "svg", "csv", "json")}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == expected
    assert all(name in out.replace("\n", "") for name in expected)
    infos = [json.loads((tmp_path / "maps" / f"{stem}.json").read_text()) for stem in stems]
    assert infos[0]["scale_max"] == infos[1]["scale_max"], "one scale for all that a command draws"
    assert infos[0]["image"] == "x/a b.png" and len(infos[0]["models"]["ST-AR"]["tokens"]) == 64


def test_checkpoints_are_compared_on_one_image_and_one_scale(star, trained, baseline, tmp_path):
    options = ("--layers", "1,2", "--at", "5,64", "--out")
    code, _, err = star("attn-maps", trained, baseline, "flower.jpg", *options, "both")
    assert code == 0, err
    names = {path.name for path in (tmp_path / "both").iterdir()}
    assert "attn-maps-flower-jpg-st-ar-ar-teacher.png" in names and len(names) == 5
    [table] = tables(tmp_path / "both").values()
    assert set(table["model"]) == {"ST-AR", "AR"} and set(table["layer"]) == {1, 2}
    for run, name in ((trained, "ST-AR"), (baseline, "AR")):
        code, _, err = star("attn-maps", run, "flower.jpg", *options, name)
        assert code == 0, err
        [alone] = tables(tmp_path / name).values()
        own = table[table["model"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, alone)
    largest = table[table["place"] > 0].groupby(["model", "layer", "step"])["weight"].max()
    [info] = [json.loads(path.read_text()) for path in (tmp_path / "both").glob("*.json")]
    # The median of both models' largest weights, rounded up to two digits.
    assert info["scale_max"] == pytest.approx(largest.median(), rel=0.1)
    assert info["scale_max"] >= largest.median() * (1 - 1e-4)


def test_all_heads_are_a_picture_a_layer(star, trained, tmp_path):
    code, _, err = star(
        "attn-maps", trained, "digits/3", "--head", "all", "--steps", "3", "--formats", "svg,png",
        "--out", "maps",
    )  # fmt: skip
    assert code == 0, err
    stem = "attn-maps-digits-3-teacher-all-heads"
    pictures = {f"{stem}-layer-{layer}.{kind}" for layer in (1, 2) for kind in ("png", "svg")}
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert names == pictures | {f"{stem}.csv", f"{stem}.json"}
    assert ElementTree.parse(tmp_path / "maps" / f"{stem}-layer-2.svg").getroot().tag.endswith("}svg")
    table = pd.read_csv(tmp_path / "maps" / f"{stem}.csv")
    assert set(table["head"]) == {1, 2} and set(table["layer"]) == {1, 2}


def test_maps_of_samples_are_the_attention_to_the_tokens_generated(star, trained, tmp_path):
    options = ("--class", "1", "--seed", "5")
    code, out, err = star(
        "attn-maps",
        trained,
        "--sample",
        "2",
        *options,
        "--layers",
        "2",
        "--at",
        "9,64",
        "--out",
        "maps",
    )
    assert code == 0 and "sample of class 1 (zero), seed 6, guidance 2" in out, (out, err)
    code, _, err = star("sample", trained, "--each", "2", *options, "--out", "s")
    assert code == 0, err
    with np.load(tmp_path / "s" / "samples-teacher.npz") as drawn:
        tokens = torch.from_numpy(drawn["tokens"])
    model = load_model(trained)
    name = "layers.2.attention"
    rows = model(tokens, torch.tensor([1, 1]), capture=[name]).captured[name].mean(1)
    found = tables(tmp_path / "maps")
    assert len(found) == 2
    for place, (stem, table) in enumerate(found.items()):
        assert f"seed-{5 + place}-guidance-2" in stem
        for step in (9, 64):
            weights = table[table["step"] == step].sort_values("place")["weight"]
            expected = rows[place, step - 1, :step].numpy()
            # The table keeps six digits; rows of few queries and of all agree to float32.
            np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-7)


def test_python_asks_what_the_command_asks(star, trained, baseline, tmp_path):
    options = ("--layers", "1,2", "--at", "5,64", "--head", "all", "--out", "maps")
    code, out, err = star("attn-maps", trained, baseline, "flower.jpg", "digits/3", *options)
    assert code == 0, err
    names = [str(trained), str(baseline), "flower.jpg", "digits/3"]
    asked = Request(names=names, layers="1,2", at="5,64", head="all", out=tmp_path / "other")
    answer = asked_from_python(study.run, asked, tmp_path)
    assert not set(answer.sentences) - set(out.splitlines())
    assert len(answer.results) == 2 and len(answer.figures) == 2 * 2 * 2
    assert set(answer.result.table["model"]) == {"ST-AR", "AR"} and answer.result.info["scale_max"] > 0
    first, second, scale = answer.sentences
    assert first.startswith("flower.jpg: ") and second.startswith("digits/3: ")
    assert scale.startswith("colour scale of everything drawn: 0 to ")
    asked = Request(names=names, animate=True)
    answer = study.run(asked)
    assert not answer.results and not answer.figures and len(answer.sentences) == 3


def test_a_gif_follows_every_step_of_every_model(star, trained, baseline, tmp_path):
    options = ("--layers", "1,2", "--animate", "--fps", "20", "--out", "maps")
    code, out, err = star("attn-maps", trained, baseline, "digits/3", *options)
    assert code == 0, err
    stem = "attn-maps-digits-3-st-ar-ar-teacher"
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert names == {f"{stem}.gif", f"{stem}.npz", f"{stem}.json"}
    assert f"frames {stem}: 64/64" in out
    with np.load(tmp_path / "maps" / f"{stem}.npz") as data:
        assert data["models"].tolist() == ["ST-AR", "AR"] and data["layers"].tolist() == [1, 2]
        maps, classes = data["maps"], data["class_weights"]
    assert maps.shape == (2, 2, 64, 64) and classes.shape == (2, 2, 64)
    np.testing.assert_allclose(maps.sum(-1) + classes, 1, rtol=1e-4)
    assert not np.triu(maps).any(), "step t (row t - 1) has seen tokens 1..t-1"
    red = [int(style.CURRENT[i : i + 2], 16) for i in (1, 3, 5)]
    with Image.open(tmp_path / "maps" / f"{stem}.gif") as gif:
        assert gif.n_frames == 64 and gif.info["duration"] == 50
        spread = []
        for step in (1, 2, 30, 64):
            gif.seek(step - 1)
            near = (np.abs(np.asarray(gif.convert("RGB")).astype(int) - red) <= 4).all(-1)
            near[-60:] = False  # the key
            spread.append(np.count_nonzero(near))
        # Four maps with a red frame each, of one size, from step 2 on.
        assert spread[0] == 0 and len(set(spread[1:])) == 1 and spread[1] > 4 * 100


def test_without_layers_an_animation_shows_three_and_says_so(star, trained, tmp_path):
    code, out, err = star("attn-maps", trained, "digits/3", "--animate", "--out", "maps")
    assert code == 0 and "layers 1, 2 (--layers names others)" in out, (out, err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--animate", "--steps", "3"], "--animate writes a GIF over every step; leave out --steps"),
        (["--animate", "--at", "3"], "leave out --at"),
        (["--animate", "--formats", "svg"], "leave out --formats"),
        (["--animate", "--head", "all"], "--animate shows one map a layer"),
        (["--animate", "--fps", "0"], "fps is 0; expected 0.1 to 50"),
        (["--fps", "5"], "--fps has an effect only with --animate"),
        (["--formats", "png,jpg"], "formats is 'png,jpg'; expected some of: png, pdf, svg"),
        (["--sample", "0"], "sample is 0; expected 1 to 100 images"),
        (["--sample", "1", "--class", "7"], "class 7 does not exist"),
        (["--sample", "1", "--codes", "c.npy"], "--codes and --sample both say what is looked at"),
        (["--sample", "1", "--data", "digits"], "--data has no effect with --sample"),
        (["digits/1", "--sample", "1"], "images and --sample both say what is looked at"),
        (["--seed", "1"], "--seed and --cfg-scale have an effect only with --sample"),
        (["--head", "some"], "head is 'some'; expected mean, max, all, rollout or 1 to 2"),
        (["--scale-max", "0"], "scale_max is 0"),
        (["digits/1", "missing.png"], "no such image: missing.png"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(star, trained, tmp_path, options, message):
    result = star("attn-maps", trained, *options, "--out", "maps")
    assert refused(result, message)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_cannot_be_compared_are_refused(star, trained, tmp_path):
    golden = GOLDEN / "llamagen_gpt_tiny.pt"
    result = star("attn-maps", trained, golden, "flower.jpg", "--out", "maps")
    assert refused(result, "different grids of tokens (ST-AR 8 x 8, LlamaGen 4 x 4)")
    content = torch.load(trained / "ckpt.pt", weights_only=True)
    content["class_names"] = ["three", "four"]
    torch.save(content, tmp_path / "other.pt")
    tokenizer = ("--tokenizer", trained / "tokenizer.safetensors")
    result = star("attn-maps", trained, "other.pt", "digits/1", "--class", "1", *tokenizer)
    assert refused(result, "were trained on different classes")
    code, _, err = star(
        "attn-maps", trained, "other.pt", "digits/1", *tokenizer, "--steps", "2", "--out", "maps"
    )
    assert code == 0, err
    content["teacher"]["layers.1.attention.wo.weight"][0, 0] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    result = star("attn-maps", "nan.pt", "digits/1", *tokenizer)
    assert refused(result, "nan.pt is broken: layers.1.attention.wo.weight holds values that are not")
    (tmp_path / "file").touch()
    assert refused(star("attn-maps", trained, "--out", "file"), "--out file is a file")
