"""Augmentations of known strength, for asking what of an image's tokens survives them.

An augmentation takes a square image (S, S, 3) uint8 and a strength in its own unit; at its identity
strength the pixels come back as they are. Where it moves whole cells of the token grid exactly (shifts
by a multiple of the stride, the mirror image, turns by 90 degrees) ``undo`` brings pixels or indices of
the view back to the places they came from, so that they can be compared there.

Colour changes and the Gaussian blur are torchvision's (``transforms.v2.functional``), JPEG is Pillow's
(chroma at half the resolution: quality 100 is not lossless). Shifts, rotations and scales are bicubic;
what comes in from outside repeats the border, so that no edge appears.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from star.base.errors import UserError, require_choice
from star.images.views import inverse_affine

__all__ = ["AUGMENTATIONS", "Augmentation", "View", "chosen_views", "nudge"]

MOST_PADDED = 1 << 14  # pixels of one side while an image is moved
PADDED = 0.5 * math.sqrt(2)  # of the side: from the centre to a corner


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One kind of change. ``apply(image, strength, rng)`` makes the view; see ``View`` for its use.

    ``strengths`` are the default ones (None: powers of two up to one cell); ``identity`` is the
    strength that changes nothing (None: there is none); strengths lie in ``least`` .. ``most``, at
    whole multiples of ``every`` where that is given.
    """

    name: str
    unit: str
    strengths: tuple[float, ...] | None
    apply: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    identity: float | None = 0.0
    least: float
    most: float
    every: float | None = None


