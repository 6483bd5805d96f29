"""Dense layers on a CPU, by oneDNN: PyTorch's own product of a few long rows takes two to four times as long.

VGG16's first dense layer is 411 MB of weights. For 4 rows of 25,088 PyTorch's `linear` (MKL) took 48 ms on two cores of an AMD
EPYC and oneDNN 20 ms, which is about as fast as the weights can be read; its input's gradient 50 and 21 ms.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dense(nn.Linear):
    """`nn.Linear`, the same weights under the same names; frozen in float32 on a CPU it is computed by oneDNN."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if (
            input.ndim == 2
            and input.dtype == self.weight.dtype == torch.float32
            and input.device.type == "cpu"
            and not self.weight.requires_grad
            and not torch.compiler.is_compiling()
            and _available()
            and not torch._C._are_functorch_transforms_active()
        ):
            product: Tensor = _Product.apply(input, self.weight)  # type: ignore[no-untyped-call]
            return product if self.bias is None else product + self.bias
        return F.linear(input, self.weight, self.bias)


def _available() -> bool:
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _one_dnn(rows: Tensor, weight: Tensor) -> Tensor:
    """rows · weightᵀ. The operator is what PyTorch's compiler calls for a dense layer; it has no gradient of its own."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows.contiguous(), weight, None, "none", [], "")
    return product


class _Product(torch.autograd.Function):
    """x · weightᵀ, with the gradient to x and none to the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return _one_dnn(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Product.apply(gradient, ctx.weight.t()), None  # type: ignore[no-untyped-call]  # itself differentiable
