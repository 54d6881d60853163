"""From the bytes of an image file to RGB: what is converted, what is refused, and the words for it.

Every pixel format becomes 8-bit RGB: upright by what the file says, 16-bit grey scaled, CMYK and
palettes converted, transparency laid on white, the first frame of an animation. Metadata are left out
before anything is decoded (``star.images.metadata``), sizes are looked at before any pixel is. Only the
decoders of ``FORMATS`` ever run, chosen by the file's first bytes: whatever a file is called, reading
it starts no program.
"""

import importlib
import io
import os
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeGuard

import numpy as np

from star.base.errors import UserError
from star.images.metadata import Pixels, orientation_of, pixels_of

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FORMATS", "MAX_MEGAPIXELS", "SUFFIXES", "BadImageError", "read_image", "require_megapixels"]

# By format: endings, first bytes, and Pillow's decoder.
FORMATS: dict[str, tuple[tuple[str, ...], str, tuple[str, str]]] = {
    "JPEG": (
        (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        r"\xff\xd8\xff",
        ("JpegImagePlugin", "JpegImageFile"),
    ),
    "PNG": ((".png", ".apng"), r"\x89PNG\r\n\x1a\n", ("PngImagePlugin", "PngImageFile")),
    "WEBP": ((".webp",), r"RIFF....WEBP", ("WebPImagePlugin", "WebPImageFile")),
    "BMP": ((".bmp",), r"BM", ("BmpImagePlugin", "BmpImageFile")),
    "TIFF": ((".tif", ".tiff"), r"II[*+]\0|MM\0[*+]", ("TiffImagePlugin", "TiffImageFile")),
    "PPM": ((".ppm", ".pgm", ".pbm", ".pnm"), r"P[1-6]\s", ("PpmImagePlugin", "PpmImageFile")),
    "GIF": ((".gif",), r"GIF8[79]a", ("GifImagePlugin", "GifImageFile")),
    "AVIF": ((".avif",), r"....ftypavi[fs]", ("AvifImagePlugin", "AvifImageFile")),
    "JPEG 2000": (
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
        r"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
        ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    ),
}
SUFFIXES = frozenset(ending for endings, _, _ in FORMATS.values() for ending in endings)
MAX_MEGAPIXELS = 100.0
_ADVICE = "remove it or pass --skip-bad"
# More than any pixel needs, and room for metadata: a larger file is not even read.
_BYTES_A_PIXEL, _OTHER_BYTES = 16, 1 << 28


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
    try:
        content = _content(file, _BYTES_A_PIXEL * most + _OTHER_BYTES)
        if content is None:
            raise BadImageError(_too_large(name, "more bytes than that takes", max_megapixels, advice))
        pixels = pixels_of(content)
        with _decoder(pixels.content) as image:
            if image.width * image.height > most:
                size = f"{image.width} x {image.height} pixels"
                raise BadImageError(_too_large(name, size, max_megapixels, advice))
            return _to_rgb(image, pixels)
    except (UserError, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # a limit of Pillow's own that some formats keep
        found = "".join(re.findall(r"\d+ pixels", str(error))[:1])
        raise BadImageError(
            f"cannot decode {name} (Pillow refuses {found} in this format): {advice}"
        ) from error
    except Exception as error:  # decoders raise a dozen types on damaged files
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the image
            raise UserError(f"cannot read {name}: {error.strerror}") from error
        raise BadImageError(f"cannot decode {name} ({str(error) or repr(error)}): {advice}") from error


def _content(file: Path | IO[bytes], most: int) -> bytes | None:
    """All bytes of ``file``; None if there are more than ``most``."""
    if not isinstance(file, Path):
        return file.read()
    with open(file, "rb") as stream:
        return None if os.fstat(stream.fileno()).st_size > most else stream.read()


def _too_large(name: str, found: str, limit: float, advice: str) -> str:
    if advice == _ADVICE:
        advice += ", or allow it with --max-megapixels"
    return f"{name} has {found}; at most {limit:g} megapixels are read: {advice}"


def _decoder(content: bytes) -> "Image.Image":
    """Pillow's image of ``content``, not decoded yet.

    The decoder is called by itself, since ``Image.open`` holds every size against a limit, and warns by
    a filter, that belong to the whole process.
    """
    for form, (_, start, (module, decoder)) in FORMATS.items():
        if re.match(start.encode("latin-1"), content, re.DOTALL):
            try:
                make = getattr(importlib.import_module(f"PIL.{module}"), decoder)
                image: Image.Image = make(io.BytesIO(content))
                return image
            except ImportError as error:
                raise ValueError(f"this Pillow reads no {form}") from error
            except SyntaxError as error:  # how Pillow says that it cannot
                raise ValueError(f"{form}: {error}") from error
    raise ValueError("it is no image")


def _to_rgb(image: "Image.Image", pixels: Pixels) -> "Image.Image":
    """RGB, upright, 16-bit grey scaled to 8 bits, transparency laid on white."""
    from PIL import Image

    frames, orientation = pixels.frames, pixels.orientation
    if image.format == "TIFF":  # its decoder holds Pillow's limit against memory that is not there yet
        image.im = Image.new(image.mode, image.size).im
    image.load()
    if image.format == "WEBP":
        orientation = orientation_of(image.info.get("exif"), image.info.get("xmp"))
    elif image.format == "AVIF":  # what its own boxes say of turning comes in this form
        orientation = orientation_of(image.info.get("exif"))
    upright = _turned(_convert(image, pixels), orientation)
    frames = max(frames, _frames(image))
    if frames > 1:  # a page of a TIFF counts too: only the first is read
        upright.info["frames"] = frames
    return upright


class _Animation(Protocol):
    n_frames: int


def _is_animated(image: object) -> TypeGuard[_Animation]:
    return bool(getattr(image, "is_animated", False))


def _frames(image: "Image.Image") -> int:
    try:
        return image.n_frames if _is_animated(image) else 1
    except Exception:  # a later frame is damaged, and is not read
        return 2


def _turned(image: "Image.Image", orientation: int | None) -> "Image.Image":
    """``image`` upright, by Exif's number for how it lies (2 to 8)."""
    from PIL.Image import Transpose

    ways = (
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )
    if orientation is None or not 2 <= orientation <= 8:
        return image
    return image.transpose(ways[orientation - 2])


def _convert(image: "Image.Image", pixels: Pixels) -> "Image.Image":
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise ValueError(f"{kind} pixels have no fixed range")
    if image.mode.startswith("I"):  # grey of more than 8 bits; PIL's own conversion would clip it
        image = _scaled(np.asarray(image), image.format, pixels)
    elif image.format == "PNG" and pixels.transparent and image.mode in ("1", "L", "RGB"):
        image.info["transparency"] = _as_decoded(pixels.transparent, pixels.bits)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        image.info["transparent_on"] = "white"  # for whoever describes it
    return image.convert("RGB")


def _scaled(values: np.ndarray, form: str | None, pixels: Pixels) -> "Image.Image":
    """8-bit grey (with alpha where one value is transparent) of grey values of up to 16 bits."""
    from PIL import Image

    largest = 2**pixels.bits - 1 if form == "TIFF" else 65535  # other decoders have scaled already
    values = np.clip(values.astype(np.float64), 0, largest)
    grey = np.round((largest - values if pixels.inverted else values) * (255 / largest))
    image = Image.fromarray(grey.astype(np.uint8))
    if form == "PNG" and pixels.transparent:
        opaque = np.where(values == pixels.transparent[0], 0, 255).astype(np.uint8)
        image.putalpha(Image.fromarray(opaque))
    return image


def _as_decoded(transparent: tuple[int, ...], bits: int) -> int | tuple[int, ...]:
    """A PNG's transparent value, given in its own bits, in the 8 bits that the decoder makes of it."""
    most = 2**bits - 1
    values = tuple((v & most) >> 8 if bits == 16 else (v & most) * 255 // most for v in transparent)
    return values if len(values) > 1 else values[0]
