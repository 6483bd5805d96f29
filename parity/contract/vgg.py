"""The tables of VGGs: of VGG16, and of any narrower one that has these canonical tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from parity.contract.layers import Layer, LayerTable

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG16's convolutions, block by block. Source: arXiv:1409.1556, Table 1, configuration D."""

STANDARD_SIZE = 224
"""Height and width of a VGG's input where nothing else is said, pixels."""


def vgg(
    blocks: Sequence[Sequence[int]] = BLOCKS,
    dense: tuple[int, int] = (4096, 4096),
    classes: int = 1000,
    size: int = STANDARD_SIZE,
) -> LayerTable:
    """Blocks of 3×3 convolutions with ReLU, each closed by a 2×2 max-pool, then three dense layers.

    Layers have Keras's names, tensors and modules torchvision's. A Keras layer's ReLU is inside it, torchvision's is the
    next module: `block5_conv3` is `features.29`, not `.28`, its convolution, which the ReLU overwrites in place.

    Args:
        blocks: output channels of each convolution, block by block.
        dense: units of the hidden dense layers.
        classes: units of the last layer.
        size: height and width of the square input, pixels.
    """
    layers = [Layer("input_layer", "input", (size, size, 3))]
    modules: dict[str, str] = {}
    module, side = 0, size
    for b, block in enumerate(blocks, start=1):
        for c, width in enumerate(block, start=1):
            name, before = f"block{b}_conv{c}", layers[-1]
            tensors = {
                f"features.{module}.weight": (width, before.shape[-1], 3, 3),
                f"features.{module}.bias": (width,),
            }
            config = {"kernel": [3, 3], "strides": [1, 1], "padding": "same", "activation": "relu"}
            layers.append(Layer(name, "conv", (side, side, width), (before.name,), tensors, config))
            modules[name] = f"features.{module + 1}"
            module += 2
        name, before, side = f"block{b}_pool", layers[-1], side // 2
        config = {"pool": "max", "window": [2, 2], "strides": [2, 2], "padding": "valid"}
        layers.append(Layer(name, "pool", (side, side, before.shape[-1]), (before.name,), {}, config))
        modules[name] = f"features.{module}"
        module += 1
    target, pooled = layers[-2].name, layers[-1]
    layers.append(Layer("flatten", "flatten", (math.prod(pooled.shape),), (pooled.name,)))
    for name, index, units in zip(("fc1", "fc2", "predictions"), (0, 3, 6), (*dense, classes), strict=True):
        before = layers[-1]
        tensors = {f"classifier.{index}.weight": (units, before.shape[0]), f"classifier.{index}.bias": (units,)}
        config = {"activation": "linear" if name == "predictions" else "relu"}
        if before.kind == "flatten":
            config["flattened"] = list(pooled.shape)
        layers.append(Layer(name, "dense", (units,), (before.name,), tensors, config))
        modules[name] = f"classifier.{index}" if name == "predictions" else f"classifier.{index + 1}"
    return LayerTable(tuple(layers), target, modules)


VGG16 = vgg()
"""Keras's and torchvision's VGG16: 138,357,544 parameters."""


def blocks_of(table: LayerTable) -> tuple[tuple[int, ...], ...]:
    """Output channels of each convolution, block by block.

    Raises:
        ValueError: the table is no VGG's.
    """
    blocks: list[list[int]] = [[]]
    for layer in table.layers:
        if layer.kind == "conv":
            blocks[-1].append(layer.shape[-1])
        elif layer.kind == "pool":
            blocks.append([])
    widths = tuple(tuple(block) for block in blocks[:-1])
    units = [layer.shape[0] for layer in table.layers if layer.kind == "dense"]
    formed = len(units) == 3 and widths and all(widths)
    if not formed or vgg(widths, (units[0], units[1]), units[2], table.size[0]) != table:
        raise ValueError("not a VGG")
    return widths


def vgg_of(shapes: Mapping[str, tuple[int, ...]], size: int | None = None) -> LayerTable:
    """The VGG that has these canonical tensors.

    Args:
        shapes: tensor name → shape, canonical names and layouts (torchvision's).
        size: height and width of the square input, pixels. Tensors do not say it: 4×4 maps before the first dense layer
            come from 128×128 as from 150×150, and 1×1 "maps" from a global pooling. None: 224, at which VGGs are made.

    Raises:
        ValueError: no VGG has exactly these names and shapes; names the first difference.
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
    table = vgg(blocks, (hidden[0], hidden[1]), hidden[2], size or STANDARD_SIZE)
    expected = table.tensors
    for name, shape in expected.items():
        if name not in shapes:
            raise ValueError(f"tensor {name} is missing")
        if tuple(shapes[name]) != shape:
            pictures = _which_pictures(shapes[name][-1], table) if name == heads[0] else ""
            raise ValueError(f"tensor {name} has shape {tuple(shapes[name])}, expected {shape}{pictures}")
    for name in shapes:
        if name not in expected:
            weight = f"{name.removesuffix('.bias')}.weight"
            if name.endswith(".bias") and weight not in shapes:  # the last of its block, so that nobody missed it
                raise ValueError(f"tensor {weight} is missing")
            raise ValueError(f"tensor {name} does not belong to a VGG")
    return table


def _which_pictures(inputs: int, table: LayerTable) -> str:
    """What a first dense layer of so many inputs, which are not the table's, may have been made for, and what to do."""
    poolings = sum(layer.kind == "pool" for layer in table.layers)
    channels = table["fc1"].config["flattened"][-1]
    side = math.isqrt(inputs // channels)
    text = f" for pictures of {table.size[0]}×{table.size[1]}"
    if side == 0 or inputs != side * side * channels:
        return f"{text}; no square picture ends in {inputs} numbers"
    if side == 1:
        text += (
            "; one number a channel comes from a global pooling, and then it is no VGG: give Explainer the model itself"
        )
    smallest, largest = side << poolings, ((side + 1) << poolings) - 1
    return (
        f"{text}; if it was trained on pictures of {smallest} to {largest} pixels, say of how many (in Python size=): "
        f"attention-maps convert FILE NEW.safetensors --size {smallest}"
    )
