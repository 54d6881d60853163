"""From the bytes of an image file to RGB: what is converted, what is refused, and the words for it.

Every pixel format becomes 8-bit RGB: upright by the EXIF tag, 16-bit grey scaled, CMYK and palettes
converted, transparency laid on white, the first frame of an animation. Sizes are looked at before any
pixel is decoded.
"""

import re
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from star.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_MEGAPIXELS", "SUFFIXES", "BadImageError", "read_image", "require_megapixels"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"})
MAX_MEGAPIXELS = 100.0
_ADVICE = "remove it or pass --skip-bad"


class BadImageError(UserError):
    """One image file cannot be used; the others may be fine (``--skip-bad`` leaves it out)."""


def require_megapixels(value: float) -> None:
    """Raise ``UserError`` unless ``value`` can be the largest size of an image, in megapixels."""
    if not 0 < value <= 10_000:
        raise UserError(f"max_megapixels is {value:g}; expected more than 0, at most 10000")


def read_image(
    file: Path | IO[bytes], name: str, max_megapixels: float, advice: str = _ADVICE
) -> "Image.Image":
    """The image in ``file`` as RGB; ``info`` notes "frames" (of several) and "transparent_on".

    Raises ``BadImageError``, with ``name`` and ``advice``, for what is no image, is damaged, or has
    more than ``max_megapixels``; ``UserError`` where the disk is at fault.
    """
    from PIL import Image

    most = int(max_megapixels * 1e6)
    # Pillow would warn of what our own limit allows or refuses in words of its own.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    if Image.MAX_IMAGE_PIXELS is not None and most > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = most
    try:
        with Image.open(file) as image:
            if image.width * image.height > most:
                size = f"{image.width} x {image.height} pixels"
                raise BadImageError(_too_large(name, size, max_megapixels, advice))
            return _to_rgb(image)
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # beyond Pillow's own limit, which is the larger
        pixels = "".join(re.findall(r"\d+ pixels", str(error))[:1])
        raise BadImageError(_too_large(name, pixels, max_megapixels, advice)) from error
    except Exception as error:  # decoders raise a dozen types on damaged files
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the image
            raise UserError(f"cannot read {name}: {error.strerror}") from error
        reason = "it is no image" if "cannot identify" in str(error) else str(error) or repr(error)
        raise BadImageError(f"cannot decode {name} ({reason}): {advice}") from error


def _too_large(name: str, pixels: str, limit: float, advice: str) -> str:
    if advice == _ADVICE:
        advice += ", or allow it with --max-megapixels"
    return f"{name} has {pixels}; at most {limit:g} megapixels are read: {advice}"


def _to_rgb(image: "Image.Image") -> "Image.Image":
    """RGB, upright by the EXIF tag, 16-bit grey scaled to 8 bits, transparency laid on white."""
    from PIL import ImageOps

    frames = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
    image = _convert(ImageOps.exif_transpose(image))
    if frames > 1:  # a page of a TIFF counts too: only the first is read
        image.info["frames"] = frames
    return image


def _convert(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip it
        values = np.clip(np.asarray(image).astype(np.float64), 0, 65535)
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        image.info["transparent_on"] = "white"  # for whoever describes it
    return image.convert("RGB")
