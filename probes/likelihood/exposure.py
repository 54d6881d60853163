"""How fast does a model leave the data when it goes on from its own tokens? Exposure bias.

Training shows a model real prefixes only (Bengio et al. 2015, "Scheduled Sampling"; Ranzato et al. 2016
name it). Here held-out images are continued from their first k tokens by the model itself (the
**rollout**), given their class, and rollout and real continuation are compared by their distance d
after k. Every number has its counterpart of real images.

- ``nll``: of the rollout minus of the real continuation, each by one teacher-forced pass given the
  class (neither guided nor at another temperature, whatever drew the tokens). Drawn from the model
  itself, a rollout's NLL is in expectation the model's entropy there.
- ``calibration``: the model's entropy on the real prefix minus the NLL of the real token, at the same
  steps: what ``nll`` would be if the prefix were real. At d = 1 the prefix is real and the two agree in
  expectation: an offset there is no exposure bias but a model less or more sure than it is right.
- ``entropy``: of the model's prediction on the rollout's prefix minus on the real prefix. What the
  prefix alone changes; exactly 0 at d = 1. In expectation ``nll = calibration + entropy``.
- ``nll_growth``: ``nll`` at d minus at 1, by image. It holds calibration that changes over the image,
  which ``entropy`` does not.
- ``code_distance``: 1 - cosine of the codes at the same place, of rollout and real continuation
  (rollout), and of another real image of the class and the real continuation (real): the ceiling.
  Images have many continuations, so a perfect model is above 0 too. ``code_distance_view``: beside the
  image's own other view.
- ``code_histogram``, ``pair_histogram``: whether rollouts' codes, and codes side by side, are used as
  real images use them; 0 for a perfect model (``probes.likelihood.histograms``).

A model whose joint distribution is that of the data has 0 expected ``nll``, ``entropy`` and
histogram differences at every k and d. Both signs are departures: rollouts that are easier to predict
than images (below 0) are as far from the data as confused ones.

Shapes: N images, T tokens, K starts, V codes of E dimensions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from probes.likelihood.histograms import Variation, adjacent_pairs, pair_images, variation
from probes.likelihood.rollouts import AS_IT_IS, PARTS, Sampling, nll_and_entropy, roll_out
from probes.reading.features import check_store
from probes.reading.images import ImageSample
from probes.stats.intervals import mean_interval
from probes.stats.paired import paired_row, paired_table
from star.base.errors import UserError
from star.base.progress import Progress, nothing
from star.model.transformer import Transformer

__all__ = ["Exposure", "code_distance", "compare_exposures", "exposure", "spans"]

COLUMNS = (
    "measure", "start", "span", "begin", "end", "rollout", "real", "difference", "low", "high", "n",
)  # fmt: skip
COMPARED_COLUMNS = (
    "measure", "start", "span", "begin", "end", "first", "second", "difference", "low", "high", "p",
    "n", "p_holm", "higher",
)  # fmt: skip
Spans = Iterator[tuple[str, int, int]]


def spans(tokens: int, start: int) -> Spans:
    """(name, first and last distance): "all", windows of T/8 and every step; the last window is cut."""
    left, wide = tokens - start, max(1, tokens // PARTS)
    yield "all", 1, left
    for begin in range(1, left + 1, wide):
        yield "window", begin, min(begin + wide - 1, left)
    for step in range(1, left + 1):
        yield "step", step, step


@dataclass(frozen=True)
class Exposure:
    """What was measured of every image; the second axis of ``rollout_NKT`` and the like are starts.

    ``rollout_NKT`` and ``real_NT`` are tokens; NLL and entropy in nats. Distances of codes (None: not
    measured): to the real image, of its rollouts, of ``other`` images of its class (NaN: there is
    none) and of its other ``view`` (None: there is none).
    """

    labels: np.ndarray
    starts: tuple[int, ...]
    grid: int
    vocab_size: int
    seed: int
    real_NT: np.ndarray
    rollout_NKT: np.ndarray
    real_nll_NT: np.ndarray
    real_entropy_NT: np.ndarray
    rollout_nll_NKT: np.ndarray
    rollout_entropy_NKT: np.ndarray
    distance_NKT: np.ndarray | None = None
    other_NT: np.ndarray | None = None
    view_NT: np.ndarray | None = None

    def measures(self, place: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(measure, of the rollout (M, T), of real images (M, T)) of the start at ``place``.

        M images have both. Steps before the start mean nothing.
        """
        nll_NT, entropy_NT = self.rollout_nll_NKT[:, place], self.rollout_entropy_NKT[:, place]
        yield "nll", nll_NT, self.real_nll_NT
        yield "calibration", self.real_entropy_NT, self.real_nll_NT
        yield "entropy", entropy_NT, self.real_entropy_NT
        if self.distance_NKT is not None and self.other_NT is not None:
            known = np.isfinite(self.other_NT[:, 0])
            if known.any():
                yield "code_distance", self.distance_NKT[known, place], self.other_NT[known]
        if self.distance_NKT is not None and self.view_NT is not None:
            yield "code_distance_view", self.distance_NKT[:, place], self.view_NT

    def growth(self, place: int, begin: int, end: int) -> np.ndarray:
        """(N,) excess NLL at distances ``begin`` to ``end``, less that at 1."""
        start = self.starts[place]
        excess_NT = self.rollout_nll_NKT[:, place].astype(np.float64) - self.real_nll_NT
        return np.asarray(_mean(excess_NT, start, begin, end) - excess_NT[:, start])

    def variations(self, place: int) -> Iterator[tuple[str, str, int, int, Variation]]:
        """(measure, span, first, last distance, how histograms differ): all and windows."""
        tokens, start = self.real_NT.shape[1], self.starts[place]
        pairs_P2 = pair_images(self.labels, self.seed)
        rollout_NT = self.rollout_NKT[:, place]
        of_pairs = [adjacent_pairs(x, self.grid, self.vocab_size) for x in (rollout_NT, self.real_NT)]
        kinds = {"code_histogram": [rollout_NT, self.real_NT], "pair_histogram": of_pairs}
        for measure, (rollout, real) in kinds.items():
            for span, begin, end in spans(tokens, start):
                if span != "step":  # a histogram of one place would be chance alone
                    here = slice(start + begin - 1, start + end)
                    found = variation(rollout[:, here], real[:, here], pairs_P2)
                    yield measure, span, begin, end, found

    def table(self) -> pd.DataFrame:
        """Columns ``COLUMNS``: a row a measure, start and stretch of distances ``begin`` to ``end``.

        ``difference`` is rollout minus real, with its 95 % interval over images.
        """
        rows: list[tuple] = []
        tokens = self.real_NT.shape[1]
        for place, start in enumerate(self.starts):
            for measure, rollout_MT, real_MT in self.measures(place):
                for span, begin, end in spans(tokens, start):
                    sides = [_mean(each, start, begin, end) for each in (rollout_MT, real_MT)]
                    means = [float(side.mean()) for side in sides]
                    apart = mean_interval(sides[0] - sides[1])
                    rows.append((measure, start, span, begin, end, *means, *apart, len(real_MT)))
            for span, begin, end in spans(tokens, start):
                grown_N = self.growth(place, begin, end)
                cells = (math.nan, math.nan, *mean_interval(grown_N), len(grown_N))
                rows.append(("nll_growth", start, span, begin, end, *cells))
            count = len(self.labels) // 2 * 2
            for measure, span, begin, end, found in self.variations(place):
                if not math.isnan(found.real):
                    cells = (found.rollout, found.real, *found.interval(), count)
                    rows.append((measure, start, span, begin, end, *cells))
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _mean(values_NT: np.ndarray, start: int, begin: int, end: int) -> np.ndarray:
    """(N,) mean over the distances ``begin`` to ``end`` after ``start``."""
    return np.asarray(values_NT[:, start + begin - 1 : start + end].mean(1, dtype=np.float64))


