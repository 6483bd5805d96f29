"""Photographs: read as a viewer shows them, identical to Keras where they are plain, refused in one line where bad."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import os
import pickle
import socket
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from parity.contract.network import INPUTS
from torch_impl import images
from torch_impl.images import ImageError, ImagesError, Photograph

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
JPEG_ROUNDING = 3  # of 255: two 8-bit colour conversions and a quantization by 1 (quality 100)


# Making files


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def flat(colour: Any, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)


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
    n = 10
    after = 8 + 2 + 12 * n + 4
    strip = after + 2 * len(bits)
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, len(bits), bits[0] if len(bits) == 1 else after),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, strip),
        (277, 3, 1, len(bits)),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        (339, 3, 1, kind),
    ]
    ifd = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, n) + ifd + struct.pack(f"<I{len(bits)}H", 0, *bits) + data


def cmyk_jpeg(cyan: int, magenta: int, yellow: int, black: int, adobe: bool) -> bytes:
    """A JPEG of one flat 8 x 8 block, by hand, so that no encoder's idea of CMYK gets in. Samples are 1 or 255."""

    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    # DC = 127 with a quantizer of 8 is a block of (127 * 8) / 8 = +127, level-shifted by 128: 255; -127 gives 1.
    # Huffman, DC: "00" → 0 bits, "01" → 7 bits. AC: "00" → end of block.
    bits = "".join("01" + ("1" if sample == 255 else "0") * 7 + "00" for sample in (cyan, magenta, yellow, black))
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big")
    components = b"".join(bytes([identity, 0x11, 0]) for identity in range(1, 5))
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, 0)) if adobe else b"",
            segment(0xDB, b"\0" + bytes([8] * 64)),
            segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 4) + components),
            segment(0xC4, b"\x00" + bytes([0, 2] + [0] * 14) + bytes([0, 7])),
            segment(0xC4, b"\x10" + bytes([0, 1] + [0] * 14) + bytes([0])),
            segment(0xDA, b"\x04" + b"".join(bytes([identity, 0]) for identity in range(1, 5)) + b"\0\x3f\0"),
            scan.replace(b"\xff", b"\xff\0"),
            b"\xff\xd9",
        ]
    )


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Photograph]:
    """Writes bytes, or an encoded picture, to a file whose suffix tells nothing, and loads it."""

    def read(data: bytes, size: int = 8, resize: str = "lab") -> Photograph:
        path = tmp_path / "picture"
        path.write_bytes(data)
        return images.load(path, size=size, resize=resize)

    return read


def only_colour(photograph: Photograph) -> tuple[int, ...]:
    colours = np.unique(photograph.pixels.reshape(-1, 3), axis=0)
    assert len(colours) == 1, colours
    return tuple(map(int, colours[0]))


def profile_of(package: str, name: str) -> bytes:
    """A colour profile out of a picture that scikit-image carries: real ones, and nothing to ship."""
    folder = Path(pytest.importorskip(package).__file__).parent
    with Image.open(folder / name) as image:
        return bytes(image.info["icc_profile"])


# Identical to Keras and torchvision

KERAS_SIDE = """
import sys
import keras
import numpy as np
from keras.applications.vgg16 import preprocess_input
out, *files = sys.argv[1:]
pixels = np.stack([np.asarray(keras.utils.load_img(file, target_size=(224, 224))) for file in files])
arrays = {"pixels": pixels}
for floatx in ("float32", "float64"):
    keras.backend.set_floatx(floatx)
    arrays[floatx] = preprocess_input(np.stack([keras.utils.img_to_array(each) for each in pixels]))
np.savez(out, **arrays)
"""


@pytest.fixture(scope="module")
def keras_side(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[Any]]:
    """What Keras itself makes of the default photographs; in a process of its own, for it brings TensorFlow."""
    if not all(map(importlib.util.find_spec, ("keras", "tensorflow"))):
        pytest.skip("Keras is not installed")
    out = tmp_path_factory.mktemp("keras") / "side.npz"
    command = [sys.executable, "-c", KERAS_SIDE, str(out), *map(str, images.defaults())]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.mark.keras
def test_plain_photographs_are_keras_pixel_by_pixel(keras_side: dict[str, NDArray[Any]]) -> None:
    photographs, _ = images.load_all(images.defaults())
    np.testing.assert_array_equal(np.stack([each.pixels for each in photographs]), keras_side["pixels"])
    assert [each.notes for each in photographs] == [()] * 4  # two of them carry an sRGB profile, one is grey


@pytest.mark.keras
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_caffe_inputs_are_keras_bit_by_bit(keras_side: dict[str, NDArray[Any]], precision: str) -> None:
    torch = pytest.importorskip("torch")
    inputs = images.preprocess(keras_side["pixels"], dtype=getattr(torch, precision)).numpy()
    expected = keras_side[precision].transpose(0, 3, 1, 2)
    assert inputs.dtype == expected.dtype == precision
    np.testing.assert_array_equal(inputs, expected)