@dataclass(frozen=True, kw_only=True)
class View:
    """One augmentation at one strength, for a tokenizer of one ``stride``."""

    augmentation: Augmentation
    strength: float
    stride: int

    @property
    def is_identity(self) -> bool:
        """Whether the view is the image itself."""
        return self.strength == self.augmentation.identity

    @property
    def is_aligned(self) -> bool:
        """Whether the view's cells are whole cells of the image, at known places."""
        name = self.augmentation.name
        return name in ("cells", "flip", "turn") or (
            name == "shift" and not self.strength % self.stride
        )

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The view (S, S, 3) uint8; ``rng`` matters to noise only."""
        if self.is_identity:
            return image
        return self.augmentation.apply(image, self._pixels(), rng)

    def undo(
        self, before: np.ndarray, after: np.ndarray, cell: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """``before`` and ``after`` (B, rows, columns, ..) where both show the same content.

        ``after`` is moved back into the frame of ``before``, and both are cut to the overlap. ``cell``
        is 1 for indices and the stride for pixels. Without an exact motion both come back as they are.
        """
        name = self.augmentation.name
        if name == "flip" and self.strength:
            return before, after[:, :, ::-1]
        if name == "turn":
            return before, np.rot90(after, -int(self.strength) // 90, axes=(1, 2))
        if name in ("cells", "shift") and self.is_aligned:
            moved = cell * round(self._pixels() / self.stride)
            width = before.shape[2] - abs(moved)
            start, there = max(-moved, 0), max(moved, 0)
            return before[:, :, start : start + width], after[:, :, there : there + width]
        return before, after

    def _pixels(self) -> float:
        return self.strength * self.stride if self.augmentation.name == "cells" else self.strength


def nudge(
    image: Image.Image, *, shift: float = 1.0, rotate: float = 0.0, scale: float = 1.0
) -> Image.Image:
    """A different view: shifted right by ``shift`` pixels, rotated (degrees, clockwise), scaled.

    Bicubic; what comes in from outside repeats the border, so that no edge appears.
    """
    size = image.width
    if not abs(shift) < size:
        raise UserError(f"shift is {shift:g} pixels; expected less than the image's {size}")
    if not abs(rotate) <= 360:
        raise UserError(f"rotate is {rotate:g} degrees; expected -360 to 360")
    if not 0.1 <= scale <= 10:
        raise UserError(f"scale is {scale:g}; expected 0.1 to 10")
    # The farthest that any pixel of the view reaches, and the filter's width.
    reach = size * (PADDED if rotate else 0.5) + abs(shift)
    margin = 4 + max(0, math.ceil(reach / scale - size / 2))
    if size + 2 * margin > MOST_PADDED:
        raise UserError(f"scale is {scale:g}, too small for an image of {size} pixels; crop it smaller")
    padded = Image.fromarray(np.pad(np.asarray(image), ((margin,) * 2, (margin,) * 2, (0, 0)), "edge"))
    coefficients = inverse_affine(padded.width, rotate, scale, shift, 0.0)
    moved = padded.transform(
        padded.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC
    )
    return moved.crop((margin, margin, margin + size, margin + size))


def _moved(key: str) -> Callable:
    def apply(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
        still = {"shift": 0.0, "rotate": 0.0, "scale": 1.0}
        return np.asarray(nudge(Image.fromarray(image), **still | {key: strength}))

    return apply


def _crop(image: np.ndarray, percent: float, rng: np.random.Generator) -> np.ndarray:
    size = len(image)
    cut = size * percent / 200
    box = (cut, cut, size - cut, size - cut)
    enlarged = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(enlarged)


def _torchvision(change: Callable[[ModuleType, torch.Tensor, float], torch.Tensor]) -> Callable:
    """``change`` gets torchvision's functions, which take a second to import, when a view is made."""

    def apply(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
        from torchvision.transforms.v2 import functional

        pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
        return change(functional, pixels, strength).permute(1, 2, 0).contiguous().numpy()

    return apply


def _adjusted(what: str, unit: float = 1.0) -> Callable:
    return _torchvision(lambda f, pixels, value: getattr(f, f"adjust_{what}")(pixels, value / unit))


def _blurred(functional: ModuleType, pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = min(math.ceil(3 * sigma), pixels.shape[-1] - 1)  # it mirrors the border, once
    return functional.gaussian_blur(pixels, [2 * reach + 1] * 2, [sigma] * 2)


def _noisy(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(image.shape, dtype=np.float32)  # the same at every strength
    return np.clip(np.rint(image + sigma * noise), 0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer, formats=("JPEG",)))


_FACTORS = (0.5, 0.8, 0.95, 1.0, 1.05, 1.25, 1.5)
AUGMENTATIONS = {
    item.name: item
    for item in (
        Augmentation(
            name="shift", unit="px", strengths=None, apply=_moved("shift"), least=-4096, most=4096
        ),
        Augmentation(
            name="cells", unit="cells", strengths=(0, 1, 2, 3), apply=_moved("shift"),
            least=-4096, most=4096, every=1,
        ),
        Augmentation(
            name="flip", unit="1: mirrored", strengths=(0, 1), apply=lambda image, *_: image[:, ::-1],
            least=0, most=1, every=1,
        ),
        Augmentation(
            name="turn", unit="degrees", strengths=(0, 90, 180, 270), least=0, most=270, every=90,
            apply=lambda image, degrees, rng: np.rot90(image, int(degrees) // 90),
        ),
        Augmentation(
            name="rotate", unit="degrees", strengths=(0, 1, 2, 5, 10, 20), apply=_moved("rotate"),
            least=-360, most=360,
        ),
        Augmentation(
            name="scale", unit="factor", strengths=(0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25),
            apply=_moved("scale"), identity=1.0, least=0.1, most=10,
        ),
        Augmentation(
            name="crop", unit="% of the side cut off", strengths=(0, 5, 10, 20, 40), apply=_crop,
            least=0, most=90,
        ),
        Augmentation(
            name="brightness", unit="factor", strengths=_FACTORS, identity=1.0, least=0, most=10,
            apply=_adjusted("brightness"),
        ),
        Augmentation(
            name="contrast", unit="factor", strengths=_FACTORS, identity=1.0, least=0, most=10,
            apply=_adjusted("contrast"),
        ),
        Augmentation(
            name="saturation", unit="factor", strengths=(0.0, 0.5, 0.8, 0.95, 1.0, 1.05, 1.25, 2.0),
            identity=1.0, least=0, most=10, apply=_adjusted("saturation"),
        ),
        Augmentation(
            name="hue", unit="degrees", strengths=(0, 5, 10, 20, 45, 90, 180), least=-180, most=180,
            apply=_adjusted("hue", 360),
        ),
        Augmentation(
            name="blur", unit="sigma, px", strengths=(0, 0.4, 0.7, 1.0, 2.0), least=0, most=100,
            apply=_torchvision(_blurred),
        ),
        Augmentation(
            name="noise", unit="sigma, of 255", strengths=(0, 1, 2, 5, 10, 20), least=0, most=255,
            apply=_noisy,
        ),
        Augmentation(
            name="jpeg", unit="quality", strengths=(100, 95, 90, 75, 50, 25, 10), apply=_jpeg,
            identity=None, least=1, most=100, every=1,
        ),
    )
}  # fmt: skip


def chosen_views(
    asked: str | None, *, size: int, stride: int, coarsest: int | None = None
) -> list[View]:
    """The views named by ``asked``, such as "shift,noise:0,2,5"; None: all at their default strengths.

    A name is followed by its strengths, or has its default ones. ``coarsest`` is the largest stride of
    the tokenizers that are compared, up to which ``shift`` goes by default (``stride``). Raises
    ``UserError`` for another name and for strengths that an image of ``size`` pixels does not allow.
    """
    wanted = dict.fromkeys(AUGMENTATIONS, ()) if asked is None else _parse(asked)
    views = []
    for name, given in wanted.items():
        augmentation = AUGMENTATIONS[name]
        strengths = given or augmentation.strengths or _octaves(coarsest or stride)
        if name in ("shift", "cells"):
            pixels = stride if name == "cells" else 1
            if not given:  # a small image has no room for the larger ones
                strengths = [strength for strength in strengths if strength * pixels < size]
            for strength in strengths:
                if not abs(strength) * pixels < size:
                    raise UserError(
                        f"{name}:{strength:g} is {abs(strength) * pixels:g} pixels; expected less than "
                        f"the image's {size}"
                    )
        views += [View(augmentation=augmentation, strength=float(s), stride=stride) for s in strengths]
    return views


def _octaves(stride: int) -> list[float]:
    """0, 1, 2, 4, .. up to ``stride``."""
    return [0.0, *(float(2**power) for power in range(stride.bit_length()))]


def _parse(asked: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    name = None
    for part in (text.strip() for text in asked.split(",")):
        head, colon, first = part.partition(":")
        if name is None or colon or not _is_number(part):
            name = head.strip()
            require_choice("augment", name, AUGMENTATIONS)
            if name in found:
                raise UserError(f"augment names {name} twice; give its strengths once: {name}:1,2,3")
            found[name] = []
            if not colon:
                continue
            part = first
        found[name].append(_strength(AUGMENTATIONS[name], part.strip()))
    return {name: list(dict.fromkeys(strengths)) for name, strengths in found.items()}


def _strength(augmentation: Augmentation, text: str) -> float:
    value = float(text) if _is_number(text) else math.nan
    whole = augmentation.every is None or not value % augmentation.every
    if not (augmentation.least <= value <= augmentation.most and whole):
        steps = f" in steps of {augmentation.every:g}" if augmentation.every else ""
        raise UserError(
            f"{augmentation.name}:{text} is no strength; expected {augmentation.least:g} to "
            f"{augmentation.most:g}{steps} ({augmentation.unit}), such as {augmentation.name}:"
            + ",".join(f"{strength:g}" for strength in augmentation.strengths or (0, 1, 2))
        )
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
