"""Conditional accuracy: does a classifier see in samples the class that was asked for?

A classifier trained on real images (``star.classifier``) looks at images whose class is known: samples
of a model, or held-out images, whose accuracy is what the samples' stands beside. Controls: chance (1 /
C), and what answers that have nothing to do with the labels would get, the agreement by chance of Cohen
(1960), sum over classes c of P(asked c) P(seen c). The classifier errs too: a share of 0.8 beside
0.9 on real images does not say that a fifth of the samples is of another class.

Shapes: N images, F features, C classes of the classifier.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.stats.intervals import share_interval
from probes.stats.paired import mcnemar, paired_share_interval, paired_table
from star.base.errors import UserError, listed
from star.base.names import shown
from star.base.progress import OnStep, nothing
from star.classifier.model import Classifier

__all__ = [
    "ALL",
    "COMPARE_COLUMNS",
    "CONDITIONAL_COLUMNS",
    "Predictions",
    "compare_conditional",
    "conditional_accuracy",
    "predict",
    "require_classes",
]

ALL = "all"
CONDITIONAL_COLUMNS = (
    "label", "class", "accuracy", "low", "high", "n", "by_chance", "chance", "seen_most",
    "seen_most_share",
)  # fmt: skip
COMPARE_COLUMNS = (
    "label", "class", "first", "second", "difference", "low", "high", "only_first", "only_second", "p",
    "p_holm", "higher", "n",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a classifier says of N images, in their order.

    ``features`` float64 (N, F), ``probabilities`` float32 (N, C); ``class_names`` of the classifier.
    """

    features: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def seen_N(self) -> np.ndarray:
        """The most probable class of each image."""
        return self.probabilities.argmax(axis=1)


def predict(
    classifier: Classifier, images: Iterable[torch.Tensor], on_progress: OnStep = nothing
) -> Predictions:
    """Look at batches of uint8 images (n, 3, H, W) of any size; ``on_progress(images done)``.

    Raises ``UserError`` if there are none.
    """
    features, probabilities, done = [], [], 0
    for batch_NCHW in images:
        features_NF, logits_NC = classifier.features_and_logits(batch_NCHW)
        features.append(features_NF.double().cpu().numpy())
        probabilities.append(logits_NC.softmax(dim=1).cpu().numpy())
        done += len(batch_NCHW)
        on_progress(done)
    if not done:
        raise UserError("there are no images for the classifier to look at")
    names = classifier.class_names
    return Predictions(
        features=np.concatenate(features),
        probabilities=np.concatenate(probabilities),
        class_names=None if names is None else tuple(names),
    )