@pytest.mark.parametrize("size", [224, 96, 333])
def test_torchvision_resize_and_inputs_are_torchvisions(size: int) -> None:
    torch, transforms = pytest.importorskip("torch"), pytest.importorskip("torchvision.transforms")
    resize = transforms.Compose([transforms.Resize(round(256 * size / 224)), transforms.CenterCrop(size)])
    inputs = transforms.Compose(
        [resize, transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    random = np.random.default_rng(size)
    sizes = [(451, 300), (300, 451), (256, 256), (257, 258), (258, 257), (31, 1), (1, 31), (1001, 77)]
    for width, height in sizes:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours = images.load(image, size=size, resize="torchvision").pixels
        np.testing.assert_array_equal(ours, np.asarray(resize(image)), str((width, height)))
        torch.testing.assert_close(images.preprocess(ours[None], input="torchvision")[0], inputs(image), rtol=0, atol=0)


def test_preprocess_on_paper() -> None:
    torch = pytest.importorskip("torch")
    pixels = np.array([[[[10, 20, 30], [255, 255, 255]]]], dtype=np.uint8)  # N 1, H 1, W 2

    caffe = images.preprocess(pixels, dtype=torch.float64)
    assert caffe.shape == (1, 3, 1, 2)
    assert caffe.is_contiguous()
    expected = [[30 - 103.939, 255 - 103.939], [20 - 116.779, 255 - 116.779], [10 - 123.68, 255 - 123.68]]
    torch.testing.assert_close(caffe[0, :, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)

    ours = images.preprocess(pixels, input="torchvision", dtype=torch.float64)
    white = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(ours[0, :, 0, 1], torch.tensor(white, dtype=torch.float64), rtol=0, atol=1e-14)

    # Narrow types are rounded once, at the end: 255 - 123.68 = 131.32 is 131.375 in float16, 131 in bfloat16.
    assert images.preprocess(pixels, dtype=torch.float16)[0, 2, 0, 1].item() == 131.375
    assert images.preprocess(pixels, dtype=torch.bfloat16)[0, 2, 0, 1].item() == 131.0
    assert images.preprocess(pixels, device="meta").device.type == "meta"


def test_preprocess_leaves_the_pixels_alone() -> None:
    pytest.importorskip("torch")
    pixels = np.full((1, 2, 2, 3), 7, np.uint8)
    for name in images.INPUTS:
        images.preprocess(pixels, input=name).add_(1)
    assert (pixels == 7).all()


def test_preprocess_refuses_what_is_no_batch_of_pixels() -> None:
    torch = pytest.importorskip("torch")
    good = np.zeros((1, 2, 2, 3), np.uint8)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (good.astype(np.float32), {}, "not float32"),
        (good[0], {}, r"not uint8 \(2, 2, 3\)"),
        (np.zeros((1, 3, 2, 2), np.uint8), {}, r"not uint8 \(1, 3, 2, 2\)"),
        (good, {"input": "tf"}, "not 'tf'"),
        (good, {"dtype": torch.uint8}, "not torch.uint8"),
    ]
    for pixels, options, problem in wrong:
        with pytest.raises(ValueError, match=problem):
            images.preprocess(pixels, **options)


# As a viewer shows it

# EXIF says where row 0 and column 0 of the file lie in the picture (6: row 0 is the right side, column 0 the top).
# So this is what the file's corners (top left, top right, bottom left, bottom right) hold, if R G / B W is seen.
STORED = {1: "RGBW", 2: "GRWB", 3: "WBGR", 4: "BWRG", 5: "RBGW", 6: "GWRB", 7: "WGBR", 8: "BRWG"}
COLOURS = {"R": RED, "G": GREEN, "B": BLUE, "W": WHITE}


def corners(letters: str, width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height))
    for index, letter in enumerate(letters):
        left, top = (index % 2) * width // 2, (index // 2) * height // 2
        image.paste(COLOURS[letter], (left, top, left + width // 2, top + height // 2))
    return image


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_turned_by_exif(read: Callable[..., Photograph], orientation: int, format: str) -> None:
    sideways = orientation >= 5
    image = corners(STORED[orientation], *((32, 64) if sideways else (64, 32)))
    options: dict[str, Any] = {"exif": Image.Exif()}
    options["exif"][0x0112] = orientation
    if format in ("JPEG", "WEBP"):
        options |= {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True}
    photograph = read(encoded(image, format, **options), size=32)
    seen = [photograph.pixels[y, x] for y in (4, 28) for x in (4, 28)]
    np.testing.assert_allclose(seen, [COLOURS[letter] for letter in "RGBW"], atol=JPEG_ROUNDING)
    assert photograph.original_size == (64, 32)
    # Pillow turns TIFFs by itself, so Keras reads them turned too, and there is nothing to note.
    assert photograph.notes == (() if orientation == 1 or format == "TIFF" else ("turned by EXIF",))


def test_broken_exif_leaves_the_picture_upright(read: Callable[..., Photograph]) -> None:
    data = encoded(corners("RGBW", 16, 16), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")
    assert tuple(read(data, size=2).pixels[0, 1]) == GREEN


def test_16_bit_grey_is_scaled_not_clipped(read: Callable[..., Photograph]) -> None:
    values = np.array([[0, 257, 128 * 257, 65535, 300, 450, 65400, 1]], dtype=np.uint16)
    expected = [0, 1, 128, 255, 1, 2, 254, 0]  # v / 257, rounded
    photograph = read(encoded(Image.fromarray(np.repeat(values, 8, axis=0)), "PNG"))
    np.testing.assert_array_equal(photograph.pixels[0, :, 0], expected)
    np.testing.assert_array_equal(photograph.pixels[3, :, 2], expected)
    assert photograph.notes == ("16 bit scaled to 8",)


def test_16_bit_colour(read: Callable[..., Photograph]) -> None:
    samples = struct.pack(">3H", 65535, 32896, 0) * 8
    assert only_colour(read(png(8, 8, 16, 2, samples))) == (255, 128, 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(2, 2, 12, 1, bytes([0xFF, 0xF0, 0x00] * 2)), (255, 0)),
        (tiff(2, 2, 16, 1, struct.pack("<4H", 65535, 0, 65535, 0)), (255, 0)),
        (tiff(2, 2, 16, 0, struct.pack("<4H", 65535, 257, 65535, 257)), (0, 254)),  # white is zero
        (tiff(2, 2, 8, 0, bytes([255, 1] * 2)), (0, 254)),
        (tiff(2, 2, 32, 1, struct.pack("<4i", 65535, 257, 65535, 257), kind=2), (255, 1)),
        (tiff(2, 2, 32, 1, struct.pack("<4i", 200, 7, 200, 7), kind=2), (200, 7)),
        (b"P5 2 2 1023\n" + struct.pack(">4H", 1023, 0, 1023, 0), (255, 0)),
        (b"P5 2 2 65535\n" + struct.pack(">4H", 255, 0, 255, 0), (1, 0)),  # says 16 bits, so it is dark
        (tiff(2, 2, 32, 1, struct.pack("<4f", 1, 0.5, 1, 0.5), kind=3), (255, 128)),
        (tiff(2, 2, 32, 1, struct.pack("<4f", 254.6, 0.2, 2, 2), kind=3), (255, 0)),
    ],
    ids=["12", "16", "16 white is zero", "8 white is zero", "32 wide", "32 narrow", "pgm 10", "pgm 16", "f1", "f255"],
)
def test_wide_grey(read: Callable[..., Photograph], data: bytes, expected: tuple[int, int]) -> None:
    photograph = read(data, size=2)
    assert [tuple(pixel) for pixel in photograph.pixels[0]] == [(value,) * 3 for value in expected]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (tiff(1, 1, 32, 1, struct.pack("<f", float("nan")), kind=3), "NaN or infinity"),
        (tiff(1, 1, 32, 1, struct.pack("<f", float("-inf")), kind=3), "NaN or infinity"),
        (tiff(1, 1, 32, 1, struct.pack("<f", -0.5), kind=3), "floats from -0.5 to -0.5"),
        (tiff(1, 1, 32, 1, struct.pack("<f", 300), kind=3), "floats from 300 to 300"),
        (tiff(1, 1, 32, 1, struct.pack("<i", 70000), kind=2), "integers from 70000 to 70000"),
        (tiff(1, 1, 32, 1, struct.pack("<i", -1), kind=2), "integers from -1 to -1"),
    ],
)
def test_numbers_that_are_no_brightness(read: Callable[..., Photograph], data: bytes, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        read(data)


def gif_with_transparency() -> bytes:
    image = flat(0, "P")
    image.putpalette([*RED, *BLUE])
    return encoded(image, "GIF", transparency=0)


def palette_png(alpha: bytes | int) -> bytes:
    image = flat(0, "P")
    image.putpalette([*RED, *BLUE])
    return encoded(image, "PNG", transparency=alpha)


PINK = (255, 127, 127)  # red at 128/255 on white: 255 · 127/255
TRANSPARENT: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "RGBA PNG": (encoded(flat((*RED, 128), "RGBA"), "PNG"), PINK),
    "RGBA WebP": (encoded(flat((*RED, 128), "RGBA"), "WEBP", lossless=True), PINK),
    "RGBA TIFF": (encoded(flat((*RED, 128), "RGBA"), "TIFF"), PINK),
    "RGBA 16 bit": (png(8, 8, 16, 6, struct.pack(">4H", 65535, 0, 0, 32896) * 8), PINK),
    "all clear": (encoded(flat((*BLACK, 0), "RGBA"), "PNG"), WHITE),
    "LA": (encoded(flat((0, 128), "LA"), "PNG"), (127, 127, 127)),
    "palette, alphas": (palette_png(b"\x80\xff"), PINK),
    "palette, one colour": (palette_png(0), WHITE),
    "GIF": (gif_with_transparency(), WHITE),
    "grey and a clear grey": (encoded(flat(9, "L"), "PNG", transparency=9), WHITE),
    "colour and a clear colour": (encoded(flat(RED), "PNG", transparency=RED), WHITE),
    "16 bit and a clear grey": (png(8, 8, 16, 0, b"\x12\x34" * 8, png_chunk(b"tRNS", b"\x12\x34")), WHITE),
}


