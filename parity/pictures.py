"""The page's photographs and maps as `data:` addresses, with captions, and with words for those who do not see them."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from parity.report import ParityReport
from parity.tables import error, is_overlay, left_out, part, share, title

MAP_COLOURS = "jet"
"""As the lab draws maps."""

DIFFERENCE_COLOURS = "cividis"
"""Perceptually uniform, and the same to colour-blind readers."""

OVERLAY = 0.5
"""Opacity of a map over its photograph, as the lab draws it."""

LOSSLESS_SIDE = 128
"""Photographs up to this many pixels wide are kept exactly; larger ones become JPEG."""


class Picture(NamedTuple):
    """An image: its `data:` address, and its size in CSS pixels."""

    address: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """A picture of the page, what it shows in words, its caption, and what to be warned of."""

    picture: Picture
    alt: str
    caption: str
    caution: str = ""


def reference(report: ParityReport, method: str, i: int, precision: str) -> Shown:
    """The reference's map in float64 of photograph `i`."""
    values = report.pictures[method, i, precision].reference
    alt = f"{title(method)} of {report.photographs[i].name} by the reference in float64: {described(values)}"
    return Shown(_drawn(report, method, i, values), alt, "Reference", "constant map" if is_constant(values) else "")


def port(report: ParityReport, method: str, i: int, precision: str) -> Shown:
    """The port's map of photograph `i`."""
    values = report.pictures[method, i, precision].candidate
    raw = (f for f in report.figures if (f.stage, f.photograph, f.precision) == (f"{method}/raw", i, precision))
    if any(math.isinf(f.relative_l2) for f in raw):
        caution = "not finite, perhaps drawn as 0"
    else:
        caution = "constant map" if is_constant(values) else ""
    alt = f"{title(method)} of {report.photographs[i].name} by the port in {precision}: {described(values)}"
    return Shown(_drawn(report, method, i, values), alt, f"Port, {precision}", caution)


def difference(report: ParityReport, method: str, i: int, precision: str) -> Shown:
    """|port − reference|, on a scale of its own."""
    pair = report.pictures[method, i, precision]
    with np.errstate(invalid="ignore"):
        apart = np.abs(pair.candidate.astype(np.float64) - pair.reference.astype(np.float64))
    finite = apart[np.isfinite(apart)]
    largest = float(finite.max(initial=0))
    if largest:
        words, mean = f"Difference ≤ {error(largest)}", f"; on average {error(float(finite.mean()))}"
    else:
        words, mean = "No difference" if finite.size == apart.size else "Difference", ""
    caution = "grey where not finite" if finite.size < apart.size else ""
    if left_out(f for f in report.figures if f.photograph == i and part(report, f.stage) == method):
        caution = caution or "every pixel, tied ones too"  # which the verdict leaves out
    what = f"{title(method)} of {report.photographs[i].name}"
    return Shown(
        coloured(apart / largest if largest else apart, DIFFERENCE_COLOURS),
        f"Absolute difference of port ({precision}) and reference, {what}: {words}{mean}",
        words,
        caution,
    )


def described(values: np.ndarray) -> str:
    """What a map (H, W) in [0, 1] shows, in words."""
    finite = np.isfinite(values)
    if not finite.all():
        return f"{share(1 - float(finite.mean()))} of its values are not finite, drawn grey"
    if is_constant(values):
        return "a constant map"
    top, left = np.unravel_index(int(np.argmax(values)), values.shape)
    across, down = round(100 * (left + 0.5) / values.shape[1]), round(100 * (top + 0.5) / values.shape[0])
    half = round(100 * float((values >= 0.5).mean()))
    return f"strongest {across} % from the left and {down} % from the top; {half} % of the area is at half strength or more"


def is_constant(values: np.ndarray) -> bool:
    """Whether every value is the same number."""
    return bool(np.isfinite(values).all() and np.ptp(values) == 0)


def _drawn(report: ParityReport, method: str, i: int, values: np.ndarray) -> Picture:
    """A map in the lab's colours: by itself, or half and half with the photograph."""
    pixels = report.pixels[i]
    if not is_overlay(method) or pixels.shape[:2] != values.shape:
        return coloured(values, MAP_COLOURS)
    mixed = OVERLAY * palette(MAP_COLOURS)[_steps(values)].astype(np.float64) + (1 - OVERLAY) * pixels
    return photographic(np.round(mixed).astype(np.uint8))


def palette(colours: str) -> np.ndarray:
    """uint8 (256, 3): 255 steps of a colour map, and grey for what is not a number."""
    steps = matplotlib.colormaps[colours](np.linspace(0, 1, 255))[:, :3]
    return np.concatenate([np.round(steps * 255), [[128, 128, 128]]]).astype(np.uint8)


def coloured(values: np.ndarray, colours: str) -> Picture:
    """(H, W) in [0, 1] → a palette PNG, exact; grey where a value is not finite."""
    picture = Image.fromarray(_steps(values), "P")
    picture.putpalette(palette(colours).tobytes())
    return _encoded(picture, "PNG", optimize=True)


def photographic(pixels: np.ndarray) -> Picture:
    """uint8 (H, W, 3) → PNG where it is small, else JPEG."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if max(picture.size) <= LOSSLESS_SIDE:
        return _encoded(picture, "PNG", optimize=True)
    return _encoded(picture, "JPEG", quality=88, subsampling=0)  # not optimize: Pillow's buffer is too small for noise


def bar(colours: str) -> Picture:
    """A colour map from left to right."""
    return coloured(np.linspace(0, 1, 255)[None], colours)


def address(content: bytes, kind: str) -> str:
    """An image's bytes as a `data:` address; `kind` as in `image/png`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _steps(values: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] → rows of a palette, uint8; 255 where a value is not finite."""
    finite = np.isfinite(values)
    steps = np.round(np.clip(np.where(finite, values, 0), 0, 1) * 254).astype(np.uint8)
    return np.where(finite, steps, np.uint8(255))


def _encoded(picture: Image.Image, kind: str, **options: Any) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Picture(address(buffer.getvalue(), kind.lower()), *picture.size)
