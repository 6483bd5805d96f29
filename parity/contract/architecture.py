"""VGG16's layer table, once for both frameworks, and any narrower network of the same shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

CHANNELS = 3
"""Input channels."""


@dataclass(frozen=True)
class Layer:
    """One row of the table.

    Attributes:
        keras: Keras's layer name, as in `keras.applications.VGG16`: `block5_conv3`.
        torch: torchvision's module that holds the layer's parameters (`features.28`); "" where it has none of its own.
        activation: torchvision's module whose output is the Keras layer's output (`features.29`: Keras's ReLU is inside
            the layer, torchvision's is the next module).
        kind: `input`, `conv`, `pool`, `flatten` or `dense`.
        shape: of the output for one photograph, channels last as Keras has it: (h, w, channels) or (units,).
        parameters: their number.
    """

    keras: str
    torch: str
    activation: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Architecture:
    """A VGG: blocks of 3×3 convolutions, each closed by a 2×2 max-pool, then three dense layers.

    Attributes:
        blocks: output channels of each convolution, block by block.
        dense: units of the hidden dense layers.
        classes: units of the last layer, whose outputs are the logits.
        size: height and width of the square input, pixels.

    Source: arXiv:1409.1556, Table 1, configuration D.
    """

    blocks: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    dense: tuple[int, int] = (4096, 4096)
    classes: int = 1000
    size: int = 224

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer of the Keras model, input first, predictions last."""
        rows = [Layer("input_layer", "", "", "input", (self.size, self.size, CHANNELS), 0)]
        module, side, channels = 0, self.size, CHANNELS
        for b, block in enumerate(self.blocks, start=1):
            for c, width in enumerate(block, start=1):
                name, parameters = f"block{b}_conv{c}", (9 * channels + 1) * width
                rows.append(
                    Layer(name, f"features.{module}", f"features.{module + 1}", "conv", (side, side, width), parameters)
                )
                module, channels = module + 2, width  # the convolution and its ReLU
            side //= 2
            rows.append(Layer(f"block{b}_pool", "", f"features.{module}", "pool", (side, side, channels), 0))
            module += 1
        units = side * side * channels
        rows.append(Layer("flatten", "", "", "flatten", (units,), 0))
        for name, index, width in zip(
            ("fc1", "fc2", "predictions"), (0, 3, 6), (*self.dense, self.classes), strict=True
        ):
            after = index if name == "predictions" else index + 1  # the last layer has no ReLU
            rows.append(
                Layer(name, f"classifier.{index}", f"classifier.{after}", "dense", (width,), (units + 1) * width)
            )
            units = width
        return tuple(rows)

    @cached_property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical tensor names (torchvision's) and shapes (OIHW; out, in), in the order of the computation."""
        shapes: dict[str, tuple[int, ...]] = {}
        incoming: tuple[int, ...] = (CHANNELS,)
        for layer in self.layers:
            if layer.kind == "conv":
                shapes[f"{layer.torch}.weight"] = (layer.shape[-1], incoming[-1], 3, 3)
                shapes[f"{layer.torch}.bias"] = (layer.shape[-1],)
            elif layer.kind == "dense":
                shapes[f"{layer.torch}.weight"] = (layer.shape[0], incoming[0])
                shapes[f"{layer.torch}.bias"] = (layer.shape[0],)
            if layer.kind != "input":
                incoming = layer.shape
        return shapes

    @property
    def flatten_chw(self) -> tuple[int, int, int]:
        """(channels, height, width) of the last pool: what `flatten` flattens, in torch's order."""
        side = self.size // 2 ** len(self.blocks)
        return (self.blocks[-1][-1], side, side)

    @property
    def parameters(self) -> int:
        """Number of weights and biases: 138,357,544 for VGG16."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def target(self) -> Layer:
        """The last convolution after its ReLU: what tf-keras-vis's `penultimate_layer=-1` finds."""
        return [layer for layer in self.layers if layer.kind == "conv"][-1]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
        """The architecture that has these canonical tensors.

        Args:
            shapes: tensor name → shape, canonical names and layouts (torchvision's).

        Raises:
            ValueError: no VGG of this family has exactly these names and shapes; names the first difference.
        """
        indices = sorted(
            int(match[1]) for name in shapes if (match := re.fullmatch(r"features\.(0|[1-9][0-9]{0,3})\.weight", name))
        )
        heads = [f"classifier.{index}.weight" for index in (0, 3, 6)]
        for name in (*(f"features.{index}.weight" for index in (0, *indices)), *heads):
            if name not in shapes:
                raise ValueError(f"tensor {name} is missing")
            if not shapes[name] or min(shapes[name]) < 1:
                raise ValueError(f"tensor {name} has shape {tuple(shapes[name])}")
        blocks: list[list[int]] = [[]]
        for before, index in zip([0, *indices], indices, strict=False):
            if index - before == 1:  # where the ReLU should be: batch normalization, for one
                raise ValueError(f"tensor features.{index}.weight does not belong to a VGG")
            if index - before > 3:
                raise ValueError(f"a convolution is missing between features.{before} and features.{index}")
            if index - before == 3:  # a pool lies between
                blocks.append([])
            blocks[-1].append(int(shapes[f"features.{index}.weight"][0]))
        hidden = [int(shapes[name][0]) for name in heads]
        side = math.isqrt(int(shapes["classifier.0.weight"][-1]) // blocks[-1][-1])
        found = cls(
            blocks=tuple(map(tuple, blocks)),
            dense=(hidden[0], hidden[1]),
            classes=hidden[2],
            size=side * 2 ** len(blocks),
        )
        for name, expected in found.tensor_shapes.items():
            if name not in shapes:
                raise ValueError(f"tensor {name} is missing")
            if tuple(shapes[name]) != expected:
                raise ValueError(f"tensor {name} has shape {tuple(shapes[name])}, expected {expected}")
        for name in shapes:
            if name not in found.tensor_shapes:
                weight = f"{name.removesuffix('.bias')}.weight"
                if name.endswith(".bias") and weight not in shapes:  # the last of its block, so that nobody missed it
                    raise ValueError(f"tensor {weight} is missing")
                raise ValueError(f"tensor {name} does not belong to a VGG")
        return found


VGG16 = Architecture()
"""Keras's and torchvision's VGG16: 138,357,544 parameters."""

TINY = Architecture(
    blocks=((8, 8), (8, 8), (16, 16, 16), (16, 16, 16), (16, 16, 16)), dense=(32, 24), classes=10, size=64
)
"""The same shape, small enough for a test: every layer of VGG16 at 64×64, 4×4 activations at block5_conv3."""
