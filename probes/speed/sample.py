"""How fast is sampling: tokens a second beside LlamaGen's way, and beside what memory allows.

A step of decoding reads every weight and all keys and values so far, whatever it computes with them.
The memory-bandwidth limit is the time that takes at the speed at which this machine reads a buffer of
as many bytes over and over: small models stay in a processor's cache, and then so does the buffer. With
few images sampling is near the limit; with many it is bound by arithmetic.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from probes.speed.llamagen_sampling import LlamaGenSampler
from probes.speed.timing import Timings, alternate
from star.base.randomness import torch_generator
from star.model.config import ModelConfig
from star.model.decoder import in_precision
from star.model.kv_cache import cache_bytes
from star.model.sampler import generate
from star.model.transformer import Transformer, build_model

__all__ = ["ARMS", "SampleBench", "bench_sample", "bytes_read"]

ARMS = ("LlamaGen's way", "ours")
READS = 7  # of the buffer; the fastest counts


@dataclass(frozen=True)
class SampleBench:
    """``timings`` of a batch by arm.

    ``bytes``: what a batch must read at least; ``limit``: the seconds which that takes here.
    """

    timings: Timings
    tokens: int
    bytes: int
    limit: float

    def tokens_a_second(self, arm: str) -> float:
        """Tokens of all images of a batch, a second (median round)."""
        return self.tokens / self.timings.median(arm)

    def share_of_limit(self, arm: str) -> float:
        """How near an arm comes to the memory-bandwidth limit; 1 is there."""
        return self.limit / self.timings.median(arm)


def bench_sample(
    config: ModelConfig,
    device: torch.device,
    *,
    images: int,
    cfg_scale: float,
    dtype: torch.dtype,
    rounds: int,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> SampleBench:
    """Sample ``images`` images of a random model with weights of ``dtype`` in each arm of ``ARMS``."""
    model = in_precision(build_model(config, torch_generator(0, "bench"), device).eval(), dtype)
    theirs = LlamaGenSampler(model)
    labels_B = torch.arange(images, device=device) % config.num_classes

    def ours(index: int) -> torch.Tensor:
        seeds = range(index * images, (index + 1) * images)
        return generate(model, labels_B, seeds=seeds, cfg_scale=cfg_scale)

    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    timings = alternate(
        {ARMS[0]: lambda _: theirs.generate(labels_B, cfg_scale=cfg_scale), ARMS[1]: ours},
        rounds=rounds,
        warmup=1,
        synchronize=synchronize,
        on_round=on_round,
    )
    rows = images * (2 if cfg_scale != 1.0 else 1)
    read = bytes_read(model, rows)
    rate = _read_rate(read // config.tokens, device, synchronize)
    return SampleBench(timings, images * config.tokens, read, read / rate)


def bytes_read(model: Transformer, rows: int) -> int:
    """Bytes that T steps of ``rows`` sequences must read: weights each time, keys and values so far.

    Of tables of embeddings only the rows in use are read; they are left out.
    """
    config = model.config
    blocks = sum(p.numel() * p.element_size() for p in model.layers.parameters())
    head = model.output.weight
    weights = blocks + head.numel() * head.element_size()
    cache = cache_bytes(config, rows, head.dtype)  # of T positions; step t reads t of them
    return config.tokens * weights + cache * (config.tokens + 1) // 2


def _read_rate(size: int, device: torch.device, synchronize: Callable[[], object]) -> float:
    """Bytes a second of reading a buffer of ``size`` bytes."""
    buffer = torch.ones(max(size // 4, 1), device=device)
    seconds = []
    for _ in range(READS):
        synchronize()
        start = time.perf_counter()
        torch.dot(buffer, buffer)
        synchronize()
        seconds.append(time.perf_counter() - start)
    return buffer.numel() * 4 / min(seconds)
