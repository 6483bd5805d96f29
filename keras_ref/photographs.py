"""Photographs as the lab's network sees them: read, made square and preprocessed by Keras."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_ref import KerasRefError
from parity.contract.text import one_line


@dataclass(frozen=True)
class Picture:
    """A photograph before its class is known.

    Attributes:
        pixels: uint8 (H, W, 3), RGB.
        name, sha256, size: see `artifact.Photograph`.
    """

    pixels: np.ndarray
    name: str
    sha256: str
    size: tuple[int, int]


def by_keras(paths: Sequence[str], size: tuple[int, int], channels: int = 3) -> list[Picture]:
    """Read files by Keras's `load_img`: nearest neighbour, the aspect ratio ignored.

    Args:
        paths: of pictures in any format that Pillow knows.
        size: (H, W) of the network's input.
        channels: of the network; 1: the photographs are made grey, three times the same.

    Raises:
        KerasRefError: names every file that is no picture.
    """
    import keras

    pictures, bad = [], []
    for path in paths:
        try:
            color = "grayscale" if channels == 1 else "rgb"
            square = keras.utils.load_img(path, color_mode=color, target_size=size).convert("RGB")
            pictures.append(_named(path, keras.utils.img_to_array(square, dtype="uint8")))
        except Exception as error:  # Pillow raises a dozen kinds on what is not a picture
            bad.append(f"{path!r} ({one_line(error, 120)})")
    if bad:
        raise KerasRefError(f"not a readable picture: {', '.join(bad)}: remove it, or repair it")
    return pictures


def given(file: str, paths: Sequence[str], size: tuple[int, int]) -> list[Picture]:
    """Pixels that somebody else read.

    Args:
        file: an .npz whose array `pixels` is uint8 (N, H, W, 3).
        paths: the photographs that they were, for names and hashes; or none.
        size: (H, W) of the network's input.

    Raises:
        KerasRefError: another kind of file, or pixels that do not fit.
    """
    where = f"--pixels {file!r}"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            pixels = arrays["pixels"]
    except Exception as error:  # NumPy and zipfile raise a dozen kinds on a damaged file
        raise KerasRefError(f"{where}: not an .npz with an array `pixels` ({one_line(error, 120)})") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (*size, 3) or not len(pixels):
        raise KerasRefError(
            f"{where}: pixels are {pixels.dtype} {pixels.shape}, expected uint8 {('N', *size, 3)} for these weights"
        )
    if paths and len(paths) != len(pixels):
        raise KerasRefError(f"{where}: {len(pixels)} photographs, but {len(paths)} are named: name them all or none")
    if paths:
        return [_named(path, array) for path, array in zip(paths, pixels, strict=True)]
    height, width = size
    return [
        Picture(array, f"photograph {i}", hashlib.sha256(array.tobytes()).hexdigest(), (width, height))
        for i, array in enumerate(pixels, start=1)
    ]


def preprocessed(pixels: np.ndarray, kind: str) -> np.ndarray:
    """The network's inputs by Keras's own preprocessing, in the precision of the process.

    Args:
        pixels: uint8 (H, W, 3), or of the type that is to be computed in.
        kind: one of `network.ANY_INPUT`.

    Returns:
        (1, H, W, 3).
    """
    import keras

    if kind == "none":
        return pixels[None].astype(keras.config.floatx())
    mode = "torch" if kind == "torchvision" else kind  # caffe is what `vgg16.preprocess_input` calls
    return np.ascontiguousarray(keras.applications.imagenet_utils.preprocess_input(pixels[None], mode=mode))


def _named(path: str, pixels: np.ndarray) -> Picture:
    from PIL import Image

    with Image.open(path) as picture:
        size = picture.size
    return Picture(pixels, os.path.basename(path), hashlib.sha256(Path(path).read_bytes()).hexdigest(), size)
