"""Data sets as the ``save_to_disk`` of Hugging Face's ``datasets`` leaves them: what to do with them.

A folder of .arrow files beside ``state.json`` and ``dataset_info.json``, or such a folder for each
split beside ``dataset_dict.json``. They are that library's own and not read; parquet is for others.
"""

from pathlib import Path

from star.images.tree import visible_folders

__all__ = ["arrow_advice", "is_arrow"]


def is_arrow(root: Path) -> bool:
    """Whether ``root`` is an .arrow file, a saved data set, or the folder of its splits."""
    if not root.is_dir():
        return root.suffix == ".arrow"
    return _is_dictionary(root) or _is_saved(root)


def arrow_advice(root: Path) -> str:
    """One line that says how to write parquet out of ``root``."""
    opened, one, others = f'datasets.load_from_disk("{root}")', "dataset", ""
    if not root.is_dir():
        opened = f'datasets.Dataset.from_file("{root}")'
    elif _is_dictionary(root):
        one, others = 'dataset["train"]', " (and so for each split)"
    return (
        f"{root} holds Arrow files, which are not read; write parquet with the library datasets: "
        f'dataset = {opened}; {one}.to_parquet("DIR/train.parquet"){others}; then give DIR'
    )


def _is_dictionary(root: Path) -> bool:
    """Whether ``root`` holds a saved data set a split."""
    if (root / "dataset_dict.json").is_file():
        return True
    return any(_is_saved(root / name) for name in visible_folders(root))


def _is_saved(root: Path) -> bool:
    facts = (root / "state.json", root / "dataset_info.json")
    return any(path.is_file() for path in facts) and any(root.glob("*.arrow"))
