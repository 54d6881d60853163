"""What cutting attention does to the class a probe can read (``probes.ablation.cuts``,
``probes.linear.protocols``).

Two readings. ``accuracy_refit``: the probe is trained and tested on features of the cut model: what can
still be read. ``accuracy_fixed``: trained on the intact model's features and tested on the cut one's:
what that very readout loses, be the class gone or only moved. Both under the null class; no label
reaches the features.

Shapes: N test images, K steps.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from probes.ablation.cuts import Cut
from probes.ablation.nll import Ablation, Row, cut_name
from probes.linear.protocols import ProtocolConfig, run_protocol
from probes.linear.sources import ModelSource
from probes.linear.splits import PARTS, ProbeSplits, check_probe
from star.base.errors import UserError
from star.model.transformer import Transformer

__all__ = ["READINGS", "ablate_probe"]

READINGS = {"accuracy_refit": PARTS, "accuracy_fixed": ("test",)}  # parts whose features are cut


def ablate_probe(
    model: Transformer,
    splits: ProbeSplits,
    cuts: Sequence[Cut],
    *,
    layer: int,
    steps: Sequence[int],
    seed: int = 0,
    precision: torch.dtype = torch.float32,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ablation:
    """Test accuracy of a probe (ridge) of ``layer`` with each cut, beside without.

    A row for each reading is the mean over ``steps``, one for each of them follows
    (``accuracy_refit_step_32``). on_progress(done, total) counts probes. Raises ``UserError`` for a
    layer or step that does not exist, codes that do not fit, and features that are not finite.
    """
    check_probe(model, splits, [layer], steps)
    protocol = ProtocolConfig(name="ridge")
    labels_N = splits.labels("test")
    patterns = [cut.all_patterns(model.config) for cut in cuts]
    total, done = 1 + len(READINGS) * sum(map(len, patterns)), 0

    def hits(cut: Mapping[int, Tensor] | None = None, parts: Sequence[str] = PARTS) -> np.ndarray:
        nonlocal done
        source = ModelSource(
            model, splits, layers=[layer], steps=list(steps), precision=precision, cut=cut,
            cut_parts=parts,
        )  # fmt: skip
        labels_1N = splits.labels("train")[None]
        found = run_protocol(source, splits, labels_1N, protocol, seed=seed).predicted[0]
        if source.broken:
            step = steps[min(source.broken)]
            raise UserError(f"features of layer {layer} at step {step} are not finite")
        done += 1
        on_progress(done, total)
        return found == labels_N

    intact_KN = hits()
    rows = []
    for cut, drawn in zip(cuts, patterns, strict=True):
        named = cut_name(cut, model.config.layers)
        for reading, parts in READINGS.items():
            changed_KN = hits(drawn[0], parts)
            if len(drawn) > 1:
                changed_KN = np.mean([changed_KN, *(hits(each, parts) for each in drawn[1:])], axis=0)
            rows.append(Row(*named, reading, intact_KN.mean(0), changed_KN.mean(0)))
            for k, step in enumerate(steps):
                rows.append(Row(*named, f"{reading}_step_{step}", intact_KN[k], changed_KN[k]))
    return Ablation(rows)