def exposure(
    model: Transformer,
    images: ImageSample,
    starts: Sequence[int],
    *,
    seed: int = 0,
    sampling: Sampling = AS_IT_IS,
    codes_VE: np.ndarray | None = None,
    others: ImageSample | None = None,
    alone: np.ndarray | None = None,
    view: ImageSample | None = None,
    batch_size: int = 128,
    on_progress: Progress = nothing,
) -> Exposure:
    """Roll ``images`` out from each of ``starts`` and measure rollouts and images.

    Rollout i of any start is drawn with the random numbers of ``seed + i``. codes_VE: unit vectors of
    the codes, for distances; ``others`` are then images of the same classes in the same order (rows
    ``alone`` (N,) have none) and ``view`` the same images' other view. on_progress(done, total) counts
    tokens drawn. ``UserError`` for codes or options that do not fit and predictions not finite.
    """
    check_store(model, images)
    total, done = len(starts) * images.codes[:, 0].size, 0
    drawn = []
    for start in starts:

        def report(step: int, of: int, before: int = done) -> None:
            on_progress(before + step, total)

        drawn.append(
            roll_out(
                model, images, start,
                seed=seed, sampling=sampling, batch_size=batch_size, on_progress=report,
            )
        )  # fmt: skip
        done += images.codes[:, 0].size
    real = nll_and_entropy(model, images, batch_size=batch_size)
    passes = [
        nll_and_entropy(model, replace(images, codes=each[:, None]), batch_size=batch_size)
        for each in drawn
    ]
    real_NT, rollout_NKT = images.codes[:, 0].astype(np.int64), np.stack(drawn, axis=1)
    distance_NKT = other_NT = view_NT = None
    if codes_VE is not None:
        distance_NKT = code_distance(codes_VE, rollout_NKT, real_NT[:, None])
        if others is not None:
            other_NT = code_distance(codes_VE, others.codes[:, 0], real_NT)
            other_NT[np.zeros(len(real_NT), dtype=bool) if alone is None else alone] = np.nan
        if view is not None:
            view_NT = code_distance(codes_VE, view.codes[:, 0], real_NT)
    return Exposure(
        labels=images.labels,
        starts=tuple(starts),
        grid=images.grid,
        vocab_size=images.vocab_size,
        seed=seed,
        real_NT=real_NT,
        rollout_NKT=rollout_NKT,
        real_nll_NT=real[0],
        real_entropy_NT=real[1],
        rollout_nll_NKT=np.stack([each[0] for each in passes], axis=1),
        rollout_entropy_NKT=np.stack([each[1] for each in passes], axis=1),
        distance_NKT=distance_NKT,
        other_NT=other_NT,
        view_NT=view_NT,
    )


