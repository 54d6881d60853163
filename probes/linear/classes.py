"""What a probe gets right class by class: accuracy of every class, and which classes it confuses.

S probe seeds, L layers, K steps, N test images, C classes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probes.stats.intervals import wilson_interval
from star.base.errors import UserError

__all__ = ["CLASS_COLUMNS", "confusion", "per_class_accuracy"]

CLASS_COLUMNS = ("layer", "step", "class", "accuracy", "low", "high", "n")


def per_class_accuracy(
    predicted_SLKN: np.ndarray,
    labels_N: np.ndarray,
    classes: int,
    *,
    layers: Sequence[int],
    steps: Sequence[int],
) -> pd.DataFrame:
    """Share of each class's test images that the probe classifies correctly; columns ``CLASS_COLUMNS``.

    ``class`` is the label 0..C-1, ``n`` its number of test images. Hits are averaged over seeds for
    each image; the bounds are Wilson's 95 % interval over images (``probes.stats.intervals``). A class
    without a test image has n 0 and blank numbers. ``UserError`` if shapes or labels do not fit.
    """
    _check(predicted_SLKN, labels_N, classes, (len(layers), len(steps)))
    counts_C = np.bincount(labels_N, minlength=classes)
    rows = []
    for a, layer in enumerate(layers):
        for k, step in enumerate(steps):
            hits_N = (predicted_SLKN[:, a, k] == labels_N).mean(0)
            hits_C = np.bincount(labels_N, hits_N, classes)
            for label, (hits, count) in enumerate(zip(hits_C, counts_C, strict=True)):
                numbers = (np.nan,) * 3
                if count:
                    # Sums of thirds may pass the count by a rounding.
                    hits = min(float(hits), float(count))
                    numbers = (hits / count, *wilson_interval(hits, int(count)))
                rows.append((layer, step, label, *numbers, count))
    return pd.DataFrame(rows, columns=list(CLASS_COLUMNS))


def confusion(predicted_SN: np.ndarray, labels_N: np.ndarray, classes: int) -> np.ndarray:
    """(C, C) counts, row the true class, column the predicted one, summed over seeds.

    ``UserError`` if shapes do not fit or a label or prediction lies outside 0..C-1.
    """
    _check(predicted_SN, labels_N, classes, ())
    cells_SN = labels_N.astype(np.int64) * classes + predicted_SN
    return np.bincount(cells_SN.ravel(), minlength=classes**2).reshape(classes, classes)


def _check(predicted: np.ndarray, labels_N: np.ndarray, classes: int, cells: tuple[int, ...]) -> None:
    expected = (*cells, len(labels_N))
    if predicted.shape[1:] != expected or predicted.size == 0:
        raise UserError(
            f"the predictions have shape {predicted.shape}; expected (seeds, "
            f"{', '.join(map(str, expected))}), the last being the number of labels"
        )
    for name, values in (("labels", labels_N), ("predictions", predicted)):
        if not np.issubdtype(values.dtype, np.integer) or values.min() < 0 or values.max() >= classes:
            raise UserError(
                f"the {name} are {values.dtype} from {values.min()} to {values.max()}; "
                f"expected whole numbers within 0..{classes - 1}, the {classes} classes"
            )
