"""``star token-invariance`` from the command line, and its drawings."""

import json
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from asking import asked_from_python
from cell_tokenizer import CellTokenizer, pictures, random_pictures
from helpers import refused
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from figures.studies import token_invariance
from probes.tokens.augmentations import AUGMENTATIONS, chosen_views
from probes.tokens.invariance import measure_invariance
from star.base.errors import UserError
from star.base.randomness import torch_generator
from star.tokenizer.file import save_tokenizer
from star.tokenizer.model import VQModel
from star.tokenizer.shape import VQConfig
from viz.base.style import save
from viz.tokens.invariance import CURVES, invariance_curves, invariance_maps


@pytest.fixture(scope="module")
def coarse_file(tmp_path_factory):
    """Another tokenizer, of stride 8."""
    model = VQModel(
        VQConfig(
            channels=32,
            multipliers=(1, 1, 1, 2),
            encoder_blocks=1,
            decoder_blocks=1,
            z_channels=64,
            codebook_size=64,
        )
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(
                parameter, std=parameter[0].numel() ** -0.5, generator=torch_generator(1, "coarse")
            )
    path = tmp_path_factory.mktemp("coarse") / "coarse.safetensors"
    save_tokenizer(model, path, {"name": "coarse"})
    return path


@pytest.mark.slow
def test_a_folder_gives_curves_tables_and_maps(star, digit_folder, tokenizer_file, tmp_path):
    asked = ("--augment", "shift,noise:0,2", "--images", "6", "--out", "o", "--device", "cpu")
    code, out, err = star("token-invariance", digit_folder, "--tokenizer", tokenizer_file, *asked)
    assert code == 0 and "6 images; below 20" in out and "shift 1" in out, (out, err)
    stem = "invariance-random-images0-test-6-images-shift-noise-0-2"
    table = pd.read_csv(tmp_path / "o" / f"{stem}.csv")
    assert list(table["strength"]) == [0, 1, 2, 4, 0, 2] and set(table["images"]) == {6}
    still = table[table["identity"]]
    assert (still["equal"] == 1).all() and (still["decoded_psnr"] == 60).all()
    info = json.loads((tmp_path / "o" / f"{stem}.json").read_text())
    assert info["tokenizers"]["random"]["stride"] == 4 and info["size"] == 32
    assert len(info["images_sha256"]) == 64 and info["augment"] == "shift,noise:0,2"
    drawn = {path.stem.removeprefix(stem) for path in (tmp_path / "o").glob("*.png")}
    assert drawn == {"-equal", "-code-distance", "-histogram", "-decoded-psnr", "-maps"}
    before = (tmp_path / "o" / f"{stem}.csv").read_bytes()
    star("token-invariance", digit_folder, "--tokenizer", tokenizer_file, *asked)
    assert (tmp_path / "o" / f"{stem}.csv").read_bytes() == before, "the seed decides"


@pytest.mark.slow
def test_two_tokenizers_are_compared_on_the_same_images(star, tokenizer_file, coarse_file, tmp_path):
    both = ("--tokenizer", tokenizer_file, "--tokenizer", coarse_file)
    code, out, err = star(
        "token-invariance", "digits", *both, "--images", "20", "--size", "32", "--augment",
        "shift,noise:5,cells:1", "--out", "o", "--batch-size", "8",
    )  # fmt: skip
    assert code == 0 and "equal: coarse higher at" in out and "note:" not in out, (out, err)
    (pair,) = (tmp_path / "o").glob("*against-random.csv")
    compared = pd.read_csv(pair)
    assert set(compared["n"]) <= set(range(1, 21)) and {"p_holm", "higher"} <= set(compared)
    table = pd.read_csv(next((tmp_path / "o").glob("invariance*noise-5-cells-1.csv")))
    assert set(table["tokenizer"]) == {"random", "coarse"}
    for _, part in table.groupby("tokenizer"):
        assert list(part[part["augmentation"] == "shift"]["strength"]) == [0, 1, 2, 4, 8]
    options = ("--tokenizer", tokenizer_file, "--tokenizer", tokenizer_file, "--out", "x")
    assert refused(star("token-invariance", "digits", *options), "are the same tokenizer")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_one_image_gives_figure_1c_and_maps_of_each_tokenizer(
    star, tokenizer_file, coarse_file, tmp_path
):
    both = ("--tokenizer", tokenizer_file, "--tokenizer", coarse_file)
    code, out, err = star(
        "token-invariance", "digits/5", *both, "--size", "32", "--rotate", "3", "--augment", "noise"
    )
    assert code == 0 and "when rotated by 3 degrees" in out, (out, err)
    folder = tmp_path / "token-invariance"
    assert len(pd.read_csv(folder / "tokens-5-random.csv")) == 64
    assert len(pd.read_csv(folder / "tokens-5-coarse.csv")) == 16
    table = pd.read_csv(folder / "tokens-5-coarse-augmented-noise.csv")
    assert len(table) == 6 and table["chance"].isna().all() and table["equal_low"].isna().all()
    assert (folder / "tokens-5-coarse-augmented-noise-maps.png").exists()
    every = ",".join(AUGMENTATIONS)  # a file's name may have 255 bytes
    code, _, err = star("token-invariance", "digits/5", *both[:2], "--augment", every, "--out", "e")
    assert code == 0 and max(len(path.name) for path in (tmp_path / "e").iterdir()) < 100, err
    code, _, err = star("token-invariance", "digits/5", *both[:2], "--augment", "noise:0", "--out", "n")
    assert code == 0 and not list((tmp_path / "n").glob("*maps*")), err


@pytest.mark.parametrize("many", [True, False])
def test_the_same_request_from_python(star, tokenizer_file, coarse_file, digit_folder, tmp_path, many):
    image, files = str(digit_folder) if many else "digits/5", [str(tokenizer_file), str(coarse_file)]
    options = [
        "--tokenizer",
        files[0],
        "--tokenizer",
        files[1],
        "--augment",
        "noise:0,2",
        "--size",
        "32",
    ]
    options += ["--images", "6"] if many else ["--rotate", "3"]
    code, out, err = star("token-invariance", image, *options, "--out", "o")
    assert code == 0, err
    request = token_invariance.Request(
        image=image,
        tokenizer=files,
        augment="noise:0,2",
        size=32,
        images=6 if many else None,
        rotate=None if many else 3,
        out=tmp_path / "o",
    )
    answer = asked_from_python(token_invariance.run, request, tmp_path / "o")
    assert [table.title.split(",")[0] for table in answer.tables] == ["random", "coarse"]
    assert all(sentence in out for sentence in answer.sentences)
    assert ("note: 6 images" in " ".join(answer.sentences)) == many


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--shift", "2"], "--shift is an option of one image's view, digits is not"),
        (["digits/5", "--images", "3"], "--images is an option of many images, digits/5 is not"),
        (["digits/5", "--split", "val"], "--split is an option of many images"),
        (["digits", "--images", "-1"], "images is -1; expected at least 1, or 0 for all"),
        (["digits", "--augment", "warp"], "augment is 'warp'; expected one of: shift, cells, flip"),
        (["digits", "--augment", "cells:8"], "cells:8 is 32 pixels; expected less than"),
        (["digits", "--size", "30"], "size is 30; expected a multiple of the tokenizer's stride 4"),
        (["digits", "--size", "2"], "size is 2; expected a multiple of the tokenizer's stride 4"),
        (["digits", "--seed", "-1"], "seed is -1"),
        (["digits", "--batch-size", "0"], "batch_size is 0; expected at least 1"),
        (["photos", "--split", "test"], "photos has no test split; it has: train"),
        (["here", "--split", "val"], "here has no folder train, so no splits"),
        (["here"], "here holds no image; expected files"),
        (["missing"], "no such image: missing"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything(
    star, tmp_path, tokenizer_file, arguments, message
):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").write_text("no image")
    result = star("token-invariance", *arguments, "--tokenizer", tokenizer_file)
    assert refused(result, message) and not result[1]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("kind", ["empty", "truncated", "text"])
def test_a_bad_image_in_a_folder_is_named(star, tmp_path, digit_folder, tokenizer_file, kind):
    good = next((digit_folder / "test" / "one").glob("*.png")).read_bytes()
    content = {"empty": b"", "truncated": good[: len(good) // 2], "text": b"I am no picture"}[kind]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "good.png").write_bytes(good)
    (tmp_path / "set" / "bad.png").write_bytes(content)
    result = star("token-invariance", "set", "--tokenizer", tokenizer_file)
    assert refused(result, "cannot decode set/bad.png")
    assert not (tmp_path / "token-invariance").exists()


@pytest.fixture(scope="module")
def measured():
    views = chosen_views(None, size=16, stride=4)
    return measure_invariance(CellTokenizer(), pictures(random_pictures(3)), views, size=16)


def drawn_inside(figure) -> bool:
    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    width, height = figure.get_size_inches()
    return box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02


def texts(figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


@pytest.mark.parametrize("measure", CURVES)
def test_curves_show_every_augmentation_with_its_unit(measured, measure, tmp_path):
    figure = invariance_curves(measured.table(), measure, title="Title")
    save(figure, tmp_path / "f", ("png",))
    assert {"Title", "cells", *AUGMENTATIONS, "quality", "sigma, of 255"} <= texts(figure)
    assert drawn_inside(figure)
    assert len([axes for axes in figure.axes if axes.get_visible()]) == len(AUGMENTATIONS)


def test_a_curve_is_the_table_in_percent_and_jpeg_gets_worse_to_the_right(measured):
    table = measured.table()
    figure = invariance_curves(table)
    axes = {axes.get_title(loc="left"): axes for axes in figure.axes}
    line = axes["noise"].lines[0]
    np.testing.assert_allclose(line.get_ydata(), 100 * table[table["augmentation"] == "noise"]["equal"])
    assert [label.get_text() for label in axes["jpeg"].get_xticklabels()][:2] == ["100", "95"]
    # equal, aligned and chance where cells move exactly; equal and chance elsewhere
    assert (len(axes["cells"].lines), len(axes["noise"].lines)) == (3, 2)
    two = pd.concat([table, table.assign(tokenizer="other")])
    figure = invariance_curves(two[two["augmentation"] == "noise"], note="a long name " * 20)
    assert len(figure.axes[0].lines) == 4 and drawn_inside(figure) and "other" in texts(figure)
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]


def test_maps_show_the_share_and_hatch_what_no_view_shows(measured):
    picture = np.zeros((16, 16, 3), np.uint8)
    figure = invariance_maps(measured.maps, image=picture, title="Title")
    assert drawn_inside(figure) and {"Title", "image", "hatched: in no view"} <= texts(figure)
    assert len(figure.axes) == 1 + len(AUGMENTATIONS) + 1
    shown = figure.axes[1].images[0].get_array()
    np.testing.assert_allclose(shown.filled(np.nan), 100 * measured.maps["shift"])
    one = invariance_maps({"noise": measured.maps["noise"]}, note="a long name " * 20)
    assert drawn_inside(one)
    mean = 100 * measured.maps["noise"].mean()
    assert f"noise: {mean:.0f} %" in texts(figure)


def test_bad_tables_and_maps_are_one_clear_line(measured):
    table = measured.table()
    with pytest.raises(UserError, match="measure is 'x'; expected one of: equal, code_distance"):
        invariance_curves(table, "x")
    with pytest.raises(UserError, match="lacks the columns chance"):
        invariance_curves(table.drop(columns="chance"))
    with pytest.raises(UserError, match="has a strength of shift twice"):
        invariance_curves(pd.concat([table, table]))
    with pytest.raises(UserError, match="the table has no equal"):
        invariance_curves(table.assign(equal=np.nan))
    with pytest.raises(UserError, match="maps holds no number"):
        invariance_maps({"noise": np.full((2, 2), np.nan)})
    with pytest.raises(UserError, match="the map of noise is .* expected fractions"):
        invariance_maps({"noise": np.full((2, 2), 3.0)})


def test_archives_are_folders_too(star, tokenizer_file, digit_folder, tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        tar.add(digit_folder, arcname="set")
    few = ("--tokenizer", tokenizer_file, "--augment", "flip", "--images", "4")
    code, out, err = star("token-invariance", "set.tar", *few, "--out", "tar")
    assert code == 0 and "set.tar, test: 4 images" in out, (out, err)
    code, _, err = star("token-invariance", digit_folder, *few, "--out", "folder")
    tables = [pd.read_csv(next((tmp_path / name).glob("*.csv"))) for name in ("tar", "folder")]
    assert code == 0 and tables[0]["equal"].notna().all(), err


def test_images_too_large_are_refused_with_their_size_unless_allowed(star, tokenizer_file, tmp_path):
    Image.new("RGB", (60, 50)).save(tmp_path / "large.png")
    few = ("--tokenizer", tokenizer_file, "--augment", "flip")
    for name in ("large.png", "."):
        small = (name, *few, "--max-megapixels", "0.002")
        assert refused(star("token-invariance", *small), "60 x 50 pixels", "with --max-megapixels")
    assert star("token-invariance", "large.png", *few, "--max-megapixels", "0.003")[0] == 0
    assert refused(star("token-invariance", "large.png", *few, "--max-megapixels", "0"), "more than 0")


def test_images_that_cannot_be_read_are_left_out_if_asked(star, tokenizer_file, tmp_path):
    (tmp_path / "set").mkdir()
    for place in range(3):
        Image.fromarray(random_pictures(1, 32, place)[0]).save(tmp_path / "set" / f"{place}.png")
    (tmp_path / "set" / "text.jpg").write_text("no image")
    few = ("token-invariance", "set", "--tokenizer", tokenizer_file, "--augment", "flip")
    assert refused(star(*few), "text.jpg", "--skip-bad")
    code, out, err = star(*few, "--skip-bad")
    assert code == 0 and "left out, since they cannot be read: text.jpg" in out, err
    assert "all: 3 images" in out
