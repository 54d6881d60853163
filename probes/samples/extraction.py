"""What a network says of a whole set of images: of samples everything, of a reference what is needed.

A reference is summed up by its mean and covariance over all images; 10,000 of them, drawn once, keep
their features for neighbours and kernels, as the ADM suite's reference files hold 10,000 images. What
was found is kept in the cache folder under the hashes of images and network.

Shapes: N samples, M reference images, D features, S spatial features, C classes.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from probes.samples.images import ImageSet
from probes.samples.manifold import Neighbours
from probes.samples.networks import Features, Network
from probes.samples.npz import read_array, stored_names
from probes.stats.frechet import FrechetTo, Moments
from star.base.errors import UserError
from star.base.files import publish_file
from star.base.progress import Progress, StageProgress, nothing
from star.base.randomness import generator
from star.tokenizer.file import cache_folder

__all__ = [
    "KEPT",
    "NEIGHBOURS",
    "NEIGHBOURS_COVERED",
    "Reference",
    "extract",
    "extract_reference",
    "stored_reference",
]

BATCH = 64
KEPT = 10_000  # reference images whose features are kept
NEIGHBOURS, NEIGHBOURS_COVERED = 3, 5  # of precision and recall; of density and coverage
_VERSION = 1  # of what is kept: another way of finding it gets another number
_STORED = ("mu", "sigma", "mu_s", "sigma_s")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What one network says of reference images.

    ``kept_MD``: features of at most ``KEPT`` of them, and ``neighbours`` the same as a cloud; None
    where a file holds statistics alone. ``logits_MC``: of all, where the network has names for its
    classes. ``stored``: mean and covariance come from a file.
    """

    distance: FrechetTo = field(repr=False)
    spatial: FrechetTo | None = field(repr=False)
    kept_MD: np.ndarray | None = field(repr=False)
    neighbours: Neighbours | None = field(default=None, repr=False)
    logits_MC: np.ndarray | None = field(default=None, repr=False)
    stored: bool = False


def extract(network: Network, images: ImageSet, on_progress: Progress = nothing) -> Features:
    """Features of all images, in their order."""
    parts, done = [], 0
    for batch in images.tensors(BATCH):
        parts.append(network.extract(batch))
        done += len(batch)
        on_progress(done, images.count)
    return Features(*(_joined(parts, name) for name in ("pool_ND", "spatial_NS", "logits_NC")))  # type: ignore[arg-type]


def _joined(parts: list[Features], name: str) -> np.ndarray | None:
    arrays = [getattr(part, name) for part in parts]
    return None if arrays[0] is None else np.concatenate(arrays)


def extract_reference(
    network: Network,
    images: ImageSet,
    *,
    stored: Reference | None = None,
    keep: bool = True,
    device: torch.device | str = "cpu",
    on_progress: StageProgress = nothing,
) -> Reference:
    """What ``network`` says of the reference ``images``; found in the cache, or put there if ``keep``.

    ``stored``: statistics of Inception that stand for all images instead (``stored_reference``).
    ``device`` looks for neighbours.
    """
    path = _cache_file(network, images)
    found = _read_kept(path)
    if found is None:
        found = _measured(network, images, partial(on_progress, "reference"))
        if keep:
            path.parent.mkdir(parents=True, exist_ok=True)
            with publish_file(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **found)  # type: ignore[arg-type]
    told = partial(on_progress, "neighbours of the reference")
    of_images = _summed_up(
        found,
        kept_MD=found["kept"],
        neighbours=Neighbours.of(found["kept"], NEIGHBOURS_COVERED, device, told),
        logits_MC=found.get("logits"),
    )
    if stored is None:
        return of_images
    return replace(of_images, distance=stored.distance, spatial=stored.spatial, stored=True)


def _summed_up(arrays: dict[str, np.ndarray], **rest: Any) -> Reference:
    spatial = FrechetTo(arrays["mu_s"], arrays["sigma_s"]) if "mu_s" in arrays else None
    return Reference(distance=FrechetTo(arrays["mu"], arrays["sigma"]), spatial=spatial, **rest)


def stored_reference(path: Path) -> Reference:
    """The statistics of a reference ``.npz``, of Inception's features; ``UserError`` if it has none."""
    there = stored_names(path)
    arrays = {name: read_array(path, name).astype(np.float64) for name in _STORED if name in there}
    for mean, cov, width in (("mu", "sigma", 2048), ("mu_s", "sigma_s", 2023)):
        if (mean in arrays) != (cov in arrays):
            raise UserError(f"{path} has one of {mean} and {cov}; expected both")
        if mean in arrays and (arrays[mean].shape != (width,) or arrays[cov].shape != (width, width)):
            raise UserError(
                f"{path}: {mean} has shape {arrays[mean].shape} and {cov} {arrays[cov].shape}; "
                f"expected ({width},) and ({width}, {width}), of Inception's features"
            )
        if mean in arrays and not (np.isfinite(arrays[mean]).all() and np.isfinite(arrays[cov]).all()):
            raise UserError(f"{path}: {mean} or {cov} holds values that are not finite")
    if "mu" not in arrays:
        raise UserError(f"{path} has neither mu and sigma nor images in arr_0; expected a reference")
    return _summed_up(arrays, kept_MD=None, stored=True)


def _measured(network: Network, images: ImageSet, on_progress: Progress) -> dict[str, np.ndarray]:
    pool, spatial, kept, logits = Moments(), Moments(), [], []
    chosen = np.sort(generator(0, "kept reference images").permutation(images.count)[:KEPT])
    done = 0
    for batch in images.tensors(BATCH):
        found = network.extract(batch)
        pool.add(found.pool_ND)
        if found.spatial_NS is not None:
            spatial.add(found.spatial_NS)
        if network.class_names is not None:
            assert found.logits_NC is not None
            logits.append(found.logits_NC)
        rows = chosen[(chosen >= done) & (chosen < done + len(batch))] - done
        kept.append(found.pool_ND[rows])
        done += len(batch)
        on_progress(done, images.count)
    arrays = {"mu": pool.mean, "sigma": pool.cov, "kept": np.concatenate(kept)}
    if spatial.count:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.cov}
    if logits:
        arrays["logits"] = np.concatenate(logits)
    return arrays


def _cache_file(network: Network, images: ImageSet) -> Path:
    identity = [_VERSION, network.name, network.sha256, images.sha256, images.split, images.crop]
    if images.tokenizer_sha256 is not None:  # the same codes are other images under another
        identity.append(images.tokenizer_sha256)
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return cache_folder() / "references" / f"{digest[:32]}.npz"


def _read_kept(path: Path) -> dict[str, np.ndarray] | None:
    """What was kept; None if there is nothing, or nothing readable."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception:  # a file cut short is made again, whatever numpy and zipfile say of it
        return None
