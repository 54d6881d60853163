"""Attention step by step as a GIF: layers across, models down, a frame a step.

Everything that does not move (faded images, names, key, colour bar) is drawn once; a frame restores
that background and draws the panels' queries on it. All frames share one palette, which holds the
marks' colours exactly, so that a red cell is the same red throughout and unchanged pixels cost nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from star.base.errors import UserError
from star.base.files import publish_file
from viz.attention.maps import check_models, draw_heading
from viz.base.checks import check_image, require
from viz.base.names import labels, legible
from viz.base.panel import (
    PANEL_ASPECT,
    check_maps,
    draw_backdrop,
    draw_query,
    draw_scale,
    heat_scale,
    legend_handles,
    place_axes,
)
from viz.base.style import CURRENT, HEAT_MAP, INK, TOP, UNSEEN, model_styles, new_figure, styled

__all__ = ["SECONDS", "AttentionFrames", "check_animation", "frame_delay", "save_gif"]

SECONDS = 15  # that an animation takes unless told otherwise
_DPI = 100
_MOST_PANELS = 12
_COLUMNS = 4  # layers side by side; more continue below
_SIDE = 200  # pixels of a map, about: a whole number a cell
_GAP, _NUMBER, _LEFT = 14, 30, 40  # pixels: between panels, below each, for the models' names
_HEAD, _FOOT = 112, 92
_NARROWEST = 660  # the key and the title need it
_LONGEST, _HELD = 50, 200  # of a frame, and of the last one, in hundredths of a second
_SAMPLED = 12  # frames that the palette is made from
_HEATS, _GREYS = 24, (0.75, 0.92)  # of the palette: degrees of heat, and the faded greys they lie over
_APART = 12.0  # of 255: least distance of a found colour of the palette from a fixed one


class AttentionFrames:
    """The frames of an animation: ``len(frames)`` is T, ``frames.draw(t)`` the picture of step t."""

    @styled
    def __init__(
        self,
        images: np.ndarray | Mapping[str, np.ndarray],
        maps_by_model: Mapping[str, np.ndarray],
        *,
        layers: Sequence[int],
        grid: int,
        class_weights: Mapping[str, np.ndarray],
        title: str = "Attention step by step",
        note: str | None = None,
        scale_max: float | None = None,
        top: int = 5,
    ) -> None:
        """``images``: one (H, W, 3) uint8, or one a model; ``maps_by_model[name]`` (layers, T, T): the
        weight of the query at every step on each image token; ``class_weights[name]`` (layers, T). The
        rest as in ``viz.attention.maps.attention_grid``. ``UserError`` on wrong shapes or too many
        panels.
        """
        images = check_models(images, maps_by_model, class_weights)
        check_animation(layers, len(maps_by_model))
        tokens = grid * grid
        shape, steps = (len(layers), tokens), range(1, tokens + 1)
        self._found = {
            name: check_maps(name, maps, class_weights[name], shape, steps, grid)[:2]
            for name, maps in maps_by_model.items()
        }
        self._grid, self._top, self._layers = grid, top, list(layers)
        self.norm = heat_scale([maps for maps, _ in self._found.values()], scale_max)
        of_models = [style["color"] for style in model_styles(self._found).values()]
        self.colours = (CURRENT, TOP, UNSEEN, INK, *of_models)  # that must stay what they are
        self._side = grid * max(1, round(_SIDE / grid))
        images = {name: _shrunk(check_image(name, image), self._side) for name, image in images.items()}
        self._figure, self._panels = self._lay_out(images, title, note)
        canvas = self._figure.canvas
        assert isinstance(canvas, FigureCanvasAgg), canvas  # as of every new_figure
        self._canvas = canvas
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self._figure.bbox)

    def __len__(self) -> int:
        return self._grid**2

    @styled
    def draw(self, step: int) -> np.ndarray:
        """(H, W, 3) uint8 picture of ``step`` (1..T)."""
        assert 1 <= step <= len(self), step
        self._canvas.restore_region(self._background)
        words = f"step {step} of {len(self)}"
        number = self._figure.text(*self._number_at, words, va="center", weight="bold", size=13)
        self._figure.draw_artist(number)
        number.remove()
        for (name, place), axes in self._panels.items():
            maps, class_weights = self._found[name]
            drawn = draw_query(
                axes, maps[place, step - 1], step=step, grid=self._grid, norm=self.norm,
                class_weight=float(class_weights[place, step - 1]), top=self._top,
            )  # fmt: skip
            for artist in drawn:
                axes.draw_artist(artist)
                artist.remove()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.draw(step) for step in range(1, len(self) + 1))

    def place(self, name: str, layer: int) -> tuple[int, int, int]:
        """(left, top, side) in pixels of a model's map of ``layer`` in every frame."""
        box = self._panels[name, self._layers.index(layer)].get_window_extent()
        height = int(self._figure.bbox.height)
        return round(box.x0), round(height - box.y1), self._side

    def _lay_out(
        self, images: Mapping[str, np.ndarray], title: str, note: str | None
    ) -> tuple[Figure, dict[tuple[str, int], Axes]]:
        """The still figure, and its axes by model and place of the layer."""
        styles, names = model_styles(self._found), list(self._found)
        said = dict(zip(names, labels(map(legible, names), "model", first=1, most=26), strict=True))
        columns = min(len(self._layers), _COLUMNS)
        rows = -(-len(self._layers) // _COLUMNS) * len(names)
        wide, high = round(self._side * PANEL_ASPECT) + _GAP, self._side + _NUMBER
        width = max(_LEFT + columns * wide + _GAP, _NARROWEST)
        height = _HEAD + rows * high + (rows - 1) * _GAP + _FOOT
        left = _LEFT + (width - _LEFT - columns * wide) // 2
        figure = new_figure(width / _DPI, height / _DPI, layout=None)
        figure.set_dpi(_DPI)
        draw_heading(figure, title, note)
        self._number_at = (15 / width, 1 - 66 / height)
        panels = {}
        for row in range(rows):
            name = names[row % len(names)]
            first = row // len(names) * _COLUMNS
            for column, layer in enumerate(self._layers[first : first + columns]):
                x, y = left + column * wide, _HEAD + row * (high + _GAP)
                box = (x / _DPI, y / _DPI, self._side * PANEL_ASPECT / _DPI, self._side / _DPI)
                panels[name, first + column] = axes = place_axes(figure, *box)
                draw_backdrop(axes, images[name], self._grid)
                if row % len(names) == 0:
                    axes.text(
                        self._grid / 2, -0.03 * self._grid, f"layer {layer}", ha="center", va="bottom",
                        weight="bold",
                    )  # fmt: skip
                if column == 0 and len(names) > 1:
                    axes.text(
                        -0.05 * self._grid, self._grid / 2, said[name], rotation=90, ha="right",
                        va="center", color=styles[name]["color"], weight="bold",
                        size=11 if len(said[name]) <= 18 else 8,
                    )  # fmt: skip
        self._draw_foot(figure)
        return figure, panels

    def _draw_foot(self, figure: Figure) -> None:
        width, height = figure.get_size_inches()
        clipped = any(bool(maps.max() > self.norm.vmax) for maps, _ in self._found.values())
        note = f" (darkest: {self.norm.vmax:.2g} and more)" if clipped else ""
        place = Bbox.from_bounds(2.75 / width, 0.7 / height, 2.2 / width, 0.12 / height)
        axes = draw_scale(figure, place, self.norm, clipped=clipped, label="")
        axes.tick_params(labelsize=8, pad=1)
        at = (0.15 / width, 0.76 / height)
        figure.text(*at, f"attention weight{note}", va="center", size=8, color=INK)
        words = ("current token", f"most attended (at most {self._top})", "not yet seen",
                 "weight on the class (0 to 1)")  # fmt: skip
        figure.legend(
            legend_handles(self._top), words, ncols=4, loc="lower left", fontsize=8, handlelength=1.2,
            handleheight=1.1, columnspacing=1.2, handletextpad=0.5, borderaxespad=0, borderpad=0,
            bbox_to_anchor=(0.15 / width, 0.14 / height),
        )  # fmt: skip


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """``image`` of no more pixels than are shown, averaged: the nearest ones alone look grainy."""
    if max(image.shape[:2]) <= side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))


