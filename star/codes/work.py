"""The work folder of a command that writes code stores: kept when killed, published by one rename.

Everything is written to ``OUT.partial/``, beside a note of what it will be. A killed run goes on where
it was; what is there is used only if it was to become the same stores.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from star.base.errors import UserError
from star.base.files import publish_folder, remove_folder, write_json
from star.base.progress import Message
from star.base.record import Record
from star.codes.store import CodeStore, open_splits
from star.images.decode import BadImageError
from star.images.left_out import left_out_line

__all__ = ["kept_if_useful", "prepare_work", "publish_work", "reuse_stores"]

_WORK = "work.json"


def _identity(facts: object) -> Record:
    """What of ``facts`` decides the arrays: not the names of tokenizer and source, but their hashes.

    Facts edited to something else are those of no work.
    """
    if not isinstance(facts, dict) or not isinstance(facts.get("source"), dict):
        return {}
    fingerprint = facts["source"].get("fingerprint")
    rest = {key: value for key, value in facts.items() if key not in ("source", "tokenizer_name")}
    return {"source": fingerprint, **rest}


def reuse_stores(out: Path, plan: Record, say: Message) -> dict[str, CodeStore]:
    """The stores at ``out`` if they are what ``plan`` would give, else ``UserError``."""
    advice = "choose another folder or remove it"
    if not (out / "train" / "manifest.json").is_file():
        raise UserError(f"{out} exists and holds no code stores; {advice}")
    stores = open_splits(out)
    if set(stores) != set(plan):
        raise UserError(f"{out} has the splits {', '.join(stores)}, not {', '.join(plan)}; {advice}")
    for split, facts in plan.items():
        found = _identity(stores[split].manifest)
        for key, value in _identity(facts).items():
            if found.get(key) != value:
                raise UserError(f"{out} exists and was made with another {key} ({split}); {advice}")
    say(f"{out} is already complete")
    noted, now = stores["train"].manifest.get("source"), plan["train"]["source"]
    line = left_out_line(now["name"], now["left_out"])
    if line and (not isinstance(noted, dict) or noted.get("left_out") != now["left_out"]):
        say(line)
    return stores


def prepare_work(partial: Path, plan: Record, say: Message) -> None:
    """Make the work folder, keeping one that fits ``plan``; a folder that is not ours is an error."""
    try:
        if partial.is_dir():
            try:
                known = json.loads((partial / _WORK).read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                known = None
                # A kill at the very start leaves nothing, or the temporary file of work.json.
                if not all(entry.name.startswith(".work.") for entry in partial.iterdir()):
                    raise UserError(f"{partial} is no work folder of star; remove it") from None
            if known is not None and _same_work(known, plan):
                if _holds_work(partial):
                    say(f"going on with the work kept in {partial}")
                return
            if known is not None:
                say(f"starting afresh: {partial} was made from other images, tokenizer or views")
            remove_folder(partial)
        partial.mkdir(parents=True)
        write_json(partial / _WORK, plan)
    except OSError as error:
        raise UserError(
            f"cannot write to {partial}: {error.strerror}; choose another folder"
        ) from error


def _same_work(known: object, plan: Record) -> bool:
    if not isinstance(known, dict):
        return False
    return list(known) == list(plan) and all(_identity(known[s]) == _identity(plan[s]) for s in plan)


@contextlib.contextmanager
def kept_if_useful(partial: Path) -> Iterator[None]:
    """If the body fails: keep the work folder and say so, or remove it if no batch was finished."""
    try:
        yield
    except BaseException as error:
        if not _holds_work(partial):
            remove_folder(partial)
        elif isinstance(error, UserError):
            # Without the image it is another source, and nothing of the work would serve.
            on = "--skip-bad goes" if isinstance(error, BadImageError) else "the same command goes"
            message = f"{error}; the work so far is kept in {partial}: {on} on from there"
            raise type(error)(message) from error
        if isinstance(error, OSError):
            raise UserError(f"cannot write to {partial}: {error.strerror or error}") from error
        raise


def _holds_work(partial: Path) -> bool:
    """Whether at least one batch of one split is on disk."""
    return any(partial.glob("*/progress.json")) or any(partial.glob("*/manifest.json"))


def publish_work(partial: Path, out: Path) -> None:
    """One rename; before it, drop what killed runs may have left; after it, our own note."""
    for leftover in [*partial.rglob(".*"), *partial.glob("*/progress.json")]:
        leftover.unlink()
    publish_folder(partial, out)
    (out / _WORK).unlink()
