"""CUDA devices, and what ``--precision auto`` takes where.

Facts of cards are values (``Card``, ``Build``), so that cards which are not here can be judged.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probes.doctor.lines import FAIL, NOTE, OK, Line, checked, reason, size
from probes.doctor.machine import read_file
from star.base.threads import Read

if TYPE_CHECKING:
    import torch

__all__ = [
    "Build",
    "Card",
    "card_line",
    "device_lines",
    "driver",
    "no_card_line",
    "precision_line",
    "rounding_line",
]

SECTION = "devices"
DRIVER = "/proc/driver/nvidia/version"
DRIVER_FILES = (DRIVER, "/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1")
LITTLE = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Card:
    """One CUDA device; memory in bytes."""

    index: int
    name: str
    capability: tuple[int, int]
    free: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Build:
    """What torch was built for: CUDA's (or ROCm's) version if any, and architectures (``sm_90``)."""

    cuda: str | None
    architectures: Sequence[str] = ()

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether its kernels run there: of the same generation, or to be compiled from PTX."""
        for architecture in self.architectures:
            match = re.fullmatch(r"(sm|compute)_(\d+)(\d)a?f?", architecture)
            if match is None:  # AMD's names
                return True
            kind, version = match[1], (int(match[2]), int(match[3]))
            if version <= capability and (kind == "compute" or version[0] == capability[0]):
                return True
        return not self.architectures


def driver(read: Read = read_file, files: Sequence[str] = DRIVER_FILES) -> str | None:
    """Version of NVIDIA's driver, "of unknown version", or None if there is no sign of one."""
    match = re.search(r"NVRM version:.*?\s(\d+\.\d[\d.]*)\s", read(DRIVER) or "")
    if match:
        return match[1]
    return "of unknown version" if any(os.path.exists(file) for file in files) else None


def card_line(card: Card, build: Build) -> Line:
    """One card and its memory."""
    capability = ".".join(map(str, card.capability))
    memory = f"{size(card.free)} free of {size(card.total)}"
    value = f"{card.name}, capability {capability}, {memory}"
    name = f"cuda:{card.index}"
    if not build.runs_on(card.capability):
        value += f"; this torch has kernels for {', '.join(build.architectures)} alone"
        advice = "install another build of torch (pytorch.org/get-started), or give --device cpu"
        return Line(SECTION, name, FAIL, value, advice)
    if card.free < LITTLE:
        return Line(SECTION, name, NOTE, value, "nvidia-smi says who holds the rest")
    return Line(SECTION, name, OK, value)


def no_card_line(
    build: Build, found_driver: str | None, why: str, environment: Mapping[str, str] = os.environ
) -> Line:
    """No CUDA device is seen: as it should be, or what to do. ``why`` is what torch says."""
    name = "CUDA devices"
    if found_driver is None:
        return Line(SECTION, name, OK, "none, and no driver of NVIDIA")
    value = f"none, but there is a driver of NVIDIA ({found_driver})"
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    if build.cuda is None:
        advice = "if there is a card: install a torch built for CUDA (pytorch.org/get-started)"
        return Line(SECTION, name, NOTE, f"{value}; this torch is built for CPUs alone", advice)
    if hidden is not None:
        value += f"; CUDA_VISIBLE_DEVICES is {hidden or '(empty)'}"
        return Line(SECTION, name, NOTE, value, "unset CUDA_VISIBLE_DEVICES, or name cards that exist")
    advice = (
        "nvidia-smi must list the card (in a container: docker run --gpus all); if it does, update the "
        f"driver, or install a torch for an older CUDA than {build.cuda}"
    )
    return Line(SECTION, name, NOTE, f"{value}; torch says: {why}", advice)


def precision_line(device: str, dtype: str, capability: tuple[int, int] | None = None) -> Line:
    """What ``auto`` takes on a device, and why; ``capability`` of a card, None for a CPU."""
    name, value = f"precision of {device}", f"auto takes {dtype}"
    if capability is None:
        if dtype == "bfloat16":
            why = "the processor has units for it (AMX or AVX512-BF16)"
            return Line(SECTION, name, OK, f"{value}: {why}")
        why = "no units for bfloat16 (AMX, AVX512-BF16), which would be two to seven times faster"
        return Line(SECTION, name, OK, f"{value}: {why}")
    card = f"capability {capability[0]}.{capability[1]}"
    if dtype == "bfloat16":
        return Line(SECTION, name, OK, f"{value}: {card} has matrix units for it")
    if dtype == "float16":
        advice = (
            "right for this card; give --precision fp32 if a run stops on losses that are not finite"
        )
        why = f"{card} has matrix units for it but not for bfloat16; losses are scaled"
        return Line(SECTION, name, NOTE, f"{value}: {why}", advice)
    advice = "a card of capability 7 or later computes several times faster"
    return Line(SECTION, name, NOTE, f"{value}: {card} has no matrix units", advice)


def rounding_line(products: str, convolutions: str) -> Line:
    """Whether float32 is rounded to TF32 on CUDA devices; the two are torch's words for it."""
    value = f"matrix products {_tf32(products)}, convolutions {_tf32(convolutions)}"
    if products == "tf32":
        advice = "star does not ask for it: look for NVIDIA_TF32_OVERRIDE or a caller's setting"
        return Line(SECTION, "TF32", NOTE, value, advice)
    return Line(SECTION, "TF32", OK, value)


def _tf32(word: str) -> str:
    return "on" if word == "tf32" else "off"


def device_lines() -> Iterator[Line]:
    """Everything above, of this machine."""
    import torch

    yield _precision(torch.device("cpu"), None)
    build = Build(
        cuda=torch.version.cuda or torch.version.hip,
        architectures=torch.cuda.get_arch_list() if torch.cuda.is_available() else (),
    )
    found_driver = driver()
    count = torch.cuda.device_count()
    for index in range(count):
        yield from checked(SECTION, f"cuda:{index}", functools.partial(_card_lines, index, build))
    if count:
        yield Line(SECTION, "driver", OK, found_driver or "not told by this system")
    else:
        yield no_card_line(build, found_driver, _why_none())
    backends: Any = torch.backends  # some of its attributes are made at run time
    convolutions = backends.cudnn.conv.fp32_precision
    yield rounding_line(backends.cuda.matmul.fp32_precision, convolutions)


def _card_lines(index: int, build: Build) -> Iterator[Line]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    free, total = torch.cuda.mem_get_info(index)
    card = Card(index=index, name=properties.name, capability=capability, free=free, total=total)
    yield card_line(card, build)
    yield _precision(torch.device("cuda", index), capability)


def _precision(device: "torch.device", capability: tuple[int, int] | None) -> Line:
    from star.base.device import resolve_precision

    dtype = str(resolve_precision("auto", device)).removeprefix("torch.")
    return precision_line(str(device), dtype, capability)


def _why_none() -> str:
    """What torch says when it is asked for CUDA."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:
        return reason(error)
    return "no device"
