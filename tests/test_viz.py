"""Every drawing on synthetic arrays: it can be saved, shows what it says, and refuses bad input."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.text import Text
from PIL import Image

from probes.results import PROBE_COLUMNS
from star.errors import UserError
from viz import style
from viz.attention import attention_compare, attention_grid, attention_row
from viz.overview import overview
from viz.panel import heat_scale, most_attended
from viz.probe import probe_curves, probe_heatmap, probe_heatmap_difference
from viz.samples import sample_compare, sample_grid
from viz.tokens import token_views
from viz.training import training_curves

GRID, STEPS = 4, (1, 6, 16)
MODULES = (
    "style",
    "checks",
    "panel",
    "probe",
    "attention",
    "tokens",
    "samples",
    "training",
    "overview",
    "measures",
)


def _image(size: int = 16) -> np.ndarray:
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    return np.stack(
        [np.broadcast_to(ramp, (size, size)), np.tile(ramp[:, None], size), ramp + 0 * ramp[:, None]],
        -1,
    )


def _maps(rows: int, grid: int = GRID, steps=STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Attention that falls off from the newest token back; class weight 0.3 (1 at step 1)."""
    total = grid * grid
    maps, weights = np.zeros((rows, len(steps), total)), np.full((rows, len(steps)), 0.3)
    for column, step in enumerate(steps):
        if step == 1:
            weights[:, column] = 1
            continue
        fall = 0.5 ** np.arange(step - 1)[::-1]
        maps[:, column, : step - 1] = 0.7 * fall / fall.sum()
    return maps, weights


def _table(shift: float = 0.0, layers=(5, 6), steps=(4, 8, 12, 16)) -> pd.DataFrame:
    rows = [
        (
            layer,
            step,
            "mae",
            "",
            "test",
            0.4 + shift + 0.01 * layer + 0.02 * step,
            0.3 + shift,
            0.85,
            100,
        )
        for layer in layers
        for step in steps
    ]
    return pd.DataFrame(rows, columns=list(PROBE_COLUMNS))


def _metrics(contrast: bool) -> pd.DataFrame:
    step = np.arange(1, 200)
    table = pd.DataFrame(
        {"step": step, "loss": 3 + 1 / step, "ar": 3 / step, "lr": 1e-4, "grad_norm": 1.0}
    )
    table["val_nll"] = np.where(step % 50 == 0, 2.5, np.nan)
    return table.assign(step_contrast=2 / step) if contrast else table


def _overview(**changes) -> Figure:
    maps, weights = _maps(1)
    indices = np.arange(16).reshape(4, 4)
    arguments = {
        "tables": {"AR": _table(), "ST-AR": _table(0.1)}, "layer": 6, "total_steps": 16, "chance": 0.1,
        "image": _image(), "maps_by_model": {"AR": maps[0], "ST-AR": maps[0]},
        "class_weights": {"AR": weights[0], "ST-AR": weights[0]}, "attention_layer": 6, "steps": STEPS,
        "grid": GRID, "views": (_image(), _image()), "share": 0.5,
        "indices": (indices, indices + np.eye(4, dtype=int)),
    }  # fmt: skip
    return overview(**{**arguments, **changes})


def _grid_figure() -> Figure:
    maps, weights = _maps(2)
    return attention_grid(_image(), maps, layers=(2, 6), steps=STEPS, grid=GRID, class_weights=weights)


def _row_figure() -> Figure:
    maps, weights = _maps(1)
    return attention_row(_image(), maps[0], layer=6, steps=STEPS, grid=GRID, class_weights=weights[0])


def _compare_figure() -> Figure:
    maps, weights = _maps(2)
    return attention_compare(
        _image(), {"AR": maps[0], "ST-AR": maps[1]}, layer=6, steps=STEPS, grid=GRID,
        class_weights={"AR": weights[0], "ST-AR": weights[1]},
    )  # fmt: skip


def _tokens_figure(grid: int = 4, largest: int = 63) -> Figure:
    before = np.arange(grid * grid).reshape(grid, grid) % (largest + 1)
    after = before.copy()
    after[0] = largest
    return token_views(_image(), _image(), before, after, share=0.6, chance=0.02)


