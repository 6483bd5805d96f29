"""Pixels → the network's inputs: the channel statistics that the network was trained with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parity.contract.network import INPUTS
from torch_impl.arrays import Images
from torch_impl.precision import sent

CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
TORCHVISION_MEAN_RGB, TORCHVISION_STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocess(
    pixels: NDArray[np.uint8],
    *,
    input: str = "caffe",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Images:
    """Turns pixels into what the network was trained on.

    The bytes are copied to the device, a quarter of the floats, and all else is done there, the arithmetic in float64 for float64
    and in float32 for everything narrower, so that the inputs are Keras's bit for bit.

    Args:
        pixels: uint8 (N, H, W, 3), RGB.
        input: One of `INPUTS`.
        dtype: Floating-point type of the result.
        device: Where the result goes.

    Returns:
        (N, 3, H, W), contiguous. caffe: channels B, G, R in about [-124, 152]. torchvision: R, G, B in about
        [-2.1, 2.7].

    Raises:
        ValueError: ``pixels`` is not uint8 (N, H, W, 3), or ``input`` or ``dtype`` is wrong.

    Matches: keras.applications.vgg16.preprocess_input, in float32 and in float64 (``floatx``), bit for bit;
        torchvision's ToTensor and Normalize in float32, bit for bit.
    """
    if input not in INPUTS:
        raise ValueError(f"input is one of {', '.join(INPUTS)}, not {input!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"inputs are floating-point numbers, not {dtype}")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels are uint8 (N, H, W, 3), not {pixels.dtype} {pixels.shape}")
    values = torch.from_numpy(np.array(pixels, order="C"))  # a copy: torch takes no read-only array
    channels = sent(values, torch.device(device)).permute(0, 3, 1, 2)
    if input == "caffe":
        channels = channels.flip(1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = channels.to(wide, memory_format=torch.contiguous_format)
    if input == "caffe":
        inputs -= _constant(CAFFE_MEAN_BGR, inputs)
    else:
        inputs /= _constant((255.0,), inputs)
        inputs -= _constant(TORCHVISION_MEAN_RGB, inputs)
        inputs /= _constant(TORCHVISION_STD_RGB, inputs)
    return inputs.to(dtype)


def _constant(values: tuple[float, ...], inputs: Tensor) -> Tensor:
    """A number for each channel. A tensor, because CUDA divides by a Python number by multiplying with its inverse."""
    return sent(torch.tensor(values, dtype=inputs.dtype), inputs.device)[:, None, None]
