"""A network as a table of its layers, read off a model or written down: no class that describes a family of networks.

Kinds, and what `Layer.config` says of each (sizes as [height, width]); `activation` of a layer that has one inside:

    input, flatten, dropout, identity
    conv            kernel, strides, padding (`same`, `valid`), dilation, groups, activation
    depthwise       kernel, strides, padding, dilation, activation
    conv_transpose  kernel, strides, padding, activation
    dense           activation, flattened
    batchnorm       epsilon; layernorm: epsilon, axes
    pool            pool (`max`, `average`), window, strides, padding; globalpool: pool
    activation      activation, and of some: slope, max_value, approximate; prelu
    add, subtract, multiply, average, maximum, minimum; concatenate: axis
    pad, crop       sides [[top, bottom], [left, right]]; upsample: size, interpolation
    reshape         target; rescale: scale, offset; layerscale; other: class

A separable convolution is two rows: `name/depthwise`, of kind depthwise, and `name`, a 1×1 conv.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SILENT = ("input", "flatten", "dropout", "identity")
"""Kinds of layers that compute nothing: what they give is not compared."""


@dataclass(frozen=True)
class Layer:
    """One row of the table.

    Attributes:
        name: the reference's, as Keras names it: `block5_conv3`.
        kind: `input`, `conv`, `pool`, `flatten`, `dense`, …
        shape: of the output for one photograph, channels last: (h, w, channels) or (units,).
        inbound: names of the layers whose outputs it reads.
        tensors: canonical name → shape in canonical layout (OIHW; out, in; depthwise (channels × multiplier, 1, h, w);
            transposed convolutions (in, out, h, w)), in the order of the computation. The name's last part says what it
            is: `weight`, `bias`, `running_mean`, `running_var`.
        config: what else decides its output, in plain JSON types. Of a dense layer behind a flatten: `flattened`, the
            (h, w, channels) that its inputs were.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    inbound: tuple[str, ...] = ()
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of its weights and biases."""
        return sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def compared(self) -> bool:
        """Whether its output is a stage of the comparison."""
        return self.kind not in SILENT


@dataclass(frozen=True)
class LayerTable:
    """A network.

    Attributes:
        layers: in the order of the computation; the first is the input, the last gives the logits.
        target: name of the layer that class activation maps read.
        modules: layer → the PyTorch module whose output is the layer's, where that is known beforehand.
    """

    layers: tuple[Layer, ...]
    target: str
    modules: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Layer:
        """The layer of this name.

        Raises:
            KeyError: no such layer.
        """
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one photograph."""
        height, width, channels = self.layers[0].shape
        return height, width, channels

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of one photograph, pixels."""
        return self.input_shape[:2]

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.layers[-1].shape[-1]

    @property
    def hidden(self) -> tuple[Layer, ...]:
        """The layers whose outputs are compared, but for the logits."""
        return tuple(layer for layer in self.layers[:-1] if layer.compared)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Canonical name → shape of every tensor, in the order of the computation."""
        return {name: shape for layer in self.layers for name, shape in layer.tensors.items()}

    @property
    def parameters(self) -> int:
        """Number of weights and biases: 138,357,544 for VGG16."""
        return sum(layer.parameters for layer in self.layers)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> LayerTable:
        """The table of `dataclasses.asdict`, and of the JSON that this makes.

        Raises:
            KeyError, TypeError, ValueError: it is another thing.
        """
        layers = []
        for row in plain["layers"]:
            tensors = {name: tuple(map(int, shape)) for name, shape in row["tensors"].items()}
            lists = {"shape": tuple(map(int, row["shape"])), "inbound": tuple(row["inbound"])}
            layers.append(Layer(**{**row, **lists, "tensors": tensors, "config": dict(row["config"])}))
        table = cls(tuple(layers), plain["target"], dict(plain["modules"]))
        if table.target not in table._by_name:
            raise ValueError(f"there is no layer {table.target!r} to be the target")
        return table
