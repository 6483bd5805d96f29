"""Modules that are compared with the network `plain`, or cannot be: what `test_twins_refused.py` names with `--torch`."""

from __future__ import annotations

from typing import Any

import numpy as np
from table_blocks import of
from table_twins import Style, TableNet, at
from torch import Tensor, nn


def right() -> nn.Module:
    return TableNet(of("plain")[0])


def wrong() -> nn.Module:
    return TableNet(of("plain")[0], at("stem_bn", epsilon=1e-5))


def untrained() -> nn.Module:
    return TableNet(of("plain")[0], style=Style(untrained=True))


class Around(nn.Module):
    """The right network, and what is made of its output."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.model, self.make = right(), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.model(x))


def one_of_a_tuple() -> nn.Module:
    return Around(lambda logits: (logits,))


def a_dict() -> nn.Module:
    return Around(lambda logits: {"logits": logits, "features": logits[:, :2]})


def two_of_a_tuple() -> nn.Module:
    return Around(lambda logits: (logits, logits))


def a_dict_of_others() -> nn.Module:
    return Around(lambda logits: {"left": logits, "right": logits})


def no_tensor() -> nn.Module:
    return Around(lambda logits: "logits")


def fewer_classes() -> nn.Module:
    return Around(lambda logits: logits[:, :4])


def not_numbers() -> nn.Module:
    return Around(lambda logits: logits * float("nan"))


def raises() -> nn.Module:
    return Around(lambda logits: {}["heads"])


def another_size() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 22 * 22, 6))


def grey() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 18 * 18, 6))


def stranger() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))


def no_module() -> str:
    return "a network"


def fails() -> nn.Module:
    raise FileNotFoundError("weights.pth\nis not here")


def twice_as_large(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, axis=1).repeat(2, axis=2).transpose(0, 3, 1, 2) / 255


def integers(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(0, 3, 1, 2)


def broken(pixels: np.ndarray) -> np.ndarray:
    raise OSError("no mean.npy")
