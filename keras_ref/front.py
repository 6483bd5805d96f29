"""The layers at a model's input that only scale and crop: the network starts behind them, and NumPy does their work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_ref.rows import affine_of, kind_of

SCALING = ("Rescaling", "Normalization")


@dataclass(eq=False)
class Front:
    """What is left out at the input.

    Attributes:
        shape: (H, W, C) behind it.
        pictures: (H, W) of the pictures that are cropped to it.
        corner: (top, left) of what is kept of the picture.
        scale, offset: of each channel, float64.
        layers: names of those layers.
        taken: those layers, until they are let go.
        resized: whether a layer that resizes is among them.
    """

    shape: tuple[int, int, int]
    pictures: tuple[int, int]
    corner: tuple[int, int] = (0, 0)
    scale: np.ndarray = field(default_factory=lambda: np.ones(1))
    offset: np.ndarray = field(default_factory=lambda: np.zeros(1))
    layers: list[str] = field(default_factory=list)
    taken: list[Any] = field(default_factory=list)
    resized: bool = False

    def takes(self, layer: Any, name: str) -> bool:
        """Leave the next layer out, if it is one of these; whether it was.

        Args:
            layer: of Keras.
            name: in the table.
        """
        kind, (height, width, channels) = type(layer).__name__, self.shape
        if kind in SCALING:
            scale, offset = affine_of(layer)
            if max(scale.size, offset.size) not in (1, channels):  # one for each pixel
                return False
            self.scale, self.offset = self.scale * scale, self.offset * scale + offset
        elif kind == "Cropping2D":
            (top, bottom), (left, right) = layer.cropping
            self._crop(top, left, height - top - bottom, width - left - right)
        elif kind == "CenterCrop" and height >= layer.height and width >= layer.width:
            self._crop((height - layer.height) // 2, (width - layer.width) // 2, layer.height, layer.width)
        elif kind in ("CenterCrop", "Resizing") and self.corner == (0, 0):
            self.pictures, self.resized = (layer.height, layer.width), True
            self._crop(0, 0, *self.pictures)
        else:
            return kind_of(layer)[0] in ("identity", "dropout")
        self.layers.append(name)
        self.taken.append(layer)
        return True

    def _crop(self, top: int, left: int, height: int, width: int) -> None:
        self.corner = (self.corner[0] + top, self.corner[1] + left)
        self.shape = (height, width, self.shape[2])

    @property
    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Scale and offset of each channel; empty where nothing is left out."""
        if not self.layers:
            return (), ()
        scale, offset = (np.broadcast_to(values, (self.shape[2],)) for values in (self.scale, self.offset))
        return tuple(scale.tolist()), tuple(offset.tolist())

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader should know of it."""
        if not self.layers:
            return ()
        remark = f"what is explained starts behind {', '.join(self.layers)}: their work is done in NumPy, in float64"
        return (remark + "; photographs are made their size by Keras's load_img" * self.resized,)
