"""What the machine could do at best, and what one bare pass of the network takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.convolutions import shapes_of, time_layers
from benchmarks.timing import Bench
from parity.contract.layers import Layer, LayerTable
from parity.contract.methods import FASTER_CHANNELS, METHODS, Method
from parity.contract.network import Network
from parity.contract.vgg import VGG16
from torch_impl.capture.one_pass import OnePass
from torch_impl.network import layout_of, prepared
from torch_impl.precision import numerics
from torch_impl.score import Classifier


def operations(maps: Sequence[str], samples: int, table: LayerTable = VGG16) -> int:
    """Multiplications and additions that maps of one photograph need at the least, drawn in the fewest passes.

    A backward pass takes as many as a forward pass; one that ends at the target layer takes those of the dense layers. A
    Score-CAM takes a forward pass for each of its masks.
    """
    forward = sum(_operations_of(layer) for layer in table.layers)
    head = sum(_operations_of(layer) for layer in table.layers if layer.kind == "dense")
    one_pass = [METHODS[name] for name in maps if not METHODS[name].noisy]
    masks = [_masks(row, table) for row in one_pass]
    total = (len(maps) - len(one_pass)) * 2 * samples * forward + sum(masks) * forward
    if one_pass:
        total += forward
    if not all(masks):
        total += head if all(row.at_layer for row in one_pass) else forward
    return total


def _masks(row: Method, table: LayerTable) -> int:
    """Masks through which a map looks at the photograph, a forward pass each; 0: it is drawn from gradients."""
    if not any(quantity.name == "scores" for quantity in row.quantities):
        return 0
    channels = table[table.target].shape[-1]
    return min(FASTER_CHANNELS, channels) if row.options else channels


def _operations_of(layer: Layer) -> int:
    """Of a layer's forward pass; its input gradient takes as many."""
    if layer.kind not in ("conv", "dense"):
        return 0
    weights = layer.parameters - layer.shape[-1]
    return 2 * weights * math.prod(layer.shape[:-1])


def rate(bench: Bench, batch: int, table: LayerTable = VGG16) -> float:
    """Floating-point operations per second of the best of a few large products and of the network's own convolutions.

    Args:
        bench: where.
        batch: photographs in one convolution.
        table: whose convolutions.
    """
    rates = []
    with numerics(bench.precision), torch.no_grad():
        for size in (2048,) if bench.device == "cpu" else (4096, 8192):
            product = partial(torch.matmul, bench.random(size, size), bench.random(size, size))
            rates.append(2 * size**3 / bench.seconds(product))
        for row in time_layers(table, batch, bench):
            rates.append(row["operations"] / min(row["seconds"].values()))
    return max(rates)


def convolutions(bench: Bench, batch: int, table: LayerTable) -> float:
    """Seconds a photograph of a network's own convolutions, forward and to the input, each alone and by its faster operation."""
    best: dict[tuple[int, ...], float]
    best = {(*row["channels"], *row["size"]): min(row["seconds"].values()) for row in time_layers(table, batch, bench)}
    return sum(best[shape] for shape in shapes_of(table)) / batch


def passes(bench: Bench, network: Network, batches: Sequence[int]) -> dict[int, tuple[float, float]]:
    """What one pass of the network as `Explainer.vgg16` has it takes.

    Args:
        bench: where.
        network: whose.
        batches: photographs in one pass.

    Returns:
        Photographs in one pass → seconds a photograph: forward and backward to the input; forward alone.
    """
    took = {}
    with numerics(bench.precision):
        model = prepared(network, torch.device(bench.device), bench.precision)
        for batch in batches:
            inputs = 50 * bench.random(batch, 3, *network.table.size)  # about as far from 0 as photographs
            inputs = inputs.contiguous(memory_format=layout_of(model))
            target = torch.zeros(batch, dtype=torch.int64, device=bench.device)
            both = bench.seconds(partial(OnePass(Classifier(model), None).input_gradients, inputs, target))
            with torch.no_grad():
                forward = bench.seconds(partial(model, inputs))
            took[batch] = (both / batch, forward / batch)
    return took
