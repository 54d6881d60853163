"""What one subject's maps of attention become: pictures, a GIF over all steps, and file names."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from probes.attention.maps import AttentionMaps
from probes.reading.example import Subject
from star.base.names import slug
from viz.attention.animation import AttentionFrames, save_gif
from viz.attention.maps import attention_compare, attention_grid, attention_heads

__all__ = ["Picture", "gif", "pictures", "stems"]


@dataclass(frozen=True)
class Picture:
    """What one picture shows: a subject and its maps for each model (samples differ by model)."""

    subjects: dict[str, Subject]
    found: dict[str, AttentionMaps]

    @property
    def first(self) -> Subject:
        """The subject that names the picture."""
        return next(iter(self.subjects.values()))

    @property
    def layers(self) -> list[int]:
        """Those drawn, of every model."""
        return next(iter(self.found.values())).layers

    @property
    def images(self) -> dict[str, np.ndarray]:
        """What each model is shown."""
        return {model: subject.image for model, subject in self.subjects.items()}

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """Attention to the image's tokens."""
        return {model: found.maps for model, found in self.found.items()}

    @property
    def class_weights(self) -> dict[str, np.ndarray]:
        """Attention to the class token."""
        return {model: found.class_weights for model, found in self.found.items()}


def pictures(
    picture: Picture, head: int | str, grid: int, scale: float
) -> Iterator[tuple[str, Figure]]:
    """The pictures of one subject, each with what its file name ends in."""
    if head == "all":
        yield from _of_heads(picture, grid, scale)
        return
    maps = next(iter(picture.found.values()))
    title = f"Attention of {_model_words(picture)}, {_head_words(head)}"
    note = picture.first.description
    if len(picture.found) == 1:
        figure = attention_grid(
            picture.first.image, maps.maps, class_weights=maps.class_weights, layers=maps.layers,
            steps=maps.steps, grid=grid, scale_max=scale, title=title, note=note,
        )  # fmt: skip
    else:
        figure = attention_compare(
            picture.images, picture.maps, class_weights=picture.class_weights, layers=maps.layers,
            steps=maps.steps, grid=grid, scale_max=scale, title=title, note=note,
        )  # fmt: skip
    yield "", figure


def _of_heads(picture: Picture, grid: int, scale: float) -> Iterator[tuple[str, Figure]]:
    """A picture of each model's every layer: its heads under each other."""
    for model, maps in picture.found.items():
        ending = f"-{slug(model, among=picture.found)}" if len(picture.found) > 1 else ""
        subject = picture.subjects[model]
        for place, layer in enumerate(maps.layers):
            yield (
                f"{ending}-layer-{layer}",
                attention_heads(
                    subject.image,
                    maps.maps[place],
                    layer=layer,
                    steps=maps.steps,
                    class_weights=maps.class_weights[place],
                    title=f"Attention of {model}: the heads of layer {layer}",
                    grid=grid,
                    scale_max=scale,
                    note=subject.description,
                ),
            )


def _model_words(picture: Picture) -> str:
    *others, last = picture.found
    words = f"{', '.join(others)} and {last}" if others else last
    return words if len(words) <= 50 or not others else f"{len(picture.found)} models"


def _head_words(head: int | str) -> str:
    if head == "rollout":
        return "rollout through each layer"
    return f"head {head}" if isinstance(head, int) else f"{head} over heads"


def gif(
    picture: Picture,
    head: int | str,
    grid: int,
    *,
    scale: float,
    fps: float | None,
    on_frame: Callable[[int, int], None],
) -> Callable[[Path], list[Path]]:
    """The writer of the GIF of one subject over all steps."""

    def write(path: Path) -> list[Path]:
        frames = AttentionFrames(
            picture.images,
            picture.maps,
            layers=picture.layers,
            grid=grid,
            class_weights=picture.class_weights,
            title=f"Attention of {_model_words(picture)}, {_head_words(head)}",
            note=picture.first.description,
            scale_max=scale,
        )
        return [save_gif(frames, path, fps=fps, on_frame=on_frame)]

    return write


def stems(drawn: Sequence[Picture], weights: str, head: int | str) -> list[str]:
    """File names without suffix; images whose names look alike as file names get a number."""
    kinds: dict[int | str, str] = {
        "mean": "",
        "max": "-max",
        "all": "-all-heads",
        "rollout": "-rollout",
    }
    kind = kinds.get(head, f"-head-{head}")
    found: list[str] = []
    for picture in drawn:
        several = len(picture.found) > 1
        names = "-".join(slug(name, among=picture.found) for name in picture.found)[:80]
        models = f"-{names}" if several else ""
        stem = wanted = f"attn-maps-{picture.first.slug}{models}-{weights}{kind}"
        number = 1
        while stem in found:
            number += 1
            stem = f"{wanted}-{number}"
        found.append(stem)
    return found
