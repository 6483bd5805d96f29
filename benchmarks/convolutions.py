"""Each convolution by either of two operations that give the same numbers up to rounding: see `torch_impl.convolutions`.

Its rule, which of them is the faster one, was measured on one card: this shows whether it is right on another.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.timing import Bench
from parity.contract.layers import LayerTable
from torch_impl.convolutions import by_input_gradient, turned
from torch_impl.precision import numerics

FORWARD, GRADIENT = "convolution", "input gradient"
"""The operations, by what they are called in PyTorch where a network is run and differentiated."""

Row = dict[str, Any]
"""`channels` (in, out), `size` (of the feature maps), `operations` (multiplications and additions of the call), `seconds`: operation →
median of one call; `chosen`: the operation that `by_input_gradient` chooses."""


def shapes_of(table: LayerTable) -> Iterator[tuple[int, int, int, int]]:
    """(channels in, channels out, height, width) of every convolution, and of its input gradient."""
    for layer in (layer for layer in table.layers if layer.kind == "conv"):
        height, width, channels = layer.shape
        before = table[layer.inbound[0]].shape[-1]
        yield before, channels, height, width
        yield channels, before, height, width


def time_layers(table: LayerTable, batch: int, bench: Bench) -> Iterator[Row]:
    """Time every convolution of a network, and every input gradient, which is one with its channels exchanged.

    Args:
        table: the network's layers.
        batch: pictures in one call.
        bench: where.

    Returns:
        A row for each shape, as soon as it is timed.
    """
    for before, channels, height, width in dict.fromkeys(shapes_of(table)):
        x, kernel = bench.random(batch, before, height, width), bench.random(channels, before, 3, 3)
        with numerics(bench.precision), torch.no_grad():
            seconds = {
                FORWARD: bench.seconds(partial(F.conv2d, x, kernel, padding=1)),
                GRADIENT: bench.seconds(partial(F.conv_transpose2d, x, turned(kernel), padding=1)),
            }
        yield {
            "channels": (before, channels),
            "size": (height, width),
            "operations": 2 * batch * kernel.numel() * height * width,
            "seconds": seconds,
            "chosen": GRADIENT if by_input_gradient(x, kernel) else FORWARD,
        }
