"""Which token indices change when the image hardly does: one image's views, or curves over many images.

All tokenizers are measured on the same images, at one size; later ones are compared with the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.opening import open_tokenizers
from figures.requests.token_invariance import Request
from figures.said.token_invariance import EXPLAINED, changed, compared, slightest
from figures.sentences import few_images
from figures.study import Finding, Study
from figures.work import Work
from probes.results import Result, provenance
from probes.tokens.augmentations import View, chosen_views
from probes.tokens.change import ViewChange, change_result, check_size, default_size, token_change
from probes.tokens.compare import compare_invariance, invariance_sentences
from probes.tokens.images import drawn, holds_many, one_image, picture_split, readable
from probes.tokens.invariance import PSNR_CAP, Invariance, measure_invariance
from star.base.errors import UserError
from star.base.names import shown, slug
from star.images.open import Split
from star.images.views import center_crop
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.model import VQModel
from viz.base.style import shorten
from viz.tokens.change import token_views
from viz.tokens.invariance import CURVES, invariance_curves, invariance_maps

__all__ = ["Request", "run"]

DEFAULT_IMAGES = 256
_LONGEST = 100  # bytes of an image's name that the names of its results begin with


@dataclass(frozen=True)
class Opened:
    """What is measured: images (``split`` is None for a single one), tokenizers and their views."""

    images: Split
    split: str | None
    models: dict[str, VQModel]
    views: dict[str, list[View]]
    size: int

    def ending(self, name: str) -> str:
        """What tells the files of a tokenizer from another's, where there are several."""
        return f"-{slug(name, among=self.models)}" if len(self.models) > 1 else ""


class InvarianceStudy(Study[Request]):
    """``star token-invariance``."""

    request = Request

    def check(self, asked: Request) -> None:
        """Refuse a batch of nothing, options of one image for many and the reverse, wrong names."""
        if asked.batch_size is not None and asked.batch_size < 1:
            raise UserError(f"batch_size is {asked.batch_size}; expected at least 1")
        _refuse_the_others_options(asked, holds_many(asked.image))
        if asked.augment is not None:  # a wrong name is refused before anything is opened
            chosen_views(asked.augment, size=1 << 30, stride=1)

    def findings(self, asked: Request, work: Work) -> Iterator[Finding]:
        """Of many images tables and curves of all tokenizers; of one, Figure 1(c) of each."""
        opened = _opened(asked, work)
        if opened.split is None:
            yield from _of_one(asked, opened, work)
        else:
            yield from _of_many(asked, opened, opened.split, work)


run = InvarianceStudy().run


def _refuse_the_others_options(asked: Request, many: bool) -> None:
    given = {
        "--shift": (asked.shift, True, "for many images: --augment shift:1,2"),
        "--rotate": (asked.rotate, True, "for many images: --augment rotate:1,2"),
        "--scale": (asked.scale, True, "for many images: --augment scale:0.9,1.1"),
        "--images": (asked.images, False, "name a folder, digits or photos to measure many"),
        "--split": (asked.split, False, "name a folder, digits or photos to measure many"),
    }
    for option, (value, of_one, advice) in given.items():
        if value is not None and many == of_one:
            belongs = "one image's view" if of_one else "many images"
            raise UserError(f"{option} is an option of {belongs}, {asked.image} is not; {advice}")
    if asked.images is not None and asked.images < 0:
        raise UserError(f"images is {asked.images}; expected at least 1, or 0 for all")


def _opened(asked: Request, work: Work) -> Opened:
    if holds_many(asked.image):
        images, split = _pictures(asked, work)
    else:
        images, split = one_image(asked.image, asked.max_megapixels), None
    models = open_tokenizers(asked.tokenizer, asked.device)
    size = asked.size
    if size is None:
        size = max(default_size(model) for model in models.values())
    for model in models.values():
        check_size(model, size)
    coarsest = max(model.config.stride for model in models.values())
    views = {
        name: chosen_views(asked.augment, size=size, stride=model.config.stride, coarsest=coarsest)
        for name, model in models.items()
    }
    return Opened(images, split, models, views, size)


def _pictures(asked: Request, work: Work) -> tuple[Split, str]:
    """Some of many images, in a random order, and the split they are from; says what is left out."""
    images, split = picture_split(asked.image, asked.split, asked.max_megapixels, on_message=work.say)
    images = drawn(images, DEFAULT_IMAGES if asked.images is None else asked.images, asked.seed)
    return readable(images, work.say) if asked.skip_bad else images, split


def _measured(asked: Request, opened: Opened, work: Work) -> dict[str, Invariance]:
    return {
        name: measure_invariance(
            model,
            opened.images,
            opened.views[name],
            size=opened.size,
            name=name,
            seed=asked.seed,
            batch_size=asked.batch_size,
            on_progress=work.progress(f"views of {name}" if len(opened.models) > 1 else "views"),
        )
        for name, model in opened.models.items()
    }


