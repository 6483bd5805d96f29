"""Photographs: read as a viewer shows them, identical to torchvision where they are plain."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pictures import FILES, NOISE, encoded, flat, only_colour, png, png_chunk, profile_of, read, tiff
from PIL import ExifTags, Image, ImageFile
from torchvision import transforms

from torch_impl import decoding, images
from torch_impl.images import ImageError
from torch_impl.preprocess import preprocess

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
JPEG_ROUNDING = 3  # of 255: two 8-bit colour conversions and a quantization by 1 (quality 100)

# Identical to torchvision; `test_keras_files` has Keras


@pytest.mark.parametrize("size", [224, 96, 333])
def test_torchvision_resize_and_inputs_are_torchvisions(size: int) -> None:
    resize = transforms.Compose([transforms.Resize(round(256 * size / 224)), transforms.CenterCrop(size)])
    normalized = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    inputs = transforms.Compose([resize, transforms.ToTensor(), normalized])
    random = np.random.default_rng(size)
    sizes = [(451, 300), (300, 451), (256, 256), (257, 258), (258, 257), (50, 1), (1, 50), (1, 1), (1001, 77)]
    for width, height in sizes:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ours = images.load(image, size=size, resize="torchvision").pixels
        np.testing.assert_array_equal(ours, np.asarray(resize(image)), str((width, height)))
        torch.testing.assert_close(preprocess(ours[None], input="torchvision")[0], inputs(image), rtol=0, atol=0)


# As a viewer shows it

# EXIF says where row 0 and column 0 of the file lie in the picture (6: row 0 is the right side, column 0 the top).
# So this is what the file's corners (top left, top right, bottom left, bottom right) hold, if R G / B W is seen.
STORED = {1: "RGBW", 2: "GRWB", 3: "WBGR", 4: "BWRG", 5: "RBGW", 6: "GWRB", 7: "WGBR", 8: "BRWG"}
COLOURS = {"R": RED, "G": GREEN, "B": BLUE, "W": WHITE}


def corners(letters: str, width: int, height: int) -> Image.Image:
    """Four rectangles, of the colours R G B W."""
    four = np.array([COLOURS[letter] for letter in letters], np.uint8).reshape(2, 2, 3)
    return Image.fromarray(four).resize((width, height), Image.Resampling.NEAREST)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_turned_by_exif(orientation: int, format: str) -> None:
    image = corners(STORED[orientation], *((32, 64) if orientation >= 5 else (64, 32)))
    options: dict[str, Any] = {"exif": Image.Exif()}
    options["exif"][ExifTags.Base.Orientation] = orientation
    if format in ("JPEG", "WEBP"):
        options |= {"quality": 100, "subsampling": 0} if format == "JPEG" else {"lossless": True}
    photograph = read(encoded(image, format, **options), size=32)
    seen = [photograph.pixels[y, x] for y in (4, 28) for x in (4, 28)]
    np.testing.assert_allclose(seen, [COLOURS[letter] for letter in "RGBW"], atol=JPEG_ROUNDING)
    assert photograph.original_size == (64, 32)
    # Pillow turns TIFFs by itself, so Keras reads them turned too, and there is nothing to note.
    assert photograph.notes == (() if orientation == 1 or format == "TIFF" else ("turned by EXIF",))


def test_broken_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    upright = encoded(corners("RGBW", 16, 16), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")
    assert tuple(read(upright, size=2).pixels[0, 1]) == GREEN
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    turned = encoded(corners(STORED[3], 16, 16), "PNG", exif=exif)
    monkeypatch.setattr(Image.Exif, "tobytes", lambda *_: 1 / 0)  # a turn is a turn, whether Pillow can write it or not
    assert tuple(read(turned, size=2).pixels[0, 1]) == GREEN


F1, F255 = "floats from 0 to 1 scaled to 8 bit", "floats from 0 to 255 scaled to 8 bit"


@pytest.mark.parametrize(
    ("data", "expected", "note"),
    [
        (encoded(Image.fromarray(np.array([[300, 65400]] * 2, np.uint16)), "PNG"), (1, 254), "16 bit scaled to 8"),
        (tiff(2, 2, 12, 1, bytes([0xFF, 0xF0, 0x00] * 2)), (255, 0), "12 bit scaled to 8"),
        (tiff(2, 2, 16, 1, struct.pack("<4H", 65535, 0, 65535, 0)), (255, 0), "16 bit scaled to 8"),
        (tiff(2, 2, 16, 0, struct.pack("<4H", 65535, 257, 65535, 257)), (0, 254), "16 bit scaled to 8"),  # white is 0
        (tiff(2, 2, 8, 0, bytes([255, 1] * 2)), (0, 254), ""),
        (tiff(2, 2, 32, 1, struct.pack("<4i", 65535, 257, 65535, 257), kind=2), (255, 1), "16 bit scaled to 8"),
        (tiff(2, 2, 32, 1, struct.pack("<4i", 200, 7, 200, 7), kind=2), (200, 7), ""),
        (b"P5 2 2 1023\n" + struct.pack(">4H", 1023, 0, 1023, 0), (255, 0), "16 bit scaled to 8"),
        (b"P5 2 2 65535\n" + struct.pack(">4H", 255, 0, 255, 0), (1, 0), "16 bit scaled to 8"),  # it says so: dark
        (tiff(2, 2, 32, 1, struct.pack("<4f", 1, 0.5, 1, 0.5), kind=3), (255, 128), F1),
        (tiff(2, 2, 32, 1, struct.pack("<4f", 254.6, 0.2, 2, 2), kind=3), (255, 0), F255),
    ],
)
def test_wide_grey_is_scaled_not_clipped(data: bytes, expected: tuple[int, int], note: str) -> None:
    photograph = read(data, size=2)
    assert [tuple(pixel) for pixel in photograph.pixels[0]] == [(value,) * 3 for value in expected]
    assert photograph.notes == ((note,) if note else ())


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
def test_numbers_that_are_no_brightness(data: bytes, problem: str) -> None:
    with pytest.raises(ImageError, match=problem):
        read(data)


def palette(format: str, alpha: bytes | int) -> bytes:
    image = flat(0, "P")
    image.putpalette([*RED, *BLUE])
    return encoded(image, format, transparency=alpha)


PINK = (255, 127, 127)  # red at 128/255 on white: 255 · 127/255
TRANSPARENT: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "RGBA PNG": (encoded(flat((*RED, 128), "RGBA"), "PNG"), PINK),
    "RGBA WebP": (encoded(flat((*RED, 128), "RGBA"), "WEBP", lossless=True), PINK),
    "RGBA TIFF": (encoded(flat((*RED, 128), "RGBA"), "TIFF"), PINK),
    "RGBA 16 bit": (png(8, 8, 16, 6, struct.pack(">4H", 65535, 0, 0, 32896) * 8), PINK),
    "all clear": (encoded(flat((*BLACK, 0), "RGBA"), "PNG"), WHITE),
    "LA": (encoded(flat((0, 128), "LA"), "PNG"), (127, 127, 127)),
    "palette, alphas": (palette("PNG", b"\x80\xff"), PINK),
    "palette, one colour": (palette("PNG", 0), WHITE),
    "GIF": (palette("GIF", 0), WHITE),
    "grey and a clear grey": (encoded(flat(9, "L"), "PNG", transparency=9), WHITE),
    "colour and a clear colour": (encoded(flat(RED), "PNG", transparency=RED), WHITE),
    "16 bit and a clear grey": (png(8, 8, 16, 0, b"\x12\x34" * 8, png_chunk(b"tRNS", b"\x12\x34")), WHITE),
}
OPAQUE: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "alpha that is full": (encoded(flat((*RED, 255), "RGBA"), "PNG"), RED),
    "another clear colour": (encoded(flat(RED), "PNG", transparency=BLUE), RED),
    # The clear colour is (256, 256, 256) of 65535. Cut to its low byte, as Pillow does, it would be black.
    "another clear colour, 16 bit": (
        png(8, 8, 16, 2, bytes(6 * 8), png_chunk(b"tRNS", struct.pack(">3H", 256, 256, 256))),
        BLACK,
    ),
}


@pytest.mark.parametrize("case", [*TRANSPARENT, *OPAQUE])
def test_alpha_is_flattened_on_white(case: str) -> None:
    data, expected = {**TRANSPARENT, **OPAQUE}[case]
    photograph = read(data)
    assert only_colour(photograph) == expected
    assert ("alpha flattened on white" in photograph.notes) == (case in TRANSPARENT)
    assert case in TRANSPARENT or photograph.notes == ()


PLAIN: dict[str, tuple[bytes, tuple[int, int, int], int]] = {
    "BMP": (encoded(flat((10, 20, 30)), "BMP"), (10, 20, 30), 0),
    "PPM": (encoded(flat((10, 20, 30)), "PPM"), (10, 20, 30), 0),
    "JPEG 2000": (encoded(flat((10, 20, 30)), "JPEG2000"), (10, 20, 30), 0),
    "grey JPEG": (encoded(flat(100, "L"), "JPEG", quality=100), (100, 100, 100), 1),
    "1 bit": (encoded(flat(1, "1"), "PNG"), WHITE, 0),
    "2 bit": (png(8, 8, 2, 0, bytes([0b01010101] * 2)), (85, 85, 85), 0),
    "16 bit colour": (png(8, 8, 16, 2, struct.pack(">3H", 65535, 32896, 0) * 8), (255, 128, 0), 0),
    "palette": (palette("PNG", b"\xff\xff"), RED, 0),
    "CMYK JPEG": (encoded(flat((255, 0, 0, 51), "CMYK"), "JPEG", quality=100), (0, 204, 204), 2),
    "CMYK TIFF": (tiff(1, 1, (8, 8, 8, 8), 5, bytes([255, 0, 0, 51])), (0, 204, 204), 0),  # cyan, black: 255 · 0.8
    "YCbCr": (tiff(1, 1, (8, 8, 8), 6, bytes([76, 85, 255])), RED, 2),  # BT.601: 0.299 · 255 is 76
    "LAB white": (tiff(1, 1, (8, 8, 8), 8, bytes([255, 0, 0])), WHITE, 1),
    "LAB red": (tiff(1, 1, (8, 8, 8), 8, bytes([138, 81, 70])), RED, 6),  # red in D50: 54.3, 80.8, 69.9; coarse
}


@pytest.mark.parametrize("case", PLAIN)
def test_formats_and_modes(case: str) -> None:
    data, expected, tolerance = PLAIN[case]
    photograph = read(data)
    np.testing.assert_allclose(only_colour(photograph), expected, atol=tolerance)
    assert photograph.notes == ()


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_first_frame(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {"quality": 100, "subsampling": 0} if format == "MPO" else {}
    photograph = read(encoded(flat(RED), format, save_all=True, append_images=[flat(GREEN), flat(BLUE)], **options))
    np.testing.assert_allclose(only_colour(photograph), RED, atol=JPEG_ROUNDING if format == "MPO" else 0)
    assert photograph.notes == ("first frame of 3",)


def test_the_frames_of_an_mpo_are_counted_and_a_jpeg_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though both begin alike."""
    opened, original = [], decoding.Image.open
    monkeypatch.setattr(decoding.Image, "open", lambda *of, **more: opened.append(of) or original(*of, **more))
    for kind, notes, times in (("MPO", ("first frame of 2",), 2), ("JPEG", (), 1)):
        file = io.BytesIO()
        picture = Image.new("RGB", (8, 8), "red")
        picture.save(file, kind, **({"save_all": True, "append_images": [picture]} if kind == "MPO" else {}))
        opened.clear()
        assert images.load_bytes(file.getvalue(), name="a.jpg", size=8).notes == notes
        assert len(opened) == times


