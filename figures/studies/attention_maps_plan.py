"""What is asked of attention maps: the names given, and the layers and steps every checkpoint has."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figures.opening import chosen_steps
from figures.requests.attention_maps import Request
from figures.work import Work
from probes.attention.maps import check_head
from probes.reading.features import parse_layers
from star.base.errors import UserError
from star.images.open import SUFFIXES
from star.model.classes import one_class
from star.model.config import ModelConfig
from star.model.transformer import check_layers
from star.training.checkpoint import Loaded
from viz.attention.animation import check_animation, frame_delay
from viz.attention.maps import check_legible
from viz.base.style import FORMATS

__all__ = ["Plan", "check_asked", "chosen_formats", "plan_maps", "split_names"]

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")
MOST_SAMPLES = 100


@dataclass(frozen=True)
class Plan:
    """What is drawn of every checkpoint; ``classes``: what each is asked to be shown, or None."""

    layers: list[int]
    steps: list[int]
    head: int | str
    grid: int
    classes: dict[str, int | None]


def split_names(names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Checkpoints (run folders and checkpoint files), and the images named after them.

    ``UserError`` for a checkpoint after an image, or a first name that can be neither.
    """
    is_checkpoint = [Path(name).suffix in CHECKPOINTS or Path(name).is_dir() for name in names]
    count = is_checkpoint.index(False) if False in is_checkpoint else len(names)
    if any(is_checkpoint[count:]):
        late = names[count + is_checkpoint[count:].index(True)]
        raise UserError(f"{late} is named after the image {names[count]}; name checkpoints first")
    if names and count == 0:
        first = Path(names[0])
        known = first.exists() or first.suffix.lower() in SUFFIXES or first.parts[:1] == ("digits",)
        if not known:
            raise UserError(
                f"no such checkpoint or image: {first}; expected a run folder, a .pt file or an image"
            )
    return [Path(name) for name in names[:count]], list(names[count:])


def check_asked(asked: Request) -> None:
    """Refuse options that contradict each other or would have no effect."""
    _, images = split_names(asked.names or [])
    _check_subjects(asked, images)
    if asked.fps is not None and not asked.animate:
        raise UserError("--fps has an effect only with --animate")
    of_pictures = {"--steps": asked.steps, "--at": asked.at, "--formats": asked.formats}
    idle = [name for name, value in of_pictures.items() if value is not None]
    if asked.animate and idle:
        raise UserError(f"--animate writes a GIF over every step; leave out {', '.join(idle)}")
    if asked.animate and asked.head == "all":
        raise UserError("--animate shows one map a layer: --head mean, max or a head's number")
    chosen_formats(asked.formats)


def _check_subjects(asked: Request, images: list[str]) -> None:
    """Refuse two answers to what is looked at, and options of what is not."""
    given = {"images": images, "--codes": asked.codes, "--sample": asked.sample is not None}
    subjects = [name for name, value in given.items() if value]
    if len(subjects) > 1:
        raise UserError(f"{' and '.join(subjects)} both say what is looked at; give one of them")
    if asked.data is not None and subjects:
        raise UserError(f"--data has no effect with {subjects[0]}; leave it out")
    if asked.sample is None and (asked.seed is not None or asked.cfg_scale is not None):
        raise UserError("--seed and --cfg-scale have an effect only with --sample")
    if asked.sample is not None and not 1 <= asked.sample <= MOST_SAMPLES:
        raise UserError(f"sample is {asked.sample}; expected 1 to {MOST_SAMPLES} images")


def chosen_formats(given: str | None) -> tuple[str, ...]:
    """The formats named, or all."""
    formats = tuple(part.strip().lower() for part in given.split(",")) if given is not None else FORMATS
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"formats is {given!r}; expected some of: {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))


def plan_maps(asked: Request, opened: dict[str, Loaded], work: Work) -> Plan:
    """Layers, steps and heads that every checkpoint has, and a picture can show."""
    model = _common_model(opened)
    head = int(asked.head) if asked.head.isdecimal() else asked.head
    layers = _layers(asked, opened, work)
    every = list(range(1, model.tokens + 1))
    steps = every if asked.animate else chosen_steps(asked.at, asked.steps, model.tokens)
    for loaded in opened.values():
        check_head(loaded.model.config, head)
    if asked.animate:
        check_animation(layers, len(opened))
        frame_delay(len(steps), asked.fps)
    else:
        rows = max(item.model.config.heads for item in opened.values())
        check_legible(steps, rows if head == "all" else len(layers) * len(opened))
    classes = {name: _class(asked, loaded) for name, loaded in opened.items()}
    return Plan(layers, steps, head, model.grid, classes)


def _common_model(opened: dict[str, Loaded]) -> ModelConfig:
    """The first model's shape; ``UserError`` unless all have its grid."""
    grids = {name: loaded.model.config.grid for name, loaded in opened.items()}
    if len(set(grids.values())) > 1:
        said = ", ".join(f"{name} {grid} x {grid}" for name, grid in grids.items())
        raise UserError(f"the checkpoints have different grids of tokens ({said}): no step of one is "
                        "a step of the other; draw them one by one")  # fmt: skip
    return next(iter(opened.values())).model.config


def _layers(asked: Request, opened: dict[str, Loaded], work: Work) -> list[int]:
    """The layers asked for, which every checkpoint has."""
    depths = {name: loaded.model.config.layers for name, loaded in opened.items()}
    depth = next(iter(depths.values()))
    if asked.layers in (None, "all") and len(set(depths.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in depths.items())
        raise UserError(
            f"the checkpoints have different numbers of layers ({said}); name some: --layers"
        )
    if asked.animate and asked.layers is None:
        chosen = sorted({1, (depth + 1) // 2, depth})
        work.say(f"layers {', '.join(map(str, chosen))} (--layers names others)")
        return chosen
    layers = parse_layers("all" if asked.layers is None else asked.layers, depth)
    for loaded in opened.values():
        check_layers(loaded.model.config, layers)
    return layers


def _class(asked: Request, loaded: Loaded) -> int | None:
    """The class asked for by the checkpoint's own names."""
    config = loaded.model.config
    return one_class(asked.label, config.num_classes, loaded.class_names, null_class=config.null_class)
