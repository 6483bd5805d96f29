"""One Keras layer as a row of the contract's table: its kind, its settings, its tensors in canonical layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

ROLES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "alpha": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
"""Keras's names of a layer's weights → what they are."""

IDENTITY = ("Identity", "ActivityRegularization", "GaussianNoise", "GaussianDropout")
"""Classes that change nothing outside of training, as do all whose names begin with Random."""

MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")

Config = dict[str, Any]


def kind_of(layer: Any) -> tuple[str, Config]:
    """The kind of a Keras layer or operation, and what else decides its output; see `parity.contract.layers`."""
    name = type(layer).__name__
    if name in KINDS:
        kind, read = KINDS[name]
        config = read(layer)
        if config == {"activation": "linear"} and kind == "activation":
            return "identity", {}
        if kind == "conv" and each_channel_alone(layer):
            return "depthwise", {**config, "groups": 1, "multiplier": layer.filters // config["groups"]}
        return kind, config
    if name in MERGES:
        return name.lower(), {}
    if "Dropout" in name or name == "StochasticDepth":
        return "dropout", {}
    if name in IDENTITY or name.startswith("Random"):
        return "identity", {}
    return "other", {"class": name}


def each_channel_alone(layer: Any) -> bool:
    """Whether a Conv2D is a depthwise convolution: it has as many groups as channels."""
    return type(layer).__name__ == "Conv2D" and layer.groups > 1 and layer.kernel.shape[2] == 1


def canonical_tensors(kind: str, layer: Any, flattened: tuple[int, ...] | None) -> dict[str, np.ndarray]:
    """A layer's weights by what they are, float32, canonical layout.

    Args:
        kind: of the layer.
        layer: a Keras layer.
        flattened: (h, w, channels) of the maps that its inputs were, where they are a flattened map.
    """
    tensors: dict[str, np.ndarray] = {}
    for variable in layer.weights:
        own = variable.path.rsplit("/", 1)[-1]
        role = "weight" if len(layer.weights) == 1 else ROLES.get(own, own)
        if role in tensors:
            role = variable.path.replace("/", ".")
        tensors[role] = _canonical(kind, role, np.asarray(variable, np.float32), flattened)
    return tensors


def separable_tensors(layer: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The tensors of a SeparableConv2D's two rows: the depthwise convolution's and the 1×1 one's."""
    depthwise, pointwise, *bias = (np.asarray(variable, np.float32) for variable in layer.weights)
    first = {"weight": _canonical("depthwise", "weight", depthwise, None)}
    second = {"weight": _canonical("conv", "weight", pointwise, None)}
    return first, (second | {"bias": bias[0]} if bias else second)


def _canonical(kind: str, role: str, array: np.ndarray, flattened: tuple[int, ...] | None) -> np.ndarray:
    if flattened and kind in ("dense", "batchnorm", "layernorm") and not (kind == "dense" and role == "bias"):
        maps = array.reshape(*flattened, *array.shape[1:])
        array = np.moveaxis(maps, 2, 0).reshape(array.shape)
    if kind in ("conv", "conv_transpose") and role == "weight" and array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif kind == "depthwise" and role == "weight":
        height, width, _, _ = array.shape
        array = array.transpose(2, 3, 0, 1).reshape(-1, 1, height, width)
    elif kind == "dense" and role == "weight":
        array = array.T
    elif kind == "prelu":
        array = array.reshape(-1) if array.size == array.shape[-1] else np.moveaxis(array, -1, 0)
    return np.array(array, np.float32, order="C")


def activation_of(function: Any) -> Config:
    """`activation`, and what else that function needs."""
    name = getattr(function, "__name__", type(function).__name__)
    if name == "relu6":
        return {"activation": "relu", "max_value": 6.0}
    return {"activation": name, "approximate": False} if name == "gelu" else {"activation": name}


def _convolution(layer: Any) -> Config:
    config = {
        "kernel": list(layer.kernel_size),
        "strides": list(layer.strides),
        "padding": layer.padding,
        "dilation": list(layer.dilation_rate),
        "groups": getattr(layer, "groups", 1),
    }
    multiplier = getattr(layer, "depth_multiplier", None)
    return config | activation_of(layer.activation) | ({"multiplier": multiplier} if multiplier else {})