def adobe_rgb_to_srgb(colour: tuple[int, int, int]) -> list[float]:
    """On paper: both spaces share the white point and the red and blue primaries; only green differs."""
    r, g, b = (np.array(colour) / 255) ** 2.19921875
    linear = np.clip([1.39836 * r - 0.39836 * g, g, -0.04293 * g + 1.04293 * b], 0, 1)
    return [255 * float(12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055) for v in linear]


@pytest.mark.parametrize("colour", [(128, 128, 128), (200, 100, 50), (60, 200, 90), (10, 20, 250)])
def test_colour_profile_is_honoured(colour: tuple[int, int, int]) -> None:
    profile = profile_of("rocket.jpg")
    photograph = read(encoded(flat(colour), "PNG", icc_profile=profile))
    np.testing.assert_allclose(only_colour(photograph), adobe_rgb_to_srgb(colour), atol=2)  # 8-bit tables
    assert photograph.notes == ("ICC profile converted to sRGB",)
    assert only_colour(read(encoded(flat((*colour, 0), "RGBA"), "PNG", icc_profile=profile))) == WHITE


def test_grey_profile_is_honoured() -> None:
    profile = profile_of("page.png")  # Dot Gain 20%: half ink prints as 70% ink, 30% light is left
    photograph = read(encoded(flat(128, "L"), "PNG", icc_profile=profile))
    expected = 255 * (1.055 * 0.3 ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(only_colour(photograph), [expected] * 3, atol=2)
    assert only_colour(read(encoded(flat((128, 255), "LA"), "PNG", icc_profile=profile))) == only_colour(photograph)


def test_srgb_profile_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    photograph = read(encoded(Image.fromarray(pixels), "PNG", icc_profile=profile_of("chelsea.png")), size=64)
    np.testing.assert_array_equal(photograph.pixels, pixels)
    assert photograph.notes == ()


@pytest.mark.parametrize("profile", [b"garbage", b"\0" * 200, "grey"])
def test_unusable_profile_is_ignored(profile: bytes | str) -> None:
    used = profile_of("page.png") if isinstance(profile, str) else profile  # a good one, but not for colour
    photograph = read(encoded(flat((10, 20, 30)), "PNG", icc_profile=used))
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
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 0, 3), np.uint8), "empty"),
        (np.zeros((4, 4), np.uint16), "uint16"),
        (np.full((4, 4), None), "object"),
        (np.full((4, 4), np.nan), "NaN"),
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
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    data = encoded(flat(RED), "PNG", save_all=True, append_images=[corners("RRBB", 8, 8)], exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        image.seek(1)
        info, pixels = dict(image.info), image.tobytes()
        photograph = images.load(image, size=8)
        assert (tuple(photograph.pixels[0, 0]), tuple(photograph.pixels[7, 7])) == (BLUE, RED)
        assert (image.tell(), image.info, image.tobytes()) == (1, info, pixels)
    assert (photograph.name, photograph.path) == ("image", None)
    premultiplied = images.load(flat((64, 128), "La"), size=8)  # 64 of 128: grey 128 (rounded), half covering white
    assert only_colour(premultiplied)[0] == pytest.approx(64 + 127, abs=1)
    lazy = encoded(flat(RED, size=(64, 64)), "PNG")
    with pytest.raises(ImageError, match="<image>"):
        images.load(Image.open(io.BytesIO(lazy[: len(lazy) // 2])))


def test_neither_file_nor_picture() -> None:
    for source in (3, None, b"photo.jpg", [[0]]):
        with pytest.raises(ImageError, match="not a file, a NumPy array or a Pillow image"):
            images.load(source)  # type: ignore[arg-type]
    for options in ({"resize": "bicubic"}, {"size": 0}, {"size": -1}, {"size": 224.0}, {"size": 10**6}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is ") as caught:
            images.load(np.zeros((4, 4), np.uint8), **options)  # type: ignore[arg-type]
        assert not isinstance(caught.value, ImageError)


def test_threads_decode_at_once_and_leave_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [data for data, *_ in (*TRANSPARENT.values(), *PLAIN.values())] + list(FILES.values())
    cases += [encoded(NOISE, "PNG", icc_profile=profile_of("rocket.jpg"))]
    one_by_one = [read(data) for data in cases]
    both_inside, decoded = threading.Barrier(2), decoding.decoded

    def together(data: bytes, notes: list[str]) -> Image.Image:
        both_inside.wait(timeout=20)  # for ever, if one waited for the other to be done
        return decoded(data, notes)

    monkeypatch.setattr(decoding, "decoded", together)
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as threads:
        warnings.simplefilter("error", append=True)
        before = list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        side_by_side = list(threads.map(read, cases * 4))
        assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before
    for alone, beside in zip(one_by_one * 4, side_by_side, strict=True):
        np.testing.assert_array_equal(beside.pixels, alone.pixels)
        assert beside.notes == alone.notes
