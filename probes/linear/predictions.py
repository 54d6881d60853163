"""What every protocol returns, and the passes over a source that protocols share.

Shapes: G groups, S label sets (true, shuffled), H choices (rates, strengths) of a group and label set,
N images of a part, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.linear.sharing import add_up, mine
from probes.linear.sources import Source
from probes.linear.splits import ProbeSplits
from star.base.randomness import generator
from star.parallel.processes import wait_for_all

__all__ = [
    "Predictions",
    "Progress",
    "best_setting",
    "choose",
    "collect",
    "epoch_batches",
    "pieces",
    "predict_held_out",
    "streamed",
]

Progress = Callable[[str, int, int], None]  # phase, done, total
BATCH = 2048  # images of a pass over a part


@dataclass(frozen=True)
class Predictions:
    """``predicted`` (S, G, N_test) classes; ``val_accuracy`` and ``choice`` (S, G) of the head taken.

    A choice is the setting that did best on the validation images (of equals the first); NaN where the
    protocol has nothing to choose. ``at_edge`` (S, G): it is the first or last of several, and better
    than the next one inside, so that the best may lie beyond.
    """

    predicted: np.ndarray
    val_accuracy: np.ndarray
    choice: np.ndarray
    at_edge: np.ndarray


def streamed(source: Source, part: str, images: int) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """(images done, indices, features) of this process's images of a part, test view, by batch."""
    for start in range(0, images, BATCH):
        end = min(start + BATCH, images)
        chosen = mine(np.arange(start, end))
        yield end, chosen, source(part, chosen, None)
    wait_for_all()  # the slowest may be later than the sum that follows would wait


def epoch_batches(
    source: Source, images: int, batch: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """(indices, features) of this process's share of each whole batch of an epoch.

    The order of the training images and the view of each are drawn from (seed, epoch). What does not
    fill a batch is dropped.
    """
    order = generator(seed, "probe order", epoch).permutation(images)
    views_N = generator(seed, "probe views", epoch).integers(source.views, size=images)
    for start in range(0, images // batch * batch, batch):
        chosen = mine(order[start : start + batch])
        yield chosen, source("train", chosen, views_N[chosen])


def predict_part(
    source: Source, part: str, images: int, predict: Callable[[Tensor], Tensor], on_progress: Progress
) -> np.ndarray:
    """(G, S, H, N) classes of a whole part; ``predict`` maps (G, B, D) features to (G, S, H, B)."""
    found: Tensor | None = None
    for done, chosen, features_GBD in streamed(source, part, images):
        predicted = predict(features_GBD)
        if found is None:
            shape = (*predicted.shape[:-1], images)
            found = torch.zeros(shape, dtype=torch.int32, device=predicted.device)
        found[..., torch.from_numpy(chosen)] = predicted.int()
        on_progress(f"predict {part}", done, images)
    assert found is not None
    return add_up(found).cpu().numpy()


def predict_held_out(
    source: Source,
    splits: ProbeSplits,
    predict: Callable[[Tensor], Tensor],
    settings: Sequence[float],
    on_progress: Progress,
) -> Predictions:
    """``predict_part`` of val and test, and ``choose`` between the settings."""
    of_val, of_test = (
        predict_part(source, part, splits.count(part), predict, on_progress) for part in ("val", "test")
    )
    return choose(of_val, of_test, splits, settings)


def choose(
    val_GSHN: np.ndarray, test_GSHN: np.ndarray, splits: ProbeSplits, settings: Sequence[float]
) -> Predictions:
    """Take of each group and label set the choice that is best on the (true) validation labels."""
    accuracy_GSH = (val_GSHN == splits.labels("val")).mean(-1)
    best_GS, at_edge_GS = best_setting(accuracy_GSH)
    taken = best_GS[..., None]
    return Predictions(
        predicted=np.take_along_axis(test_GSHN, taken[..., None], 2)[:, :, 0].swapaxes(0, 1),
        val_accuracy=np.take_along_axis(accuracy_GSH, taken, 2)[..., 0].T,
        choice=np.asarray(settings, dtype=float)[best_GS].T,
        at_edge=at_edge_GS.T,
    )


def best_setting(scores_GSH: np.ndarray, least: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(G, S) place of the highest score (of equals the first), and whether that is at an edge.

    At an edge: the first or last of several, and ahead of its neighbour by more than ``least``.
    """
    best_GS = scores_GSH.argmax(-1)
    last = scores_GSH.shape[-1] - 1
    inside_GS = np.where(best_GS == 0, min(1, last), max(0, last - 1))
    pair = (np.take_along_axis(scores_GSH, at[..., None], 2)[..., 0] for at in (best_GS, inside_GS))
    ahead_GS = np.subtract(*pair) > least
    return best_GS, ((best_GS == 0) | (best_GS == last)) & ahead_GS


def collect(source: Source, part: str, images: int, groups: slice, on_progress: Progress) -> Tensor:
    """(G, N, D) float32 features of some groups for a whole part, in every process."""
    count = len(source.groups[groups])
    found = torch.zeros(count, images, source.width, device=source.device)
    for done, chosen, features_GBD in streamed(source, part, images):
        found[:, torch.from_numpy(chosen)] = features_GBD[groups]
        on_progress(f"features {part}", done, images)
    return add_up(found)


def pieces(groups: int, bytes_each: float, limit: float) -> list[slice]:
    """Groups worked on at a time, so that ``bytes_each`` of them stay below ``limit`` bytes."""
    size = max(1, min(groups, int(limit // max(1, bytes_each))))
    return [slice(start, min(start + size, groups)) for start in range(0, groups, size)]
