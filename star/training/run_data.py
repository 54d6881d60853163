"""The one way from an opened checkpoint to the data of its run, or to other data named instead.

Whoever takes a run's own data by name goes through here, so that other images under that name are
refused (``star.training.own_data``), before anything is tokenised wherever the run recorded its
images. Data that the user names are measured as they are.
"""

from typing import Unpack

from star.base.errors import UserError
from star.base.progress import nothing
from star.codes.open import DataOptions, PreparedData, is_code_folder, prepare_data
from star.codes.store import CodeStore, open_splits
from star.images.open import open_source
from star.images.source import ImageSource
from star.training.checkpoint import Loaded
from star.training.own_data import OwnData

__all__ = ["data_name", "open_run_data", "prepare_run_data"]


def data_name(loaded: Loaded, given: str | None) -> str:
    """``given``, else the data the checkpoint was trained on; ``UserError`` if it does not say."""
    if given is not None:
        return given
    if loaded.config is None:
        raise UserError(
            f"{loaded.path} does not say what data it was trained on; give --data (a source, an image "
            "folder or a folder of code stores)"
        )
    return loaded.config.data


def prepare_run_data(loaded: Loaded, given: str | None, **options: Unpack[DataOptions]) -> PreparedData:
    """Code stores of ``given``, or of the run's own data, compared with what the run recorded.

    Raises ``UserError`` for other data under the run's name.
    """
    name = data_name(loaded, given)
    if given is not None:
        return prepare_data(name, **options)
    own = _own(loaded)
    own.require()
    data = prepare_data(name, on_source=own.check_source, **options)
    note = own.check_stores(data.stores)
    if note is not None:
        options.get("on_message", nothing)(note)
    return data


def open_run_data(
    loaded: Loaded, given: str | None, *, make_codes: bool = True, **options: Unpack[DataOptions]
) -> ImageSource | dict[str, CodeStore]:
    """As ``prepare_run_data``, for who needs images alone.

    Codes are made only where nothing but their hashes can tell the run's data; never with
    ``make_codes`` False, which leaves such data uncompared.
    """
    name = data_name(loaded, given)
    if given is not None:
        return open_splits(name) if is_code_folder(name) else open_source(name)
    own = _own(loaded)
    own.require()
    if is_code_folder(name):
        stores = open_splits(name)
        own.check_stores(stores)
        return stores
    if own.needs_codes and make_codes:
        prepared = prepare_run_data(loaded, None, **options)
        assert prepared.source is not None  # ``name`` is no folder of codes
        return prepared.source
    source = open_source(name)
    own.check_source(source)
    return source


def _own(loaded: Loaded) -> OwnData:
    name = data_name(loaded, None)
    return OwnData(
        name=name,
        record=loaded.data or {},
        path=loaded.path,
        class_names=loaded.class_names or (),
    )
