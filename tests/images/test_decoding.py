"""Pixels of image files: metadata never cost any, odd formats are right or refused, nothing runs."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from star.images.decode import SUFFIXES, BadImageError, read_image
from star.images.metadata import orientation_of, pixels_of
from star.images.open import load_image
from star.images.tiff_tags import first_value

WIDE = (40, 20)


def picture(size=WIDE, seed=0):
    """Smooth colours without any symmetry."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def saved(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.fixture
def read():
    """Decode bytes with every warning an error, whoever gives it."""

    def decode(content, limit=100.0):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return read_image(io.BytesIO(content), "x", limit)

    return decode


def block(*entries, extra=b"", order="<", head=b"Exif\0\0"):
    """An Exif block of (tag, type, count, value) entries."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(
        struct.pack(order + "HHI", *entry[:3])
        + (
            struct.pack(order + "HH", entry[3], 0)
            if entry[1] == 3
            else struct.pack(order + "I", entry[3])
        )
        for entry in entries
    )
    start = mark + struct.pack(order + "IH", 8, len(entries))
    return head + start + body + struct.pack(order + "I", 0) + extra


TURN = (0x0112, 3, 1, 6)  # "turn by 90 degrees"
BLOCKS = {
    "as cameras write it": block(TURN),
    "big-endian": block(TURN, order=">"),
    "headed twice": b"Exif\0\0" + block(TURN),
    "-1/0 signed": block(TURN, (0x011A, 10, 1, 38), extra=struct.pack("<ii", -1, 0)),
    "-1/0 unsigned": block(TURN, (0x011A, 5, 1, 38), extra=struct.pack("<ii", -1, 0)),
    "a fraction for text": block(TURN, (0x927C, 5, 1, 38), extra=struct.pack("<II", 1, 3)),
    "GPS beyond the end": block(TURN, (0x8825, 4, 1, 9999)),
    "an unknown type": block(TURN, (0x011A, 99, 1, 1)),
    "a count beyond reason": block(TURN, (0x010F, 2, 0xFFFFFFFF, 8)),
    "more entries announced": block(TURN).replace(b"\x01\0\x12\x01", b"\xff\0\x12\x01"),
}
NOT_TURNED = {
    "blank": b"Exif\0\0",
    "cut": block(TURN)[:16],
    "noise": b"Exif\0\0" + bytes(range(40)),
    "orientation 9": block((0x0112, 3, 1, 9)),
    "orientation 0": block((0x0112, 3, 1, 0)),
    "text for a number": block((0x0112, 2, 4, 6)),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("name", [*BLOCKS, *NOT_TURNED])
def test_broken_exif_costs_no_pixels(form, name, read):
    exif = (BLOCKS | NOT_TURNED)[name]
    if form == "AVIF":  # put in afterwards: its writer would repair or refuse the block
        plain = Image.Exif()
        plain[0x010F] = "x" * 400
        content = saved(picture(), form, exif=plain)
        found, turned = _overwritten(content, plain.tobytes(), exif), False  # it has boxes for that
    else:
        content = saved(picture(), form)
        found, turned = saved(picture(), form, exif=exif), name in BLOCKS
    image, expected = read(found), read(content)
    if turned:
        expected = expected.transpose(Image.Transpose.ROTATE_270)
    assert image.size == ((20, 40) if turned else WIDE)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def _overwritten(content, old, new):
    """``content`` with the Exif block ``old`` replaced by ``new`` in its place, padded with zeros."""
    old, new = old.removeprefix(b"Exif\0\0"), new.removeprefix(b"Exif\0\0")
    place = content.index(old)
    return content[:place] + new.ljust(len(old), b"\0")[: len(old)] + content[place + len(old) :]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation, read):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        content = saved(picture(), form, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        assert np.array_equal(np.asarray(read(content)), np.asarray(expected)), form


def test_orientation_in_xmp_counts_where_exif_is_silent():
    for text in (b'<x tiff:Orientation="8"/>', b"<tiff:Orientation>8</tiff:Orientation>"):
        assert orientation_of(None, text) == 8
        assert orientation_of(BLOCKS["as cameras write it"], text) == 6
        assert orientation_of(NOT_TURNED["noise"], text.decode()) == 8
    assert orientation_of(None, b"tiff:Orientation=9") is None


def test_xmp_and_raw_profiles_turn_png_and_jpeg(read):
    from PIL.PngImagePlugin import PngInfo

    exif = BLOCKS["as cameras write it"]
    hexadecimal = f"\nexif\n{len(exif):8}\n{exif.hex()}\n"
    xmp = '<x tiff:Orientation="6"/>'
    for kind in ("xmp", "raw", "raw, packed"):
        info = PngInfo()
        if kind == "xmp":
            info.add_itxt("XML:com.adobe.xmp", xmp)
        else:
            info.add_text("Raw profile type exif", hexadecimal, zip=kind == "raw, packed")
        assert read(saved(picture(), "PNG", pnginfo=info)).size == (20, 40), kind
    assert read(saved(picture(), "JPEG", xmp=xmp.encode())).size == (20, 40)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(png, kind, body):
    """``png`` with one more chunk after its header."""
    return png[:33] + chunk(kind, body) + png[33:]


def test_png_metadata_that_unpack_to_megabytes_or_are_broken(read):
    png = saved(picture(), "PNG")
    big = zlib.compress(b"a" * (2 << 20))
    broken = bytearray(with_chunk(png, b"tEXt", b"a\0b"))
    broken[44] ^= 255  # its check sum no longer fits
    for content in (
        with_chunk(png, b"zTXt", b"Comment\0\0" + big),
        with_chunk(png, b"iCCP", b"profile\0\0" + big),
        with_chunk(png, b"iTXt", b"k\0\1\0\0\0" + big),
        with_chunk(png, b"zTXt", b"Comment\0\0not packed"),
        with_chunk(png, b"eXIf", b"MM"),
        with_chunk(png, b"pHYs", b"\1"),
        with_chunk(png, b"acTL", b"\0\0\0\0\0\0\0\0"),
        bytes(broken),
    ):
        assert np.array_equal(np.asarray(read(content)), np.asarray(picture()))


def test_damaged_pixels_are_still_refused(read):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for form in ("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"):
        content = saved(noise, form)
        for length in (3, 20, len(content) // 2):
            with pytest.raises(BadImageError, match="cannot decode x"):
                read(content[:length])


def ramp(most=65535, kind=np.uint16):
    """16 rows, 32 columns, dark to light."""
    return np.tile(np.round(np.linspace(0, most, 32)).astype(kind), (16, 1))


def test_grey_of_more_bits_is_as_its_8_bit_twin(read):
    twin = np.round(ramp() / 257).astype(np.uint8)
    for content in (
        saved(Image.fromarray(ramp()), "PNG"),
        saved(Image.fromarray(ramp()), "TIFF"),
        saved(Image.fromarray(ramp()), "TIFF", compression="tiff_lzw"),
        saved(Image.fromarray(ramp().astype(">u2")), "TIFF"),
        saved(Image.fromarray(ramp()), "JPEG2000"),
        b"P5 32 16 65535\n" + ramp().astype(">u2").tobytes(),
        b"P5 32 16 1023\n" + ramp(1023).astype(">u2").tobytes(),
    ):
        image = np.asarray(read(content)).astype(int)
        assert abs(image - twin[..., None]).max() <= 1, content[:4]


def grey_tiff(values, bits, photometric):
    """A little-endian TIFF of one strip, written by hand."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        packed = [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
        data = np.stack(packed, axis=1).astype(np.uint8).tobytes()
    else:
        data = values.astype("<u2").tobytes()
    tags = {
        256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 12 * 9 + 4,
        277: 1, 278: height, 279: len(data),
    }  # fmt: skip
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", 0) + data


