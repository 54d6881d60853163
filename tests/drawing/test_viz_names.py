"""Names that the pictures' font lacks: told apart in every drawing, and no complaint of the font's."""

import os
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import (
    made_by_class,
    made_compare_figure,
    made_counts,
    made_frames,
    made_image,
    made_metrics,
    made_overview,
    made_panels,
    made_samples,
    made_table,
)
from matplotlib.text import Text

from viz.ablation import cut_changes, cut_layers, reach_curves
from viz.attention.stats import attention_curves, attention_difference, attention_layers
from viz.base import style
from viz.base.names import in_heading, labels, legend_label, legible, stand_ins
from viz.linear.classes import class_accuracy
from viz.linear.confusion import confusion_matrix
from viz.linear.curves import probe_curves
from viz.linear.maps import probe_heatmap, probe_heatmap_difference
from viz.measures import measure_curves, measure_heatmap
from viz.samples import sample_compare, sample_grid
from viz.tokens.change import token_views
from viz.tokens.codebook import codebook_pictures, codebook_usage
from viz.tokens.invariance import CURVES, invariance_curves, invariance_maps
from viz.training import training_curves

LATIN = os.fsdecode(b"caf\xe9")
# Chinese, Hindi, Arabic and Hebrew (which the font has), an emoji it lacks, private use, half a pair,
# controls, nothing to see; and the names that stay.
ODD = ["猫", "狗", "बिल्ली", "\U0001f408", "\ue000", "\ud83d", "a\nb", "\x00\x1b", " ", "cat 猫"]
KEPT = ["cat", "Cat", "café", "قطة", "חתול", "$x^2$", "[red]b[/]", "100 % {0}", "класс", "γάτα"]
ODD_MODELS = ("ST-AR 猫\x00", "AR \ud83d\n")
SAID_MODELS = (r"ST-AR \u732b\x00", r"AR \xed\xa0\xbd\n")


def test_labels_are_the_names_or_say_which_class():
    found = labels(KEPT + ODD)
    assert found[:10] == KEPT
    assert found[10:] == [f"class {place}" for place in range(10, 20)]
    assert stand_ins(KEPT + ODD) == {place: f"class {place}" for place in range(10, 20)}
    assert labels(["猫", "b", "狗"], "image", first=1) == ["image 1", "b", "image 3"]
    assert labels([LATIN, 7]) == [r"caf\xe9", "7"] and stand_ins([LATIN]) == {}


def test_a_label_is_never_that_of_another_name():
    assert labels(["猫", "class 0", "(class 0)"]) == ["((class 0))", "class 0", "(class 0)"]
    two_forms = labels(["caf\u00e9", "cafe\u0301", "cafe"])
    assert two_forms == ["caf\u00e9 (0)", "cafe\u0301 (1)", "cafe"]
    long = ["n" * 30 + "a", "n" * 30 + "b", "m" * 30]
    assert labels(long, most=12) == ["nnnnnnn… (0)", "nnnnnnn… (1)", "mmmmmmmmmmm…"]
    assert labels(["crane", "crane"]) == ["crane", "crane"], "one name twice is no other name"
    many = [f"猫{place}" for place in range(3000)]
    assert len(set(labels(many, most=19))) == 3000


def test_headings_keep_their_lines_and_show_what_is_missing():
    assert in_heading("By class: ST-AR 猫, é → ü\n± 2 %") == "By class: ST-AR \\u732b, é → ü\n± 2 %"
    assert legible("a\nb") == r"a\nb"
    assert legible(f"\U0001f408\r{LATIN}") == r"\U0001f408\rcaf\xe9"
    assert legend_label("_run") == " _run" and legend_label("run_") == "run_"


def ablation_table():
    rows = [("class", None, "1,2"), ("beyond", 1, "all"), ("beyond", 2, "all")]
    table = pd.DataFrame(rows, columns=["cut", "reach", "layers"])
    return table.assign(steps="all", measure="nll", difference=0.1, low=0.05, high=0.2)


def layered_table():
    return ablation_table().assign(layers=["1", "2", "2"])


def stats_table():
    cells = [(layer, step) for layer in (0, 1, 2) for step in (0, 4, 8)]
    table = pd.DataFrame(cells, columns=["layer", "step"])
    return table.assign(head=0, measure="entropy", value=1.0, low=0.9, high=1.1, uniform=1.2)


def difference_table():
    return stats_table().query("layer > 0").assign(difference=0.1, higher="neither")


