"""What of a photograph a network sees: the resize, its crop, and the way back to the photograph's own grid."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from PIL import Image

RESIZES = ("lab", "torchvision")
"""lab: Keras's ``load_img``, nearest neighbour, aspect ratio ignored. torchvision: enlarged crop, bilinear, then its centre."""

AS_IT_IS = "none"
"""In place of a resize: the photograph's own size, for those who resize it themselves."""

AT = ("input", "photograph")
"""Where maps are shown: on what the network saw, or on the photograph, at its own size and shape."""

LARGEST = 4096
"""Longest side of a network's input, pixels."""

Size: TypeAlias = "int | tuple[int, int]"
"""Of a network's input, pixels: the side of a square, or (height, width)."""

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom, in a photograph's pixels, which need not be whole."""

UNKNOWN = (
    "maps cannot be laid over the photograph itself: preprocess is a function, and nobody knows what it saw of it; "
    "give preprocess caffe or torchvision, or show maps at the input"
)


class FramingError(ValueError):
    """A map that cannot be laid over its photograph; the message says why."""


def sides(size: Any) -> tuple[int, int]:
    """(height, width) of a network's input.

    Raises:
        ValueError: it is neither a number of pixels nor two of them, or too large.
    """
    pair = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in pair)
    if not whole or not 1 <= min(pair) <= max(pair) <= LARGEST:
        raise ValueError(f"size is a number of pixels from 1 to {LARGEST}, or (height, width), not {size!r}")
    return int(pair[0]), int(pair[1])


def checked_size(size: Any) -> Size:
    """The size as a number where it is a square, else as (height, width); errors as `sides`."""
    height, width = sides(size)
    return height if height == width else (height, width)


def checked_at(at: str) -> str:
    """One of `AT`.

    Raises:
        ValueError: another word.
    """
    if at not in AT:
        raise ValueError(f"at {at!r}: give {' or '.join(AT)}")
    return at


def usual_resize(input: object) -> str:
    """The resize that belongs to an input where none is asked for: one of `RESIZES`.

    Args:
        input: `torchvision`, whose networks were trained on crops; all else is squeezed, as the lab does.
    """
    return "torchvision" if input == "torchvision" else "lab"


def resized(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    """RGB of any size → RGB of (height, width).

    Matches: keras.utils.load_img(target_size=size) for "lab"; for "torchvision" and a square torchvision's Resize and
        CenterCrop on Pillow images, their roundings included.
    """
    height, width = size
    if resize == AS_IT_IS:
        return image
    if resize == "lab":
        return image.resize((width, height), Image.Resampling.NEAREST)
    enlarged, (left, top) = _crop(image.size, size)
    return image.resize(enlarged, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def _crop(original: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """torchvision's way: (width, height) to which a photograph is brought, and (left, top) of the crop in it.

    The photograph covers 256/224 of the input's height and width, and is no larger than that takes.
    """
    height, width = (round(256 * side / 224) for side in size)
    if original[0] * height <= original[1] * width:
        enlarged = width, int(width * original[1] / original[0])
    else:
        enlarged = int(height * original[0] / original[1]), height
    return enlarged, (round((enlarged[0] - size[1]) / 2), round((enlarged[1] - size[0]) / 2))


def seen(original: tuple[int, int], size: tuple[int, int], resize: str) -> Box:
    """What of a photograph of (width, height) the network sees, at an input of (height, width)."""
    if resize != "torchvision":
        return 0.0, 0.0, float(original[0]), float(original[1])
    (width, height), (left, top) = _crop(original, size)
    across, down = original[0] / width, original[1] / height
    return left * across, top * down, (left + size[1]) * across, (top + size[0]) * down


def laid_over(values: np.ndarray, box: Box, original: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """A map (h, w) on the grid of its photograph: (H, W), NaN where the network saw nothing.

    A map's value stands in the middle of its pixel, and covers what that pixel covered of the photograph; between the
    middles it is bilinear, beyond the outermost ones constant. Where the photograph is the coarser grid, a pixel is the
    weighted mean of what lies in it: Pillow's bilinear resize.

    Args:
        values: of the network's input.
        box: which part of the photograph that was.
        original: (width, height) of the photograph, in whose pixels the box is.
        shape: (H, W) wanted: the photograph's own, or a smaller picture's of it.
    """
    across, down = shape[1] / original[0], shape[0] / original[1]
    rows = _weights(shape[0], box[1] * down, box[3] * down, values.shape[0])
    columns = _weights(shape[1], box[0] * across, box[2] * across, values.shape[1])
    laid: np.ndarray = rows.astype(values.dtype) @ values @ columns.astype(values.dtype).T
    return laid


def _weights(count: int, start: float, stop: float, cells: int) -> np.ndarray:
    """Weights (count, cells) of a line's cells in each of its pixels, of which `start` to `stop` were seen; NaN elsewhere."""
    middles = np.arange(count) + 0.5
    scale = cells / (stop - start)
    distances = np.abs((middles[:, None] - start) * scale - 0.5 - np.arange(cells))
    weights: np.ndarray = np.clip(1 - distances / max(1.0, scale), 0, None)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    weights[(middles < start) | (middles > stop)] = np.nan
    return weights
