"""Pictures for tests, in files' bytes: every format, also what Pillow cannot write."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from torch_impl import images
from torch_impl.images import Photograph


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def flat(colour: Any, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8))
FILES = {format: encoded(NOISE, format) for format in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM")} | {
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    "GIF": encoded(NOISE.quantize(64), "GIF"),
    "TIFF LZW": encoded(NOISE, "TIFF", compression="tiff_lzw"),
}


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour_type: int, samples: bytes, extra: bytes = b"") -> bytes:
    """A PNG put together by hand, with all that Pillow cannot write; ``samples`` is one row, repeated."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress((b"\0" + samples) * min(height, 16)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + body + png_chunk(b"IEND", b"")


def tiff(width: int, height: int, bits: int | tuple[int, ...], photometric: int, data: bytes, kind: int = 1) -> bytes:
    """An uncompressed little-endian TIFF put together by hand; ``kind`` 1 unsigned, 2 signed, 3 float."""
    bits = (bits,) if isinstance(bits, int) else bits
    after = 8 + 2 + 12 * 10 + 4  # ten entries
    strip, bits_at = after + 2 * len(bits), bits[0] if len(bits) == 1 else after
    longs = {256: width, 257: height, 273: strip, 278: height, 279: len(data)}
    shorts = {259: 1, 262: photometric, 277: len(bits), 339: kind}
    entries = [(tag, 4, 1, value) for tag, value in longs.items()] + [
        (tag, 3, 1, value) for tag, value in shorts.items()
    ]
    entries.append((258, 3, len(bits), bits_at))
    ifd = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, 10) + ifd + struct.pack(f"<I{len(bits)}H", 0, *bits) + data


def read(data: bytes, size: int = 8, resize: str = "lab") -> Photograph:
    return images.load_bytes(data, name="picture", size=size, resize=resize)


def only_colour(photograph: Photograph) -> tuple[int, ...]:
    colours = np.unique(photograph.pixels.reshape(-1, 3), axis=0)
    assert len(colours) == 1, colours
    return tuple(map(int, colours[0]))


def profile_of(name: str) -> bytes:
    """A colour profile out of a picture that scikit-image carries: real ones, and nothing to ship."""
    with Image.open(Path(pytest.importorskip("skimage").__file__).parent / "data" / name) as image:
        return bytes(image.info["icc_profile"])
