"""How the port reads photographs, beside how Keras reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from parity.port import Reading
from parity.report import PixelsRow

RESIZES = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "Lanczos": Image.Resampling.LANCZOS,
}
"""What a port may have taken for Keras's nearest neighbour."""


def rows(readings: Iterable[Reading], resize: str, keras: Mapping[str, np.ndarray]) -> list[PixelsRow]:
    """Compare every photograph.

    Args:
        readings: the port's.
        resize: `lab`, or another, which Keras does not know: then nothing is compared.
        keras: sha256 of a file → the reference's own pixels, where it read the file itself; otherwise Pillow reads it as
            Keras's `load_img` does.
    """
    return [_row(i, reading, resize, keras) for i, reading in enumerate(readings)]


def _row(photograph: int, reading: Reading, resize: str, keras: Mapping[str, np.ndarray]) -> PixelsRow:
    if resize != "lab" or reading.path is None:
        notes = (*reading.notes, f"resize {resize}, on both sides")
        return PixelsRow(photograph, math.nan, notes, judged=False, within=True)
    height, width = reading.pixels.shape[:2]
    try:
        with Image.open(reading.path) as image:
            rgb = image.convert("RGB")
    except Exception:  # Keras could not read it at all: then nothing is to be compared
        return PixelsRow(photograph, math.nan, reading.notes, judged=False, within=True)
    resized = {name: np.asarray(rgb.resize((width, height), how)) for name, how in RESIZES.items()}
    nearest = np.asarray(rgb.resize((width, height), Image.Resampling.NEAREST))
    expected = keras.get(reading.sha256, nearest)
    differing = float((expected != reading.pixels).any(axis=-1).mean())
    cause = pixels_cause(reading.pixels, expected, resized) if differing and not reading.notes else ""
    return PixelsRow(photograph, differing, reading.notes, not reading.notes, differing == 0, cause)


def pixels_cause(read: np.ndarray, expected: np.ndarray, resized: Mapping[str, np.ndarray]) -> str:
    """What explains pixels that are not Keras's.

    Args:
        read: uint8 (H, W, 3), the port's.
        expected: Keras's.
        resized: name of a resize → the same photograph by it.
    """
    if np.array_equal(read[..., ::-1], expected):
        return "channel order: BGR for RGB"
    for words, pixels in resized.items():
        if pixels.shape == read.shape and np.abs(pixels.astype(int) - read).mean() < 1:
            return f"resized with {words}: Keras's load_img takes the nearest neighbour and ignores the aspect ratio"
    return "look for another resize, decoder, or colour conversion"
