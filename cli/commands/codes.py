"""``star codes``: LlamaGen's one-file-per-image codes into a code store, and back."""

from pathlib import Path

import typer

codes = typer.Typer(
    no_args_is_help=True, help="LlamaGen's one-file-per-image codes to a code store, and back."
)


@codes.command("import")
def import_(
    folder: Path = typer.Argument(
        ..., metavar="DIR", help="Code path: holds imagenet256_codes and imagenet256_labels."
    ),
    out: Path = typer.Argument(..., help="Folder to write: train/ and the tokenizer, if given."),
    also: Path = typer.Option(None, help="Code path of a second crop range (ten_crop_105)."),
    crop_range: float = typer.Option(1.1, help="Crop range of DIR; for the record."),
    also_crop_range: float = typer.Option(1.05, help="Crop range of --also; for the record."),
    tokenizer: str = typer.Option(
        None, help="Tokenizer that made the codes.  \\[default: recorded as unknown]"
    ),
    vocab_size: int = typer.Option(16384, help="Entries of the codebook, without --tokenizer."),
) -> None:
    """Read one file per image into a memory-mapped store; every file is checked, none unpickled."""
    from cli.terminal.screen import Stages, print_line
    from star.base.files import require_writable
    from star.codes.imagenet import label_warning
    from star.codes.llamagen import find_code_files, import_codes
    from star.tokenizer.file import TOKENIZER_FILE, load_tokenizer, save_tokenizer, tokenizer_sha256

    named = {}
    model = None if tokenizer is None else load_tokenizer(tokenizer)
    if model is not None:
        vocab_size = model.config.codebook_size
        named = {"tokenizer_name": model.name, "tokenizer_sha256": tokenizer_sha256(model)}
    require_writable(out.absolute().parent, "choose another OUT")
    ranges = [crop_range] if also is None else [crop_range, also_crop_range]
    parts = [find_code_files(path) for path in (folder, also) if path is not None]
    with Stages() as stages:
        store = import_codes(
            parts,
            out,
            crop_ranges=ranges,
            vocab_size=vocab_size,
            on_progress=lambda done, total: stages.report("import", done, total),
            on_message=stages.say,
            **named,
        )
    if model is not None and not (out / TOKENIZER_FILE).exists():
        save_tokenizer(model, out / TOKENIZER_FILE, model.card)
    warning = label_warning(store.labels) if parts[0].dataset == "imagenet" else None
    if warning:
        print_line(warning)
    print_line(
        f"{len(store)} images x {store.views} views x {store.tokens} tokens, "
        f"{store.num_classes} classes; written: {out / 'train'}"
    )


@codes.command("export")
def export(
    store: Path = typer.Argument(..., help="A code store, or a folder of stores (its train/)."),
    folder: Path = typer.Argument(..., metavar="DIR", help="Code path to write; must not exist."),
    dataset: str = typer.Option("imagenet", help="First part of the folders' names."),
) -> None:
    """Write a code store as LlamaGen's files, for its trainer or extraction scripts."""
    from cli.terminal.screen import Stages, print_line
    from star.base.files import require_writable
    from star.codes.llamagen import export_codes
    from star.codes.open import is_code_folder
    from star.codes.store import open_codes, open_splits

    opened = open_splits(store)["train"] if is_code_folder(store) else open_codes(store)
    require_writable(folder.absolute().parent, "choose another DIR")
    with Stages() as stages:
        paths = export_codes(
            opened,
            folder,
            dataset=dataset,
            on_progress=lambda done, total: stages.report("export", done, total),
        )
    for path in paths:
        print_line(f"written: {path} ({2 * len(opened)} files)")
    if "flip" not in str(paths[0].absolute()):
        print_line(
            'note: LlamaGen\'s loader draws among the views only if "flip" is in the code path, and '
            'counts ten only if "ten_crop" is'
        )
