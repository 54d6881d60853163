"""Made-up tables, maps and pictures that the tests of the drawings draw, and where words lie in one."""

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from viz.attention.animation import AttentionFrames
from viz.attention.maps import attention_compare, attention_grid, attention_heads, attention_row
from viz.attribution import attribution_panels
from viz.overview import overview
from viz.tokens.change import token_views

GRID, STEPS = 4, (1, 6, 16)


def made_image(size: int = 16) -> np.ndarray:
    ramp = np.linspace(0, 255, size).astype(np.uint8)
    return np.stack(
        [np.broadcast_to(ramp, (size, size)), np.tile(ramp[:, None], size), ramp + 0 * ramp[:, None]],
        -1,
    )


def made_maps(rows: int, grid: int = GRID, steps=STEPS) -> tuple[np.ndarray, np.ndarray]:
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


def made_table(shift: float = 0.0, layers=(5, 6), steps=(4, 8, 12, 16)) -> pd.DataFrame:
    rows = [
        {
            "layer": layer,
            "step": step,
            "protocol": "mae",
            "control": "none",
            "split": "test",
            "accuracy": 0.4 + shift + 0.01 * layer + 0.02 * step,
            "low": 0.3 + shift,
            "high": 0.85,
            "n": 100,
        }
        for layer in layers
        for step in steps
    ]
    return pd.DataFrame(rows)


def made_controls(shift: float = 0.0, layer: int = 6) -> pd.DataFrame:
    """All four controls, level over the steps; tokens and pixels at layer 0."""
    levels = {"random": (layer, 0.31), "shuffled": (layer, 0.1), "codes": (0, 0.3), "pixels": (0, 0.33)}
    tables = [
        made_table(layers=(at,)).assign(control=name, accuracy=level + shift, low=0.05, high=0.4)
        for name, (at, level) in levels.items()
    ]
    return pd.concat([made_table(), *tables])


def made_tested(better, layers=(5, 6), steps=(4, 8, 12, 16)) -> pd.DataFrame:
    """The columns of ``probes.linear.compare`` that a drawing reads; ``better`` by layer and step."""
    cells = [(layer, step) for layer in layers for step in steps]
    rows = [(*cell, better.get(cell, "neither")) for cell in cells] + [(5, 0, None)]
    return pd.DataFrame(rows, columns=["layer", "step", "higher"])


def made_counts(classes: int) -> np.ndarray:
    """Of 10 images a class, 7 right, 2 taken for the next class, 1 for the one after."""
    return sum(
        count * np.roll(np.eye(classes, dtype=int), place, 1) for place, count in enumerate((7, 2, 1))
    )


