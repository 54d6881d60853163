"""What an attribution explains: the scores of one step as a function of the prefix it has seen.

Step t has seen the class and x_1..x_{t-1}. Its scores are, by ``target``,

- ``logit``: the logits of token x_t, one a code;
- ``logprob``: their log-softmax, in nats: what training maximises. A logit can rise with all the others
  and say nothing; a log-probability cannot, so it is the default;
- ``probe``: the class scores of a linear probe of one layer (``probes.attribution.probe``), an affine
  function of the hidden state at position t - 1.

A contribution is relative to a **baseline**, an input that says nothing. For an image token it is the
mean of the token-embedding table: no code in particular, yet inside the cloud of embeddings, which the
zero vector need not be (RMSNorm has a kink there). For the class it is the null class, the input the
model itself was trained to take for "class not given"; where the null class is what the model is shown
(an image of no known class, every probe), the mean of the class rows. Both are rows appended to the two
embedding tables, so that a baseline is an index like any other.

Shapes: B inputs, n = t - 1 tokens seen, D width, V codebook size, C classes, S scores (V or C).
"""

import torch
from torch import Tensor, nn

from probes.attribution.probe import StepProbe
from probes.reading.features import capture_steps
from star.base.errors import UserError, require_choice
from star.model.classes import null_label
from star.model.transformer import Transformer

__all__ = ["TARGETS", "StepScores", "check_attribution_step"]

TARGETS = ("logprob", "logit", "probe")


def check_attribution_step(tokens: int, step: int) -> None:
    """Raise ``UserError`` unless ``step`` exists and has seen at least one token."""
    if not 1 <= step <= tokens:
        raise UserError(f"step {step} does not exist; expected 2 to {tokens}")
    if step == 1:
        raise UserError(
            f"step 1 has seen only the class, so there is nothing to compare; expected 2 to {tokens}"
        )


class StepScores(nn.Module):
    """(B, n) tokens and (B,) labels to (B, S) scores of ``step``; the model's weights are shared.

    Beyond the model's own indices, token V is the baseline token and class C + 1 the mean class.
    ``embedded`` is the same function of the embeddings, (B, n, D) and (B, D).

    Raises ``UserError`` for a step without tokens, an unknown target, a probe of another step, or a
    model without a null class, the baseline of the class.
    """

    def __init__(
        self, model: Transformer, step: int, target: str = "logprob", probe: StepProbe | None = None
    ) -> None:
        super().__init__()
        config = model.config
        require_choice("target", target, TARGETS)
        check_attribution_step(config.tokens, step)
        if (target == "probe") != (probe is not None):
            raise UserError(f"target is {target}; a probe belongs to the target probe and to no other")
        if probe is not None and probe.step != step:
            raise UserError(f"the probe was fitted at step {probe.step}; the step explained is {step}")
        self.step, self.target, self.probe = step, target, probe
        self.null = null_label(config, "attribution")
        self.mean_class, self.baseline_token = self.null + 1, config.vocab_size
        tokens_VD = model.tok_embeddings.weight.detach()
        classes_CD = model.cls_embedding.embedding_table.weight.detach()
        self.model = self._twin(model)
        self.model.tok_embeddings = _table(tokens_VD, tokens_VD)
        self.model.cls_embedding.embedding_table = _table(classes_CD, classes_CD[: self.null])
        self.embedded = _Embedded(self)

    def _twin(self, model: Transformer) -> Transformer:
        """A model of the same layers, up to the one that is read, whose embeddings can be replaced."""
        with torch.device("meta"):
            twin = Transformer(model.config)
        twin.layers = model.layers if self.probe is None else model.layers[: self.probe.layer]
        twin.norm, twin.output, twin.rotary = model.norm, model.output, model.rotary
        return twin

    @property
    def layers(self) -> int:
        """Layers that the scores depend on."""
        return len(self.model.layers)

    @property
    def embedding_layers(self) -> list[nn.Embedding]:
        """The token and the class embedding, whose outputs are (B, n, D) and (B, D)."""
        return [self.model.tok_embeddings, self.model.cls_embedding.embedding_table]

    def baselines(self, tokens_Bn: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """The indices that stand for "nothing" in the place of these."""
        nothing_B = torch.where(labels_B == self.null, self.mean_class, self.null)
        return torch.full_like(tokens_Bn, self.baseline_token), nothing_B

    def embed(self, tokens_Bn: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, D) and (B, D) embeddings, what ``embedded`` takes."""
        tokens, classes = self.embedding_layers
        return tokens(tokens_Bn), classes(labels_B)

    def forward(self, tokens_Bn: Tensor, labels_B: Tensor) -> Tensor:
        return self.run(self.model, tokens_Bn, labels_B)

    def run(self, model: Transformer, tokens: Tensor, labels: Tensor) -> Tensor:
        """(B, S) scores; ``model`` says whether it is given indices or embeddings."""
        name = "norm" if self.probe is None else f"layers.{self.probe.layer}"
        hidden_BD = capture_steps(model, tokens, labels, [name], [self.step])[name][:, 0]
        if self.probe is not None:
            return self.probe.scores(hidden_BD)
        logits_BV = model.output(hidden_BD)
        return logits_BV if self.target == "logit" else logits_BV.log_softmax(-1)


class _Embedded(nn.Module):
    """``StepScores`` with both embeddings replaced by the identity."""

    def __init__(self, scores: StepScores) -> None:
        super().__init__()
        self.model = scores._twin(scores.model)
        for name in ("tok_embeddings", "cls_embedding"):
            setattr(self.model, name, nn.Identity())
        self.scores = scores.run

    def forward(self, tokens_BnD: Tensor, classes_BD: Tensor) -> Tensor:
        return self.scores(self.model, tokens_BnD, classes_BD)


def _table(rows: Tensor, averaged: Tensor) -> nn.Embedding:
    """A frozen table of ``rows`` and, as a last row, the mean of ``averaged``."""
    return nn.Embedding.from_pretrained(torch.cat([rows, averaged.mean(0, keepdim=True)]))