def _of_many(asked: Request, opened: Opened, split: str, work: Work) -> Iterator[Finding]:
    found = _measured(asked, opened, work)
    table = pd.concat([item.table() for item in found.values()], ignore_index=True)
    info = _facts(asked, opened, opened.models)
    stem = asked.out / _stem(asked, opened.models, split)
    source = shorten(shown(Path(asked.image).name), 30)
    what = f"{source}, {split}: {len(opened.images)} images at {opened.size} px"
    figures = {
        f"-{slug(measure)}": invariance_curves(table, measure, note=what)
        for measure in CURVES
        if table[measure].notna().any()
    }
    for name, item in found.items():
        figures |= _maps(item, f"-maps{opened.ending(name)}", note=f"{what}, {name}")
    said = [line for item in found.values() for line in slightest(item, what)]
    said += [EXPLAINED, *few_images(len(opened.images))]
    yield Finding(stem=stem, results={"": Result(table, info)}, figures=figures, said=said)
    first, *others = found
    for other in others:
        yield _comparison(found, first, other, info, stem)


def _comparison(
    found: dict[str, Invariance], first: str, other: str, info: dict, stem: Path
) -> Finding:
    table = compare_invariance(found[first], found[other])
    sentences = invariance_sentences(table, (first, other))
    info = {**info, "measurement": "paired comparison of token invariance"}
    info |= {"names": [first, other], "sentences": sentences}
    mine, theirs = (slug(name, among=found) for name in (other, first))
    return Finding(
        stem=stem,
        results={f"-{mine}-against-{theirs}": Result(table, info)},
        said=compared(sentences, first, other),
    )


def _of_one(asked: Request, opened: Opened, work: Work) -> Iterator[Finding]:
    nothing = asked.shift is None and asked.rotate is None and asked.scale is None
    nudged = {
        "shift": 1.0 if nothing else asked.shift or 0.0,
        "rotate": asked.rotate or 0.0,
        "scale": 1.0 if asked.scale is None else asked.scale,
    }
    image, size = opened.images.load(0), opened.size
    changes = {
        name: token_change(model, image, size=size, **nudged) for name, model in opened.models.items()
    }
    found = _measured(asked, opened, work)
    asked_for = f"-{slug(asked.augment)}" if asked.augment else ""
    called = shown(Path(asked.image).name if Path(asked.image).exists() else asked.image)
    cropped = np.asarray(center_crop(image, size))
    for name, model in opened.models.items():
        stem = asked.out / f"tokens-{_file_stem(asked.image)}{opened.ending(name)}"
        what = f"{asked.image} at {size} px"
        yield Finding(
            stem=stem,
            results={"": change_result(changes[name], model, shown(asked.image), size)},
            figures={"": _views(changes[name])},
            said=[changed(changes[name], f"{what}, {name}")],
        )
        facts, note = _facts(asked, opened, {name: model}), f"{called} at {size} px, {name}"
        yield Finding(
            stem=stem.with_name(f"{stem.name}-augmented{asked_for}"),
            results={"": Result(found[name].table(), facts)},
            figures=_maps(found[name], "-maps", note=note, image=cropped),
            said=slightest(found[name], what),
        )
    yield Finding(said=[EXPLAINED])


def _views(change: ViewChange) -> Figure:
    indices = (change.indices, change.view_indices)
    return token_views(change.image, change.view, *indices, labels=("image", change.label))


def _maps(
    found: Invariance, ending: str, *, note: str, image: np.ndarray | None = None
) -> dict[str, Figure]:
    if all(view.is_identity for view in found.views):
        return {}
    return {ending: invariance_maps(found.maps, image=image, note=note)}


def _facts(asked: Request, opened: Opened, models: dict[str, VQModel]) -> dict:
    return provenance(
        measurement="token invariance under augmentations",
        tokenizers={
            name: {"sha256": tokenizer_sha256(model), "stride": model.config.stride}
            for name, model in models.items()
        },
        data=asked.image,
        split=opened.split,
        images=len(opened.images),
        images_sha256=opened.images.fingerprint(),
        size=opened.size,
        seed=asked.seed,
        augment=asked.augment or "all",
        device=str(next(iter(models.values())).quant_conv.weight.device),
        psnr_cap_db=PSNR_CAP,
        unrelated="the next image in the order drawn",
        cells="shifts by whole cells of each tokenizer's own stride",
    )


def _stem(asked: Request, models: dict[str, VQModel], split: str) -> str:
    # What was asked for beside the defaults is in the name: another question is another file.
    parts = ["invariance", slug("-".join(models)), slug(Path(asked.image).resolve().name), split]
    parts += [f"{asked.size}px"] if asked.size else []
    parts += [f"{asked.images or 'all'}-images"] if asked.images is not None else []
    parts += [f"seed-{asked.seed}"] if asked.seed else []
    parts += [slug(asked.augment)] if asked.augment else []
    return "-".join(parts)


def _file_stem(image: str) -> str:
    """The image's own name where another file can have it too, else a slug of it."""
    stem = Path(image).stem
    return stem if stem.isprintable() and len(stem.encode()) <= _LONGEST else slug(stem)
