"""Samples inside training: of the same seeds and classes every time, and the classes seen in them.

Sample i of N is sample i of ``star sample --count N --seed SEED`` (guidance 2, temperature 1, classes
in turn) with the run's seed: a function of (weights, config). Its class is one of all of them, or of 20
drawn by the seed where there are more. So pictures of two steps differ in what was learnt between, and
accuracies are paired, sample by sample.

Accuracy is conditional accuracy (``probes.samples.classifier``): in what share of samples does the
classifier see the class that was asked for? Beside it stands what it is worth on real images, as its
card says, and as the run's own tokenizer redraws them, where the card knows it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from probes.samples.classifier import conditional_accuracy, predict, require_classes
from star.base.device import resolve_precision
from star.base.errors import UserError
from star.base.files import write_json
from star.base.randomness import generator
from star.base.record import Record
from star.base.settings import read_settings
from star.classifier.model import Classifier
from star.codes.sample import SampleOptions, sample_batch, sample_batches
from star.codes.store import Codes
from star.model.config import ModelConfig
from star.model.decoder import in_precision
from star.model.kv_cache import cache_bytes
from star.model.transformer import Transformer
from star.tokenizer.file import tokenizer_sha256
from star.tokenizer.model import VQModel
from star.training.config import TrainConfig
from star.training.estimate import forward_flops

__all__ = ["FixedSamples", "SamplingCost", "fixed_samples", "sampling_cost"]

CLASSES = 20
BATCH = 64  # images that the classifier looks at together
FACTS = "samples.json"


@dataclass(frozen=True, kw_only=True)
class FixedSamples:
    """What is drawn of every model, and who looks at it.

    ``chosen``: the classes, in the order of their first samples; ``class_names`` of all classes.
    ``tokenizer`` is on the device where models are to draw. ``worth``: the classifier's own accuracies,
    as a row names them.
    """

    options: SampleOptions
    chosen: list[int]
    class_names: tuple[str, ...]
    tokenizer: VQModel = field(repr=False)
    classifier: Classifier | None = field(default=None, repr=False)
    worth: Record = field(default_factory=dict)

    def draw(self, model: Transformer) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (N, H, W, 3) and labels (N,), in the precision of ``star sample``.

        ``model`` stays as it is, and so does every global generator.
        """
        where = self.tokenizer.quant_conv.weight.device
        precision = resolve_precision("auto" if where.type == "cuda" else "fp32", where)
        drawing = in_precision(model, precision)
        if drawing.output.weight.device != where:  # a copy of a sharded model's weights
            drawing = drawing.to(where)
        drawn = [
            sample_batch(drawing, self.tokenizer, self.options, self.chosen, rows)
            for rows in sample_batches(self.options)
        ]
        images, _, labels = zip(*drawn, strict=True)
        return np.concatenate(images), np.concatenate(labels)

    def accuracy(self, weights: str, images_NHWC: np.ndarray, labels_N: np.ndarray) -> Record:
        """Conditional accuracy of the samples of ``teacher`` or ``student``, as a row names it.

        ``cond_acc`` (the teacher's) or ``cond_acc_student`` over ``cond_n`` samples, and the
        classifier's own ``cond_acc_real`` and ``cond_acc_redrawn``; nothing without a classifier.
        """
        if self.classifier is None:
            return {}
        found = predict(self.classifier, _batches(images_NHWC))
        table = conditional_accuracy(found, labels_N, self.class_names)
        name = "cond_acc" if weights == "teacher" else f"cond_acc_{weights}"
        row = {name: float(table["accuracy"].iloc[0]), "cond_n": len(labels_N)}
        return row | self.worth

    def facts(self) -> Record:
        """What the samples are, in plain values."""
        judge = None
        if self.classifier is not None:
            card = self.classifier.facts
            kept = ("sha256", "measured_on", "accuracy", "low", "high", "n", "through")
            judge = {"name": self.classifier.name} | {key: card[key] for key in kept if key in card}
        return {
            "sampling": asdict(self.options),
            "of_classes": [self.class_names[label] for label in self.chosen],
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
            "classifier": judge,
        }

    def publish(self, folder: Path) -> None:
        """Write ``facts`` beside the pictures in ``folder``."""
        write_json(folder / FACTS, self.facts())

    def require_same(self, folder: Path) -> None:
        """Raise ``UserError`` if the samples in ``folder`` were judged by another classifier."""
        path = folder / FACTS
        if self.classifier is None or not path.exists():
            return
        judge = read_settings(path).get("classifier") or {}
        before, now = judge.get("sha256"), self.classifier.facts["sha256"]
        if before != now:
            raise UserError(
                f"{path} names another classifier (sha256 {str(before)[:12]}) than this run's is now "
                f"({now[:12]}); bring it back, or delete {path.name} to go on with this one"
            )