def made_by_class(classes: int, shift: float = 0.0) -> pd.DataFrame:
    accuracy = np.linspace(0.2, 0.8, classes) + shift
    return pd.DataFrame(
        {"class": range(classes), "accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}
    )


def made_names(classes: int) -> list[str]:
    return [f"class {label}" for label in range(classes)]


def made_metrics(contrast: bool) -> pd.DataFrame:
    step = np.arange(1, 200)
    table = pd.DataFrame(
        {"step": step, "loss": 3 + 1 / step, "ar": 3 / step, "lr": 1e-4, "grad_norm": 1.0}
    )
    table["val_nll"] = np.where(step % 50 == 0, 2.5, np.nan)
    return table.assign(step_contrast=2 / step) if contrast else table


def made_overview(**changes) -> Figure:
    maps, weights = made_maps(1)
    indices = np.arange(16).reshape(4, 4)
    arguments = {
        "tables": {"AR": made_table(), "ST-AR": made_table(0.1)}, "layer": 6, "total_steps": 16,
        "chance": 0.1,
        "image": made_image(), "maps_by_model": {"AR": maps[0], "ST-AR": maps[0]},
        "class_weights": {"AR": weights[0], "ST-AR": weights[0]}, "attention_layer": 6, "steps": STEPS,
        "grid": GRID, "views": (made_image(), made_image()), "share": 0.5,
        "indices": (indices, indices + np.eye(4, dtype=int)),
    }  # fmt: skip
    return overview(**{**arguments, **changes})


def made_grid_figure() -> Figure:
    maps, weights = made_maps(2)
    return attention_grid(
        made_image(), maps, layers=(2, 6), steps=STEPS, grid=GRID, class_weights=weights
    )


def made_row_figure() -> Figure:
    maps, weights = made_maps(1)
    return attention_row(
        made_image(), maps[0], layer=6, steps=STEPS, grid=GRID, class_weights=weights[0]
    )


def made_compare_figure(layers=(2, 6), **changes) -> Figure:
    maps, weights = made_maps(len(layers))
    arguments = {
        "images": made_image(), "maps_by_model": {"AR": maps, "ST-AR": maps / 4}, "layers": layers,
        "steps": STEPS, "grid": GRID, "class_weights": {"AR": weights, "ST-AR": weights},
    }  # fmt: skip
    return attention_compare(**{**arguments, **changes})


def made_heads_figure() -> Figure:
    maps, weights = made_maps(3)
    return attention_heads(
        made_image(), maps, layer=6, steps=STEPS, grid=GRID, class_weights=weights, note="cat.jpg"
    )


def made_frames(models=("AR",), layers=(1, 2), grid=GRID, **changes) -> AttentionFrames:
    maps, weights = made_maps(len(layers), grid, range(1, grid * grid + 1))
    return AttentionFrames(
        made_image(), dict.fromkeys(models, maps), layers=layers, grid=grid,
        class_weights=dict.fromkeys(models, weights), **changes,
    )  # fmt: skip


def made_tokens_figure(grid: int = 4, largest: int = 63) -> Figure:
    before = np.arange(grid * grid).reshape(grid, grid) % (largest + 1)
    after = before.copy()
    after[0] = largest
    return token_views(made_image(), made_image(), before, after, share=0.6, chance=0.02)


def made_samples() -> np.ndarray:
    return np.stack([np.roll(made_image(8), place, 1) for place in range(6)])


# name: (drawing, axes, texts it must show, inches wide)


def made_panels(**changes):
    rng = np.random.default_rng(0)
    contributions = np.zeros((2, 2, 17))
    contributions[..., :6] = rng.normal(size=(2, 2, 6))
    attention = np.zeros((2, 17))
    attention[:, :6] = 1 / 6
    given = {
        "images": [np.full((16, 16, 3), 90, np.uint8)] * 2, "contributions": contributions,
        "attention": attention, "step": 6, "grid": 4, "methods": ["one way", "another way"],
        "names": ["first", "second"], "scores": np.array([[-1.5, -4.0], [-2.0, -4.0]]),
        "gaps": np.full((2, 2), 0.25), "correlations": np.array([[0.5, np.nan], [-0.5, 0.1]]),
        "unit": "nats",
    } | changes  # fmt: skip
    return attribution_panels(
        given.pop("images"), given.pop("contributions"), given.pop("attention"), **given
    )


def boxes(figure):
    """Every text that is drawn, with its place in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    shown = (text for text in figure.findobj(Text) if text.get_text() and text.get_visible())
    return [(text.get_text(), text.get_window_extent(renderer)) for text in shown]


def overlapping(figure, found=None):
    """Pairs of texts that lie on each other; ``found`` is what ``boxes`` gave, if it was asked."""
    found = boxes(figure) if found is None else found
    corners = np.array([box.extents for _, box in found]).reshape(-1, 4)
    low, high = corners[:, None, :2], corners[:, None, 2:]
    over = (low <= corners[:, 2:]).all(axis=2) & (high >= corners[:, :2]).all(axis=2)
    pairs = [(found[a][0], found[b][0]) for a, b in zip(*np.nonzero(np.triu(over, 1)), strict=True)]
    return [(a, b) for a, b in pairs if a != b]
