"""Where each layer looks at each step: pictures of several checkpoints' attention, or GIFs, and data.

A GIF and its arrays are made only where files are written; pictures and their table are in the answer.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from figures.opening import open_checkpoints, output_folder, run_images, tokenizer_path
from figures.requests.attention_maps import Request
from figures.studies.attention_maps_drawn import Picture, gif, pictures, stems
from figures.studies.attention_maps_plan import (
    Plan,
    check_asked,
    chosen_formats,
    plan_maps,
    split_names,
)
from figures.study import Finding, Study, Writer
from figures.work import Work
from probes.attention.maps import attention_maps
from probes.attention.result import maps_result, write_map_arrays
from probes.reading.example import Subject, find_subjects, sampled_subjects
from probes.results import checkpoint_facts, provenance
from star.base.errors import UserError
from star.codes.store import CodeStore
from star.images.open import ImageSource
from star.training.checkpoint import Loaded
from viz.base.panel import heat_scale

__all__ = ["Request", "run"]

GUIDANCE = 2.0


class MapsStudy(Study[Request]):
    """``star attn-maps``."""

    request = Request

    def check(self, asked: Request) -> None:
        """Refuse options that contradict each other or would have no effect."""
        check_asked(asked)

    def findings(self, asked: Request, work: Work) -> Iterator[Finding]:
        """One finding an image, with the maps of all checkpoints on one scale."""
        checkpoints, images = split_names(asked.names or [])
        opened = open_checkpoints(checkpoints, asked, work.say)
        plan = plan_maps(asked, opened, work)
        subjects = _subjects(asked, opened, images, plan, work)
        _check_same(opened, subjects, asked.codes is not None)
        drawn = _measured(opened, subjects, plan, work)
        maps = [found.maps for picture in drawn for found in picture.found.values()]
        scale = float(heat_scale(maps, asked.scale_max).vmax or 0)
        facts = {name: checkpoint_facts(loaded) for name, loaded in opened.items()}
        folder = output_folder(next(iter(opened.values())), asked.out, "attn-maps")
        for stem, picture in zip(stems(drawn, asked.weights, plan.head), drawn, strict=True):
            info = _facts(asked, facts, picture, scale)
            yield from _findings(asked, plan, picture, folder / stem, scale, info, work)
        yield Finding(
            said=[f"colour scale of everything drawn: 0 to {scale:.2g} (darkest: that and more)"]
        )


run = MapsStudy().run


def _subjects(
    asked: Request, opened: dict[str, Loaded], images: list[str], plan: Plan, work: Work
) -> dict[str, list[Subject]]:
    """What each checkpoint is shown: images, codes or its own samples."""
    data = _data(asked, next(iter(opened.values())), images, work)
    found = {}
    for name, loaded in opened.items():
        label, tokenizer = plan.classes[name], tokenizer_path(loaded, asked.tokenizer)
        if asked.sample is None:
            found[name] = find_subjects(
                loaded, images=images, codes=asked.codes, label=label, data=data, tokenizer=tokenizer
            )
        else:
            found[name] = sampled_subjects(
                loaded,
                count=asked.sample,
                label=label,
                seed=asked.seed or 0,
                cfg_scale=GUIDANCE if asked.cfg_scale is None else asked.cfg_scale,
                tokenizer=tokenizer,
                on_step=work.progress(f"sample {name}"),
            )
    return found


def _data(
    asked: Request, first: Loaded, images: list[str], work: Work
) -> ImageSource | dict[str, CodeStore] | None:
    """The data whose first test image is drawn if none is named: the first run's, for all."""
    named = images or asked.codes is not None or asked.sample is not None
    if named or (asked.data is None and first.config is None):
        return None
    return run_images(first, asked.data, asked.tokenizer, work)


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


def _measured(
    opened: dict[str, Loaded], subjects: dict[str, list[Subject]], plan: Plan, work: Work
) -> list[Picture]:
    """The maps of every image by every checkpoint."""
    count = len(next(iter(subjects.values())))
    drawn = []
    for place in range(count):
        own = {name: found[place] for name, found in subjects.items()}
        maps = {
            name: attention_maps(
                loaded.model, own[name].tokens, own[name].label,
                layers=plan.layers, steps=plan.steps, head=plan.head,
            )
            for name, loaded in opened.items()
        }  # fmt: skip
        drawn.append(Picture(own, maps))
        work.stage("attention", place + 1, count)
    return drawn


def _findings(
    asked: Request, plan: Plan, picture: Picture, stem: Path, scale: float, info: dict, work: Work
) -> Iterator[Finding]:
    """The maps of one image as a table and pictures, one by one, or as a GIF and arrays."""
    if asked.animate:
        moving = gif(
            picture,
            plan.head,
            plan.grid,
            scale=scale,
            fps=asked.fps,
            on_frame=work.progress(f"frames {stem.name}"),
        )
        arrays = partial(write_map_arrays, picture.found, info=info)
        files: dict[str, Writer] = {".gif": moving, ".npz": arrays}
        yield Finding(stem=stem, files=files)
    else:
        table = maps_result(picture.found, picture.first.name, plan.head, info)
        yield Finding(stem=stem, results={"": table})
        for ending, figure in pictures(picture, plan.head, plan.grid, scale):
            figures, formats = {ending: figure}, chosen_formats(asked.formats)
            yield Finding(stem=stem, figures=figures, formats=formats)
    shown = dict.fromkeys(subject.description for subject in picture.subjects.values())
    yield Finding(said=list(shown))


def _facts(asked: Request, facts: dict[str, dict], picture: Picture, scale: float) -> dict:
    """Where the maps of a picture come from."""
    models = {}
    for name, of_checkpoint in facts.items():
        subject = picture.subjects[name]
        shown = {"class_shown": subject.label, "tokens": subject.tokens.tolist()}
        models[name] = of_checkpoint | shown
    return provenance(
        measurement="attention maps",
        image=picture.first.name,
        description=picture.first.description,
        head=asked.head,
        scale_max=scale,
        place="0 is the class token, 1..T the image tokens in raster order",
        models=models,
    )