@pytest.mark.parametrize("case", TRANSPARENT)
def test_alpha_is_flattened_on_white(read: Callable[..., Photograph], case: str) -> None:
    data, expected = TRANSPARENT[case]
    photograph = read(data)
    assert only_colour(photograph) == expected
    assert "alpha flattened on white" in photograph.notes


OPAQUE: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "alpha that is full": (encoded(flat((*RED, 255), "RGBA"), "PNG"), RED),
    "another clear colour": (encoded(flat(RED), "PNG", transparency=BLUE), RED),
    # The clear colour is (256, 256, 256) of 65535. Cut to its low byte, as Pillow does, it would be black.
    "another clear colour, 16 bit": (
        png(8, 8, 16, 2, bytes(6 * 8), png_chunk(b"tRNS", struct.pack(">3H", 256, 256, 256))),
        BLACK,
    ),
}


@pytest.mark.parametrize("case", OPAQUE)
def test_alpha_that_hides_nothing_is_no_news(read: Callable[..., Photograph], case: str) -> None:
    data, expected = OPAQUE[case]
    photograph = read(data)
    assert only_colour(photograph) == expected
    assert photograph.notes == ()


def test_premultiplied_grey_from_tiff(read: Callable[..., Photograph]) -> None:
    image = images.load(flat((64, 128), "La"), size=8)  # 64 of 128: grey 128 (rounded), half covering white
    assert only_colour(image)[0] == pytest.approx(64 + 127, abs=1)


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpegs_hold_inverted_ink(read: Callable[..., Photograph], adobe: bool) -> None:
    # Samples say how much paper is left: 1 of 255 is full ink. (Files without Adobe's marker are read so, too.)
    for samples, seen in {
        (1, 255, 255, 255): (0, 255, 255),
        (255, 1, 255, 255): (255, 0, 255),
        (255, 255, 1, 255): (255, 255, 0),
        (255, 255, 255, 1): BLACK,
        (255, 255, 255, 255): WHITE,
    }.items():
        np.testing.assert_allclose(only_colour(read(cmyk_jpeg(*samples, adobe=adobe))), seen, atol=1)


