"""One look for every drawing: palette, fonts, sizes, and saving a figure whole or not at all.

Colours are Okabe and Ito's colour-blind safe palette ("Color Universal Design", 2008); "AR" and
"ST-AR" keep theirs in every picture. Figures are plain ``matplotlib.figure.Figure`` objects: no pyplot,
so no global state, no window and nothing to close.
"""

import functools
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from star.base.errors import UserError
from star.base.files import publish_file

__all__ = [
    "ACCURACY_MAP",
    "CURRENT",
    "FONT",
    "FORMATS",
    "HEAT_MAP",
    "INK",
    "LAYER_MAP",
    "MODEL_COLOURS",
    "MUTED",
    "OKABE_ITO",
    "PNG_DPI",
    "RULE",
    "SHARE_MAP",
    "TOP",
    "UNSEEN",
    "diverging_map",
    "model_styles",
    "new_figure",
    "save",
    "shorten",
    "styled",
    "text_colour",
    "thinned",
]

PNG_DPI = 160
FONT = "DejaVu Sans"  # ships with matplotlib: the same picture on every machine
FORMATS = ("png", "pdf", "svg")

OKABE_ITO = {
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "black": "#000000",
}
MODEL_COLOURS = {"AR": OKABE_ITO["vermillion"], "ST-AR": OKABE_ITO["blue"]}
OTHER_COLOURS = tuple(OKABE_ITO[name] for name in ("green", "purple", "sky", "orange", "black"))

INK, MUTED, RULE = "#222222", "#666666", "#DDDDDD"
CURRENT, TOP, UNSEEN = "#F5182B", "#FFE600", "#E4E4E4"  # the paper's red and yellow; grey for the rest

# Light to dark in near-equal steps of lightness (anchors of seaborn's mako), so that a darker cell is
# more attention in grey print too, and neither red nor yellow occurs in it.
_MAKO = (
    "#DEF5E5",
    "#A6E1BC",
    "#5ECDAD",
    "#3CB2AD",
    "#3495A9",
    "#3578A2",
    "#3B589A",
    "#403C79",
    "#35264C",
)
ACCURACY_MAP = LinearSegmentedColormap.from_list("accuracy", _MAKO[:-1])
# Of layers, first to last. Light enough to tell from the next, dark enough on white.
LAYER_MAP = LinearSegmentedColormap.from_list("layers", ACCURACY_MAP(np.linspace(0.22, 1, 64)))
SHARE_MAP = LinearSegmentedColormap.from_list("share", ["#FAFAFA", *_MAKO[:-1]])  # nothing: near-white
HEAT_MAP = LinearSegmentedColormap.from_list(
    "attention",
    [
        (*to_rgb(colour), alpha)
        for colour, alpha in zip(_MAKO, (0, 0.5, 0.72, *[0.85] * 6), strict=True)
    ],
)

_RC = {
    "font.family": FONT,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "hatch.linewidth": 0.5,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
    "svg.hashsalt": "viz",
}


Given = ParamSpec("Given")
Drawn = TypeVar("Drawn")


def styled(draw: Callable[Given, Drawn]) -> Callable[Given, Drawn]:
    """Decorator: run a drawing function under the house style; the caller's settings come back."""

    @functools.wraps(draw)
    def drawn(*args: Given.args, **kwargs: Given.kwargs) -> Drawn:
        with matplotlib.rc_context(_changed_settings() | _RC):
            return draw(*args, **kwargs)

    return drawn


def _changed_settings() -> dict:
    """Matplotlib's own values where a matplotlibrc or the caller has others (LaTeX, other sizes)."""
    now = matplotlib.rcParams
    own = ((key, value) for key, value in matplotlib.rcParamsDefault.items() if key != "backend")
    return {key: value for key, value in own if now[key] != value}


def new_figure(
    width: float, height: float, *, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty figure of ``width`` x ``height`` inches with its own canvas, unknown to pyplot."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def model_styles(names: Iterable[str]) -> dict[str, dict]:
    """Line style of each model: variants of ST-AR (or of AR) share its colour and differ in dashes."""
    dashes, markers = ("-", "--", ":", "-."), ("o", "s", "^", "D")
    styles: dict[str, dict] = {}
    used: dict[str, int] = {}
    others = 0
    for name in names:
        family = "ST-AR" if "ST-AR" in name else "AR" if re.search(r"\bAR\b", name) else name
        colour = MODEL_COLOURS.get(family)
        if colour is None:
            colour = OTHER_COLOURS[others % len(OTHER_COLOURS)]
            others += 1
        variant = used[family] = used.get(family, -1) + 1
        styles[name] = {
            "color": colour,
            "linestyle": dashes[variant % len(dashes)],
            "marker": markers[variant % len(markers)],
        }
    return styles


def diverging_map(negative: str, positive: str) -> LinearSegmentedColormap:
    """A map from colour ``negative`` through near-white at zero to colour ``positive``."""
    return LinearSegmentedColormap.from_list("difference", [negative, "#F7F7F7", positive])


def text_colour(background: Sequence[float]) -> str:
    """Ink or white, whichever reads better on an RGB(A) ``background`` (WCAG relative luminance)."""
    linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in background[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.24 else "white"


def shorten(text: str, most: int) -> str:
    """``text`` of at most ``most`` letters, an ellipsis in the place of what is left out."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def thinned(values: Sequence[int], most: int = 12) -> list[int]:
    """Up to ``most`` of ``values``, evenly spread, the last among them."""
    every = -(-len(values) // most)
    return list(values)[::-1][::every][::-1]


def save(
    figure: Figure, path_without_suffix: Path | str, formats: Sequence[str] = ("png", "pdf")
) -> list[Path]:
    """Write ``figure`` as ``path_without_suffix.<format>``, PNG at 160 dpi; returns the paths.

    Every format is rendered in memory first and each file appears by one rename: if a format cannot
    be drawn, no file changes. ``UserError`` on an unknown format or a place that cannot be written.
    """
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise UserError(f"formats is {list(formats)}; expected some of: {', '.join(FORMATS)}")
    if Path(path_without_suffix).suffix.lstrip(".") in FORMATS:
        raise UserError(f"{path_without_suffix} has a suffix; give the path without it and formats=")
    pictures = {name: _render(figure, name) for name in formats}
    paths = [Path(f"{path_without_suffix}.{name}") for name in formats]
    try:
        for path, picture in zip(paths, pictures.values(), strict=True):
            with publish_file(path) as temporary:
                temporary.write_bytes(picture)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return paths


@styled
def _render(figure: Figure, name: str) -> bytes:
    # Without a date the same figure gives the same bytes.
    undated = {"png": None, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=name, dpi=PNG_DPI, metadata=undated[name])
    return buffer.getvalue()
