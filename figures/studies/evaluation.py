"""How good samples are: every network's numbers with intervals, fingerprints, pairs of sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from figures.requests.evaluation import Request
from figures.said.evaluation import (
    classes_said,
    compared_said,
    explained,
    fingerprint_said,
    numbers_said,
)
from figures.study import Finding, Study
from figures.work import Work
from probes.results import Result, provenance
from probes.samples.classifier import Predictions, compare_conditional, conditional_accuracy
from probes.samples.evaluation import Evaluation, Extras, compare_evaluations, evaluate
from probes.samples.extraction import Reference, extract, extract_reference, stored_reference
from probes.samples.fingerprint import fingerprint, identity, warnings
from probes.samples.images import ImageSet, open_reference, open_samples
from probes.samples.judges import as_predictions, open_networks
from probes.samples.networks import Network
from probes.samples.npz import stored_names
from star.base.device import resolve_device
from star.base.errors import UserError
from star.base.files import sha256_file
from star.base.names import shown, slug
from star.base.progress import StageProgress
from star.tokenizer.file import require_cache
from viz.evaluation import evaluation_by_class, evaluations

__all__ = ["Request", "run"]


@dataclass(frozen=True)
class Opened:
    """The reference as its images (None: a file of statistics alone), and its facts.

    ``path`` of a file with Inception's ``mu`` and ``sigma``, which are ``statistics``, read where they
    are asked for.
    """

    images: ImageSet | None
    path: Path | None
    statistics: Reference | None
    facts: dict


@dataclass(frozen=True)
class Judged:
    """What one network found in one set of samples; ``classes``: conditional accuracy, where asked."""

    evaluation: Evaluation
    facts: dict
    notes: list[str]
    predictions: Predictions | None
    classes: pd.DataFrame | None
    why_no_classes: str | None


class EvaluationStudy(Study[Request]):
    """``star evaluate``."""

    request = Request

    def check(self, asked: Request) -> None:
        """Refuse what lacks samples or a reference."""
        if not asked.samples:
            raise UserError("no samples are given; make some with star sample --count 5000")
        if asked.ref is None:
            raise UserError("--ref is missing: reference images to judge by (a source, folder or .npz)")
        if asked.resamples < 0:
            raise UserError(f"resamples is {asked.resamples}; expected at least 0")

    def findings(self, asked: Request, work: Work) -> Iterator[Finding]:
        """A finding for each set of samples and network, then each set beside the first."""
        assert asked.samples is not None
        device = resolve_device(asked.device)
        sets = {
            name: open_samples(path, asked.tokenizer) for name, path in _named(asked.samples).items()
        }
        reference = _reference(asked, next(iter(sets.values())), work)
        networks = open_networks(asked.inception, asked.dinov2, _classifier(asked, work), device)
        _check(reference, networks)
        if asked.keep:
            require_cache()
        folder = asked.out or asked.samples[0].parent / "evaluation"
        for network in networks:
            of_reference = _of_reference(asked, network, reference, work)
            real = _of_real(network, reference.images, of_reference)
            judged: dict[str, Judged] = {}
            for name, samples in sets.items():
                judged[name] = _judge(asked, network, name, samples, reference, of_reference, work)
                stem = folder / f"evaluate-{slug(name, among=sets)}-{slug(network.name)}"
                yield _finding(stem, name, network, judged[name], real)
            yield Finding(said=explained(network))
            yield from _pairs(folder, sets, network, judged, real)


run = EvaluationStudy().run


def _named(paths: list[Path]) -> dict[str, Path]:
    """Sets of samples by their files' names, with as many folders as tell them apart."""
    if len({path.absolute() for path in paths}) < len(paths):
        raise UserError("a set of samples is given twice; give each once")
    parts = [
        (*path.absolute().parts[:-1], path.stem if path.suffix == ".npz" else path.name)
        for path in paths
    ]
    count = 1
    while len({each[-count:] for each in parts}) < len(paths):
        count += 1
    return {shown("/".join(each[-count:])): path for each, path in zip(parts, paths, strict=True)}


def _classifier(asked: Request, work: Work) -> str | None:
    if asked.features is None and asked.inception is None and asked.dinov2 is None:
        work.say(
            "no network is given: samples are judged by the classifier that comes with the package "
            "(cifar10); FID takes --inception"
        )
        return "cifar10"
    return asked.features


def _reference(asked: Request, samples: ImageSet, work: Work) -> Opened:
    assert asked.ref is not None
    path = Path(asked.ref)
    there = stored_names(path) if path.suffix == ".npz" else set()
    if path.suffix == ".npz" and "arr_0" not in there:
        facts = {"path": str(path), "sha256": sha256_file(path)}
        return Opened(None, path, stored_reference(path), facts)
    images = open_reference(
        asked.ref, samples.size, split=asked.split, tokenizer=asked.tokenizer, say=work.say
    )
    if images.split is not None:
        work.say(f"reference: {images.path}, {images.split}, {images.count:,} images")
    if "mu" not in there:
        return Opened(images, None, None, images.facts())
    statistics = stored_reference(path) if asked.inception is not None else None
    return Opened(images, path, statistics, images.facts())


def _check(reference: Opened, networks: list[Network]) -> None:
    for network in networks:
        if reference.images is None and network.name != "Inception":
            raise UserError(
                f"the reference holds Inception's statistics and no images, which {network.name} needs"
            )


def _of_reference(asked: Request, network: Network, reference: Opened, work: Work) -> Reference:
    if reference.images is None:
        assert reference.statistics is not None
        return reference.statistics
    return extract_reference(
        network,
        reference.images,
        stored=reference.statistics if network.name == "Inception" else None,
        keep=asked.keep,
        device=resolve_device(asked.device),
        on_progress=_told(network.name, work),
    )