def test_cmyk_tiff_is_not_inverted(read: Callable[..., Photograph]) -> None:
    data = tiff(1, 1, (8, 8, 8, 8), 5, bytes([255, 0, 0, 51]))  # cyan, and a fifth of black: 255 · 0.8
    assert only_colour(read(data, size=1)) == (0, 204, 204)


PLAIN: dict[str, tuple[bytes, tuple[int, int, int], int]] = {
    "BMP": (encoded(flat((10, 20, 30)), "BMP"), (10, 20, 30), 0),
    "PPM": (encoded(flat((10, 20, 30)), "PPM"), (10, 20, 30), 0),
    "JPEG 2000": (encoded(flat((10, 20, 30)), "JPEG2000"), (10, 20, 30), 0),
    "grey JPEG": (encoded(flat(100, "L"), "JPEG", quality=100), (100, 100, 100), 1),
    "1 bit": (encoded(flat(1, "1"), "PNG"), WHITE, 0),
    "2 bit": (png(8, 8, 2, 0, bytes([0b01010101] * 2)), (85, 85, 85), 0),
    "palette": (palette_png(b"\xff\xff"), RED, 0),
    "YCbCr": (tiff(1, 1, (8, 8, 8), 6, bytes([76, 85, 255])), RED, 2),  # BT.601: 0.299 · 255 is 76
    "LAB white": (tiff(1, 1, (8, 8, 8), 8, bytes([255, 0, 0])), WHITE, 1),
    "LAB red": (tiff(1, 1, (8, 8, 8), 8, bytes([138, 81, 70])), RED, 6),  # red in D50: 54.3, 80.8, 69.9; coarse
}


@pytest.mark.parametrize("case", PLAIN)
def test_formats_and_modes(read: Callable[..., Photograph], case: str) -> None:
    data, expected, tolerance = PLAIN[case]
    photograph = read(data)
    np.testing.assert_allclose(only_colour(photograph), expected, atol=tolerance)
    assert photograph.notes == ()


@pytest.mark.parametrize(("format", "frames"), [("GIF", 3), ("PNG", 3), ("WEBP", 3), ("TIFF", 3)])
def test_first_frame(read: Callable[..., Photograph], format: str, frames: int) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(flat(RED), format, save_all=True, append_images=[flat(GREEN), flat(BLUE)], **options)
    photograph = read(data)
    assert only_colour(photograph) == RED
    assert photograph.notes == (f"first frame of {frames}",)


def adobe_rgb_to_srgb(colour: tuple[int, int, int]) -> list[float]:
    """On paper: both spaces share the white point and the red and blue primaries; only green differs."""
    r, g, b = (np.array(colour) / 255) ** 2.19921875
    linear = np.clip([1.39836 * r - 0.39836 * g, g, -0.04293 * g + 1.04293 * b], 0, 1)
    return [255 * float(12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055) for v in linear]


