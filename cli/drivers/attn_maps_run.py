"""What ``star attn-maps`` does with its options: open, measure, draw, write."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cli.drivers.attn_maps_draw import Picture, animate, figures, stems
from cli.opening import (
    check_out,
    chosen_steps,
    open_checkpoints,
    output_folder,
    run_images,
    tokenizer_path,
)
from cli.terminal.screen import Stages, console, print_written
from probes.attention.maps import attention_maps, check_head
from probes.attention.result import maps_result, write_map_arrays
from probes.reading.example import Subject, find_subjects, sampled_subjects
from probes.reading.features import parse_layers
from probes.results import provenance, write_result
from star.base.errors import UserError
from star.base.files import sha256_file
from star.codes.store import CodeStore
from star.images.open import SUFFIXES, ImageSource
from star.model.classes import one_class
from star.model.config import ModelConfig
from star.model.transformer import check_layers
from star.training.checkpoint import Loaded
from viz.attention.animation import check_animation, frame_delay
from viz.attention.maps import check_legible
from viz.base.panel import heat_scale
from viz.base.style import FORMATS, save

__all__ = ["MapsRequest", "run", "split_names"]

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")
MOST_SAMPLES = 100
GUIDANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class MapsRequest:
    """The command's options, as given."""

    names: list[str] | None
    layers: str | None
    steps: int | None
    at: str | None
    head: str
    label: str | None
    codes: Path | None
    sample: int | None
    seed: int | None
    cfg_scale: float | None
    animate: bool
    fps: float | None
    scale_max: float | None
    formats: str | None
    data: str | None
    tokenizer: Path | None
    weights: str
    out: Path | None
    heads: int | None
    grid: int | None
    device: str


def run(asked: MapsRequest) -> None:
    """Do what the options ask for."""
    checkpoints, images = split_names(asked.names or [])
    _refuse_contradictions(asked, images)
    formats = _formats(asked.formats)
    opened = open_checkpoints(checkpoints, asked.weights, asked.device, asked.heads, asked.grid)
    model = _common_model(opened)
    head = int(asked.head) if asked.head.isdecimal() else asked.head
    layers = _layers(asked, opened)
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
    with Stages() as stages:
        labels = {name: _class(asked, loaded) for name, loaded in opened.items()}
        data = _data(asked, opened, images, stages)
        subjects = {
            name: _subjects(asked, name, loaded, labels[name], images, data, stages)
            for name, loaded in opened.items()
        }
        _check_same(opened, subjects, asked.codes is not None)
        pictures = _measure(opened, subjects, layers, steps, head, stages)
    for picture in pictures:
        for said in dict.fromkeys(subject.description for subject in picture.subjects.values()):
            console.print(said, highlight=False, markup=False)
    scale = heat_scale([f.maps for p in pictures for f in p.found.values()], asked.scale_max).vmax
    console.print(
        f"colour scale of everything drawn: 0 to {scale:.2g} (darkest: that and more)", highlight=False
    )
    folder = output_folder(next(iter(opened.values())), asked.out, "attn-maps")
    written = _write(asked, opened, pictures, head, model.grid, scale, folder, formats)
    print_written(written)


def _write(
    asked: MapsRequest,
    opened: dict[str, Loaded],
    pictures: list[Picture],
    head: int | str,
    grid: int,
    scale: float,
    folder: Path,
    formats: Sequence[str],
) -> list[Path]:
    """Draw every subject and write its maps as data; the files written."""
    written = []
    hashes = {name: sha256_file(loaded.path) for name, loaded in opened.items()}
    with Stages() as stages:
        for stem, picture in zip(stems(pictures, asked.weights, head), pictures, strict=True):
            info = _info(asked, opened, hashes, picture, scale)
            if asked.animate:
                report = partial(stages.report, f"frames {stem}")
                frames = {"scale": scale, "fps": asked.fps, "on_frame": report}
                written.append(animate(picture, folder / f"{stem}.gif", head, grid, **frames))
                written += write_map_arrays(picture.found, folder / f"{stem}.npz", info)
                continue
            for name, figure in figures(picture, head, grid, scale):
                written += save(figure, folder / f"{stem}{name}", formats)
            result = maps_result(picture.found, picture.first.name, head, info)
            written += write_result(result, folder / f"{stem}.csv")
    return written


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


def _refuse_contradictions(asked: MapsRequest, images: list[str]) -> None:
    """Refuse options that contradict each other or would have no effect."""
    given = {
        "images": images,
        "--codes": asked.codes,
        "--sample": asked.sample is not None,
    }
    subjects = [name for name, value in given.items() if value]
    if len(subjects) > 1:
        raise UserError(f"{' and '.join(subjects)} both say what is looked at; give one of them")
    if asked.data is not None and subjects:
        raise UserError(f"--data has no effect with {subjects[0]}; leave it out")
    if asked.sample is None and (asked.seed is not None or asked.cfg_scale is not None):
        raise UserError("--seed and --cfg-scale have an effect only with --sample")
    if asked.sample is not None and not 1 <= asked.sample <= MOST_SAMPLES:
        raise UserError(f"sample is {asked.sample}; expected 1 to {MOST_SAMPLES} images")
    if asked.fps is not None and not asked.animate:
        raise UserError("--fps has an effect only with --animate")
    idle = {"--steps": asked.steps, "--at": asked.at, "--formats": asked.formats}
    idle = [name for name, value in idle.items() if value is not None]
    if asked.animate and idle:
        raise UserError(f"--animate writes a GIF over every step; leave out {', '.join(idle)}")
    if asked.animate and asked.head == "all":
        raise UserError("--animate shows one map a layer: --head mean, max or a head's number")
    check_out(asked.out)