def test_twelve_bits_and_white_at_zero(read):
    twin = np.round(ramp() / 257)
    assert abs(np.asarray(read(grey_tiff(ramp(4095), 12, 1)))[..., 0] - twin).max() <= 1
    assert abs(np.asarray(read(grey_tiff(ramp(), 16, 1)))[..., 0] - twin).max() <= 1
    assert abs(np.asarray(read(grey_tiff(ramp(), 16, 0)))[..., 0] - (255 - twin)).max() <= 1


def test_pixels_without_a_range_are_refused(read):
    for values in (
        ramp(kind=np.int32),
        ramp(255, np.int32),
        ramp(1, np.float32),
    ):
        with pytest.raises(BadImageError, match="no fixed range"):
            read(saved(Image.fromarray(values), "TIFF"))


def test_a_transparent_grey_or_colour_is_white_in_every_depth(read):
    black = {
        16: saved(Image.fromarray(ramp()), "PNG"),
        8: saved(Image.fromarray(ramp(255, np.uint8)), "PNG"),
        1: saved(Image.fromarray(ramp(255, np.uint8)).convert("1"), "PNG"),
    }
    for depth, png in black.items():
        image = np.asarray(read(with_chunk(png, b"tRNS", struct.pack(">H", 0))))
        assert image[0, 0].tolist() == [255, 255, 255], depth
        assert (
            image[0, 8 if depth > 1 else 31, 0] == np.asarray(read(png))[0, 8 if depth > 1 else 31, 0]
        )
    # 2 and 4 bits: the value of the chunk is in the file's own bits
    for bits in (2, 4):
        most = 2**bits - 1
        png = grey_png(np.arange(8).reshape(1, 8) % (most + 1), bits)
        plain = np.asarray(read(png))[0, :, 0]
        image = np.asarray(read(with_chunk(png, b"tRNS", struct.pack(">H", 1))))[0, :, 0]
        assert image[1] == 255 and plain[1] == 255 // most
        assert image[0] == 0 and image[2] == plain[2]
    # 16 bits a colour: as the 8-bit twin
    colour = grey_png(np.array([[0x1234, 0x5678, 0x9ABC] * 2 + [0, 0, 0]]), 16, colour=True)
    plain, image = (
        np.asarray(read(png))[0]
        for png in (colour, with_chunk(colour, b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)))
    )
    assert plain[0].tolist() == [0x12, 0x56, 0x9A]
    assert image.tolist() == [[255] * 3, [255] * 3, [0] * 3]


