"""Bytes and arrays → a Pillow picture → RGB, as a viewer shows it. Pillow does it; its surprises are named here."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are tried, by content and not by suffix. All raster, none runs another program."""

MAX_RATIO = 50
"""Longest picture, in widths (or widest, in heights): panoramas stay below 20; beyond this, nothing would be seen."""

_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


class RefusedError(Exception):
    """Why a picture is refused; its name is not known here."""


def check_shape(width: int, height: int) -> None:
    """Refuses what is no picture to look at, before it is decoded or enlarged.

    Raises:
        RefusedError: It has no pixel, or is longer than `MAX_RATIO`.
    """
    if max(width, height) < 1 or max(width, height) > MAX_RATIO * min(width, height):
        problem = f"empty, or one side over {MAX_RATIO} times the other: crop it"
        raise RefusedError(f"{width} x {height} pixels: {problem}")


def decoded(data: bytes, notes: list[str]) -> Image.Image:
    """Decodes the first frame.

    Args:
        data: What a photograph's file holds.
        notes: A line is added where there are more frames.

    Returns:
        The picture, of any mode.

    Raises:
        RefusedError: It is of no format in `FORMATS`, or of an absurd shape.
        Exception: It is damaged: whatever Pillow raises.
    """
    Image.init()  # formats that this Pillow was built without are absent, and asking for them would be a KeyError
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        if data[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"):
            raise RefusedError("an HEIC photograph, which Pillow does not read: export it as JPEG") from None
        known = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000 or PPM"
        raise RefusedError(f"not a photograph that can be read: damaged, or not {known}") from None
    check_shape(*image.size)
    image.load()

    if image.format != "JPEG":  # which has one: of several it would be an MPO
        # Counted in a copy: counting moves away from the first frame, over others that may be broken.
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=formats) as copy:
            frames = getattr(copy, "n_frames", 1)
            if frames > 1:
                notes.append(f"first frame of {frames}")
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:
        # A 16-bit PNG: Pillow keeps the high byte of the pixels, but all of their transparent colour.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def from_array(array: NDArray[Any], notes: list[str]) -> Image.Image:
    """Takes (H, W), (H, W, 3) or (H, W, 4) of uint8 in [0, 255] or floats in [0, 1] for a picture.

    Args:
        array: The values.
        notes: A line is added where floats were scaled.

    Returns:
        The picture: L, RGB or RGBA.

    Raises:
        RefusedError: It is of another shape, type or range.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise RefusedError(f"an array of shape {array.shape}: pictures are (H, W), (H, W, 3) or (H, W, 4)")
    check_shape(array.shape[1], array.shape[0])
    if np.issubdtype(array.dtype, np.floating):
        array = _scaled_floats(array, (1,), notes)
    elif array.dtype != np.uint8:
        raise RefusedError(f"an array of {array.dtype}: pictures are uint8 in [0, 255] or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


def _scaled_floats(values: NDArray[Any], tops: tuple[int, ...], notes: list[str]) -> NDArray[np.uint8]:
    """Maps [0, top] to [0, 255], with the first of ``tops`` that the values stay within."""
    low, high = float(values.min()), float(values.max())  # NaN if there is any
    if not np.isfinite((low, high)).all():
        raise RefusedError("holds NaN or infinity")
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        wanted = " or ".join(f"0 to {top}" for top in tops)
        raise RefusedError(f"holds floats from {low:g} to {high:g}, not {wanted}: scale them, or export it as 8 bit")
    notes.append(f"floats from 0 to {top} scaled to 8 bit")
    return np.rint(values * np.float32(255 / top)).astype(np.uint8)


# What a viewer shows


def as_seen(image: Image.Image, notes: list[str]) -> Image.Image:
    """Decoded picture of any mode → RGB, as a viewer shows it.

    Args:
        image: The picture; it stays as it is.
        notes: A line is added for each thing done.

    Returns:
        The picture in RGB.

    Raises:
        RefusedError: Its numbers are no brightness.
    """
    profile = image.info.get("icc_profile")
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bit(image, notes)
    image = _turned(image, notes)
    if image.mode in ("La", "RGBa"):  # premultiplied; Pillow leads from there to nothing but its plain sister
        image = image.convert(image.mode.upper())
    alpha = None
    if image.has_transparency_data:
        if image.mode == "P":
            image = image.convert("RGBA")  # all of it, or Pillow warns
        alpha = (image if image.mode == "RGBA" else image.convert("RGBA")).getchannel("A")
    is_lab = image.mode == "LAB"  # its colours are absolute, whatever profile lies beside them
    mode = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    if image.mode != mode:
        image = image.convert(mode)
    if profile and not is_lab:
        image = _to_srgb(image, profile, notes)
    if image.mode != "RGB":
        image = image.convert("RGB")

    if alpha is not None and alpha.getextrema() != (255, 255):
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        image = white
        notes.append("alpha flattened on white")
    return image


def _turned(image: Image.Image, notes: list[str]) -> Image.Image:
    """Turned by its EXIF tag; upright where the EXIF data are broken. TIFFs come out of Pillow turned already."""
    with contextlib.suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
            image = image.copy()
            notes.append("turned by EXIF")
            ImageOps.exif_transpose(image, in_place=True)  # turns, then fails if the other tags cannot be written back
    return image


def _eight_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """Scales 16 bits, 12 bits and floats to 8 bits, where Pillow's own conversion would clip them."""
    if image.mode == "F":
        return Image.fromarray(_scaled_floats(np.asarray(image), (1, 255), notes))
    tags = getattr(image, "tag_v2", {})
    wide = image.convert("I")
    low, high = np.asarray(wide).min(), np.asarray(wide).max()
    if low < 0 or high > 65535:
        raise RefusedError(f"holds integers from {low} to {high}, not 0 to 65535: export it as 8 or 16 bit")
    if image.mode == "I" and image.format != "PPM" and high <= 255:
        top = 255  # 32-bit integers say nothing of their range; nobody means one that is all but black
    else:
        top = 4095 if tags.get(_TIFF_BITS) == (12,) else 65535
        notes.append(f"{12 if top == 4095 else 16} bit scaled to 8")
    table = [min(255, round(value * 255 / top)) for value in range(65536)]
    if image.mode != "I" and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow sees to that up to 8 bits only
        table = [255 - value for value in table]
    grey = wide.point(table, "L")
    key = grey.info.pop("transparency", None)  # in 16 bits, so it must be applied before they are gone
    if key is not None:
        grey.putalpha(wide.point([0 if value == key else 255 for value in range(65536)], "L"))
    return grey