def _told(name: str, work: Work) -> StageProgress:
    def told(what: str, done: int, total: int) -> None:
        if total > 1:  # what is done at once needs no line
            work.stage(f"{name}: {what}", done, total)

    return told


def _of_real(network: Network, images: ImageSet | None, of_reference: Reference) -> pd.DataFrame | None:
    """Conditional accuracy of the reference itself: what samples can be expected to reach."""
    if images is None or images.labels_N is None or of_reference.logits_MC is None:
        return None
    return _conditional(images, as_predictions(network, of_reference.logits_MC))[0]


def _conditional(images: ImageSet, predictions: Predictions) -> tuple[pd.DataFrame | None, str | None]:
    """The table, or why there is none."""
    if images.labels_N is None:
        return None, "nothing says which classes were asked for"
    names = _names(images, predictions)
    try:
        return conditional_accuracy(predictions, images.labels_N, names), None
    except UserError as error:
        return None, str(error)


def _names(images: ImageSet, predictions: Predictions) -> Sequence[str] | None:
    """What the labels are called: labels without names are the classifier's numbers."""
    assert images.labels_N is not None
    known = predictions.class_names
    if images.class_names is not None or known is None or images.labels_N.max() >= len(known):
        return images.class_names
    return known


def _judge(
    asked: Request,
    network: Network,
    name: str,
    samples: ImageSet,
    reference: Opened,
    of_reference: Reference,
    work: Work,
) -> Judged:
    extras = Extras(
        kid=asked.kid,
        density=asked.density,
        infinity=asked.infinity,
        resamples=asked.resamples,
        seed=asked.seed,
    )
    features = extract(network, samples, work.progress(f"{network.name}: {name}"))
    found = evaluate(
        network,
        features,
        of_reference,
        extras,
        on_progress=_told(name, work),
    )
    facts = fingerprint(samples, reference.facts, network, of_reference)
    notes = warnings(samples, reference.images, network, of_reference)
    if reference.path is not None and network.name != "Inception":
        notes.append(f"mu and sigma of {reference.path} are Inception's; its images are taken here")
    predictions = classes = why = None
    if network.class_names is not None and features.logits_NC is not None:
        predictions = as_predictions(network, features.logits_NC)
        classes, why = _conditional(samples, predictions)
    return Judged(found, facts, notes, predictions, classes, why)


def _finding(
    stem: Path, name: str, network: Network, judged: Judged, real: pd.DataFrame | None
) -> Finding:
    info = provenance(
        measurement="evaluation of samples",
        fingerprint=identity(judged.facts),
        missing=list(judged.evaluation.missing),
        **judged.facts,
    )
    results = {"": Result(judged.evaluation.table(), info)}
    figures = {}
    if judged.classes is not None:
        of_classes = {**info, "measurement": "conditional accuracy of samples"}
        results["-classes"] = Result(judged.classes, of_classes)
        figures["-classes"] = evaluation_by_class({name: judged.classes}, real, network.name)
    said = [
        numbers_said(name, network, judged.evaluation),
        *(f"{name}: left out is {what}" for what in judged.evaluation.missing),
        *classes_said(name, network, judged.classes, real, judged.why_no_classes),
        *(f"note: {note}" for note in judged.notes),
        fingerprint_said(name, judged.facts),
    ]
    return Finding(stem=stem, results=results, figures=figures, said=said)


def _pairs(
    folder: Path,
    sets: Mapping[str, ImageSet],
    network: Network,
    judged: dict[str, Judged],
    real: pd.DataFrame | None,
) -> Iterator[Finding]:
    """Later sets beside the first, and all in one picture."""
    first, *others = sets
    for other in others:
        names = (first, other)
        one, two = (judged[name].evaluation for name in names)
        table = compare_evaluations(one, two, names)
        info = {
            "measurement": "comparison of samples",
            "names": list(names),
            "evaluations": {name: judged[name].facts for name in names},
        }
        results = {"": Result(table, info)}
        classes = _compared_classes(sets, judged, names)
        if classes is not None:
            results["-classes"] = Result(classes, info)
        counts = (sets[first].count, sets[other].count)
        mine, theirs = (slug(name, among=sets) for name in (other, first))
        stem = folder / f"evaluate-{mine}-against-{theirs}-{slug(network.name)}"
        yield Finding(stem=stem, results=results, said=compared_said(table, classes, names, counts))
    if others:
        figures = {"-compared": evaluations({name: judged[name].evaluation.table() for name in sets})}
        tables = {name: each.classes for name, each in judged.items() if each.classes is not None}
        if len(tables) == len(judged):
            figures["-compared-classes"] = evaluation_by_class(tables, real, network.name)
        stem = folder / f"evaluate-{slug(first, among=sets)}-{slug(network.name)}"
        yield Finding(stem=stem, figures=figures)


def _compared_classes(
    sets: Mapping[str, ImageSet], judged: dict[str, Judged], names: tuple[str, str]
) -> pd.DataFrame | None:
    """Conditional accuracy paired, where both sets have the same classes in the same order."""
    (one, two), (a, b) = [sets[name] for name in names], [judged[name] for name in names]
    if a.classes is None or b.classes is None or one.class_names != two.class_names:
        return None
    if one.labels_N is None or two.labels_N is None or one.labels_N.tolist() != two.labels_N.tolist():
        return None
    assert a.predictions is not None and b.predictions is not None
    called = _names(one, a.predictions)
    return compare_conditional(a.predictions, b.predictions, one.labels_N, called, sides=names)