def invariance_table():
    names = [name for measure in CURVES for name in (measure, *CURVES[measure][4])]
    row = {"augmentation": "shift", "unit": "px"} | {
        f"{name}{end}": 0.5 for name in names for end in ("", "_low", "_high")
    }
    rows = [
        row | {"tokenizer": name, "strength": s} for name in ("a 猫\x00", "b 狗") for s in (0.0, 1.0)
    ]
    return pd.DataFrame(rows)


def measures_table():
    cells = [(a, b) for a in (1, 2) for b in (1, 2)]
    table = pd.DataFrame(cells, columns=["layer", "layer_b"]).assign(step=4, step_b=4)
    table = table.assign(measure="cka", against="checkpoint", value=0.5, low=0.4, high=0.6)
    return table.assign(baseline=0.0)


def usage_table():
    share = np.array([0.5, 0.3, 0.2])
    return pd.DataFrame({"count": [5, 3, 2], "share": share, "rank": [1, 2, 3], "cosine": share})


def both(table):
    return dict.fromkeys(ODD_MODELS, table)


PICTURES = np.zeros((2, 4, 4, 3), dtype=np.uint8)
CLASSES = [*ODD, *KEPT]
# name: (drawing, what it must say of the odd names)
DRAWINGS = {
    "samples": (
        lambda: sample_grid(made_samples(), [0, 1, 5, 6, 8, 10], CLASSES, title="猫"),
        ("class 0", "class 1", "class 5", "class 6", "class 8", "cat", r"\u732b"),
    ),
    "sheets": (
        lambda: sample_compare(dict.fromkeys(ODD_MODELS, made_samples()), title="猫"),
        (*SAID_MODELS, r"\u732b"),
    ),
    "confusion": (
        lambda: confusion_matrix(made_counts(20), CLASSES, f"Of {ODD_MODELS[0]}"),
        ("class 0", "class 9", "cat", "$x^2$", rf"Of {SAID_MODELS[0]}"),
    ),
    "confusion of many": (
        lambda: confusion_matrix(made_counts(30), [*CLASSES, *"鱼鸟马牛羊虎兔龙蛇猴"]),
        ("class 0 → class 1", "class 9 → cat"),
    ),
    "classes": (
        lambda: class_accuracy(both(made_by_class(20)), CLASSES, title=ODD_MODELS[0]),
        ("class 0", "class 9", "cat", *SAID_MODELS),
    ),
    "many classes": (
        lambda: class_accuracy({"AR 猫": made_by_class(60)}, [f"猫{i}" for i in range(60)]),
        (r"AR \u732b, best: class 59 (80 %), class 58 (79 %), class 57 (78 %), class 56 (77 %)",),
    ),
    "curves": (
        lambda: probe_curves(both(made_table()), 6, total_steps=16, controls=None, title="猫"),
        (*SAID_MODELS, r"\u732b"),
    ),
    "heatmap": (lambda: probe_heatmap(made_table(), title="猫"), (r"\u732b",)),
    "difference": (
        lambda: probe_heatmap_difference(made_table(0.1), made_table(), ODD_MODELS),
        (f"Probe accuracy: {SAID_MODELS[0]} minus {SAID_MODELS[1]}",),
    ),
    "tokens": (
        lambda: token_views(
            made_image(), made_image(), np.eye(4, dtype=int), np.ones((4, 4), int), labels=("猫", "狗"),
            title="鱼",
        ),
        (r"\u732b", r"token indices, \u72d7", r"\u9c7c"),
    ),
    "attention": (
        lambda: made_compare_figure(
            maps_by_model=both(np.zeros((2, 3, 16))), class_weights=both(np.ones((2, 3))),
            title="猫", note="test/狗/0.jpg: class 0 (狗)",
        ),
        (*SAID_MODELS, r"\u732b", r"test/\u72d7/0.jpg: class 0 (\u72d7)"),
    ),
    "attribution": (
        lambda: made_panels(names=["猫/1.jpg", "狗/1.jpg"], methods=["猫", "b"], title="鱼"),
        ("image 1", "image 2", r"\u9c7c"),
    ),
    "reach": (lambda: reach_curves(both(ablation_table())), SAID_MODELS),
    "cuts": (lambda: cut_changes(both(ablation_table())), SAID_MODELS),
    "cut layers": (lambda: cut_layers(both(layered_table())), SAID_MODELS),
    "statistics": (lambda: attention_curves(both(stats_table()), total_steps=8), SAID_MODELS),
    "one model's statistics": (
        lambda: attention_curves({ODD_MODELS[0]: stats_table()}, total_steps=8),
        (f"Where attention goes, step by step ({SAID_MODELS[0]}, mean over heads)",),
    ),
    "statistics' maps": (lambda: attention_layers(stats_table(), title="猫"), (r"\u732b",)),
    "statistics' difference": (
        lambda: attention_difference(difference_table(), ODD_MODELS),
        (f"Attention: {SAID_MODELS[1]} minus {SAID_MODELS[0]}", f"{SAID_MODELS[0]} more"),
    ),
    "codebook": (lambda: codebook_usage(usage_table(), perplexity=2, title="猫"), (r"\u732b",)),
    "codes": (
        lambda: codebook_pictures(PICTURES, PICTURES, [1, 2], [0.5, 0.5], [0.1, 0.1], title="猫"),
        (r"\u732b",),
    ),
    "invariance": (
        lambda: invariance_curves(invariance_table(), note="猫.jpg"),
        (r"a \u732b\x00", r"b \u72d7", r"\u732b.jpg"),
    ),
    "maps": (
        lambda: invariance_maps({"shift": np.zeros((2, 2))}, title="猫", note="狗\x00"),
        (r"\u732b", r"\u72d7\x00"),
    ),
    "measures": (
        lambda: measure_curves(measures_table(), "cka", total_steps=4, title="猫"), (r"\u732b",),
    ),
    "measures' map": (
        lambda: measure_heatmap(measures_table(), "cka", step=4, against="checkpoint", title="猫"),
        (r"\u732b",),
    ),
    "training": (
        lambda: training_curves(both(made_metrics(False)) | {"_old": made_metrics(False)}, title="猫"),
        (*SAID_MODELS, " _old", r"\u732b"),
    ),
    "overview": (
        lambda: made_overview(
            tables={"猫": made_table(), "狗": made_table()}, view_labels=("鱼", "b"), headings=("鸟",
            "b", "c"),
        ),
        (r"\u732b", r"\u72d7", r"\u9c7c", r"\u9e1f"),
    ),
}  # fmt: skip