def conditional_accuracy(
    predictions: Predictions, labels_N: np.ndarray, names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Share of images whose most probable class is their label: columns ``CONDITIONAL_COLUMNS``.

    The first row is of all images (label -1, class "all"), then one of each class asked for.
    ``accuracy`` has Wilson's 95 % interval ``low`` to ``high`` over its ``n`` images; ``by_chance`` is
    what the same answers would get if they had nothing to do with the labels, ``chance`` 1 / C;
    ``seen_most`` is the class seen most often, in ``seen_most_share`` of the row's images.

    ``labels_N`` are the samples' own numbers and ``names`` what they mean. Classes are matched by
    name where both sides have names, else by number; ``UserError`` if they do not fit.
    """
    labels_N = _checked(predictions, labels_N)
    asked_N = _matched(predictions, labels_N, names)[labels_N]
    seen_N, classes = predictions.seen_N, predictions.probabilities.shape[1]
    seen_C = np.bincount(seen_N, minlength=classes) / len(seen_N)
    rows = []
    for label, title, chosen_N in _groups(labels_N, names):
        accuracy, low, high = share_interval(seen_N[chosen_N] == asked_N[chosen_N])
        asked_C = np.bincount(asked_N[chosen_N], minlength=classes) / chosen_N.sum()
        most_C = np.bincount(seen_N[chosen_N], minlength=classes)
        rows.append({
            "label": label, "class": title, "accuracy": accuracy, "low": low, "high": high,
            "n": int(chosen_N.sum()), "by_chance": float(asked_C @ seen_C), "chance": 1 / classes,
            "seen_most": _word(predictions, int(most_C.argmax())),
            "seen_most_share": most_C.max() / chosen_N.sum(),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=list(CONDITIONAL_COLUMNS))


def compare_conditional(
    first: Predictions,
    second: Predictions,
    labels_N: np.ndarray,
    names: Sequence[str] | None = None,
    *,
    sides: tuple[str, str] = ("first", "second"),
) -> pd.DataFrame:
    """Two sets of samples of the same labels in the same order, paired: columns ``COMPARE_COLUMNS``.

    Rows as of ``conditional_accuracy``. ``difference`` is second minus first, with the 95 % interval
    of Newcombe (``probes.stats.paired``); ``only_first`` and ``only_second`` count the places where
    one alone is seen as asked, ``p`` is McNemar's exact test of them, ``p_holm`` Holm's correction over
    the rows, ``higher`` the one of ``sides`` that it finds ahead, or "neither". Samples of one place
    share a label (and a seed, where they do); what is compared are these samples of two models.
    """
    hits = []
    for predictions in (first, second):
        labels = _checked(predictions, labels_N)
        hits.append(predictions.seen_N == _matched(predictions, labels, names)[labels])
    one_N, two_N = hits
    rows = []
    for label, title, chosen_N in _groups(np.asarray(labels_N), names):
        one, two = one_N[chosen_N], two_N[chosen_N]
        only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
        difference, low, high = paired_share_interval(one, two)
        rows.append({
            "label": label, "class": title, "first": one.mean(), "second": two.mean(),
            "difference": difference, "low": low, "high": high, "only_first": only_first,
            "only_second": only_second, "p": float(mcnemar(only_first, only_second)), "n": len(one),
        })  # fmt: skip
    return paired_table(rows, COMPARE_COLUMNS, sides)


def _checked(predictions: Predictions, labels_N: np.ndarray) -> np.ndarray:
    labels_N = np.asarray(labels_N)
    if len(labels_N) != len(predictions):
        raise UserError(f"there are {len(labels_N)} labels for {len(predictions)} images")
    if labels_N.min() < 0:
        raise UserError(f"a label is {labels_N.min()}; expected the numbers of classes, from 0")
    return labels_N


def _matched(predictions: Predictions, labels_N: np.ndarray, names: Sequence[str] | None) -> np.ndarray:
    """The classifier's class of each label up to the largest; ``UserError`` if a label has none.

    Names that only repeat the numbers ("0", "1", ..) are none where the other side has others.
    """
    own, classes = predictions.class_names, predictions.probabilities.shape[1]
    largest = int(labels_N.max())
    if names is not None and largest >= len(names):
        raise UserError(f"a label is {largest}, but {len(names)} classes have names: {listed(names)}")
    if own is not None and names is not None:
        places = _places(own, names)
        unknown = [names[label] for label in np.unique(labels_N) if places[label] is None]
        if not unknown:
            return np.array([place or 0 for place in places])  # None: no image is of that class
        if not (_are_numbers(own) or _are_numbers(names)):
            raise _unknown(unknown[0], names, own)
    if largest >= classes or (names is not None and len(names) != classes):
        raise UserError(
            f"the images are of {largest + 1 if names is None else len(names)} classes and the "
            f"classifier knows {classes} ({_said(own)}); without names on both sides the numbers must "
            "mean the same"
        )
    return np.arange(classes)


def require_classes(classifier: Classifier, names: Sequence[str]) -> None:
    """Raise ``UserError`` unless ``classifier`` knows each of the classes ``names``, by name."""
    own = classifier.class_names
    if own is None:
        raise UserError("the classifier does not say what its classes are called; train it again")
    for name, place in zip(names, _places(own, names), strict=True):
        if place is None:
            raise _unknown(name, names, own)


def _places(own: Sequence[str], names: Sequence[str]) -> list[int | None]:
    """Where among ``own`` each of ``names`` is; two Unicode forms of a name are one."""
    places = {_normal(name): number for number, name in enumerate(own)}
    return [places.get(_normal(name)) for name in names]


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name == str(number) for number, name in enumerate(names))


def _unknown(name: str, names: Sequence[str], own: Sequence[str]) -> UserError:
    return UserError(
        f"the classifier does not know the class {shown(name)}: the images are of {_said(names)}, it "
        f"knows {_said(own)}"
    )


def _said(names: Sequence[str] | None) -> str:
    return "no names" if names is None else shown(listed(names))


def _groups(labels_N: np.ndarray, names: Sequence[str] | None) -> list[tuple[int, str, np.ndarray]]:
    """(label, its name, which images) of all images and of each class."""
    groups = [(-1, ALL, np.ones(len(labels_N), dtype=bool))]
    for label in np.unique(labels_N).tolist():
        name = str(label) if names is None else shown(names[label])
        groups.append((label, name, labels_N == label))
    return groups


def _word(predictions: Predictions, number: int) -> str:
    names = predictions.class_names
    return str(number) if names is None else shown(names[number])
