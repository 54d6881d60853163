"""What an image file says beside its pixels: taken off before they are decoded, save what turns them.

Cameras, web services and editors write broken metadata around good pixels: an Exif block that is cut or
begins twice, numbers that cannot be, a profile that unpacks to megabytes. A decoder that meets them
refuses the image, or warns without a name. So the decoder gets the pixels alone, and the few facts that
matter are read here: which way is up, how many frames there are, which colour is transparent.

Formats: JPEG (ITU T.81, annex B), PNG and APNG (W3C), TIFF (``star.images.tiff_tags``), AVIF; others
go as they are.
"""

import re
import struct
import zlib
from dataclasses import dataclass

from star.images.tiff_tags import BITS, ORIENTATION, PHOTOMETRIC, first_value, only_pixel_tags, tags_of

__all__ = ["Pixels", "orientation_of", "pixels_of"]

_EXIF = b"Exif\0\0"
_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
_JPEG_START, _PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_EXIF_ITEM = re.compile(rb"(infe.{4}(?:.{2}|.{4}).{2})Exif", re.DOTALL)  # its number: 2 or 4 bytes
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length
_COLOURS = (0xE0, 0xEE)  # JFIF's and Adobe's: they say how the colours are stored
_ADOBE_BYTES = 12  # of Adobe's segment; a shorter one says nothing
_PICTURES = 0xB001  # of a multi-picture file (CIPA DC-007): how many it holds
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MOST_TEXT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """``content`` is the file without its metadata.

    ``orientation`` is 1 to 8 as in Exif (None: not said), ``frames`` counts frames, pages or pictures,
    ``transparent`` is the value of a PNG's transparent grey (one number) or colour (three), ``bits``
    those of a sample, ``inverted`` says that 0 is white, where the decoder would not know (TIFF).
    """

    content: bytes
    orientation: int | None = None
    frames: int = 1
    transparent: tuple[int, ...] | None = None
    bits: int = 8
    inverted: bool = False


def pixels_of(content: bytes) -> Pixels:
    """``content`` without metadata; as it is where its form is another.

    Raises ``ValueError`` where what the pixels need is broken.
    """
    if content.startswith(_JPEG_START):
        return _jpeg(content)
    if content.startswith(_PNG_START):
        return _png(content)
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        tags = tags_of(content)
        cleaned, pages = only_pixel_tags(content)
        return Pixels(
            content=cleaned,
            orientation=_valid(tags.get(ORIENTATION)),
            frames=pages,
            bits=tags.get(BITS, 1),
            inverted=tags.get(PHOTOMETRIC) == 0,
        )
    if content[4:12] in (b"ftypavif", b"ftypavis"):
        return Pixels(content=_without_exif(content))  # AVIF turns by its own boxes, not by Exif
    return Pixels(content=content)


def orientation_of(exif: bytes | None, xmp: bytes | str | None = None) -> int | None:
    """1 to 8 from an Exif block, else from XMP; None where neither says, however broken they are."""
    exif = exif or b""
    while exif.startswith(_EXIF):  # some services write the head twice
        exif = exif[len(_EXIF) :]
    found = _valid(first_value(exif, ORIENTATION))
    if found is None and xmp:
        text = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
        match = _XMP.search(text)
        found = int(match[1]) if match else None
    return found


def _valid(orientation: int | None) -> int | None:
    return orientation if orientation in range(1, 9) else None


def _jpeg(content: bytes) -> Pixels:
    """Without the application segments and comments that lie before the pixels."""
    kept, exif, xmp, pictures = [content[:2]], [], [], 1
    place = 2
    while True:
        start = place
        while content[place : place + 1] == b"\xff":  # any number of fill bytes
            place += 1
        if not start < place < len(content):
            raise ValueError("JPEG: it ends, or is damaged, before its pixels")
        marker = content[place]
        place += 1
        if marker == 0x00:  # escaped, left over by some writer
            continue
        if marker in _STANDALONE:
            kept.append(bytes((0xFF, marker)))
            continue
        length = int.from_bytes(content[place : place + 2], "big")
        body = content[place + 2 : place + length]
        if length < 2 or len(body) < length - 2:
            raise ValueError("JPEG: it is cut short before its pixels")
        if marker == 0xDA:  # the scan: from here on it is pixels
            break
        place += length
        if marker == 0xE1 and body.startswith(_EXIF):
            exif.append(body)
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp.append(body)
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            pictures = first_value(body[4:], _PICTURES) or 1
        cut = marker == 0xEE and len(body) < _ADOBE_BYTES
        if (marker in _COLOURS and not cut) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(b"\xff" + content[place - length - 1 : place])
    rest = content[start:]
    said = [orientation_of(block) for block in exif] + [orientation_of(None, text) for text in xmp]
    # A picture that was cut off is still counted in the index; pixels cannot hold a start mark.
    pictures = min(pictures, 1 + rest.count(b"\xff\xd8\xff")) if pictures > 1 else 1
    return Pixels(
        content=b"".join([*kept, rest]),
        orientation=next((value for value in said if value is not None), None),
        frames=pictures,
    )


def _png(content: bytes) -> Pixels:
    """Without the chunks that are not needed to draw the (first) image."""
    kept, exif, text, frames = [_PNG_START], b"", b"", 1
    transparent, bits, colour_type = None, 8, 0
    place, animated = len(_PNG_START), 0
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">L4s", content, place)
        body, end = content[place + 8 : place + 8 + length], place + 12 + length
        usable = kind != b"tRNS" or length >= {0: 2, 2: 6}.get(colour_type, 1)
        if kind in _PNG_PIXELS and usable:
            kept.append(content[place:end])
        if kind == b"IHDR" and length >= 10:
            bits, colour_type = body[8], body[9]
        elif kind == b"tRNS":
            if len(body) in (2, 6):
                transparent = struct.unpack(f">{len(body) // 2}H", body)
        elif kind == b"acTL" and length >= 4:
            animated = int.from_bytes(body[:4], "big")
        elif kind == b"fcTL" and b"IDAT" not in (part[4:8] for part in kept):
            frames = 0  # the image itself is the first of the animation
        elif kind == b"eXIf":
            exif = exif or body
        elif kind in (b"zTXt", b"iTXt", b"tEXt"):
            exif, text = exif or _raw_profile(kind, body), text or _xmp(kind, body)
        place = end
        if kind == b"IEND":
            break
    return Pixels(
        content=b"".join(kept),
        orientation=orientation_of(exif, text),
        frames=max(1, frames + animated) if animated else 1,
        transparent=transparent
        if transparent is None or (len(transparent) == 1) == (colour_type == 0)
        else None,
        bits=bits,
    )


def _raw_profile(kind: bytes, body: bytes) -> bytes:
    """The Exif block that ImageMagick writes as hexadecimal text; empty if this is none."""
    name, _, rest = body.partition(b"\0")
    if not name.lower().startswith(b"raw profile type exif"):
        return b""
    try:
        text = zlib.decompressobj().decompress(rest[1:], _MOST_TEXT) if kind == b"zTXt" else rest
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except (zlib.error, ValueError):
        return b""


def _xmp(kind: bytes, body: bytes) -> bytes:
    named = kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0\0")  # 0: not compressed
    return body if named else b""


def _without_exif(content: bytes) -> bytes:
    """AVIF whose list of items names none Exif, so that the decoder does not look for it."""
    return _EXIF_ITEM.sub(rb"\1none", content, count=1)
