"""What a Keras model's configuration says: whether it is a VGG16, and for pictures of which size.

The configuration is JSON, beside the weights in a whole model's file (`.keras`, `.h5`). It is read, never executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from parity.contract.network import WeightsError
from parity.contract.vgg import VGG16

MODELS = ("Functional", "Sequential", "Model")
"""Classes whose configuration is a list of layers, and says everything."""

PASSED_BY = (
    "InputLayer",
    "Dropout",
    "SpatialDropout2D",
    "RandomFlip",
    "RandomRotation",
    "RandomTranslation",
    "RandomZoom",
)
"""Classes that change nothing outside of training."""

CLASSES = {"conv": "Conv2D", "pool": "MaxPooling2D", "flatten": "Flatten", "dense": "Dense"}
"""Kind of layer → Keras's class."""

SETTINGS: dict[str, dict[str, Any]] = {
    "Conv2D": {"strides": [1, 1], "dilation_rate": [1, 1], "padding": "same", "activation": "relu"},
    "MaxPooling2D": {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"},
    "Flatten": {},
    "Dense": {"activation": "relu"},
}
"""What a VGG16's layers say of themselves, beyond the shapes of their tensors."""

LAST = ("softmax", "linear")
"""Activations that the last layer may have: the logits are before them."""


def size_of(model: Mapping[str, Any]) -> int | None:
    """Height and width of a VGG16's pictures, pixels; None where its configuration leaves them open.

    Args:
        model: `class_name` and `config`.

    Raises:
        WeightsError: it is another network; names the first layer that differs.
    """
    layers = list(_layers(model))
    computing = [layer for layer in layers if layer["class_name"] not in PASSED_BY]
    expected = [CLASSES[layer.kind] for layer in VGG16.layers if layer.kind in CLASSES]
    for i, (layer, kind) in enumerate(zip_longest(computing, expected)):
        if layer is None:
            raise WeightsError(f"not a VGG16: it ends where a VGG16 has {kind} (saved with include_top=False?)")
        name = f"its layer {layer['config'].get('name')!r}"
        if layer["class_name"] != kind:
            there = f"where a VGG16 has {kind}" if kind else "behind a VGG16's last"
            raise WeightsError(f"not a VGG16: {name} is {layer['class_name']}, {there}")
        for setting, value in SETTINGS[kind].items():
            allowed = (value,) if i < len(expected) - 1 else LAST
            if (said := layer["config"].get(setting)) not in allowed:
                raise WeightsError(f"not a VGG16: {name} has {setting} {said!r}, not {allowed[0]!r}")
    for layer in layers:  # the outermost input is first
        shape = layer["config"].get("batch_shape") or layer["config"].get("batch_input_shape")
        if shape and shape[1] and shape[2]:
            if shape[1] != shape[2]:
                raise WeightsError(f"it is made for pictures of {shape[1]}×{shape[2]}, and only square ones are read")
            return int(shape[1])
    return None


def _layers(model: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The layers in their order, those of a model inside the model in its place."""
    if model["class_name"] not in MODELS:
        yield model
        return
    for layer in model["config"]["layers"]:
        yield from _layers(layer)