def grey_png(values, bits, colour=False):
    """A PNG written by hand: one row of samples of ``bits``."""
    height, width = values.shape
    text = "".join(f"{int(v):0{bits}b}" for v in values[0])
    row = int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
    size = width // 3 if colour else width
    head = struct.pack(">IIBBBBB", size, height, bits, 2 if colour else 0, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_phone_pictures_and_animations_give_the_first_frame_and_say_so(read):
    first, second = picture(seed=1), picture((20, 10), seed=2)
    phone = saved(first, "MPO", save_all=True, append_images=[second])
    image = read(phone)
    assert image.size == WIDE and image.info["frames"] == 2
    end = phone.find(b"\xff\xd8", 2 + phone.find(b"\xff\xd9"))
    alone = read(phone[:end])  # the index still says two
    assert "frames" not in alone.info and np.array_equal(np.asarray(alone), np.asarray(image))
    other = picture(seed=2)
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        image = read(saved(first, form, save_all=True, append_images=[other, first], **options))
        assert image.info["frames"] == 3, form
        if form != "GIF":
            assert np.array_equal(np.asarray(image), np.asarray(first)), form
        assert "frames" not in read(saved(first, form, **options)).info
    late = saved(first, "TIFF", save_all=True, append_images=[other])
    assert read(late[:-8]).size == WIDE  # what is damaged lies behind the first page


def test_every_accepted_ending_is_read_and_its_name_decides_nothing(tmp_path):
    for ending in SUFFIXES:
        path = tmp_path / f"x{ending}"
        form = Image.registered_extensions()[ending]
        options = {"save_all": True} if form == "MPO" else {}
        grey = picture().convert("1" if ending == ".pbm" else "L")
        grey.save(path, form, **options)
        assert load_image(path).size == WIDE, ending
    path = tmp_path / "really-a-png.JPEG"
    picture().save(path, "PNG")
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(picture()))


