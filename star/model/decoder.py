"""From the tokens so far to the logits of the next one, again and again: the inner loop of sampling.

On a CPU each call is one position of ``star.model.step``, in half precision a forward pass with a
growing cache. On a GPU a token is some hundred small kernels, and starting them one by one takes longer
than running them: the pass over a static cache is recorded once as a CUDA graph and replayed for every
token.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from star.model.kv_cache import KVCache, StaticCache
from star.model.step import SingleSteps
from star.model.transformer import Transformer

__all__ = ["decoder", "in_precision", "record_graph"]

Decode = Callable[[Tensor, Tensor | None], Tensor]


def in_precision(model: Transformer, dtype: torch.dtype) -> Transformer:
    """``model``, or a copy of it with its weights in ``dtype`` (positions stay in float32).

    Decoding reads every weight for every token, so half the bytes are half the time where memory is
    what is waited for. LlamaGen samples so (its ``--precision bf16``).
    """
    if model.output.weight.dtype is dtype:
        return model
    twin = copy.copy(model)
    twin._modules = dict(model._modules)  # the tables and blocks are replaced, the originals stay
    for name, module in model.named_children():
        setattr(twin, name, copy.deepcopy(module).to(dtype))
    return twin


def decoder(model: Transformer, batch: int) -> Decode:
    """``decode(new_Bn, labels_B)`` -> float32 logits (B, V) of the next token; keeps its own cache.

    The first call gets no tokens and the labels, every later one the newest token and None.
    """
    weight = model.output.weight
    if weight.device.type == "cuda":
        return _Recorded(model, batch, record_graph)
    if weight.device.type == "cpu" and weight.dtype is torch.float32:
        return SingleSteps(model, batch)
    cache = KVCache(model.config, batch, weight.device, weight.dtype)

    def decode(new_Bn: Tensor, labels_B: Tensor | None) -> Tensor:
        logits_BnV: Tensor = model(new_Bn, labels_B, cache=cache).logits
        return logits_BnV[:, -1].float()

    return decode


# Runs a step on a device and gives what replays it.
_Record = Callable[[Callable[[], Tensor], torch.device], Callable[[], Tensor]]


class _Recorded:
    """Two calls run as they are (the second warms up what the later ones use), the rest is replayed."""

    def __init__(self, model: Transformer, batch: int, record: _Record) -> None:
        weight = model.output.weight
        self.model, self.record = model, record
        self.cache = StaticCache(model.config, batch, weight.device, weight.dtype)
        self.token_B1 = torch.zeros(batch, 1, dtype=torch.long, device=weight.device)
        self.replay: Callable[[], Tensor] | None = None
        self.calls = 0

    def __call__(self, new_Bn: Tensor, labels_B: Tensor | None) -> Tensor:
        self.calls += 1
        if labels_B is not None:
            logits_BnV: Tensor = self.model(new_Bn, labels_B, cache=self.cache).logits
            return logits_BnV[:, -1].float()
        self.token_B1.copy_(new_Bn)
        if self.calls > 2 and self.replay is None:
            self.replay = self.record(self._step, self.token_B1.device)
        return self._step() if self.replay is None else self.replay()

    def _step(self) -> Tensor:
        logits_B1V: Tensor = self.model(self.token_B1, None, cache=self.cache).logits
        return logits_B1V[:, -1].float()


def record_graph(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """``step`` on ``device`` as a CUDA graph; its result is a new tensor at every replay."""
    graph = torch.cuda.CUDAGraph()
    # Other threads go on with CUDA: a loader's, which pins the training batches to come, would be
    # refused in the strict mode, and the recording lost.
    recorded = torch.cuda.graph(graph, capture_error_mode="thread_local")
    with torch.cuda.device(device), recorded:  # it records the current device's stream
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result.clone()

    return replay