@pytest.mark.parametrize("colour", [(128, 128, 128), (200, 100, 50), (60, 200, 90), (10, 20, 250)])
def test_colour_profile_is_honoured(read: Callable[..., Photograph], colour: tuple[int, int, int]) -> None:
    photograph = read(encoded(flat(colour), "PNG", icc_profile=profile_of("skimage", "data/rocket.jpg")))
    np.testing.assert_allclose(only_colour(photograph), adobe_rgb_to_srgb(colour), atol=2)  # 8-bit tables
    assert photograph.notes == ("ICC profile converted to sRGB",)
    with_alpha = read(encoded(flat((*colour, 0), "RGBA"), "PNG", icc_profile=profile_of("skimage", "data/rocket.jpg")))
    assert only_colour(with_alpha) == WHITE


def test_grey_profile_is_honoured(read: Callable[..., Photograph]) -> None:
    profile = profile_of("skimage", "data/page.png")  # Dot Gain 20%: half ink prints as 70% ink, 30% light is left
    photograph = read(encoded(flat(128, "L"), "PNG", icc_profile=profile))
    expected = 255 * (1.055 * 0.3 ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(only_colour(photograph), [expected] * 3, atol=2)
    with_alpha = read(encoded(flat((128, 255), "LA"), "PNG", icc_profile=profile))
    assert only_colour(with_alpha) == only_colour(photograph)


def test_srgb_profile_changes_nothing(read: Callable[..., Photograph]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG", icc_profile=profile_of("skimage", "data/chelsea.png"))
    photograph = read(data, size=64)
    np.testing.assert_array_equal(photograph.pixels, pixels)
    assert photograph.notes == ()


@pytest.mark.parametrize("profile", [b"garbage", b"\0" * 200, "grey"])
def test_unusable_profile_is_ignored(read: Callable[..., Photograph], profile: bytes | str) -> None:
    if profile == "grey":
        profile = profile_of("skimage", "data/page.png")  # a good one, but not for colour
    photograph = read(encoded(flat((10, 20, 30)), "PNG", icc_profile=profile))
    assert only_colour(photograph) == (10, 20, 30)
    assert photograph.notes == ("unusable ICC profile ignored",)


# Arrays and Pillow images


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((4, 4, 3), (10, 20, 30), np.uint8), (10, 20, 30)),
        (np.full((4, 4), 77, np.uint8), (77, 77, 77)),
        (np.full((4, 4, 4), (255, 0, 0, 128), np.uint8), PINK),
        (np.full((4, 4, 3), (0.0, 0.5, 1.0)), (0, 128, 255)),
        (np.full((4, 4, 3), (0.0, 0.2, 1.0), np.float32), (0, 51, 255)),
        (np.full((4, 4), 0.5, np.float16), (128, 128, 128)),
        (np.full((3, 4, 4), 9, np.uint8).transpose(1, 2, 0), (9, 9, 9)),  # not contiguous
    ],
)
def test_arrays(array: NDArray[Any], expected: tuple[int, int, int]) -> None:
    before = array.copy()
    photograph = images.load(array, size=4)
    assert only_colour(photograph) == expected
    assert (photograph.name, photograph.path, photograph.original_size) == ("array", None, (4, 4))
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((3, 5, 6), np.uint8), r"shape \(3, 5, 6\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixel"),
        (np.zeros((4, 4), np.uint16), "uint16"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4), complex), "complex"),
        (np.full((4, 4), None), "object"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), np.inf), "NaN or infinity"),
        (np.full((4, 4, 3), 200.0), "floats from 200 to 200, not 0 to 1"),
        (np.full((4, 4, 3), -1e-3), "floats from -0.001"),
        (np.zeros((1, 51), np.uint8), "crop it"),
    ],
)
def test_arrays_that_are_no_picture(array: NDArray[Any], problem: str) -> None:
    with pytest.raises(ImageError, match=problem) as caught:
        images.load(array)
    assert caught.value.path == "<array>"


def test_pillow_images_are_taken_at_their_frame_and_left_alone() -> None:
    data = encoded(flat(RED), "GIF", save_all=True, append_images=[flat(GREEN)])
    with Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        info = dict(image.info)
        photograph = images.load(image, size=8)
        assert only_colour(photograph) == GREEN
        assert image.tell() == 1
        assert image.info == info
    assert (photograph.name, photograph.path) == ("image", None)


