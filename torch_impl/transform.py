"""Preprocessing by a function of one's own, such as torchvision's transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from parity.contract.text import one_line
from torch_impl.arrays import Images

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[["Image"], Tensor]
"""A picture → one input (C, H, W), as torchvision's transforms are."""


def transformed(transform: Transform, pictures: Iterable[np.ndarray], names: Iterable[object]) -> Images:
    """Pictures uint8 (H, W, 3), each by the function, stacked to inputs (N, C, H, W).

    Raises:
        ValueError: the function gave something else, or another size than before; the message names the picture.
    """
    from PIL import Image as Pillow

    inputs: list[Tensor] = []
    for pixels, name in zip(pictures, names, strict=True):
        try:
            made = transform(Pillow.fromarray(pixels))
        except Exception as error:
            raise ValueError(f"preprocess fails on {name!r}: {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(made, Tensor) or made.ndim != 3 or not made.is_floating_point():
            shape = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"preprocess gave {shape} for {name!r}; expected a floating-point tensor (C, H, W)")
        if inputs and made.shape != inputs[0].shape:
            raise ValueError(
                f"preprocess gave {tuple(made.shape)} for {name!r}, and {tuple(inputs[0].shape)} before; "
                "let it resize to one size, or explain photographs one by one"
            )
        inputs.append(made)
    return torch.stack(inputs)


def visible(inputs: Images) -> np.ndarray:
    """Inputs (N, C, H, W) → uint8 (N, H, W, 3), each image's channels stretched to the whole range.

    What a function did to a picture cannot be undone: its own output is what lies under the map.
    """
    wide = inputs.detach().float()
    low, high = wide.amin(dim=(2, 3), keepdim=True), wide.amax(dim=(2, 3), keepdim=True)
    shown = ((wide - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    shown = shown[:, :3] if shown.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)
    return shown.permute(0, 2, 3, 1).contiguous().cpu().numpy()