def code_distance(codes_VE: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """1 - cosine of the codes of two arrays of tokens, place by place."""
    return np.asarray(1 - (codes_VE[one] * codes_VE[two]).sum(-1))


def compare_exposures(first: Exposure, second: Exposure, names: tuple[str, str]) -> pd.DataFrame:
    """The second's rollouts minus the first's on the same images, paired; ``COMPARED_COLUMNS``.

    Excess NLL, entropy (both rollout minus real) and distance of codes. The means over all distances
    are tested and corrected together; windows and steps have intervals alone. ``UserError`` if the
    models were not shown the same images from the same starts.
    """
    same = np.array_equal(first.labels, second.labels) and first.starts == second.starts
    if not same or not np.array_equal(first.real_NT, second.real_NT):
        raise UserError("the checkpoints continued different images; they cannot be compared")
    rows = []
    for place, start in enumerate(first.starts):
        sides = [_compared(each, place) for each in (first, second)]
        for measure in sides[0]:
            if measure not in sides[1]:
                continue
            for span, begin, end in spans(first.real_NT.shape[1], start):
                pair = [_mean(side[measure], start, begin, end) for side in sides]
                key = {"measure": measure, "start": start, "span": span, "begin": begin, "end": end}
                row = key | paired_row(pair[0], pair[1])
                rows.append(row if span == "all" else row | {"p": math.nan})
    return paired_table(rows, COMPARED_COLUMNS, names)


def _compared(found: Exposure, place: int) -> dict[str, np.ndarray]:
    """(N, T) by measure."""
    nll_NT = found.rollout_nll_NKT[:, place].astype(np.float64) - found.real_nll_NT
    entropy_NT = found.rollout_entropy_NKT[:, place].astype(np.float64) - found.real_entropy_NT
    sides = {"nll": nll_NT, "entropy": entropy_NT}
    if found.distance_NKT is not None:
        sides["code_distance"] = found.distance_NKT[:, place]
    return sides