def _to_srgb(image: Image.Image, icc: bytes, notes: list[str]) -> Image.Image:
    """Applies a colour profile to an L, RGB or CMYK picture, unless it is sRGB already.

    That is told by what it does to a probe of all colours, for there are dozens of sRGB profiles under all sorts of names.
    They differ by the rounding of their tables, 1 of 255 in the common one (sRGB IEC61966-2.1); Adobe RGB by 100.
    """
    try:
        profile, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
        if image.mode == "L" and profile.profile.xcolor_space.strip() == "RGB":
            image = image.convert("RGB")
        if image.mode != "CMYK":
            probe = _probe(image.mode)
            shown = ImageCms.profileToProfile(probe, profile, srgb, outputMode="RGB")
            if np.abs(np.asarray(shown, np.int16) - np.asarray(probe.convert("RGB"), np.int16)).max() <= 2:
                return image
        converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
        assert converted is not None  # None is for in-place use
    except Exception:  # broken, for another kind of picture, or a Pillow without LittleCMS: viewers show it plain
        notes.append("unusable ICC profile ignored")
        return image
    notes.append("ICC profile converted to sRGB")
    return converted


def _probe(mode: str) -> Image.Image:
    """Colours that span an L or RGB picture's."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[np.newaxis])
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(ramp, ramp, ramp, indexing="ij"), axis=-1).reshape(16, 256, 3))