def has_no_text_of(figure, letters):
    said = "".join(text.get_text() for text in figure.findobj(Text))
    return not set(said) & set(letters)


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_tells_names_apart_that_its_font_lacks(name, tmp_path):
    draw, said = DRAWINGS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw()
        style.save(figure, tmp_path / "picture", ("png",))
    assert set(said) <= {text.get_text() for text in figure.findobj(Text)}
    assert has_no_text_of(figure, "猫狗鱼鸟\U0001f408\ue000\ud83d\x00\x1b\r")


def test_an_animation_tells_models_apart():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = (*ODD_MODELS, "AR " + "n" * 40 + "a", "AR " + "n" * 40 + "b")
        frames = made_frames(models, layers=(1,), title="猫", note="狗")
        assert frames.draw(3).shape[2] == 3
    said = {text.get_text() for text in frames._figure.findobj(Text)}
    assert {*SAID_MODELS, r"\u732b", r"\u72d7"} <= said
    assert {f"AR {'n' * 18}… (3)", f"AR {'n' * 18}… (4)"} <= said


@pytest.fixture
def chinese_run(trained, tmp_path):
    """The trained run as if its two classes were called in Chinese."""
    folder = tmp_path / "run"
    folder.mkdir()
    content = torch.load(trained / "ckpt.pt", weights_only=True)
    torch.save(content | {"class_names": ["猫", "狗"]}, folder / "ckpt.pt")
    (folder / "tokenizer.safetensors").symlink_to(trained / "tokenizer.safetensors")
    return folder


def test_sampling_says_which_class_is_which(star, chinese_run):
    code, out, err = star("sample", chinese_run, "--each", "1", "--class", "0,1", "--out", "s")
    assert (code, err) == (0, "")
    assert "in pictures, whose font lacks these names: class 0 is 猫, class 1 is 狗\n" in out


def test_attention_maps_of_images_named_in_chinese_go_into_files_of_their_own(
    star, chinese_run, tmp_path
):
    from PIL import Image

    for name in ("猫.png", "狗.png"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / name)
    options = ("--steps", "2", "--layers", "1", "--formats", "png", "--class", "1")
    for name in ("猫.png", "狗.png"):
        code, out, err = star("attn-maps", chinese_run, name, *options, "--out", "m")
        assert (code, err) == (0, "") and f"{name}: " in out and "class 1 (狗)" in out
    tables = sorted((tmp_path / "m").glob("*.csv"))
    assert len(tables) == 2
    assert {pd.read_csv(table)["image"].iloc[0] for table in tables} == {"猫.png", "狗.png"}