OTHERS = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\nshowpage\n%%EOF\n",
    "Windows metafile": b"\xd7\xcd\xc6\x9a" + bytes(2) + struct.pack("<hhhh", 0, 0, 9, 9) + bytes(60),
    "icon": saved(picture((32, 32)), "ICO"),
    "Photoshop": b"8BPS\0\1" + bytes(60),
    "PDF": b"%PDF-1.4\n" + bytes(60),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(64),
    "text": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_no_images_whatever_they_are_called(name, tmp_path):
    for ending in (".jpg", ".png", ".tif"):
        path = tmp_path / f"x{ending}"
        path.write_bytes(OTHERS[name])
        with pytest.raises(BadImageError, match="it is no image"):
            load_image(path)


def test_reading_images_starts_no_program(tmp_path):
    """Stand-ins for what image libraries call leave a mark; an audit hook sees any start."""
    for program in ("gs", "gswin64c", "gm", "convert", "djpeg", "xv", "display"):
        stand_in = tmp_path / program
        stand_in.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\necho 10.0\n")
        stand_in.chmod(0o755)
    for name, content in OTHERS.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from star.images.open import BadImageError, load_image\n"
        "started = []\n"
        "watched = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork')\n"
        "sys.addaudithook(lambda event, args: started.append(event) if event in watched else None)\n"
        "refused = 0\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.jpg')):\n"
        "    try:\n"
        "        load_image(path)\n"
        "    except BadImageError:\n"
        "        refused += 1\n"
        "print(refused, started)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == f"{len(OTHERS)} []", done
    assert done.stderr == "" and not (tmp_path / "started").exists()


def test_the_process_keeps_its_filters_and_its_limit(tmp_path, read):
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    for form in ("PNG", "TIFF", "JPEG"):
        path = tmp_path / f"large.{form.lower()}"
        Image.new("L", (10_000, 9_500), 7).save(path, form)  # beyond the size at which Pillow warns
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert load_image(path).size == (10_000, 9_500)
        assert caught == []
    Image.new("1", (14_000, 14_000)).save(tmp_path / "huge.png")  # beyond the one at which it refuses
    assert load_image(tmp_path / "huge.png", max_megapixels=200).size == (14_000, 14_000)
    assert warnings.filters == filters and limit == Image.MAX_IMAGE_PIXELS


def test_a_file_far_too_large_is_not_read(tmp_path):
    path = tmp_path / "x.tif"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole: no such disk is needed
    with pytest.raises(BadImageError, match="more bytes than that takes; at most 100 megapixels"):
        load_image(path)


def test_directories_that_loop_or_lie_are_survived():
    tiff = bytearray(saved(picture(), "TIFF"))
    first = struct.unpack_from("<I", tiff, 4)[0]
    count = struct.unpack_from("<H", tiff, first)[0]
    struct.pack_into("<I", tiff, first + 2 + 12 * count, first)  # the next page is this one
    assert pixels_of(bytes(tiff)).frames == 1
    for content in (
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*" + bytes(4),
        b"II+\0" + b"\xff" * 30,
    ):
        assert first_value(content, 0x0112) is None


def test_a_missing_file_is_the_disks_fault(tmp_path):
    with pytest.raises(Exception, match=r"cannot read .*: No such file") as caught:
        read_image(Path(tmp_path / "gone.png"), "gone.png", 100.0)
    assert not isinstance(caught.value, BadImageError)


def test_cut_words_on_colours_cost_no_pixels(read):
    png = saved(picture(), "PNG")
    assert np.array_equal(np.asarray(read(with_chunk(png, b"tRNS", b"\1"))), np.asarray(picture()))
    jpeg = saved(picture(), "JPEG")
    cut = jpeg[:2] + b"\xff\xee\0\7Adobe" + jpeg[2:]
    assert np.array_equal(np.asarray(read(cut)), np.asarray(read(jpeg)))
