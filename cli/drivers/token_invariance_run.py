"""What ``star token-invariance`` does: open, measure, write, draw, print."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cli.opening import check_out
from cli.terminal.screen import Stages, note_few, print_line, print_rows, print_written
from probes.results import Result, provenance, write_result
from probes.tokens.augmentations import AUGMENTATIONS, View, chosen_views
from probes.tokens.change import change_result, check_size, default_size, token_change
from probes.tokens.compare import compare_invariance, invariance_sentences
from probes.tokens.images import drawn, holds_many, one_image, picture_split, readable
from probes.tokens.invariance import PSNR_CAP, Invariance, measure_invariance
from star.base.device import resolve_device
from star.base.errors import UserError, listed
from star.base.names import shown, slug
from star.codes.open import open_tokenizer
from star.images.open import Split
from star.images.views import center_crop
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.model import VQModel
from viz.base.style import save, shorten
from viz.tokens.change import token_views
from viz.tokens.invariance import CURVES, invariance_curves, invariance_maps

DEFAULT_IMAGES = 256
_LONGEST = 100  # bytes of an image's name that the names of its results begin with


@dataclass(frozen=True, kw_only=True)
class InvarianceRequest:
    """What was asked for: the command's options. None: not given."""

    image: str
    tokenizers: list[str]
    augment: str | None
    images: int | None
    split: str | None
    size: int | None
    seed: int
    batch_size: int | None
    max_megapixels: float
    skip_bad: bool
    shift: float | None
    rotate: float | None
    scale: float | None
    out: Path
    device: str


def run_token_invariance(asked: InvarianceRequest) -> None:
    """Measure, write and draw what was asked for; ``UserError`` before anything is written."""
    check_out(asked.out)
    if asked.seed < 0:
        raise UserError(f"seed is {asked.seed}; expected at least 0")
    if asked.batch_size is not None and asked.batch_size < 1:
        raise UserError(f"batch_size is {asked.batch_size}; expected at least 1")
    many = holds_many(asked.image)
    _refuse_the_others_options(asked, many)
    if asked.augment is not None:  # a wrong name is refused before anything is opened
        chosen_views(asked.augment, size=1 << 30, stride=1)
    if many:
        images, split = picture_split(
            asked.image, asked.split, asked.max_megapixels, on_message=print_line
        )
        count = DEFAULT_IMAGES if asked.images is None else asked.images
        images = drawn(images, count, asked.seed)
        if asked.skip_bad:
            images = _readable(images)
    else:
        images, split = one_image(asked.image, asked.max_megapixels), None
    models = _open(asked)
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
    if many:
        _run_many(asked, images, split, models, views, size)
    else:
        _run_one(asked, images, models, views, size)


def _readable(images: Split) -> Split:
    """The images that can be read; says which were left out."""
    images, left_out = readable(images)
    if left_out:
        print_line(f"left out, since they cannot be read: {listed(left_out)}")
    if not len(images):
        raise UserError("none of the images can be read")
    return images


def _refuse_the_others_options(asked: InvarianceRequest, many: bool) -> None:
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


def _open(asked: InvarianceRequest) -> dict[str, VQModel]:
    """The tokenizers by the names they go by."""
    device, found, known = resolve_device(asked.device), {}, {}
    with Stages() as stages:
        for given in asked.tokenizers or [None]:
            model = open_tokenizer(given, on_progress=stages.report, on_message=stages.say)
            twin = known.setdefault(tokenizer_sha256(model), given)
            if len(known) == len(found):
                raise UserError(f"{twin} and {given} are the same tokenizer; give each once")
            name = (
                model.name if model.name not in found else f"{model.name} ({shown(Path(given).stem)})"
            )
            while name in found:
                name += " again"
            found[name] = model.to(device)
    return found


def _run_many(
    asked: InvarianceRequest,
    images: Split,
    split: str,
    models: dict[str, VQModel],
    views: dict[str, list[View]],
    size: int,
) -> None:
    found = _measure(asked, images, models, views, size)
    table = pd.concat([item.table() for item in found.values()], ignore_index=True)
    info = _facts(asked, images, split, models, size)
    stem = asked.out / _stem(asked, models, split)
    what = f"{shorten(shown(Path(asked.image).name), 30)}, {split}: {len(images)} images at {size} px"
    written = write_result(Result(table, info), stem.with_name(f"{stem.name}.csv"))
    for measure in CURVES:
        if table[measure].notna().any():
            figure = invariance_curves(table, measure, note=what)
            written += save(figure, stem.with_name(f"{stem.name}-{slug(measure)}"))
    for name, item in found.items():
        beside = f"-{slug(name, among=found)}" * (len(found) > 1)
        written += _save_maps(item, stem, beside, f"{what}, {name}")
        _print(item, what)
    _explain()
    note_few(len(images))
    names = list(found)
    for other in names[1:]:
        compared = compare_invariance(found[names[0]], found[other])
        sentences = invariance_sentences(compared, (names[0], other))
        for sentence in sentences or [f"{other} against {names[0]}: too few images to be tested"]:
            print_line(sentence)
        facts = {**info, "measurement": "paired comparison of token invariance"}
        facts |= {"names": [names[0], other], "sentences": sentences}
        own, base = (slug(name, among=names) for name in (other, names[0]))
        pair = stem.with_name(f"{stem.name}-{own}-against-{base}.csv")
        written += write_result(Result(compared, facts), pair)
    print_written(written)