def fixed_samples(
    config: TrainConfig,
    store: Codes,
    class_names: Sequence[str],
    tokenizer: VQModel | None,
    classifier: Classifier | None,
    device: torch.device,
) -> FixedSamples:
    """The samples of a run on the codes of ``store``; tokenizer and classifier move to ``device``.

    Raises ``UserError`` if there is no tokenizer, it has other codes, or the classifier does not know
    the classes by name.
    """
    asked = f"the samples of --sample-every {config.sample_every}"
    if tokenizer is None:
        raise UserError(
            f"{store.path.parent} holds codes without their tokenizer, which draws {asked}; give "
            "--tokenizer FILE, or --sample-every 0"
        )
    if tokenizer.config.codebook_size != store.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer.name}, which draws {asked}, has "
            f"{tokenizer.config.codebook_size} codes; the data have {store.vocab_size}"
        )
    if classifier is not None:
        require_classes(classifier, class_names)
    chosen = _chosen(len(class_names), config.seed)
    return FixedSamples(
        options=SampleOptions(count=config.sample_each * len(chosen), seed=config.seed),
        chosen=chosen,
        class_names=tuple(class_names),
        tokenizer=tokenizer.to(device),
        classifier=None if classifier is None else classifier.to(device),
        worth={} if classifier is None else _worth(classifier, tokenizer),
    )


def _chosen(classes: int, seed: int) -> list[int]:
    if classes <= CLASSES:
        return list(range(classes))
    drawn = generator(seed, "sample classes").choice(classes, CLASSES, replace=False)
    return [int(label) for label in np.sort(drawn)]


@dataclass(frozen=True, kw_only=True)
class SamplingCost:
    """Of a whole run: how often, samples each time of each of the two models, FLOPs.

    ``memory``: bytes that drawing takes on process 0's device, besides the images.
    """

    times: int
    samples: int
    flops: float
    memory: int


def sampling_cost(config: TrainConfig, half: bool) -> SamplingCost:
    """What ``config.sample_every`` costs, with the classes that ``config.model`` has.

    FLOPs are those of the transformer, with guidance and what pads a batch; the decoded images are left
    out. ``half``: models draw in half precision, from a copy of their weights.
    """
    model: ModelConfig = config.model
    options = SampleOptions(count=config.sample_each * min(model.num_classes, CLASSES))
    times = -(-config.max_steps // config.sample_every)
    sequences = 2 * options.batch_size  # with the class and without it
    batches = len(sample_batches(options))
    flops = 2 * times * batches * forward_flops(config, sequences, True)  # teacher and student
    memory = cache_bytes(model, sequences, torch.bfloat16 if half else torch.float32)
    memory += 2 * model.parameters if half else 0
    return SamplingCost(times=times, samples=options.count, flops=flops, memory=memory)


def _batches(images_NHWC: np.ndarray) -> Iterator[torch.Tensor]:
    for start in range(0, len(images_NHWC), BATCH):
        yield torch.from_numpy(images_NHWC[start : start + BATCH]).permute(0, 3, 1, 2)


def _worth(classifier: Classifier, tokenizer: VQModel) -> Record:
    """The classifier's accuracy on real images, and as the run's tokenizer redraws them."""
    card = classifier.facts
    found = {"cond_acc_real": card["accuracy"]} if "accuracy" in card else {}
    through = card.get("through") or {}
    if "accuracy" in through and through.get("sha256") == tokenizer_sha256(tokenizer):
        found["cond_acc_redrawn"] = through["accuracy"]
    return found