def check_animation(layers: Sequence[int], models: int) -> None:
    """Raise ``UserError`` for more panels than an animation can show, or none."""
    count = len(layers) * models
    require(
        1 <= count <= _MOST_PANELS,
        f"{count} maps a frame were asked for; an animation shows 1 to {_MOST_PANELS}: name fewer "
        "layers",
    )


def frame_delay(frames: int, fps: float | None) -> int:
    """Hundredths of a second a frame stays, by default such that all take about 15 s.

    A GIF counts in hundredths, and viewers slow down what is faster than 50 frames a second.
    ``UserError`` unless ``fps`` is 0.1 to 50.
    """
    if fps is None:
        return min(max(2, round(100 * SECONDS / frames)), _LONGEST)
    require(0.1 <= fps <= 50, f"fps is {fps:g}; expected 0.1 to 50 frames a second")
    return max(2, round(100 / fps))


def save_gif(
    frames: AttentionFrames,
    path: Path,
    *,
    fps: float | None = None,
    on_frame: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``frames`` as a GIF that repeats, the last frame held two seconds; it appears whole.

    ``fps`` as in ``frame_delay``; ``on_frame(done, T)`` reports progress.
    """
    total, delay = len(frames), frame_delay(len(frames), fps)
    palette = _palette(frames)

    def pictures() -> Iterator[Image.Image]:
        for done, frame in enumerate(frames, start=1):
            yield Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
            if on_frame is not None:
                on_frame(done, total)

    found = pictures()
    durations = [10 * delay] * (total - 1) + [10 * max(delay, _HELD)]
    try:
        with publish_file(path) as temporary:
            next(found).save(
                temporary, format="GIF", save_all=True, append_images=found, duration=durations, loop=0
            )
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _palette(frames: AttentionFrames) -> Image.Image:
    """A palette picture: the marks' colours, heat over grey, and what a few frames are drawn with."""
    steps = np.unique(np.linspace(1, len(frames), min(_SAMPLED, len(frames))).round().astype(int))
    sheet = np.concatenate([frames.draw(int(step))[::2, ::2] for step in steps])
    fixed = np.array([to_rgb(colour) for colour in (*frames.colours, "white")])
    # Most pixels are paper and faded image: chosen by how often they occur, few colours would be heat.
    heat = HEAT_MAP(np.linspace(0.04, 1, _HEATS))
    over = [heat[:, :3] * heat[:, 3:] + grey * (1 - heat[:, 3:]) for grey in _GREYS]
    fixed = np.round(255 * np.concatenate([fixed, *over])).astype(int)
    # One of 256 is left to the writer, which marks by it what a frame does not change.
    common = Image.fromarray(sheet).quantize(255 - len(fixed), method=Image.Quantize.MEDIANCUT)
    found = np.array(common.getpalette() or []).reshape(-1, 3)
    # The nearest colour is searched coarsely: nothing may lie beside the colours that are to be exact.
    apart = np.linalg.norm(found[:, None] - fixed[None], axis=-1).min(axis=1) > _APART
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([fixed, found[apart]]).ravel().tolist())
    return palette
