"""Pictures at the edge of what fits: long names, many steps, several view options, few classes."""

import numpy as np
import pytest
from made_up import (
    boxes,
    made_by_class,
    made_controls,
    made_counts,
    made_image,
    made_maps,
    made_samples,
    made_table,
    overlapping,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg

from figures.reproduction.material import Material
from figures.reproduction.recipes import _attention_figures
from probes.attention.maps import AttentionMaps
from star.base.errors import UserError
from viz.attention.maps import attention_compare, attention_grid
from viz.linear.classes import class_accuracy
from viz.linear.confusion import confusion_matrix
from viz.linear.curves import _spread, probe_curves
from viz.linear.maps import probe_heatmap
from viz.samples import sample_grid
from viz.tokens.change import token_views


def test_the_words_of_three_view_options_do_not_overlap():
    indices = np.arange(64).reshape(8, 8)
    label = "shifted by 1 px, rotated by 2.5 degrees, scaled by 1.05"
    figure = token_views(made_image(), made_image(), indices, indices.T, labels=("image", label))
    assert overlapping(figure) == []
    assert any(f"second view: {label}; unchanged" in text for text, _ in boxes(figure))
    assert all(box.x1 <= figure.bbox.x1 for _, box in boxes(figure))


def test_long_class_names_leave_room_for_the_images():
    names = ["cat", "a name " * 40, "ship"]
    figure = sample_grid(made_samples(), [0, 1, 1, 2, 2, 2], names, columns=3)
    texts = [text for text, _ in boxes(figure)]
    assert "cat" in texts and any(text.endswith("…") and len(text) <= 28 for text in texts)
    assert figure.axes[0].get_position().width > 0.3


def test_a_heatmap_of_many_steps_stays_narrow():
    wide = probe_heatmap(made_table(steps=tuple(range(1, 65))))
    assert wide.get_figwidth() <= probe_heatmap(made_table(steps=tuple(range(1, 17)))).get_figwidth()
    assert [text for text, _ in boxes(wide) if text == "64"] and overlapping(wide) == []


def test_attention_at_the_most_steps_is_legible_and_at_more_refused():
    def draw(count):
        steps = tuple(range(256 - 8 * (count - 1), 257, 8))
        maps, weights = made_maps(2, 16, steps)
        return attention_grid(
            made_image(), maps, layers=(1, 12), steps=steps, grid=16, class_weights=weights
        )

    assert overlapping(draw(16)) == []
    with pytest.raises(UserError, match="17 steps were asked for; one picture shows up to 16: .* --at"):
        draw(17)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8, 16])
def test_models_and_layers_under_each_other_are_legible(count):
    steps = tuple(range(256 - 16 * (count - 1), 257, 16))
    maps, weights = made_maps(7, 16, steps)
    names = ("AR", "ST-AR 20261122-a-run-of-a-very-long-name-and-more")
    figure = attention_compare(
        made_image(), dict.fromkeys(names, maps), layers=(2, 4, 6, 8, 10, 11, 12), steps=steps, grid=16,
        class_weights=dict.fromkeys(names, weights), title="A title " * 40, note="a note " * 60,
    )  # fmt: skip
    found = boxes(figure)
    assert overlapping(figure, found) == []
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for _, box in found)
    assert sum(text.startswith("A title") and text.endswith("…") for text, _ in found) == 1
    assert next(text for text, _ in found if text.startswith("ST-AR")).endswith("more")


def test_the_label_of_chance_lies_beside_the_whiskers():
    table = made_table().assign(accuracy=0.36, low=0.3, high=0.42)
    figure = probe_curves({"AR": table, "ST-AR": table}, 6, total_steps=16, chance=1 / 3)
    [box] = [box for text, box in boxes(figure) if text == "chance 33.3 %"]
    assert box.x0 >= figure.axes[0].get_window_extent().x1
    assert overlapping(figure) == []


def test_labels_of_lines_that_end_together_are_apart_and_in_order():
    level = made_table().assign(accuracy=0.32, low=0.3, high=0.34)
    models = {"AR": level, "ST-AR": level.assign(accuracy=0.33)}
    figure = probe_curves(models, 6, total_steps=16, chance=0.1, controls={"AR": made_controls()})
    words = (
        "chance 10 %",
        "shuffled labels",
        "tokens alone",
        "random weights",
        "AR",
        "ST-AR",
        "raw pixels",
    )
    heights = {text: box.y0 for text, box in boxes(figure) if text in words}
    assert set(heights) == set(words) and overlapping(figure) == []
    ends = sorted(words[2:], key=heights.get)
    assert ends[:3] == ["tokens alone", "random weights", "AR"] and set(ends[3:]) == set(words[5:])
    assert max(heights["chance 10 %"], heights["shuffled labels"]) < heights["tokens alone"]


def test_labels_move_as_little_as_possible():
    assert _spread([0, 10, 20], 5) == [0, 10, 20]
    assert _spread([0, 10, 10], 4) == [0, 8, 12]
    assert _spread([0, 3, 3, 30], 4) == [-2, 2, 6, 30]


def test_long_class_names_stay_inside_the_picture():
    names = [f"a name of many letters {label}" for label in range(20)]
    tall = confusion_matrix(made_counts(20), names, "A title")
    pair = confusion_matrix(
        made_counts(30)[:2, :2], names[:2], "A title that is wider than two cells are"
    )
    many = confusion_matrix(made_counts(120), names * 6)
    bars = class_accuracy({"AR": made_by_class(20)}, names)
    ends = class_accuracy(
        {"AR": made_by_class(120), "ST-AR": made_by_class(120)}, names * 6, chance=0.1
    )
    for figure in (tall, pair, many, bars, ends):
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)  # lays it out
        drawn = figure.get_tightbbox(renderer)
        width, height = figure.get_size_inches()
        assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= width and drawn.y1 <= height
    assert overlapping(many) == []


def test_figures_2_and_5_share_one_scale():
    maps, weights = made_maps(2, 4, (6, 16))
    found = {"AR": maps, "ST-AR": maps / 4}
    attention = {
        name: AttentionMaps(values, weights, [1, 2], [6, 16]) for name, values in found.items()
    }
    rest = dict.fromkeys(Material.__dataclass_fields__)
    figures = _attention_figures(
        Material(**{**rest, "image": made_image(), "attention": attention, "grid": 4})
    )
    ends = {name: figures[name].axes[-1].get_xlim()[1] for name in ("figure2", "figure5")}
    assert ends["figure2"] == ends["figure5"]
