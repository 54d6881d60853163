"""What one subject's maps become: figures for pictures, a GIF over all steps, and file names."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from probes.attention.maps import AttentionMaps
from probes.reading.example import Subject
from star.base.names import slug
from viz.attention.animation import AttentionFrames, save_gif
from viz.attention.maps import attention_compare, attention_grid, attention_heads

__all__ = ["Picture", "animate", "figures", "stems"]


@dataclass(frozen=True)
class Picture:
    """What one picture shows: a subject and its maps for each model (samples differ by model)."""

    subjects: dict[str, Subject]
    found: dict[str, AttentionMaps]

    @property
    def first(self) -> Subject:
        """The subject that names the picture."""
        return next(iter(self.subjects.values()))


def figures(picture: Picture, head: int | str, grid: int, scale: float) -> Iterator[tuple[str, Figure]]:
    """The pictures of one subject, each with what its file name ends in."""
    words = _head_words(head)
    common = {"grid": grid, "scale_max": scale, "note": picture.first.description}
    if head == "all":
        for model, maps in picture.found.items():
            for place, layer in enumerate(maps.layers):
                subject = picture.subjects[model]
                yield (
                    f"-{slug(model, among=picture.found)}" * (len(picture.found) > 1)
                    + f"-layer-{layer}",
                    attention_heads(
                        subject.image,
                        maps.maps[place],
                        layer=layer,
                        steps=maps.steps,
                        class_weights=maps.class_weights[place],
                        title=f"Attention of {model}: the heads of layer {layer}",
                        **common | {"note": subject.description},
                    ),
                )
    elif len(picture.found) == 1:
        [(model, maps)] = picture.found.items()
        yield (
            "",
            attention_grid(
                picture.first.image,
                maps.maps,
                layers=maps.layers,
                steps=maps.steps,
                class_weights=maps.class_weights,
                title=f"Attention of {model}, {words}",
                **common,
            ),
        )
    else:
        maps = next(iter(picture.found.values()))
        yield (
            "",
            attention_compare(
                {model: subject.image for model, subject in picture.subjects.items()},
                {model: found.maps for model, found in picture.found.items()},
                layers=maps.layers,
                steps=maps.steps,
                class_weights={model: found.class_weights for model, found in picture.found.items()},
                title=f"Attention of {_model_words(picture)}, {words}",
                **common,
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


def animate(
    picture: Picture,
    path: Path,
    head: int | str,
    grid: int,
    *,
    scale: float,
    fps: float | None,
    on_frame: Callable[[int, int], None],
) -> Path:
    """Write the GIF of one subject over all steps."""
    frames = AttentionFrames(
        {model: subject.image for model, subject in picture.subjects.items()},
        {model: found.maps for model, found in picture.found.items()},
        layers=next(iter(picture.found.values())).layers,
        grid=grid,
        class_weights={model: found.class_weights for model, found in picture.found.items()},
        title=f"Attention of {_model_words(picture)}, {_head_words(head)}",
        note=picture.first.description,
        scale_max=scale,
    )
    return save_gif(frames, path, fps=fps, on_frame=on_frame)


def stems(pictures: Sequence[Picture], weights: str, head: int | str) -> list[str]:
    """File names without suffix; images whose names look alike as file names get a number."""
    kinds = {"mean": "", "max": "-max", "all": "-all-heads", "rollout": "-rollout"}
    kind = kinds.get(head, f"-head-{head}")
    found: list[str] = []
    for picture in pictures:
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