def _samples() -> np.ndarray:
    return np.stack([np.roll(_image(8), place, 1) for place in range(6)])


# name: (drawing, axes, texts it must show, inches wide)
DRAWINGS = {
    "curves": (
        lambda: probe_curves({"AR": _table(), "ST-AR": _table(0.1)}, 6, total_steps=16, chance=0.1),
        1, ("AR", "ST-AR", "chance 10 %", "linear probe accuracy, layer 6 (%)", "16"), 7.6,
    ),
    "heatmap": (
        lambda: probe_heatmap(_table(), title="AR"), 2, ("AR", "54.0", "layer", "accuracy (%)"), 5.6,
    ),
    "difference": (
        lambda: probe_heatmap_difference(_table(0.1), _table(), ("ST-AR", "AR")),
        2, ("+10.0", "Linear probe accuracy: ST-AR minus AR", "difference (percentage points)"), 5.6,
    ),
    "grid": (_grid_figure, 7, ("layer 2", "layer 6", "step 1", "step 16", "1.00", ".30"), 9.6),
    "row": (_row_figure, 4, ("layer 6", "step 6", "not yet seen"), 9.6),
    "compare": (_compare_figure, 7, ("AR", "ST-AR", "current token (newest seen)"), 9.6),
    "tokens": (
        _tokens_figure, 4,
        ("4 of 16 token indices change: image against shifted by 1 px", "63", "15",
         "unchanged: 75 % in this pair, 60 % on average, 2 % between unrelated images"), 9.1,
    ),
    "samples": (
        lambda: sample_grid(
            _samples(), [0, 1, 1, 2, 2, 2], ["cat", "dog", "ship"], title="Samples", columns=2
        ),
        1, ("cat", "dog", "ship", "Samples"), 2.4,
    ),
    "sheets": (
        lambda: sample_compare({"AR": _samples(), "ST-AR": _samples()}, reference=_samples()),
        3, ("real images", "AR", "ST-AR"), 9.6,
    ),
    "training": (
        lambda: training_curves({"AR": _metrics(False), "ST-AR": _metrics(True)}),
        6, ("total loss", "validation NLL (nats)", "L_step: across steps", "ST-AR", "training step"),
        11,
    ),
    "overview": (_overview, 10, ("ST-AR", "step 16", "25 %", "Linear probe accuracy by step"), 8.75),
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
        pixels = np.asarray(picture.convert("RGB"))
    assert abs(pixels.shape[1] - width * style.PNG_DPI) < 0.3 * style.PNG_DPI
    assert 250 < pixels.shape[0] < 2600
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, "the picture is blank"
    assert paths[1].read_bytes().startswith(b"%PDF")
    drawn = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    inside = drawn.x0 > -0.02 and drawn.y0 > -0.02
    assert (
        inside and drawn.x1 < figure.get_figwidth() + 0.02 and drawn.y1 < figure.get_figheight() + 0.02
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_overview_is_1400_by_700(tmp_path):
    [path] = style.save(_overview(), tmp_path / "o", ("png",))
    with Image.open(path) as picture:
        assert picture.size == (1400, 700)


def test_drawing_leaves_no_global_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    probe_heatmap(_table(), title="x")
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
    maps, weights = _maps(1, steps=(6,))
    figure = attention_row(_image(), maps[0], layer=1, steps=(6,), grid=GRID, class_weights=weights[0])
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
    maps, weights = _maps(1, steps=(1,))
    figure = attention_row(_image(), maps[0], layer=1, steps=(1,), grid=GRID, class_weights=weights[0])
    assert style.CURRENT not in [_hex(patch.get_edgecolor()) for patch in figure.axes[0].patches]


def test_heat_scale_is_shared_and_rounded_up():
    maps = np.zeros((3, 4))
    maps[:, 0] = 0.1, 0.234, 0.9
    assert heat_scale([maps], None).vmax == pytest.approx(0.24)
    assert heat_scale([maps], 0.5).vmax == 0.5


def test_largest_attention_grid_is_drawn():
    steps = tuple(range(72, 577, 72))
    maps, weights = _maps(12, 24, steps)
    figure = attention_grid(
        _image(48),
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
    assert "63" in _texts(_tokens_figure(8, 63))
    assert "1023" not in _texts(_tokens_figure(32, 16383))


def test_model_colours_are_fixed_and_variants_differ():
    styles = style.model_styles(["ST-AR (50 epochs)", "AR", "ST-AR", "control"])
    assert (
        styles["ST-AR"]["color"] == styles["ST-AR (50 epochs)"]["color"] == style.MODEL_COLOURS["ST-AR"]
    )
    assert styles["AR"]["color"] == style.MODEL_COLOURS["AR"]
    assert styles["ST-AR"]["linestyle"] != styles["ST-AR (50 epochs)"]["linestyle"]
    assert styles["control"]["color"] not in style.MODEL_COLOURS.values()


def test_probe_curve_is_in_percent_with_its_interval():
    figure = probe_curves({"AR": _table()}, 6, total_steps=16)
    [container] = figure.axes[0].containers
    assert container[0].get_ydata() == pytest.approx([54, 62, 70, 78])
    assert container[2][0].get_segments()[0][:, 1] == pytest.approx([30, 85])


def _unseen_weight():
    maps, weights = _maps(1)
    maps[0, 1] = np.roll(maps[0, 1], 1)
    return attention_row(_image(), maps[0], layer=6, steps=STEPS, grid=GRID, class_weights=weights[0])


BAD = {
    "float image": lambda: attention_row(
        _image() / 255, _maps(1)[0][0], layer=6, steps=STEPS, grid=4, class_weights=_maps(1)[1][0]
    ),
    "maps have shape": lambda: attention_row(
        _image(), _maps(1)[0], layer=6, steps=STEPS, grid=4, class_weights=_maps(1)[1][0]
    ),
    "not seen": _unseen_weight,
    "increasing steps within 1..16": lambda: attention_row(
        _image(), _maps(1)[0][0], layer=6, steps=(3, 2, 17), grid=4, class_weights=_maps(1)[1][0]
    ),
    "no layer 7; it has: 5, 6": lambda: probe_curves({"AR": _table()}, 7, total_steps=16),
    "outside 1..8": lambda: probe_curves({"AR": _table()}, 6, total_steps=8),
    "more than once": lambda: probe_curves({"AR": pd.concat([_table()] * 2)}, 6, total_steps=16),
    "lacks the columns accuracy": lambda: probe_heatmap(_table().drop(columns="accuracy")),
    "same layers and steps": lambda: probe_heatmap_difference(
        _table(), _table(layers=(1,)), ("a", "b")
    ),
    "expected the same": lambda: token_views(
        _image(), _image(), np.zeros((4, 4), int), np.zeros((5, 5), int), share=0.5
    ),
    "whole numbers of shape": lambda: token_views(
        _image(), _image(), np.zeros((4, 4)), np.zeros((4, 4)), share=0.5
    ),
    "labels span 0..5": lambda: sample_grid(_samples(), range(6), ["a", "b"]),
    "expected uint8 (images": lambda: sample_compare({"AR": _image()}),
    "none of the columns": lambda: training_curves({"AR": pd.DataFrame({"step": [1], "x": [2]})}),
    "two to compare": lambda: _overview(maps_by_model={}),
    "up to 8 letters": lambda: _overview(tables={"a name too long": _table()}),
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
    first, second = (style.save(probe_heatmap(_table()), tmp_path / name, formats) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_viz_imports_without_torch():
    imports = "; ".join(f"import viz.{name}" for name in MODULES)
    code = f"import sys; {imports}; assert not {{'torch', 'matplotlib.pyplot'}} & set(sys.modules)"
    root = Path(__file__).resolve().parents[1]
    assert {path.stem for path in (root / "viz").glob("*.py")} == {"__init__", *MODULES}
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def _hex(colour) -> str:
    return "#" + "".join(f"{round(255 * part):02X}" for part in colour[:3])