def test_lazy_pillow_image_of_a_truncated_file_is_refused() -> None:
    data = encoded(flat(RED, size=(64, 64)), "PNG")
    with pytest.raises(ImageError, match="<image>"):
        images.load(Image.open(io.BytesIO(data[: len(data) // 2])))


def test_neither_file_nor_picture() -> None:
    for source in (3, None, b"photo.jpg", [[0]]):
        with pytest.raises(ImageError, match="not a file, a NumPy array or a Pillow image"):
            images.load(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"resize": "bicubic"}, {"size": 0}, {"size": -1}, {"size": 224.0}, {"size": 10**6}]
)
def test_wrong_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is ") as caught:
        images.load(np.zeros((4, 4), np.uint8), **options)
    assert not isinstance(caught.value, ImageError)


# Bad files

NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8))
FILES = {
    "JPEG": encoded(NOISE, "JPEG"),
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    "PNG": encoded(NOISE, "PNG"),
    "GIF": encoded(NOISE.quantize(64), "GIF"),
    "WEBP": encoded(NOISE, "WEBP"),
    "TIFF": encoded(NOISE, "TIFF"),
    "TIFF LZW": encoded(NOISE, "TIFF", compression="tiff_lzw"),
    "BMP": encoded(NOISE, "BMP"),
    "JPEG2000": encoded(NOISE, "JPEG2000"),
    "PPM": encoded(NOISE, "PPM"),
}


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_truncated(read: Callable[..., Photograph], monkeypatch: pytest.MonkeyPatch, format: str, kept: float) -> None:
    data = FILES[format]
    read(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as many a notebook does
    with pytest.raises(ImageError) as caught:
        read(data[: int(len(data) * kept)])
    assert str(caught.value).isprintable()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # as it was


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "an empty file (0 bytes)"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing, not a photograph: export it as PNG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<svg/>', "an SVG drawing"),
        (b"<!DOCTYPE html><html><body><svg></svg>", "a web page"),
        (b"a shopping list: caf\xc3\xa9\n", "text, not a photograph"),
        (b"%PDF-1.7\n", "a PDF or PostScript page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PDF or PostScript page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "an HEIC photograph"),
        (b"\0" * 100, "not a photograph that can be read"),
        (os.urandom(4) + b"\0\xff\xfe" * 30, "not a photograph that can be read"),
        (b"SIMPLE  =                    T / FITS\0", "not a photograph that can be read"),
    ],
)
def test_not_a_photograph(read: Callable[..., Photograph], data: bytes, problem: str) -> None:
    with pytest.raises(ImageError) as caught:
        read(data)
    assert problem in str(caught.value)