def _formats(given: str | None) -> tuple[str, ...]:
    formats = tuple(part.strip().lower() for part in given.split(",")) if given is not None else FORMATS
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"formats is {given!r}; expected some of: {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(formats))


def _common_model(opened: dict[str, Loaded]) -> ModelConfig:
    """The first model's shape; ``UserError`` unless all have its grid."""
    grids = {name: loaded.model.config.grid for name, loaded in opened.items()}
    if len(set(grids.values())) > 1:
        said = ", ".join(f"{name} {grid} x {grid}" for name, grid in grids.items())
        raise UserError(f"the checkpoints have different grids of tokens ({said}): no step of one is "
                        "a step of the other; draw them one by one")  # fmt: skip
    return next(iter(opened.values())).model.config


def _layers(asked: MapsRequest, opened: dict[str, Loaded]) -> list[int]:
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
        console.print(f"layers {', '.join(map(str, chosen))} (--layers names others)", highlight=False)
        return chosen
    layers = parse_layers("all" if asked.layers is None else asked.layers, depth)
    for loaded in opened.values():
        check_layers(loaded.model.config, layers)
    return layers


def _data(
    asked: MapsRequest, opened: dict[str, Loaded], images: list[str], stages: Stages
) -> ImageSource | dict[str, CodeStore] | None:
    """The data whose first test image is drawn if none is named: the first run's, for all."""
    first = next(iter(opened.values()))
    named = images or asked.codes is not None or asked.sample is not None
    if named or (asked.data is None and first.config is None):
        return None
    return run_images(first, asked.data, asked.tokenizer, stages)


def _class(asked: MapsRequest, loaded: Loaded) -> int | None:
    """The class asked for by the checkpoint's own names."""
    config = loaded.model.config
    return one_class(asked.label, config.num_classes, loaded.class_names, null_class=config.null_class)


def _subjects(
    asked: MapsRequest,
    name: str,
    loaded: Loaded,
    label: int | None,
    images: list[str],
    data: ImageSource | dict[str, CodeStore] | None,
    stages: Stages,
) -> list[Subject]:
    tokenizer = tokenizer_path(loaded.path.parent, asked.tokenizer)
    if asked.sample is None:
        return find_subjects(
            loaded, images=images, codes=asked.codes, label=label, data=data, tokenizer=tokenizer
        )
    return sampled_subjects(
        loaded,
        count=asked.sample,
        label=label,
        seed=asked.seed or 0,
        cfg_scale=GUIDANCE if asked.cfg_scale is None else asked.cfg_scale,
        tokenizer=tokenizer,
        on_step=lambda done, total: stages.report(f"sample {name}", done, total),
    )


def _check_same(opened: dict[str, Loaded], subjects: dict[str, list[Subject]], codes: bool) -> None:
    """Refuse to compare models that are shown different classes, or codes of another tokenizer."""
    first = next(iter(opened.values()))
    for name, other in list(opened.items())[1:]:
        shown = any(found.label < other.model.config.num_classes for found in subjects[name])
        if shown and first.class_names != other.class_names:
            raise UserError(
                f"{first.path} and {other.path} were trained on different classes; name images and "
                "leave out --class, so that each is shown its null class"
            )
        if codes and (first.tokenizer or {}).get("sha256") != (other.tokenizer or {}).get("sha256"):
            raise UserError(
                f"{first.path} and {other.path} have different tokenizers: --codes mean another image "
                "to each; draw them one by one"
            )


def _measure(
    opened: dict[str, Loaded],
    subjects: dict[str, list[Subject]],
    layers: list[int],
    steps: list[int],
    head: int | str,
    stages: Stages,
) -> list[Picture]:
    count = len(next(iter(subjects.values())))
    pictures = []
    for place in range(count):
        own = {name: found[place] for name, found in subjects.items()}
        maps = {
            name: attention_maps(
                loaded.model, own[name].tokens, own[name].label, layers=layers, steps=steps, head=head
            )
            for name, loaded in opened.items()
        }
        pictures.append(Picture(own, maps))
        stages.report("attention", place + 1, count)
    return pictures


def _info(
    asked: MapsRequest,
    opened: dict[str, Loaded],
    hashes: dict[str, str],
    picture: Picture,
    scale: float,
) -> dict:
    """Where the maps of a picture come from."""
    models = {
        name: {
            "checkpoint": str(loaded.path),
            "checkpoint_sha256": hashes[name],
            "checkpoint_step": loaded.step,
            "weights": loaded.weights,
            "class_shown": picture.subjects[name].label,
            "tokens": picture.subjects[name].tokens.tolist(),
        }
        for name, loaded in opened.items()
    }
    return provenance(
        measurement="attention maps",
        image=picture.first.name,
        description=picture.first.description,
        head=asked.head,
        scale_max=scale,
        place="0 is the class token, 1..T the image tokens in raster order",
        models=models,
    )
