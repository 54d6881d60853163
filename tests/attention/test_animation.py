"""Attention as a GIF: each frame shows its own step, in the colours of the marks, and is legible."""

import numpy as np
import pytest
from made_up import GRID, boxes, made_frames, made_image, made_maps, overlapping
from PIL import Image

from star.base.errors import UserError
from viz.attention.animation import AttentionFrames, frame_delay, save_gif
from viz.base import style


def test_a_frame_shows_its_step_in_red_and_grey():
    frames = made_frames()
    left, top, side = frames.place("AR", 2)
    red, grey = (
        tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)) for code in (style.CURRENT, style.UNSEEN)
    )
    cell = side // GRID
    for step in (1, 6, 16):
        panel = frames.draw(step)[top : top + side, left : left + side]
        rows, columns = np.nonzero((panel == red).all(-1))
        if step == 1:
            assert len(rows) == 0, "step 1 has seen the class only"
        else:
            row, column = divmod(step - 2, GRID)
            assert set(rows // cell) == {row} and set(columns // cell) == {column}
        # Cells are unseen from the one of the step's own token on: near the grey, hatching apart.
        for place in range(GRID * GRID):
            row, column = divmod(place, GRID)
            inner = panel[
                row * cell + 9 : (row + 1) * cell - 9, column * cell + 9 : (column + 1) * cell - 9
            ]
            near = (np.abs(np.median(inner, axis=(0, 1)) - grey) < 16).all()
            if place >= step - 1:
                assert near, (step, place)
    np.testing.assert_array_equal(frames.draw(7), frames.draw(7))


def test_a_frame_shows_the_weights_of_its_own_step_and_model():
    total = GRID * GRID
    maps = {name: np.zeros((1, total, total)) for name in ("AR", "ST-AR")}
    weights = {
        name: np.linspace(first, 0.4, total)[None] for name, first in (("AR", 0), ("ST-AR", 0.2))
    }
    places = {}
    for shift, (name, found) in enumerate(maps.items()):
        for step in range(2, total + 1):
            places[name, step] = (5 * step + shift) % (step - 1)
            found[0, step - 1, places[name, step]] = 0.6
    frames = AttentionFrames(made_image(), maps, layers=[3], grid=GRID, class_weights=weights)
    for step in (2, 3, 9, 16):
        for name in maps:
            left, top, side = frames.place(name, 3)
            frame, cell = frames.draw(step), side // GRID
            panel = frame[top : top + side, left : left + side].astype(int)
            rows, columns = np.nonzero((panel == (0xFF, 0xE6, 0x00)).all(-1))
            assert {(r // cell, c // cell) for r, c in zip(rows, columns, strict=True)} == {
                divmod(places[name, step], GRID)
            }
            bar = frame[top : top + side, left + round(1.085 * side)].max(-1) < 80
            # The frame of the bar and rounding: two pixels.
            assert abs(bar.sum() - side * weights[name][0, step - 1]) <= 2


def test_a_gif_has_a_frame_a_step_with_the_marks_in_their_colours(tmp_path):
    frames, seen = made_frames(models=("AR", "ST-AR"), title="A title", note="a note"), []
    path = save_gif(frames, tmp_path / "maps.gif", on_frame=lambda *done: seen.append(done))
    assert [entry.name for entry in tmp_path.iterdir()] == ["maps.gif"]
    assert seen == [(step, 16) for step in range(1, 17)]
    with Image.open(path) as gif:
        assert gif.n_frames == 16 and gif.info["loop"] == 0
        for step in (1, 9, 16):
            gif.seek(step - 1)
            assert gif.info["duration"] == (500 if step < 16 else 2000)
            shown, drawn = np.asarray(gif.convert("RGB")).astype(int), frames.draw(step)
            for colour in ((0xF5, 0x18, 0x2B), (0xFF, 0xE6, 0x00), (255, 255, 255)):
                here = (drawn == colour).all(-1)
                # Pillow finds the nearest colour on a lattice of 4: at most that far in a channel.
                assert (step == 1 or here.any()) and (np.abs(shown[here] - colour) <= 4).all()
            # 255 colours for a photograph's few hundred: the mean stays close.
            assert np.abs(shown - drawn).mean() < 2


def test_an_animation_takes_about_15_seconds_or_what_is_asked():
    assert [frame_delay(tokens, None) * tokens / 100 for tokens in (64, 256, 576)] == pytest.approx(
        [15, 15, 15], abs=2.5
    )
    assert frame_delay(4, None) == 50 and frame_delay(256, 25) == 4 and frame_delay(4, 50) == 2
    for fps in (0, 51, float("nan")):
        with pytest.raises(UserError, match="expected 0.1 to 50 frames a second"):
            frame_delay(4, fps)


def test_the_words_around_an_animation_do_not_overlap():
    steps = range(1, 17)
    maps, weights = made_maps(5, 4, steps)
    names = ("AR", "ST-AR 20261122-a-run-of-a-very-long-name-and-more")
    for layers, models in ((1, 1), (3, 2), (5, 2)):
        frames = AttentionFrames(
            made_image(), dict.fromkeys(names[:models], maps[:layers]), layers=range(1, layers + 1),
            grid=4,
            class_weights=dict.fromkeys(names[:models], weights[:layers]), title="A title " * 40,
        )  # fmt: skip
        assert overlapping(frames._figure) == []
        assert all(box.x0 >= 0 and box.x1 <= frames._figure.bbox.x1 for _, box in boxes(frames._figure))