def test_bombs_are_refused_from_the_header(read: Callable[..., Photograph], monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    for limit in (Image.MAX_IMAGE_PIXELS, None, 10**12):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for side in (math.isqrt(images.MAX_PIXELS) + 1, 13_000, 60_000):
            with pytest.raises(ImageError, match="decompression bomb"):
                read(png(side, side, 8, 2, b"\0"))
        assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("resize", images.RESIZES)
def test_absurd_shapes(read: Callable[..., Photograph], resize: str) -> None:
    for size in ((1, 51), (50_000, 1)):
        with pytest.raises(ImageError, match="one side over 50 times the other: crop it"):
            read(encoded(flat(RED, size=size), "PNG"), resize=resize)
    assert only_colour(read(encoded(flat(RED, size=(1, 50)), "PNG"), resize=resize)) == RED
    assert only_colour(read(encoded(flat(RED, size=(1, 1)), "PNG"), resize=resize)) == RED


def test_torchvision_intermediate_is_bounded() -> None:
    with pytest.raises(ImageError, match="more than"):
        images.load(np.zeros((1, 50), np.uint8), size=4096, resize="torchvision")


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # sparse: takes no room
    with pytest.raises(ImageError, match="512 MiB, more than the 512 MiB"):
        images.load(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name, problem in {
        "missing.jpg": "no such file",
        "folder.jpg": "a folder, not a photograph",
        "dangling.jpg": "a link to a file that is not there",
        "loop.jpg": "cannot be read: Too many levels of symbolic links",
        "missing.jpg/x.jpg": "no such file",
        "x" * 300: "no such file: the name is too long",
        "nul\0.jpg": "cannot be read: embedded null byte",
    }.items():
        path = f"{tmp_path}/{name}"
        with pytest.raises(ImageError) as caught:
            images.load(path)
        assert caught.value.path == path
        assert str(caught.value) == f"{path!r}: {problem}"
    with pytest.raises(ImageError, match="no such file"):
        images.load("")


def test_pipes_and_devices_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path may have no more than about 100 letters
        server.bind("socket.jpg")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    for path in ("pipe.jpg", "socket.jpg", "/dev/zero"):
        for read in (images.load, lambda path: images.find([path])):
            with pytest.raises(ImageError, match="a pipe, socket or device, not a photograph"):
                read(path)


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "private.jpg"
    path.write_bytes(FILES["JPEG"])

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))  # root, which tests may run as, is never refused

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match="may not be read: permission denied"):
        images.load(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shrinking.jpg"
    path.write_bytes(FILES["JPEG"])
    fstat = os.fstat

    def then_shrink(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        os.truncate(path, 100)
        return status

    monkeypatch.setattr(os, "fstat", then_shrink)
    with pytest.raises(ImageError, match="changed while it was being read"):
        images.load(path)


def test_hash_is_of_the_files_bytes(read: Callable[..., Photograph]) -> None:
    # `printf 'P5 1 1 255\nA' | sha256sum`
    expected = "ab47e2e0763aa3c57324c0942aea26bc15ef6997f27d159c4a49fc14ab79d168"
    assert read(b"P5 1 1 255\nA", size=1).sha256 == expected


def test_bytes_are_read_as_their_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    for data in (*FILES.values(), PLAIN["palette"][0], *(data for data, _ in TRANSPARENT.values())):
        path.write_bytes(data)
        for resize in (*images.RESIZES, images.AS_IT_IS):
            file = images.load(path, size=16, resize=resize)
            found = images.load_bytes(data, name="a.jpg", path=str(path), size=16, resize=resize)
            np.testing.assert_array_equal(found.pixels, file.pixels)
            assert (found.name, found.path, found.sha256) == (file.name, file.path, file.sha256)
            assert (found.original_size, found.notes) == (file.original_size, file.notes)
    for data in (b"", FILES["PNG"][:100], b"text"):
        path.write_bytes(data)
        with pytest.raises(ImageError) as from_file:
            images.load(path)
        with pytest.raises(ImageError) as from_bytes:
            images.load_bytes(data, name="a.jpg", path="s.tar//a.jpg")
        assert (from_bytes.value.path, from_bytes.value.problem) == ("s.tar//a.jpg", from_file.value.problem)
    monkeypatch.setattr(images, "MAX_BYTES", 2**20)
    with pytest.raises(ImageError, match=r"^'<a\.jpg>': 2 MiB, more than the 1 MiB that are read: export it smaller$"):
        images.load_bytes(bytes(2**21), name="a.jpg")
    with pytest.raises(ValueError, match="resize is "):
        images.load_bytes(FILES["PNG"], name="a.jpg", resize="bicubic")


def test_a_piece_of_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "pieces")
    Path(path).write_bytes(b"0123456789")
    stamp = images.stamp_of(path)
    assert images.read_file(path, offset=3, length=4, stamp=stamp) == b"3456"
    assert images.read_file(path) == b"0123456789"
    for options, problem in (
        ({"offset": 8, "length": 3}, "the file that holds it ends before it does: truncated, copy it again"),
        ({"offset": 3, "length": 0}, "an empty file (0 bytes)"),
        ({"stamp": (10, 0)}, "the file that holds it has changed since it was listed: start again"),
    ):
        with pytest.raises(ImageError) as caught:
            images.read_file(path, **options)  # type: ignore[arg-type]
        assert str(caught.value) == f"{path!r}: {problem}"
    assert images.stamp_of(f"{path}/gone") == images.stamp_of("nul\0") == (-1, -1)


NAMES = [
    "with space.jpg",
    "quote'\".jpg",
    "new\nline.jpg",
    "\x1b[31mred\x07.jpg",
    "<script>alert(1)</script>.jpg",
    "-dash.jpg",
    "日本語.jpg",
    "right\u202eleft.jpg",
    "n" * 200 + ".jpg",
    "%s{0}$HOME.jpg",
]


@pytest.mark.parametrize("name", NAMES)
def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    name = name.replace("/", "_")
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(FILES["JPEG"])
    assert images.find([name]) == [Path(name)]
    photograph = images.load(name)
    assert (photograph.name, photograph.path) == (name, name)

    Path(name).write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        images.load(name)
    assert str(caught.value).isprintable()  # no line break, no escape sequence, no reversed writing
    assert caught.value.path == name


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    Path(path).write_bytes(FILES["JPEG"])
    assert images.load(path).name == "caf\ufffd.jpg"


def test_errors_survive_pickling() -> None:
    one = ImageError("a\nb.jpg", "an empty file (0 bytes)")
    both = ImagesError([one, ImageError("c.jpg", "no such file")])
    assert str(pickle.loads(pickle.dumps(one))) == str(one) == "'a\\nb.jpg': an empty file (0 bytes)"
    assert str(pickle.loads(pickle.dumps(both))) == str(both) == f"{one}\n'c.jpg': no such file"
    assert isinstance(both, ImageError)
    assert both.path == "a\nb.jpg"


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    format=st.sampled_from(sorted(FILES)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=8),
    in_header=st.booleans(),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
    inserted=st.binary(max_size=4),
)
def test_damaged_bytes_are_a_photograph_or_an_error(
    capfd: pytest.CaptureFixture[str],
    read: Callable[..., Photograph],
    format: str,
    flips: list[tuple[float, int]],
    in_header: bool,
    kept: float,
    inserted: bytes,
) -> None:
    data = bytearray(FILES[format])
    for where, change in flips:
        data[int(where * (min(64, len(data)) if in_header else len(data)))] ^= change
    cut = int(kept * len(data))
    data = data[:cut] + (inserted if kept < 1 else b"")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pixels, problem = read(bytes(data), size=16).pixels, ""
        except ImageError as error:
            pixels, problem = np.zeros((16, 16, 3), np.uint8), error.problem
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert problem.isprintable()
    assert not caught
    assert capfd.readouterr() == ("", "")  # nor do the C libraries say anything


def test_pillows_log_stays_off_the_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, read: Callable[..., Photograph]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])  # as in a program that has not set up logging; pytest has
        with pytest.raises(ImageError):
            read(tiff(2, 2, (8,) * 127, 2, bytes(4 * 127)))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("PIL").handlers == []


