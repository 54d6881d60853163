"""Every drawing on synthetic arrays: it can be saved, shows what it says, and refuses bad input."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up import (
    GRID,
    STEPS,
    made_by_class,
    made_compare_figure,
    made_controls,
    made_counts,
    made_frames,
    made_grid_figure,
    made_heads_figure,
    made_image,
    made_maps,
    made_metrics,
    made_names,
    made_overview,
    made_row_figure,
    made_samples,
    made_table,
    made_tested,
    made_tokens_figure,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.text import Text
from PIL import Image

from star.base.errors import UserError
from viz.attention.maps import attention_grid, attention_row
from viz.base import style
from viz.base.panel import heat_scale, most_attended
from viz.linear.classes import class_accuracy
from viz.linear.confusion import confused_pairs, confusion_matrix
from viz.linear.curves import probe_curves
from viz.linear.maps import probe_heatmap, probe_heatmap_difference
from viz.samples import sample_compare, sample_grid
from viz.tokens.change import token_views
from viz.training import training_curves

VIZ = Path(__file__).parents[2] / "viz"
MODULES = sorted(
    ".".join(path.relative_to(VIZ).with_suffix("").parts) for path in VIZ.rglob("[!_]*.py")
)


DRAWINGS = {
    "curves": (
        lambda: probe_curves({"AR": made_table(), "ST-AR": made_table(0.1)}, 6, total_steps=16,
        chance=0.1),
        1, ("AR", "ST-AR", "chance 10 %", "probe accuracy, layer 6 (%)", "16"), 7.6,
    ),
    "heatmap": (
        lambda: probe_heatmap(made_table(), title="AR"), 2, ("AR", "54.0", "layer", "accuracy (%)"),
        5.6,
    ),
    "difference": (
        lambda: probe_heatmap_difference(made_table(0.1), made_table(), ("ST-AR", "AR")),
        2, ("+10.0", "Probe accuracy: ST-AR minus AR", "difference (percentage points)"), 5.6,
    ),
    "controls": (
        lambda: probe_curves(
            {"AR": made_table(), "ST-AR": made_table(0.1)}, 6, total_steps=16, chance=0.1,
            controls={"AR": made_controls(), "ST-AR": made_controls(0.02)},
        ),
        1, ("ST-AR", "random weights", "shuffled labels", "tokens alone", "raw pixels", "chance 10 %"),
        7.6,
    ),
    "tested": (
        lambda: probe_heatmap_difference(
            made_table(0.1), made_table(), ("ST-AR", "AR"), tested=made_tested({(5, 8): "ST-AR"})
        ),
        2, ("+10.0", "step\n•  one is ahead: McNemar's test, Holm-corrected, p < 0.05"), 5.6,
    ),
    "confusion": (
        lambda: confusion_matrix(made_counts(10), made_names(10)),
        2, ("class 9", "70", "20", "10", "0", "predicted class", "of the true class's images (%)"), 6.5,
    ),
    "confusion of many": (
        lambda: confusion_matrix(made_counts(250), made_names(250), "Title"),
        3, ("Title", "predicted class (its number, 3 neighbours a cell)", "class 0 → class 1", "20 %"),
        11.2,
    ),
    "classes": (
        lambda: class_accuracy(
            {"AR": made_by_class(10), "ST-AR": made_by_class(10, 0.1)}, made_names(10), chance=0.1
        ),
        1, ("class 9", "AR", "ST-AR", "chance 10 %", "probe accuracy (%), 95 % intervals"), 7.6,
    ),
    "many classes": (
        lambda: class_accuracy({"ST-AR": made_by_class(100)}, made_names(100)),
        1, ("the 100 classes, each model's best first",
            "ST-AR, best: class 99 (80 %), class 98 (79 %), class 97 (79 %), class 96 (78 %)"), 8.6,
    ),
    "grid": (made_grid_figure, 7, ("layer 2", "layer 6", "step 1", "step 16", "1.00", ".30"), 9.6),
    "row": (made_row_figure, 4, ("layer 6", "step 6", "not yet seen"), 9.6),
    "compare": (
        made_compare_figure, 13, ("AR", "ST-AR", "layer 2", "layer 6",
        "current token (newest seen)"), 9.6,
    ),
    "heads": (
        made_heads_figure, 10, ("head 1", "head 3", "cat.jpg", "Attention of the heads of layer 6"),
        9.6,
    ),
    "tokens": (
        made_tokens_figure, 4,
        ("4 of 16 token indices change: image against shifted by 1 px", "63", "15",
         "unchanged: 75 % in this pair, 60 % on average, 2 % between unrelated images"), 9.1,
    ),
    "samples": (
        lambda: sample_grid(
            made_samples(), [0, 1, 1, 2, 2, 2], ["cat", "dog", "ship"], title="Samples", columns=2
        ),
        1, ("cat", "dog", "ship", "Samples"), 2.4,
    ),
    "sheets": (
        lambda: sample_compare({"AR": made_samples(), "ST-AR": made_samples()},
        reference=made_samples()),
        3, ("real images", "AR", "ST-AR"), 9.6,
    ),
    "training": (
        lambda: training_curves({"AR": made_metrics(False), "ST-AR": made_metrics(True)}),
        6, ("total loss", "validation NLL (nats)", "L_step: across steps", "ST-AR", "training step"),
        11,
    ),
    "overview": (made_overview, 10, ("ST-AR", "step 16", "25 %", "Probe accuracy by step"), 8.75),
}  # fmt: skip


def _texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_shows_what_it_says_and_saves(name, tmp_path):
    draw, axes, texts, width = DRAWINGS[name]
    figure = draw()
    paths = style.save(figure, tmp_path / name)
    assert [path.name for path in paths] == [f"{name}.png", f"{name}.pdf"]
    assert len(figure.axes) == axes
    assert set(texts) <= _texts(figure)
    with Image.open(paths[0]) as picture:
        pixels = np.asarray(picture.convert("RGB").convert("RGBA"))
    assert abs(pixels.shape[1] - width * style.PNG_DPI) < 0.3 * style.PNG_DPI
    assert 250 < pixels.shape[0] < 2600
    assert len(np.unique(pixels.view(np.uint32))) > 20, "the picture is blank"
    assert paths[1].read_bytes().startswith(b"%PDF")
    drawn = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    inside = drawn.x0 > -0.02 and drawn.y0 > -0.02
    assert (
        inside and drawn.x1 < figure.get_figwidth() + 0.02 and drawn.y1 < figure.get_figheight() + 0.02
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_overview_is_1400_by_700(tmp_path):
    [path] = style.save(made_overview(), tmp_path / "o", ("png",))
    with Image.open(path) as picture:
        assert picture.size == (1400, 700)


def test_drawing_leaves_no_global_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    probe_heatmap(made_table(), title="x")
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("weights", "top", "expected"),
    [
        ([0.1, 0.6, 0.1, 0.0], 5, [1]),
        ([0.2, 0.2, 0.2, 0.2], 5, [0, 1]),
        ([0.2, 0.2, 0.2, 0.2], 1, [0]),
        ([0.0, 0.0, 0.0, 0.0], 5, []),
    ],
)
def test_most_attended_is_the_smallest_set_with_half_of_the_weight(weights, top, expected):
    assert most_attended(np.array(weights), top=top) == expected


def test_panel_marks_current_token_and_unseen_area():
    maps, weights = made_maps(1, steps=(6,))
    figure = attention_row(
        made_image(), maps[0], layer=1, steps=(6,), grid=GRID, class_weights=weights[0]
    )
    panel = figure.axes[0]
    # Step 6 has seen tokens 1..5; token 5 (0-based 4) starts the second row.
    red = [
        p
        for p in panel.patches
        if isinstance(p, Rectangle) and _hex(p.get_edgecolor()) == style.CURRENT
    ]
    assert [(round(p.get_x()), round(p.get_y())) for p in red] == [(0, 1)]
    [unseen] = [patch for patch in panel.patches if isinstance(patch, Polygon)]
    corners = {tuple(corner) for corner in unseen.get_xy().astype(int)}
    assert corners == {(1, 1), (4, 1), (4, 4), (0, 4), (0, 2), (1, 2)}
    bar = [p for p in panel.patches if isinstance(p, Rectangle) and p.get_x() > GRID]
    assert min(p.get_height() for p in bar) == pytest.approx(0.3 * GRID)


def test_step_one_has_no_current_token():
    maps, weights = made_maps(1, steps=(1,))
    figure = attention_row(
        made_image(), maps[0], layer=1, steps=(1,), grid=GRID, class_weights=weights[0]
    )
    assert style.CURRENT not in [_hex(patch.get_edgecolor()) for patch in figure.axes[0].patches]


def test_heat_scale_is_shared_and_rounded_up():
    maps = np.zeros((3, 4))
    maps[:, 0] = 0.1, 0.234, 0.9
    assert heat_scale([maps], None).vmax == pytest.approx(0.24)
    assert heat_scale([maps], 0.5).vmax == 0.5


def test_a_query_may_give_more_than_1_in_all_but_no_token_more_than_1():
    maps, weights = made_maps(1)
    largest = np.minimum(3 * maps, 1)  # as the largest over heads
    figure = attention_grid(
        made_image(), largest, layers=(1,), steps=STEPS, grid=GRID, class_weights=weights
    )
    assert largest.sum(-1).max() > 1.2 and "step 16" in _texts(figure)
    with pytest.raises(UserError, match="an attention weight is 2.17; expected at most 1"):
        attention_grid(
            made_image(), 6 * maps, layers=(1,), steps=STEPS, grid=GRID, class_weights=weights
        )


def test_models_under_each_other_share_one_scale_and_each_has_its_image():
    figure = made_compare_figure(images={"AR": made_image(), "ST-AR": 255 - made_image()})
    ar, st_ar = figure.axes[0], figure.axes[len(STEPS)]
    # The second step of both: the weights of ST-AR are a quarter of AR's, and lighter.
    heat = [figure.axes[place].images[1].get_array() for place in (1, 1 + len(STEPS))]
    scale = heat_scale([made_maps(2)[0], made_maps(2)[0] / 4], None)
    maps = made_maps(1)[0][0, 1].reshape(GRID, GRID)
    np.testing.assert_allclose(heat[0], style.HEAT_MAP(scale(maps)))
    np.testing.assert_allclose(heat[1], style.HEAT_MAP(scale(maps / 4)))
    assert not np.array_equal(ar.images[0].get_array(), st_ar.images[0].get_array())


def test_every_layer_has_its_models_under_each_other():
    figure = made_compare_figure(layers=(2, 4, 6))
    rows = [axes for axes in figure.axes[:-1] if {t.get_text() for t in axes.texts} & {"AR", "ST-AR"}]
    names = [({t.get_text() for t in axes.texts} & {"AR", "ST-AR"}).pop() for axes in rows]
    assert names == ["AR", "ST-AR"] * 3
    heights = {t.get_text(): t.get_position()[1] for t in figure.texts}
    for place, layer in enumerate(("layer 2", "layer 4", "layer 6")):
        above, below = (axes.get_position() for axes in rows[2 * place : 2 * place + 2])
        assert below.y0 < heights[layer] < above.y1


def test_largest_attention_grid_is_drawn():
    steps = tuple(range(72, 577, 72))
    maps, weights = made_maps(12, 24, steps)
    figure = attention_grid(
        made_image(48),
        maps,
        layers=range(1, 13),
        steps=steps,
        grid=24,
        class_weights=weights,
        scale_max=0.1,
    )
    assert len(figure.axes) == 12 * 8 + 1
    assert "attention weight (darkest: 0.1 and more)" in _texts(figure)


def test_numbers_too_small_to_read_are_left_out():
    assert "63" in _texts(made_tokens_figure(8, 63))
    assert "1023" not in _texts(made_tokens_figure(32, 16383))


def test_model_colours_are_fixed_and_variants_differ():
    styles = style.model_styles(["ST-AR (50 epochs)", "AR", "ST-AR", "control"])
    assert (
        styles["ST-AR"]["color"] == styles["ST-AR (50 epochs)"]["color"] == style.MODEL_COLOURS["ST-AR"]
    )
    assert styles["AR"]["color"] == style.MODEL_COLOURS["AR"]
    assert styles["ST-AR"]["linestyle"] != styles["ST-AR (50 epochs)"]["linestyle"]
    assert styles["control"]["color"] not in style.MODEL_COLOURS.values()


def test_probe_curve_is_in_percent_with_its_interval():
    figure = probe_curves({"AR": made_table()}, 6, total_steps=16)
    [container] = figure.axes[0].containers
    assert container[0].get_ydata() == pytest.approx([54, 62, 70, 78])
    assert container[2][0].get_segments()[0][:, 1] == pytest.approx([30, 85])


def test_controls_are_thin_lines_of_distinct_dashes_under_the_models():
    figure = probe_curves(
        {"AR": made_table()},
        6,
        total_steps=16,
        controls={"AR": made_controls(), "ST-AR": made_controls(0.02)},
    )
    axes = figure.axes[0]
    thin = [line for line in axes.lines if line.get_linewidth() == 1.1]
    model = axes.containers[0][0]
    assert all(line.get_zorder() < model.get_zorder() for line in thin)
    assert len({str(line._dash_pattern) for line in thin}) == len(thin) == 4
    # The mean over the tables, in a band from the lower to the higher.
    assert [line.get_ydata()[-1] for line in thin] == pytest.approx([32, 11, 31, 34])
    bands = [c.get_paths()[0].get_extents() for c in axes.collections if c.get_zorder() == 1.5]
    assert sorted(band.y0 for band in bands) == pytest.approx([10, 30, 31, 33])
    assert sorted(band.y1 for band in bands) == pytest.approx([12, 32, 33, 35])
    one = probe_curves({"AR": made_table()}, 6, total_steps=16, controls={"AR": made_controls()})
    assert not [c for c in one.axes[0].collections if c.get_zorder() == 1.5]


def test_a_control_not_measured_at_this_layer_is_left_out():
    figure = probe_curves(
        {"AR": made_table()}, 5, total_steps=16, controls={"AR": made_controls(layer=6)}
    )
    texts = _texts(figure)
    assert {"tokens alone", "raw pixels"} <= texts and "random weights" not in texts


def test_several_seeds_are_drawn_as_their_mean():
    seeds = pd.concat([made_table().assign(seed=0), made_table(0.1).assign(seed=1)])
    [container] = probe_curves({"AR": seeds}, 6, total_steps=16).axes[0].containers
    assert container[0].get_ydata() == pytest.approx([59, 67, 75, 83])
    assert "59.0" in _texts(probe_heatmap(seeds))
    with pytest.raises(UserError, match="layer 6 step 4 more than once"):
        probe_curves({"AR": pd.concat([seeds, seeds])}, 6, total_steps=16)


def test_dots_mark_the_cells_with_a_difference_that_was_found():
    found = {(5, 8): "ST-AR", (6, 16): "AR"}
    figure = probe_heatmap_difference(
        made_table(0.1), made_table(), ("ST-AR", "AR"), tested=made_tested(found)
    )
    [dots] = figure.axes[0].collections
    assert [tuple(place) for place in np.rint(dots.get_offsets()).astype(int)] == [(1, 0), (3, 1)]
    plain = probe_heatmap_difference(made_table(0.1), made_table(), ("ST-AR", "AR"))
    assert not plain.axes[0].collections
    assert not [text for text in _texts(plain) if "McNemar" in text]


def test_a_confusion_matrix_shows_percent_of_the_true_class():
    counts = np.array([[3, 1, 0], [0, 0, 0], [5, 5, 10]])
    figure = confusion_matrix(counts, ["cat", "dog", "ship"])
    numbers = {
        (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text()
        for text in figure.axes[0].texts
    }
    expected = {(0, 0): "75", (0, 1): "25", (0, 2): "0", (2, 0): "25", (2, 1): "25", (2, 2): "50"}
    assert numbers == expected  # no image of a dog: its row stays blank
    assert confused_pairs(counts) == [(0, 1, 0.25), (2, 0, 0.25), (2, 1, 0.25)]


def test_neighbouring_classes_are_summed_where_there_are_too_many():
    figure = confusion_matrix(made_counts(250), made_names(250))
    [image] = figure.axes[0].images
    drawn = np.asarray(image.get_array())
    assert drawn.shape == (84, 84)
    # Three classes of 10 images: 7 + 2 + 1, 7 + 2 and 7 stay inside the group.
    assert drawn[0, :2] == pytest.approx([100 * 26 / 30, 100 * 4 / 30])
    np.testing.assert_allclose(drawn.sum(1), 100)


def test_classes_are_sorted_by_the_first_model():
    tables = {
        "AR": made_by_class(3),
        "ST-AR": made_by_class(3).assign(accuracy=[0.9, 0.5, 0.1], low=0, high=1),
    }
    axes = class_accuracy(tables, ["cat", "dog", "ship"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ship", "dog", "cat"]
    # Each model leaves a container of whiskers and one of bars.
    widths = [
        [patch.get_width() for patch in bars] for bars in axes.containers if hasattr(bars, "patches")
    ]
    assert widths == [pytest.approx([80, 50, 20]), pytest.approx([10, 50, 90])]


def test_a_class_without_images_is_left_out():
    table = made_by_class(3)
    table.loc[1, ["accuracy", "low", "high"]] = np.nan
    axes = class_accuracy({"AR": table}, ["cat", "dog", "ship"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ship", "cat"]


def _unseen_weight():
    maps, weights = made_maps(1)
    maps[0, 1] = np.roll(maps[0, 1], 1)
    return attention_row(
        made_image(), maps[0], layer=6, steps=STEPS, grid=GRID, class_weights=weights[0]
    )


BAD = {
    "float image": lambda: attention_row(
        made_image() / 255,
        made_maps(1)[0][0],
        layer=6,
        steps=STEPS,
        grid=4,
        class_weights=made_maps(1)[1][0],
    ),
    "maps have shape": lambda: attention_row(
        made_image(), made_maps(1)[0], layer=6, steps=STEPS, grid=4, class_weights=made_maps(1)[1][0]
    ),
    "not seen": _unseen_weight,
    "increasing steps within 1..16": lambda: attention_row(
        made_image(),
        made_maps(1)[0][0],
        layer=6,
        steps=(3, 2, 17),
        grid=4,
        class_weights=made_maps(1)[1][0],
    ),
    "no layer 7; it has: 5, 6": lambda: probe_curves({"AR": made_table()}, 7, total_steps=16),
    "outside 1..8": lambda: probe_curves({"AR": made_table()}, 6, total_steps=8),
    "controls holds none of random, shuffled, codes, pixels at layer 5 or 0": lambda: probe_curves(
        {"AR": made_table()}, 5, total_steps=16, controls={"AR": made_controls().query("layer == 6")}
    ),
    "the controls of AR lacks the columns control": lambda: probe_curves(
        {"AR": made_table()}, 6, total_steps=16, controls={"AR": made_table().drop(columns="control")}
    ),
    "no test at layer 6 step 4": lambda: probe_heatmap_difference(
        made_table(), made_table(), ("a", "b"), tested=made_tested({}, layers=(5,))
    ),
    "tested finds c better; expected a or b": lambda: probe_heatmap_difference(
        made_table(), made_table(), ("a", "b"), tested=made_tested({(5, 4): "c"})
    ),
    "expected counts (classes, classes)": lambda: confusion_matrix(made_counts(3) / 10, made_names(3)),
    "holds 2 names; expected 3": lambda: confusion_matrix(made_counts(3), made_names(2)),
    "holds no image": lambda: confusion_matrix(0 * made_counts(3), made_names(3)),
    "a class more than once": lambda: class_accuracy(
        {"AR": pd.concat([made_by_class(3)] * 2)}, made_names(3)
    ),
    "has classes 0..2; 2 names": lambda: class_accuracy({"AR": made_by_class(3)}, made_names(2)),
    "ST-AR was tested on other classes than AR": lambda: class_accuracy(
        {"AR": made_by_class(3), "ST-AR": made_by_class(2)}, made_names(3)
    ),
    "more than once": lambda: probe_curves({"AR": pd.concat([made_table()] * 2)}, 6, total_steps=16),
    "class_weights is of AR; expected the models AR, ST-AR": lambda: made_compare_figure(
        class_weights={"AR": made_maps(2)[1]}
    ),
    "images is of AR; expected the models AR, ST-AR": lambda: made_compare_figure(
        images={"AR": made_image()}
    ),
    "expected at least one model": lambda: made_compare_figure(maps_by_model={}),
    "98 rows of maps were asked for; one picture shows up to 96": lambda: made_compare_figure(
        layers=range(1, 50)
    ),
    "14 maps a frame were asked for; an animation shows 1 to 12": lambda: made_frames(
        layers=range(1, 15)
    ),
    "lacks the columns accuracy": lambda: probe_heatmap(made_table().drop(columns="accuracy")),
    "same layers and steps": lambda: probe_heatmap_difference(
        made_table(), made_table(layers=(1,)), ("a", "b")
    ),
    "expected the same": lambda: token_views(
        made_image(), made_image(), np.zeros((4, 4), int), np.zeros((5, 5), int), share=0.5
    ),
    "whole numbers of shape": lambda: token_views(
        made_image(), made_image(), np.zeros((4, 4)), np.zeros((4, 4)), share=0.5
    ),
    "labels span 0..5": lambda: sample_grid(made_samples(), range(6), ["a", "b"]),
    "expected uint8 (images": lambda: sample_compare({"AR": made_image()}),
    "none of the columns": lambda: training_curves({"AR": pd.DataFrame({"step": [1], "x": [2]})}),
    "two to compare": lambda: made_overview(maps_by_model={}),
    "up to 8 letters": lambda: made_overview(tables={"a name too long": made_table()}),
    "expected some of: png, pdf, svg": lambda: style.save(Figure(), "x", ("jpg",)),
    "has a suffix": lambda: style.save(Figure(), "x.png"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_clear_line(message):
    with pytest.raises(UserError) as raised:
        BAD[message]()
    text = str(raised.value)
    assert "\n" not in text
    assert message == "float image" or message in text


def test_classes_seen_in_samples_stand_beside_what_the_classifier_is_worth():
    rows = {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "cond_acc": [None, 0.2, 0.4]}
    rows |= {"cond_acc_student": [None, 0.1, 0.5], "cond_n": [None, 100, 100]}
    worth = {"cond_acc_real": [None, 0.83, 0.83], "cond_acc_redrawn": [None, 0.76, 0.76]}
    other = rows | {"cond_n": [None, 50, 50], "cond_acc_real": [None, 0.99, 0.99]}
    figure = training_curves({"a": pd.DataFrame(rows | worth), "b": pd.DataFrame(other)})
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    names = [f"class seen, {who}, n = 50, 100" for who in ("teacher", "student")]
    assert list(panels) == ["total loss", *names]
    for name in names:
        texts = {(text.get_text(), text.get_position()[1]) for text in panels[name].texts}
        assert texts == {("real images", 0.83), ("real images", 0.99), ("redrawn", 0.76)}
        levels = [set(line.get_ydata()) for line in panels[name].lines]
        assert all({value} in levels for value in (0.83, 0.99, 0.76))
    assert sorted(panels[names[0]].lines[0].get_ydata()) == [0.2, 0.4]
    alone = training_curves({"a": pd.DataFrame(rows)}).axes[1]
    assert alone.get_title(loc="left") == "class seen, teacher, n = 100" and not alone.texts


def test_nothing_changes_when_a_format_cannot_be_drawn(tmp_path, monkeypatch):
    old = tmp_path / "figure.png"
    old.write_bytes(b"old")
    figure, savefig = style.new_figure(2, 2), Figure.savefig

    def failing(self, target, **options):
        if options["format"] == "pdf":
            raise RuntimeError("no pdf today")
        savefig(self, target, **options)

    monkeypatch.setattr(Figure, "savefig", failing)
    with pytest.raises(RuntimeError, match="no pdf today"):
        style.save(figure, tmp_path / "figure")
    assert old.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        style.save(style.new_figure(2, 2), tmp_path / "figure")
    assert list(tmp_path.iterdir()) == []


def test_saving_twice_gives_the_same_bytes(tmp_path):
    formats = ("png", "pdf", "svg")
    first, second = (style.save(probe_heatmap(made_table()), tmp_path / name, formats) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_viz_imports_without_torch():
    imports = "; ".join(f"import viz.{name}" for name in MODULES)
    code = f"import sys; {imports}; assert not {{'torch', 'matplotlib.pyplot'}} & set(sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert "attention.maps" in MODULES and len(MODULES) > 10
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def _hex(colour) -> str:
    return "#" + "".join(f"{round(255 * part):02X}" for part in colour[:3])
