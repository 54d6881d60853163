"""What a checkpoint records of its data, and whether what is found under the same name is that.

Of each split it keeps the fingerprint of the images (names, sizes, labels; the same on every machine),
their number, and the hashes of the code arrays. The fingerprint decides where it was recorded; codes
that differ all the same (another processor rounds otherwise) are worth a note. Older runs have the
hashes alone. The built-in sources are always themselves.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from star.base.errors import UserError, listed
from star.base.record import Record
from star.codes.store import CodeStore
from star.images.source import ImageSource

__all__ = ["OwnData", "data_record"]

BUILT_IN = ("digits", "photos")
FINGERPRINT, IMAGES = "fingerprint", "images"


def data_record(stores: Mapping[str, CodeStore]) -> dict[str, Record]:
    """Of each split: hashes by file, and the fingerprint and number of the images if the store says."""
    record = {}
    for name, store in stores.items():
        source = _source(store)
        known = {key: source[key] for key in (FINGERPRINT, IMAGES) if source.get(key) is not None}
        record[name] = {**store.manifest["sha256"], **known}
    return record


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """The data called ``name`` that the checkpoint at ``path`` was trained on.

    record: what the checkpoint keeps of it. for_training: the run is to go on, with its own data alone.
    """

    name: str
    record: dict[str, Record]
    path: Path
    class_names: Sequence[str]
    for_training: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(split, dict) for split in self.record.values()):
            raise UserError(f"{self.path} is broken: its data are {self.record!r}, not hashes by split")

    @property
    def built_in(self) -> bool:
        """Whether it comes with the program (a folder of code stores may have the same name)."""
        return self.name in BUILT_IN and not (Path(self.name) / "train" / "manifest.json").is_file()

    @property
    def needs_codes(self) -> bool:
        """Whether nothing but the codes can tell these data from others."""
        told = self.built_in or all(FINGERPRINT in split for split in self.record.values())
        return not told

    def require(self) -> None:
        """Raise ``UserError`` if there is nothing under the name."""
        if not self.built_in and not Path(self.name).exists():
            other = "" if self.for_training else ", or give --data PATH"
            raise UserError(
                f"{self.path} was trained on {self.name}, and there is no such file or folder here; "
                f"run where it is{other}"
            )

    def check_source(self, source: ImageSource) -> None:
        """Raise ``UserError`` unless the images of ``source`` are the run's, as far as was recorded."""
        if self.built_in:
            return
        if self.class_names and _normal(source.class_names) != _normal(self.class_names):
            found, own = (listed(names, 4) for names in (source.class_names, self.class_names))
            self._refuse(f"classes {found}", f"classes {own}")
        for name, recorded in self.record.items():
            if FINGERPRINT not in recorded:
                continue
            if name not in source.splits:
                self._refuse(f"no {name} split", _count(name, recorded))
            split = source.splits[name]
            self._compare(name, {FINGERPRINT: split.fingerprint(), IMAGES: len(split)}, recorded)

    def check_stores(self, stores: Mapping[str, CodeStore]) -> str | None:
        """A note if codes differ but their images do not; ``UserError`` if they are other images."""
        if self.built_in:
            return None
        others = False
        for name, own in self.record.items():
            if name not in stores:
                self._refuse(f"no {name} split", _count(name, own))
            source, hashes = _source(stores[name]), stores[name].manifest["sha256"]
            differ = any(own.get(file) != value for file, value in hashes.items())
            if FINGERPRINT in own and FINGERPRINT in source:
                self._compare(name, source, own)
                others |= differ
            elif differ:
                self._refuse(f"{name} codes of other hashes", f"{name} codes as recorded")
        if not others:
            return None
        return (
            f"note: {self.name} holds the images that {self.path} was trained on, but other codes of "
            "them (another processor or release rounds otherwise, or other views)"
        )

    def _compare(self, name: str, found: Record, own: Record) -> None:
        if found[FINGERPRINT] != own[FINGERPRINT]:
            self._refuse(_count(name, found), _count(name, own))

    def _refuse(self, found: str, own: str) -> None:
        other = f", or give --data {self.name} to measure what is there on purpose"
        raise UserError(
            f"{self.name} is not the data that {self.path} was trained on (found: {found}; the run's: "
            f"{own}); bring the run's own back" + ("" if self.for_training else other)
        )


def _source(store: CodeStore) -> Record:
    """What a store says of the images it was made of."""
    source = store.manifest.get("source")
    return source if isinstance(source, dict) else {}


def _count(name: str, split: Record) -> str:
    """``8 train images, fingerprint 1a2b3c4d5e6f``, as far as is known."""
    number = f"{split[IMAGES]} {name} images" if IMAGES in split else f"a {name} split"
    return number + (f", fingerprint {split[FINGERPRINT][:12]}" if FINGERPRINT in split else "")


def _normal(names: Sequence[str]) -> list[str]:
    return [unicodedata.normalize("NFC", name) for name in names]
