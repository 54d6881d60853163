"""What decides an evaluation's numbers: all that went in, its short name, and what to know of it.

Numbers of two evaluations can be compared where all but the samples agree.
"""

import hashlib
import json

from probes.samples.extraction import KEPT, NEIGHBOURS, NEIGHBOURS_COVERED, Reference
from probes.samples.images import ImageSet
from probes.samples.networks import Network
from probes.samples.scores import SPLIT
from star.base.versions import installed_version

__all__ = ["PUBLISHED_COUNT", "fingerprint", "identity", "warnings"]

PUBLISHED_COUNT = 50_000  # samples that published numbers take


def fingerprint(samples: ImageSet, reference: dict, network: Network, of_reference: Reference) -> dict:
    """Plain facts of one evaluation; ``reference``: facts of its images or of its file."""
    kept = None if of_reference.kept_MD is None else len(of_reference.kept_MD)
    packages = ("torch", "torchvision", "torch-fidelity", "timm", "pillow", "numpy")
    return {
        "samples": samples.facts(),
        "reference": {
            **reference,
            "statistics": "stored" if of_reference.stored else "of its images",
            "images_for_neighbours": kept,
        },
        "network": {"name": network.name, "sha256": network.sha256, **network.facts},
        "resizing": network.resizing,
        "rounding": "samples are uint8",
        "distances": "float32; covariances float64, ddof 1",
        "inception_score_split": SPLIT,
        "neighbours": NEIGHBOURS,
        "neighbours_of_density_and_coverage": NEIGHBOURS_COVERED,
        "versions": {package: installed_version(package) for package in packages},
    }


def identity(facts: dict) -> str:
    """Twelve hexadecimal digits of a fingerprint, paths left out: the same evaluation has the same."""
    kept = {name: value for name, value in facts.items() if name != "versions"}
    for name in ("samples", "reference"):
        kept[name] = {key: value for key, value in facts[name].items() if key not in ("path", "plan")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def warnings(
    samples: ImageSet, reference: ImageSet | None, network: Network, of_reference: Reference
) -> list[str]:
    """What sets these numbers apart from published ones, in words."""
    found = list(samples.notes)
    if reference is not None:
        found += reference.notes
        if reference.size != samples.size:
            found.append(
                f"samples are {_pixels(samples)}, reference images {_pixels(reference)}; the network "
                f"resizes both ({network.resizing})"
            )
    if samples.count != PUBLISHED_COUNT:
        found.append(
            f"{samples.count:,} samples; published numbers take {PUBLISHED_COUNT:,}, and a Fréchet "
            "distance is larger with fewer: compare at equal counts only (or --infinity)"
        )
    counts = samples.facts()["images_a_class"]
    if counts is not None and counts[0] != counts[1]:
        found.append(f"classes are not balanced: {counts[0]} to {counts[1]} samples a class")
    if network.name == "Inception":
        kept = None if of_reference.kept_MD is None else len(of_reference.kept_MD)
        if kept != KEPT:
            images = "no image" if kept is None else f"{kept:,} images"
            found.append(
                f"the reference has {images}; published precision and recall take {KEPT:,} of it"
            )
        found.append("distances of precision and recall are float32; ADM's suite takes float16")
        if not network.facts["published_weights"]:
            found.append(
                "these are not the weights that published FIDs rest on (sha256 "
                f"{network.sha256[:8]}, not 6726825d): no number here is comparable with one"
            )
    return found


def _pixels(images: ImageSet) -> str:
    height, width = images.size
    return f"{width} x {height}"
