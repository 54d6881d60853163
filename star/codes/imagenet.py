"""Whether class i of a data set is class i of ImageNet, as LlamaGen's checkpoints number them.

They number the 1,000 synsets in the sorted order of their names (n01440764 is 0, n15075141 is 999). A
subset, or another order, gives the same numbers to other classes.
"""

import re
from collections.abc import Sequence

import numpy as np

__all__ = ["imagenet_warning", "label_warning"]

CLASSES = 1000
_FIRST, _LAST = "n01440764", "n15075141"
_SYNSET = re.compile(r"n\d{8}")


def imagenet_warning(class_names: Sequence[str]) -> str | None:
    """One line if the classes are synsets, but not the 1,000 of ImageNet in their order; else None."""
    if not class_names or not all(_SYNSET.fullmatch(name) for name in class_names):
        return None
    ends = class_names[0] == _FIRST and class_names[-1] == _LAST
    if len(class_names) == CLASSES and list(class_names) == sorted(class_names) and ends:
        return None
    if len(class_names) != CLASSES:
        found = f"{len(class_names)} synsets, not ImageNet's {CLASSES}"
    elif list(class_names) != sorted(class_names):
        found = "ImageNet's synsets in another than their sorted order"
    else:
        found = f"{CLASSES} synsets, but not those of ImageNet's 2012 challenge"
    return (
        f"warning: the classes are {found}: label i is not ImageNet's class i, and a checkpoint "
        "trained on ImageNet (LlamaGen's) would be conditioned on wrong classes"
    )


def label_warning(labels: np.ndarray) -> str | None:
    """One line if the labels of code files called ImageNet's are not all of 0 to 999; else None."""
    present = np.unique(labels)
    if len(present) and present[-1] >= CLASSES:
        found = f"label {present[-1]}, ImageNet has 0 to {CLASSES - 1}"
    elif len(present) < CLASSES:
        found = f"{len(present)} of ImageNet's {CLASSES} classes"
    else:
        return None
    return (
        f"warning: the labels have {found}: if they were numbered anew, label i is not ImageNet's "
        "class i, and a checkpoint trained on it (LlamaGen's) would be conditioned on wrong classes"
    )
