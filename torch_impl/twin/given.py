"""Whether what a module is given is what a layer of the reference reads: as it is, flattened, or with a border around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from parity.contract.artifact import Artifact
from parity.contract.layers import Layer, LayerTable
from torch_impl.twin.layouts import layouts, places_in

BORDER = 12
"""Rows or columns, both sides together, that a padding adds at most: an 11×11 kernel's, and some."""


def orders(reference: Artifact, values: Tensor, layer: Layer, limit: Callable[[str], float]) -> Iterator[str]:
    """The layouts in which a module's input on the first photograph is what a layer reads; none where it is not.

    Args:
        reference: with float64.
        values: given to a module, (1, …).
        layer: of the reference.
        limit: what a stage's values may be off, relative L2.
    """
    for stage, shape in sources(reference.table, layer):
        if not reference.has(stage, "fp64"):
            continue
        expected = torch.from_numpy(reference.values(stage, "fp64")[0].astype(np.float64))
        places = reference.stage(stage).places()
        most = limit(stage) * float(expected.norm()) + 1e-300
        for given in without_border(values, shape):
            fitting = list(layouts(tuple(given.shape), shape))
            if not fitting and given.ndim == 2 and len(shape) == 3 and given.numel() == int(np.prod(shape)):
                given, fitting = given.reshape(1, shape[2], *shape[:2]), ["nchw", "same"]  # flattened, in either order
            for layout in fitting:
                kept = given.reshape(-1)[places_in(tuple(given.shape), layout, shape, places)]
                if float((kept - expected).norm()) <= most:
                    yield layout


def sources(table: LayerTable, layer: Layer) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The stages that hold what a layer reads: of the layer before it, and where that pads, before the padding."""
    name = layer.inbound[0]
    while True:
        row = table[name]
        if row.kind == "input":
            yield "inputs", row.shape
            return
        if row.compared:
            yield f"activations/{name}", row.shape
        if row.compared and row.kind not in ("pad", "crop"):
            return
        name = row.inbound[0]


def without_border(values: Tensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """An input (1, …) as it is; and where it is wider than `shape` (H, W, C), as after a padding of its own, each part of that size.

    Which border it should have is not asked here: a wrong one gives other values behind the layer, and is found there.
    """
    yield values
    if values.ndim != 4 or len(shape) != 3:
        return
    for rows, columns, channels in ((2, 3, 1), (1, 2, 3)):
        more = values.shape[rows] - shape[0], values.shape[columns] - shape[1]
        if values.shape[channels] != shape[2] or min(more) < 0 or max(more) == 0 or max(more) > BORDER:
            continue
        for top in range(more[0] + 1):
            for left in range(more[1] + 1):
                yield values.narrow(rows, top, shape[0]).narrow(columns, left, shape[1])