def _run_one(
    asked: InvarianceRequest,
    images: Split,
    models: dict[str, VQModel],
    views: dict[str, list[View]],
    size: int,
) -> None:
    nothing = asked.shift is None and asked.rotate is None and asked.scale is None
    nudged = {
        "shift": 1.0 if nothing else asked.shift or 0.0,
        "rotate": asked.rotate or 0.0,
        "scale": 1.0 if asked.scale is None else asked.scale,
    }
    image = images.load(0)
    changes = {name: token_change(model, image, size=size, **nudged) for name, model in models.items()}
    found = _measure(asked, images, models, views, size)
    written = []
    for name, change in changes.items():
        changed = change.indices != change.view_indices
        print_line(
            f"{asked.image} at {size} px, {name}: {changed.sum()} of {changed.size} indices change "
            f"when {change.label}; {100 * change.share:.1f} % unchanged"
        )
        beside = f"-{slug(name, among=models)}" * (len(models) > 1)
        stem = asked.out / f"tokens-{_file_stem(asked.image)}{beside}"
        result = change_result(change, models[name], shown(asked.image), size)
        written += write_result(result, stem.with_name(f"{stem.name}.csv"))
        figure = token_views(
            change.image,
            change.view,
            change.indices,
            change.view_indices,
            labels=("image", change.label),
        )
        written += save(figure, stem)
        info = _facts(asked, images, None, {name: models[name]}, size)
        asked_for = f"-{slug(asked.augment)}" if asked.augment else ""
        stem = stem.with_name(f"{stem.name}-augmented{asked_for}")
        result = Result(found[name].table(), info)
        written += write_result(result, stem.with_name(f"{stem.name}.csv"))
        file = Path(asked.image)
        what = f"{shown(file.name if file.exists() else asked.image)} at {size} px, {name}"
        written += _save_maps(found[name], stem, "", what, image=center_crop(image, size))
        _print(found[name], f"{asked.image} at {size} px")
    _explain()
    print_written(written)


def _measure(
    asked: InvarianceRequest,
    images: Split,
    models: dict[str, VQModel],
    views: dict[str, list[View]],
    size: int,
) -> dict[str, Invariance]:
    found = {}
    with Stages() as stages:
        for name, model in models.items():
            stage = f"views of {name}" if len(models) > 1 else "views"
            found[name] = measure_invariance(
                model,
                images,
                views[name],
                size=size,
                name=name,
                seed=asked.seed,
                batch_size=asked.batch_size,
                on_progress=lambda done, total, stage=stage: stages.report(stage, done, total),
            )
    return found


def _facts(
    asked: InvarianceRequest, images: Split, split: str | None, models: dict[str, VQModel], size: int
) -> dict:
    return provenance(
        measurement="token invariance under augmentations",
        tokenizers={
            name: {"sha256": tokenizer_sha256(model), "stride": model.config.stride}
            for name, model in models.items()
        },
        data=asked.image,
        split=split,
        images=len(images),
        images_sha256=images.fingerprint(),
        size=size,
        seed=asked.seed,
        augment=asked.augment or "all",
        device=str(next(iter(models.values())).quant_conv.weight.device),
        psnr_cap_db=PSNR_CAP,
        unrelated="the next image in the order drawn",
        cells="shifts by whole cells of each tokenizer's own stride",
    )


def _stem(asked: InvarianceRequest, models: dict[str, VQModel], split: str) -> str:
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


def _save_maps(found: Invariance, stem: Path, ending: str, what: str, image=None) -> list[Path]:
    if all(view.is_identity for view in found.views):
        return []
    figure = invariance_maps(found.maps, image=image, note=what)
    return save(figure, stem.with_name(f"{stem.name}-maps{ending}"))


def _print(found: Invariance, what: str) -> None:
    """Of each augmentation the row of its slightest change."""
    table = found.table()
    rows = []
    for name, part in table[~table["identity"]].groupby("augmentation", sort=False):
        still = AUGMENTATIONS[name].identity
        still = AUGMENTATIONS[name].most if still is None else still  # JPEG: the best quality
        row = part.loc[(part["strength"] - still).abs().idxmin()]
        codes = [_number(row[measure], 2) for measure in ("code_distance", "code_distance_chance")]
        pictures = [_number(row[measure], 1) for measure in ("decoded_psnr", "input_psnr")]
        shares = [_percent(row, "equal"), _percent(row, "aligned"), _number(100 * row["chance"], 1)]
        rows.append([f"{name} {row.strength:g}", *shares, *codes, *pictures])
    columns = ["slightest", "same %", "moved", "other", "1-cos", "other", "drawn", "img"]
    print_rows(f"{found.tokenizer}, {what}", columns, rows)
    own = table["reconstruction_psnr"].iloc[0]
    print_line(f"an image and its own decoded picture: {own:.1f} dB")


def _explain() -> None:
    print_line(
        "same: cells with the same index; moved: after moving the view's cells back; other: of an "
        "unrelated image; 1-cos: old and new code of changed cells; drawn, img: PSNR (dB) of the two "
        f"decoded pictures and of the two images, {PSNR_CAP:g} is equal"
    )


def _percent(row: pd.Series, measure: str) -> str:
    value, high = 100 * row[measure], 100 * row[f"{measure}_high"]
    return _number(value, 1) if pd.isna(high) else f"{value:.1f}±{high - value:.1f}"


def _number(value: float, digits: int) -> str:
    return "" if pd.isna(value) else f"{value:.{digits}f}"
