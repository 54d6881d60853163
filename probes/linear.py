"""Linear probes: how well a linear classifier reads the class from a layer at a step.

Protocol ``logreg``: features standardised by the training split's moments, multinomial logistic
regression (scikit-learn, L-BFGS), its inverse strength C chosen on the validation split; the accuracy
reported is that of the test split, with Wilson's 95 % interval.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.features import StepFeatures, step_features
from probes.intervals import wilson_interval
from probes.results import PROBE_COLUMNS, Result, provenance
from star.checkpoint import Loaded
from star.codes import CodeStore
from star.errors import UserError
from star.files import sha256_file

__all__ = ["CS", "Probed", "fit_logreg", "probe", "probe_features"]

CS = (0.01, 0.1, 1.0)
Progress = Callable[[int, int], None]


def fit_logreg(
    train_ND: np.ndarray, labels_N: np.ndarray, val_ND: np.ndarray, val_labels_N: np.ndarray
):
    """(scaler, classifier, C) with the C of highest validation accuracy, the smallest on ties."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_ND)
    train, val = scaler.transform(train_ND), scaler.transform(val_ND)
    best = None
    for c in CS:
        classifier = LogisticRegression(C=c, max_iter=300, tol=1e-3)
        with warnings.catch_warnings():
            # Where the limit is met, validation still decides; the fit is compared, not published.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(train, labels_N)
        score = classifier.score(val, val_labels_N)
        if best is None or score > best[0]:
            best = (score, classifier, c)
    return scaler, best[1], best[2]


@dataclass(frozen=True)
class Probed:
    """The result, and which test images each head classified correctly: (L, K, N) bool."""

    result: Result
    correct_LKN: np.ndarray


def probe_features(
    features: dict[str, StepFeatures], on_progress: Progress | None = None
) -> tuple[pd.DataFrame, np.ndarray]:
    """Probe every layer and step of ``features`` (train, val, test).

    Returns the table, columns ``PROBE_COLUMNS`` and the chosen ``c``, and the hits (L, K, N_test).
    """
    train, val, test = (features[name] for name in ("train", "val", "test"))
    if len(np.unique(train.labels)) < 2:
        raise UserError("the training split has one class; a probe needs at least two")
    rows = []
    hits_LKN = np.empty((len(train.layers), len(train.steps), len(test.labels)), dtype=bool)
    heads = [(a, b) for a in range(len(train.layers)) for b in range(len(train.steps))]
    for done, (layer, step) in enumerate(heads, start=1):
        for name, part in features.items():
            if not np.isfinite(part.values[layer, step]).all():
                raise UserError(
                    f"features of layer {part.layers[layer]} at step {part.steps[step]} are not "
                    f"finite on the {name} split"
                )
        scaler, classifier, c = fit_logreg(
            train.values[layer, step], train.labels, val.values[layer, step], val.labels
        )
        predicted = classifier.predict(scaler.transform(test.values[layer, step]))
        hits_LKN[layer, step] = predicted == test.labels
        correct = int(hits_LKN[layer, step].sum())
        low, high = wilson_interval(correct, len(test.labels))
        row = (
            train.layers[layer], train.steps[step], "logreg", "none", "test",
            correct / len(test.labels), low, high, len(test.labels),
        )  # fmt: skip
        rows.append(dict(zip(PROBE_COLUMNS, row, strict=True)) | {"c": c})
        if on_progress is not None:
            on_progress(done, len(heads))
    return pd.DataFrame(rows), hits_LKN


def probe(
    loaded: Loaded,
    stores: dict[str, CodeStore],
    *,
    layers: list[int],
    steps: list[int],
    on_progress: Progress | None = None,
) -> Probed:
    """Linear probes of a checkpoint on code stores with train, val and test splits."""
    missing = [name for name in ("train", "val", "test") if name not in stores]
    if missing:
        raise UserError(f"the data has no {missing[0]} split; probing needs train, val and test")
    features = {
        name: step_features(loaded.model, stores[name], layers=layers, steps=steps)
        for name in ("train", "val", "test")
    }
    table, correct_LKN = probe_features(features, on_progress)
    info = provenance(
        measurement="linear probe",
        protocol="logreg: standardised features, C chosen on the validation split, test accuracy",
        condition="null class",
        train_view="test view (one a training image)",
        checkpoint=str(loaded.path),
        checkpoint_sha256=sha256_file(loaded.path),
        checkpoint_step=loaded.step,
        weights=loaded.weights,
        model=loaded.description,
        data={name: store.manifest["sha256"] for name, store in stores.items()},
        total_steps=loaded.model.config.tokens,
        chance=float(np.bincount(features["test"].labels).max() / len(features["test"].labels)),
        candidates_c=list(CS),
    )
    return Probed(Result(table, info), correct_LKN)