def _windows(layer: Any) -> Config:
    return {"window": list(layer.pool_size), "strides": list(layer.strides), "padding": layer.padding}


def _norm(layer: Any) -> Config:
    absent = {name: False for name in ("scale", "center") if not getattr(layer, name)}
    return {"epsilon": float(layer.epsilon), **absent}


def _layer_norm(layer: Any) -> Config:
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return {**_norm(layer), "axes": [int(axis) for axis in axes]}


def _relu(layer: Any) -> Config:
    config = {"max_value": layer.max_value, "slope": layer.negative_slope, "threshold": layer.threshold}
    return {"activation": "relu", **{name: float(value) for name, value in config.items() if value}}


def _no_config(_: Any) -> Config:
    return {}


def _scale_and_offset(layer: Any) -> Config:
    scale, offset = affine_of(layer)
    return {"scale": scale.tolist(), "offset": offset.tolist()}


def affine_of(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of a Rescaling or Normalization layer, in float64: output = scale · input + offset."""
    if type(layer).__name__ == "Rescaling":
        return np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    given = layer.input_mean is not None
    mean = np.asarray(layer.input_mean if given else layer.adapt_mean, np.float64).reshape(-1)
    variance = np.asarray(layer.input_variance if given else layer.adapt_variance, np.float64).reshape(-1)
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # Keras's epsilon
    return (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)


KINDS: dict[str, tuple[str, Callable[[Any], Config]]] = {
    "InputLayer": ("input", _no_config),
    "Flatten": ("flatten", _no_config),
    "Conv2D": ("conv", _convolution),
    "DepthwiseConv2D": ("depthwise", _convolution),
    "Conv2DTranspose": ("conv_transpose", _convolution),
    "Dense": ("dense", lambda layer: activation_of(layer.activation)),
    "BatchNormalization": ("batchnorm", _norm),
    "LayerNormalization": ("layernorm", _layer_norm),
    "MaxPooling2D": ("pool", lambda layer: {"pool": "max", **_windows(layer)}),
    "AveragePooling2D": ("pool", lambda layer: {"pool": "average", **_windows(layer)}),
    "GlobalMaxPooling2D": ("globalpool", lambda layer: {"pool": "max", "keepdims": bool(layer.keepdims)}),
    "GlobalAveragePooling2D": ("globalpool", lambda layer: {"pool": "average", "keepdims": bool(layer.keepdims)}),
    "Activation": ("activation", lambda layer: activation_of(layer.activation)),
    "ReLU": ("activation", _relu),
    "LeakyReLU": ("activation", lambda layer: {"activation": "leaky_relu", "slope": float(layer.negative_slope)}),
    "ELU": ("activation", lambda layer: {"activation": "elu", "slope": float(layer.alpha)}),
    "Softmax": ("activation", lambda layer: {"activation": "softmax"}),
    "PReLU": ("prelu", _no_config),
    "Concatenate": ("concatenate", lambda layer: {"axis": int(layer.axis)}),
    "ZeroPadding2D": ("pad", lambda layer: {"sides": [list(side) for side in layer.padding]}),
    "Cropping2D": ("crop", lambda layer: {"sides": [list(side) for side in layer.cropping]}),
    "UpSampling2D": ("upsample", lambda layer: {"size": list(layer.size), "interpolation": layer.interpolation}),
    "Reshape": ("reshape", lambda layer: {"target": list(layer.target_shape)}),
    "Rescaling": ("rescale", _scale_and_offset),
    "Normalization": ("rescale", _scale_and_offset),
    "LayerScale": ("layerscale", _no_config),
    "Relu": ("activation", lambda _: {"activation": "relu"}),
    "Relu6": ("activation", lambda _: {"activation": "relu", "max_value": 6.0}),
    "Sigmoid": ("activation", lambda _: {"activation": "sigmoid"}),
    "Silu": ("activation", lambda _: {"activation": "silu"}),
    "Tanh": ("activation", lambda _: {"activation": "tanh"}),
    "Gelu": ("activation", lambda layer: {"activation": "gelu", "approximate": bool(layer.approximate)}),
}
"""Keras's class → kind, and how its settings are read. The last ones are operations, as `keras.ops` makes them."""
