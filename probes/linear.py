"""Linear probes: how well a linear classifier reads the class from a layer at a step.

Protocol ``logreg``: features standardised by the training split's moments, multinomial logistic
regression (L-BFGS), its inverse strength C chosen on the validation split; the accuracy
reported is that of the test split, with Wilson's 95 % interval.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes.features import StepFeatures, check_finite, check_tokenizer, step_features
from probes.intervals import wilson_interval
from probes.logreg import fit_logreg, predict
from probes.results import PROBE_COLUMNS, Result, provenance
from star.checkpoint import Loaded
from star.codes import CodeStore
from star.errors import UserError
from star.files import sha256_file

__all__ = ["CS", "Probed", "probe", "probe_features"]

CS = (0.1, 1.0, 10.0)
# Floats that the logits of one group of heads may take; larger sets of heads are fitted in turn.
GROUP_FLOATS = 1 << 28
Progress = Callable[[int, int], None]


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
    for part in features.values():
        check_finite(part)
    train, val, test = (features[name] for name in ("train", "val", "test"))
    classes = 1 + int(train.labels.max())
    if len(np.unique(train.labels)) < 2:
        raise UserError("the training split has one class; a probe needs at least two")
    heads = [(a, b) for a in range(len(train.layers)) for b in range(len(train.steps))]
    hits_LKN = np.empty((len(train.layers), len(train.steps), len(test.labels)), dtype=bool)
    group = max(
        1, GROUP_FLOATS // (len(train.labels) * (train.values.shape[-1] + 4 * len(CS) * classes))
    )
    rows = []
    for start in range(0, len(heads), group):
        chosen = heads[start : start + group]
        hits_HN, strengths_H = _fit_group(train, val, test, chosen, classes)
        for (layer, step), hits_N, c in zip(chosen, hits_HN, strengths_H, strict=True):
            hits_LKN[layer, step] = hits_N
            low, high = wilson_interval(int(hits_N.sum()), len(hits_N))
            row = (
                train.layers[layer], train.steps[step], "logreg", "none", "test",
                float(hits_N.mean()), low, high, len(hits_N),
            )  # fmt: skip
            rows.append(dict(zip(PROBE_COLUMNS, row, strict=True)) | {"c": c})
        if on_progress is not None:
            on_progress(start + len(chosen), len(heads))
    return pd.DataFrame(rows), hits_LKN


def _fit_group(
    train: StepFeatures,
    val: StepFeatures,
    test: StepFeatures,
    heads: list[tuple[int, int]],
    classes: int,
) -> tuple[np.ndarray, list[float]]:
    """Test hits (H, N) of each head with the C of highest validation accuracy (ties: the smallest)."""
    mean, spread = _moments(train, heads)
    x_HND, val_HND, test_HND = ((_stack(part, heads) - mean) / spread for part in (train, val, test))
    weight, bias = fit_logreg(x_HND, torch.from_numpy(train.labels), classes, CS)
    val_hits_HS = (predict(val_HND, weight, bias) == torch.from_numpy(val.labels)).float().mean(-1)
    best_H = val_hits_HS.argmax(1)
    own = torch.arange(len(heads))
    predicted_HN = predict(test_HND, weight, bias)[own, best_H]
    return (predicted_HN == torch.from_numpy(test.labels)).numpy(), [CS[i] for i in best_H]


def _stack(part: StepFeatures, heads: list[tuple[int, int]]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(part.values[layer, step]) for layer, step in heads])


def _moments(part: StepFeatures, heads: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    x_HND = _stack(part, heads)
    # A feature that never changes (the class position at step 1) stays 0 instead of becoming NaN.
    return x_HND.mean(1, keepdim=True), x_HND.std(1, keepdim=True).clamp_min(1e-6)


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
    check_tokenizer(loaded, stores["train"])
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
