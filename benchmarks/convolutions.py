"""Each convolution by either of two operations that give the same numbers up to rounding: which one is faster here?

A 3×3 convolution of stride 1 is the input gradient of another one, whose kernel is turned: its channel axes exchanged, its
spatial axes flipped. cuDNN has kernels of its own for each. So every forward pass and every input gradient can be had in two
ways; both are timed for each convolution of the network, and then the whole network with the faster one in each place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Bench
from parity.contract.layers import LayerTable
from parity.contract.network import Network
from torch_impl.capture.one_pass import OnePass
from torch_impl.network import prepared
from torch_impl.precision import dtype_of, numerics
from torch_impl.score import Classifier

FORWARD, GRADIENT = "forward", "input gradient"
"""The directions; each of them is also an operation, the usual one of this direction: see `convolve`."""

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}

MARGIN = 0.97
"""The other operation is taken where it needs less than this part of the usual one's time."""

Row = dict[str, Any]
"""`layer, module, shape` (of the output, channels last), `direction, operations` (multiplications and additions of the call);
`seconds`: operation → median of one call; `taken`: the operation that is faster."""


def turned(kernel: Tensor) -> Tensor:
    """Of a kernel (out, in, 3, 3), the kernel (in, out, 3, 3) of the convolution that is its input gradient."""
    layout = torch.channels_last if kernel.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return kernel.transpose(0, 1).flip(2, 3).contiguous(memory_format=layout)


def convolve(x: Tensor, kernel: Tensor, kernel_turned: Tensor, operation: str, bias: Tensor | None = None) -> Tensor:
    """`x` convolved with `kernel`, stride 1, padding 1: as a forward pass, or as the input gradient of the turned kernel."""
    if operation == FORWARD:
        return F.conv2d(x, kernel, bias, padding=1)
    return F.conv_transpose2d(x, kernel_turned, bias, padding=1)


def time_layers(table: LayerTable, batch: int, bench: Bench) -> list[Row]:
    """Time every convolution of a network.

    Args:
        table: the network's layers.
        batch: pictures in one call.
        bench: where.
    """
    rows: list[Row] = []
    for layer in (layer for layer in table.layers if layer.kind == "conv"):
        height, width, channels = layer.shape
        kernel = bench.random(channels, table[layer.inbound[0]].shape[-1], 3, 3)
        for direction, other in ((FORWARD, GRADIENT), (GRADIENT, FORWARD)):
            first, second = (kernel, turned(kernel)) if direction == FORWARD else (turned(kernel), kernel)
            x = bench.random(batch, first.shape[1], height, width)
            seconds = {name: bench.seconds(partial(convolve, x, first, second, name)) for name in (direction, other)}
            row: Row = {
                "layer": layer.name,
                "module": next(iter(layer.tensors)).removesuffix(".weight"),
                "shape": layer.shape,
            }
            row |= {"direction": direction, "operations": 2 * batch * kernel.numel() * height * width}
            taken = other if seconds[other] < MARGIN * seconds[direction] else direction
            rows.append({**row, "seconds": seconds, "taken": taken})
    return rows


class _Convolved(torch.autograd.Function):
    """A frozen convolution whose directions are each computed by a given operation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, kernel_turned: Tensor, bias: Tensor, taken: dict[str, str]
    ) -> Tensor:
        ctx.kernel, ctx.kernel_turned, ctx.operation = kernel, kernel_turned, taken[GRADIENT]
        return convolve(x, kernel, kernel_turned, taken[FORWARD], bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return convolve(gradient, ctx.kernel_turned, ctx.kernel, ctx.operation), None, None, None, None


class Mixed(nn.Module):
    """A frozen 3×3 convolution in the place of another: the same kernel and bias, each direction by the operation given."""

    def __init__(self, convolution: nn.Conv2d, taken: dict[str, str]) -> None:
        super().__init__()
        self.kernel, self.bias, self.taken = convolution.weight, convolution.bias, taken
        self.kernel_turned = turned(convolution.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        y: Tensor = _Convolved.apply(x, self.kernel, self.kernel_turned, self.bias, self.taken)  # type: ignore[no-untyped-call]
        return y


def mix(model: nn.Module, rows: Sequence[Row]) -> None:
    """Put the faster operation in each place of a network."""
    for name in dict.fromkeys(row["module"] for row in rows):
        convolution = model.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        taken = {row["direction"]: row["taken"] for row in rows if row["module"] == name}
        model.set_submodule(name, Mixed(convolution, taken))


def measure(bench: Bench, network: Network, batch: int) -> dict[str, Any]:
    """Every layer, then the whole network.

    Returns:
        `layers`, of `Row`; `usual_s`, `mixed_s`: seconds a photograph, forward and backward to the input;
        `gradients_differ`, `logits_differ`: norm of the difference over the norm.
    """
    with numerics(bench.precision):
        with torch.no_grad():
            rows = time_layers(network.table, batch, bench)
        model = prepared(network, torch.device(bench.device), dtype_of(bench.precision))
        model = model.to(memory_format=bench.layout)  # type: ignore[call-overload]  # missing in torch's types
        inputs = 50 * bench.random(batch, 3, *network.table.size)  # about as far from 0 as photographs
        usual_s, *expected = _whole(bench, model, inputs)
        mix(model, rows)
        mixed_s, *values = _whole(bench, model, inputs)
    gradients, logits = (float((b - a).norm() / a.norm()) for a, b in zip(expected, values, strict=True))
    whole = {"usual_s": usual_s, "mixed_s": mixed_s, "gradients_differ": gradients, "logits_differ": logits}
    return {"layers": rows, **whole}


def _whole(bench: Bench, model: nn.Module, inputs: Tensor) -> tuple[float, Tensor, Tensor]:
    """Seconds a photograph of a forward and backward pass to the input; its gradients; the logits."""
    target = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    work = partial(OnePass(Classifier(model), None).input_gradients, inputs, target)
    with torch.no_grad():
        logits = model(inputs)
    return bench.seconds(work) / len(inputs), work(), logits
