"""Convolutions in strict float32 on CUDA, each by whichever of two operations cuDNN computes faster.

A 3×3 convolution of stride 1 is the input gradient of another one, whose kernel is turned: its channel axes exchanged, its
spatial axes flipped. cuDNN has kernels of its own for either, and they give the same numbers up to rounding. On an NVIDIA H200
VGG16's forward and backward pass of 64 photographs took 57.7 instead of 87.2 ms with the faster one of each layer.
`python -m benchmarks convolutions` times both operations layer by layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolution(nn.Conv2d):
    """`nn.Conv2d` of 3×3 kernels, stride 1 and padding 1, the same weights under the same names; frozen in float32 on CUDA it is `convolved`."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        if (
            input.is_cuda
            and input.ndim == 4
            and input.dtype == self.weight.dtype == torch.float32
            and not any(parameter.requires_grad for parameter in self.parameters())
            and not torch._C._are_functorch_transforms_active()
        ):
            return convolved(input, self.weight, self.bias)
        return super().forward(input)


def convolved(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """`x` convolved with `kernel`, stride 1, padding 1; with a gradient to `x`, any number of times, and none to the others.

    Args:
        x: (N, in, H, W).
        kernel: (out, in, 3, 3).
        bias: (out,).
    """
    y: Tensor = _Convolved.apply(x, kernel, turned(kernel), bias)  # type: ignore[no-untyped-call]
    return y


def turned(kernel: Tensor) -> Tensor:
    """Of a kernel (out, in, 3, 3), the kernel (in, out, 3, 3) of the convolution that is its input gradient, in the same layout.

    It is made anew in each pass, which takes less than a thousandth of one: kept, VGG16's would be 59 MB more in each double of it.
    """
    last = kernel.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return kernel.transpose(0, 1).flip(2, 3).contiguous(memory_format=layout)


def by_input_gradient(x: Tensor, kernel: Tensor) -> bool:
    """Whether cuDNN's kernel for input gradients is the faster one, by a rule: a clock might choose another one the next time.

    Measured layer by layer on an H200. The layers of VGG16 that this is true for took 9.2 instead of 12.6 ms for 16 photographs and
    17.6 instead of 42.3 for 64, but 9.2 instead of 6.8 for 8 and 7.4 instead of 3.9 for 4. On feature maps of 14×14 it is up to 2.8
    times as slow, between 3 and 64 channels 1.3 to 2 times.
    """
    return len(x) >= 16 and min(kernel.shape[:2]) >= 32 and x.shape[-2] * x.shape[-1] > 14 * 14


class _Convolved(torch.autograd.Function):
    """A convolution, and its input gradient by the same operation: the convolution with the turned kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, kernel_turned: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(kernel_turned, kernel)
        if by_input_gradient(x, kernel):
            return F.conv_transpose2d(x, kernel_turned, bias, padding=1)
        return F.conv2d(x, kernel, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _Convolved.apply(gradients, *ctx.saved_tensors, None), None, None, None  # type: ignore[no-untyped-call]