# Several


def test_find_lists_a_folder_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.jpg", "9.JPG", "a2.png", "a10.Png", "b.webp", ".hidden.jpg", "notes.txt", "jpg", "IMG_1.tiff"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.jpg").touch()
    names = [path.name for path in images.find([tmp_path])]
    assert names == ["9.JPG", "10.jpg", "a2.png", "a10.Png", "b.webp", "IMG_1.tiff"]
    twice = images.find([str(tmp_path / "notes.txt"), tmp_path / "below", tmp_path / "notes.txt"])
    assert [path.name for path in twice] == ["notes.txt", "c.jpg", "notes.txt"]  # named files need no suffix
    assert images.find(str(tmp_path / "below")) == [tmp_path / "below" / "c.jpg"]  # not letter by letter


def test_find_lists_everything_that_is_bad(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(FILES["JPEG"])
    (folder / "dangling.jpg").symlink_to("nowhere")
    (folder / "sub.jpg").mkdir()
    os.mkfifo(folder / "pipe.png")
    paths = [tmp_path / "empty", folder, tmp_path / "missing.jpg"]
    with pytest.raises(ImagesError) as caught:
        images.find(paths)
    problems = {Path(error.path).name: error.problem for error in caught.value.errors}
    assert problems == {
        "empty": "a folder without photographs (.jpg, .png, .webp, .tif and so on)",
        "dangling.jpg": "a link to a file that is not there",
        "pipe.png": "a pipe, socket or device, not a photograph",
        "sub.jpg": "a folder, not a photograph",
        "missing.jpg": "no such file",
    }
    assert len(str(caught.value).splitlines()) == 5

    photographs, errors = images.load_all(images.find(paths, skip_bad=True), skip_bad=True)
    assert [each.name for each in photographs] == ["good.jpg"]
    assert [Path(error.path).name for error in errors] == list(problems)


def test_find_nothing() -> None:
    assert images.find([]) == []
    assert images.load_all([]) == ([], [])
    with pytest.raises(ImagesError, match="no such file"):
        images.find([""])  # not the current folder


def test_load_all_finds_every_bad_one_before_it_complains(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(FILES["JPEG"])
    (tmp_path / "bad.jpg").write_bytes(b"")
    hole = np.full((2, 2), np.nan)
    sources: list[images.Source] = [tmp_path / "bad.jpg", tmp_path / "good.jpg", hole, tmp_path / "gone.jpg"]
    with pytest.raises(ImagesError) as caught:
        images.load_all(sources)
    assert [error.path for error in caught.value.errors] == [str(sources[0]), "<array 3>", str(sources[3])]

    photographs, errors = images.load_all(sources, skip_bad=True)
    assert [each.name for each in photographs] == ["good.jpg"]
    assert list(map(str, errors)) == list(map(str, caught.value.errors))

    with pytest.raises(ImagesError):  # nothing would be left
        images.load_all([sources[0], sources[3]], skip_bad=True)
    photographs, errors = images.load_all(sources[1:2] * 2)
    assert len(photographs) == 2
    assert errors == []


def test_bad_photographs_are_not_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(FILES["JPEG"])
    (tmp_path / "bad.png").write_bytes(FILES["PNG"][:200] + bytes(4_000_000))
    tracemalloc.start()
    try:
        _, errors = images.load_all([tmp_path / "good.jpg", *[tmp_path / "bad.png"] * 5], skip_bad=True)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(errors) == 5
    assert kept < 4_000_000


def test_the_process_is_left_as_it_was(read: Callable[..., Photograph]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # would turn Pillow's warnings into failures
        before = list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        read(FILES["JPEG"])
        with pytest.raises(ImageError):
            read(FILES["PNG"][:100])
        assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before


def test_defaults_are_found_without_importing_their_packages() -> None:
    program = (
        "import sys\n"
        "from torch_impl import images\n"
        "files = images.defaults()\n"
        "images.load_all(files)\n"
        "assert [file.name for file in files] == list(images.LICENCES), files\n"
        "print(*sorted({'torch', 'skimage', 'sklearn', 'keras', 'tensorflow'} & set(sys.modules)))\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_defaults_name_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"'chelsea\.png': comes with scikit-image, which is not installed"):
        images.defaults()


# On the device


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_preprocessing_on_the_device_is_the_same_bit_for_bit(input, dtype, device):
    """Every value in every channel, on the CPU by the function that CUDA uses, and on CUDA where there is one."""
    values = np.arange(256, dtype=np.uint8)
    pixels = np.stack([values, values[::-1], np.roll(values, 7)], axis=-1).reshape(2, 8, 16, 3)
    expected = images.preprocess(pixels, input=input, dtype=dtype)
    if device.type == "cuda":
        found = images.preprocess(pixels, input=input, dtype=dtype, device=device)
        assert found.device.type == "cuda"
    else:
        work = torch.float64 if dtype == torch.float64 else torch.float32
        found = images._preprocessed(torch.from_numpy(pixels), input, work).to(dtype)
    assert found.is_contiguous()
    assert torch.equal(found.cpu(), expected)
