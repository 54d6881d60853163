"""From a ``data`` setting to code stores and the tokenizer that made them.

A folder of code stores is opened as it is. A source (digits, photos, an image folder) is tokenised
once into the cache folder; the same source, tokenizer and views find it there again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from star.base.errors import UserError
from star.base.progress import Message, StageProgress, nothing
from star.codes.encode import TokenizeOptions, tokenize
from star.codes.store import CodeStore, open_splits
from star.images.open import ImageSource, open_source
from star.tokenizer.file import (
    DEFAULT,
    TOKENIZER_FILE,
    cache_folder,
    load_tokenizer,
    require_cache,
    save_tokenizer,
    tokenizer_beside,
    tokenizer_sha256,
)
from star.tokenizer.model import VQModel

__all__ = [
    "DataOptions",
    "PreparedData",
    "is_code_folder",
    "keep_tokenizer",
    "prepare_data",
    "tokenize_source",
]

SHIPPED_SIZE = 32  # pixels; a larger source would give more tokens than a small model can learn
_NAME = 50  # letters of a source's name in the name of its stores
DIGITS = "digits"  # name of a source, and of the tokenizer that comes with the package for it

OnSource = Callable[[ImageSource], None]


@dataclass(frozen=True)
class PreparedData:
    """Code stores by split, the tokenizer (None if stores came without one) and the image source."""

    stores: dict[str, CodeStore]
    tokenizer: VQModel | None
    source: ImageSource | None


def keep_tokenizer(data: PreparedData, run: Path) -> None:
    """Put a copy of the tokenizer into a folder of runs or stores, so that they can be looked at."""
    if data.tokenizer is not None and not (run / TOKENIZER_FILE).exists():
        save_tokenizer(data.tokenizer, run / TOKENIZER_FILE, data.tokenizer.card)


def is_code_folder(data: str | Path) -> bool:
    """Whether ``data`` is a folder of code stores."""
    return (Path(data) / "train" / "manifest.json").is_file()


class DataOptions(TypedDict, total=False):
    """Options of ``prepare_data`` that others pass on."""

    tokenizer: Path | str | None
    skip_bad: bool
    device: str
    on_progress: StageProgress
    on_message: Message


def prepare_data(
    data: str | Path,
    *,
    tokenizer: Path | str | None = None,
    skip_bad: bool = False,
    device: str = "cpu",
    on_source: OnSource | None = None,
    on_progress: StageProgress = nothing,
    on_message: Message = nothing,
) -> PreparedData:
    """Open or make the code stores of ``data``; ``UserError`` where neither is possible.

    ``on_source`` gets a source of images before anything is made of it, and may refuse it.
    """
    if not is_code_folder(data):
        return tokenize_source(
            data,
            tokenizer=tokenizer,
            skip_bad=skip_bad,
            device=device,
            on_source=on_source,
            on_progress=on_progress,
            on_message=on_message,
        )
    stores = open_splits(data)
    path = tokenizer or tokenizer_beside(data)
    model = load_tokenizer(path) if path else None
    expected = stores["train"].tokenizer_sha256
    if model is not None and expected not in ("", tokenizer_sha256(model)):  # "": unknown
        raise UserError(
            f"{path} is not the tokenizer that made the codes in {data} (sha256 {expected[:12]})"
        )
    return PreparedData(stores, model, None)


def tokenize_source(
    data: str | Path,
    out: Path | None = None,
    *,
    tokenizer: Path | str | None = None,
    label_column: str | None = None,
    on_source: OnSource | None = None,
    on_progress: StageProgress = nothing,
    on_message: Message = nothing,
    **options: Unpack[TokenizeOptions],
) -> PreparedData:
    """Tokenise the images of ``data`` into the folder ``out``, once; ``options`` are ``tokenize``'s.

    Without ``out`` the stores lie in the cache folder, where the same source, tokenizer and views find
    them again. ``label_column`` names the column of parquet's labels.
    """
    source = open_source(data, label_column)
    if on_source is not None:
        on_source(source)
    if tokenizer is None:
        tokenizer, options = _default_tokenizer(source, options, on_message)
    model = load_tokenizer(tokenizer)
    if out is None:
        parts = [tokenizer_sha256(model), str(options.get("views")), str(options.get("size"))]
        parts += [split.fingerprint() for split in source.splits.values()]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        out = cache_folder() / "codes" / f"{source.name[:_NAME]}-{key}"
        if not out.exists():
            require_cache()

    def report_split(split: str, done: int, total: int) -> None:
        on_progress(f"tokenise {split}", done, total)

    stores = tokenize(source, model, out, on_progress=report_split, on_message=on_message, **options)
    return PreparedData(stores, model, source)


def _default_tokenizer(
    source: ImageSource, options: TokenizeOptions, on_message: Message
) -> tuple[str, TokenizeOptions]:
    """Which tokenizer a source gets if none was named, at which size; says so where it is a choice."""
    if source.name == DIGITS:
        return DIGITS, options
    if options.get("size") is None and source.native_size > SHIPPED_SIZE:
        options = {**options, "size": SHIPPED_SIZE}
    size = options.get("size") or source.native_size
    on_message(
        f"no --tokenizer given: {source.name} is tokenised at {size} pixels with the one that "
        f"comes with the package ({DEFAULT}, trained at {SHIPPED_SIZE})"
    )
    return DEFAULT, options
