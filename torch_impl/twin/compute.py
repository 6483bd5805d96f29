"""Any row of a layer table computed in PyTorch as Keras defines it: the judge's third opinion, beside both programs.

Feature maps are (N, C, h, w) here; outputs of the reference that have other axes keep their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.contract.layers import Layer

Tensors = Mapping[str, Tensor]
"""`weight`, `bias`, `running_mean`, `running_var` of one layer, canonical layout."""


class NotComputedError(ValueError):
    """A layer whose formula is not known here."""


def computed(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Tensor:
    """The layer's output.

    Args:
        layer: a row of the table.
        inputs: of each layer that it reads.
        tensors: of the layer.

    Raises:
        NotComputedError: its kind is not known.
    """
    if layer.kind not in FORMULAS:
        raise NotComputedError(layer.kind)
    output = FORMULAS[layer.kind](layer, inputs, tensors)
    return activated(layer.config, output) if layer.kind in WITH_ACTIVATION else output


WITH_ACTIVATION = ("conv", "depthwise", "conv_transpose", "dense", "activation")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hard_silu": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "mish": F.mish,
    "exponential": torch.exp,
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
}


def activated(config: Mapping[str, Any], x: Tensor) -> Tensor:
    """The activation that a configuration names, applied.

    Raises:
        NotComputedError: an unknown one.
    """
    name = str(config.get("activation") or "linear")
    name = {"swish": "silu", "hard_swish": "hard_silu"}.get(name, name)
    if name == "gelu" and config.get("approximate"):
        name = "gelu_tanh"
    if name == "leaky_relu":
        return F.leaky_relu(x, float(config.get("slope", 0.2)))  # 0.2: of Keras's function; its layer says 0.3
    if name == "relu" and (config.get("max_value") is not None or config.get("slope")):
        limit = math.inf if config.get("max_value") is None else float(config["max_value"])
        return F.leaky_relu(x, float(config.get("slope") or 0)).clamp(max=limit)
    if name not in ACTIVATIONS:
        raise NotComputedError(f"activation {name}")
    return ACTIVATIONS[name](x)


def same_padding(size: int, window: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """(before, after) of Keras's `same`: as little as needed, the odd one behind."""
    total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def padded(x: Tensor, config: Mapping[str, Any], window: Sequence[int], value: float = 0.0) -> Tensor:
    """Feature maps with what the padding adds: `same`, `valid`, or a number on each side."""
    padding, strides = config["padding"], config.get("strides") or window
    dilation = config.get("dilation") or (1, 1)
    if padding == "valid":
        return x
    if padding == "same":
        rows, columns = (same_padding(x.shape[2 + i], window[i], strides[i], dilation[i]) for i in (0, 1))
    else:
        rows = columns = (padding, padding)
    return F.pad(x, (*columns, *rows), value=value)


def _convolution(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    config, weight = layer.config, t["weight"]
    x = padded(inputs[0], config, weight.shape[2:])
    groups = x.shape[1] // weight.shape[1]
    return F.conv2d(x, weight, t.get("bias"), config["strides"], 0, config.get("dilation") or (1, 1), groups)


def _transposed(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    """Keras crops a full transposed convolution to stride · size (`same`), the odd one behind."""
    config, weight, x = layer.config, t["weight"], inputs[0]
    padding = config["padding"] if isinstance(config["padding"], int) else 0  # a number: as PyTorch does it
    full = F.conv_transpose2d(x, weight, t.get("bias"), config["strides"], padding, config.get("output_padding", 0))
    if config["padding"] != "same":
        return full
    sizes = [n * s for n, s in zip(x.shape[2:], config["strides"], strict=True)]
    starts = [max(k - s, 0) // 2 for k, s in zip(weight.shape[2:], config["strides"], strict=True)]
    return full[:, :, starts[0] : starts[0] + sizes[0], starts[1] : starts[1] + sizes[1]]


def _dense(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    x = inputs[0]
    if x.ndim == 4 and layer.config.get("flattened"):
        x = x.flatten(1)
    if x.ndim == 4:  # at every place
        return F.conv2d(x, t["weight"][:, :, None, None], t.get("bias"))
    return F.linear(x, t["weight"], t.get("bias"))


def _along_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (x.ndim - 2)) if x.ndim == 4 else values


def _batchnorm(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    x = inputs[0]
    scale = t.get("weight", torch.ones_like(t["running_var"]))
    factor = scale / (t["running_var"] + layer.config["epsilon"]).sqrt()
    offset = t.get("bias", torch.zeros_like(t["running_mean"])) - t["running_mean"] * factor
    return x * _along_channels(factor, x) + _along_channels(offset, x)


def _layernorm(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    x = inputs[0].movedim(1, -1) if inputs[0].ndim == 4 else inputs[0]
    x = F.layer_norm(x, x.shape[-1:], t.get("weight"), t.get("bias"), layer.config["epsilon"])
    return x.movedim(-1, 1) if x.ndim == 4 else x


def _pool(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    config, x = layer.config, inputs[0]
    window, strides = config["window"], config.get("strides") or config["window"]
    if config["pool"] == "max":
        return F.max_pool2d(padded(x, config, window, -math.inf), window, strides)
    sums = F.avg_pool2d(padded(x, config, window), window, strides)
    if config.get("counts_padding"):
        return sums
    return sums / F.avg_pool2d(padded(torch.ones_like(x), config, window), window, strides)


def _global_pool(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    x = inputs[0]
    pooled = x.amax((2, 3), keepdim=True) if layer.config["pool"] == "max" else x.mean((2, 3), keepdim=True)
    return pooled if len(layer.shape) == 3 else pooled.flatten(1)


def _merged(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Layer, Sequence[Tensor], Tensors], Tensor]:
    def formula(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
        total = reduce(combine, inputs)
        return total / len(inputs) if layer.kind == "average" else total

    return formula


def _sides(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    (top, bottom), (left, right) = layer.config["sides"]
    sign = 1 if layer.kind == "pad" else -1
    return F.pad(inputs[0], [sign * n for n in (left, right, top, bottom)])


def _reshape(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    x = inputs[0].movedim(1, -1) if inputs[0].ndim == 4 else inputs[0]
    x = x.reshape(len(x), *layer.shape)
    return x.movedim(-1, 1) if x.ndim == 4 else x


def _upsample(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    mode = layer.config.get("interpolation", "nearest")
    size = [n * s for n, s in zip(inputs[0].shape[2:], layer.config["size"], strict=True)]
    corners = None if mode == "nearest" else bool(layer.config.get("align_corners"))
    return F.interpolate(inputs[0], size, mode=mode, align_corners=corners)


def _flatten(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    """Nothing: the dense layer that follows knows both the maps and their order."""
    return inputs[0]


def _rescale(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
    scale, offset = (torch.as_tensor(layer.config[key], dtype=inputs[0].dtype) for key in ("scale", "offset"))
    return inputs[0] * _along_channels(scale, inputs[0]) + _along_channels(offset, inputs[0])


FORMULAS: dict[str, Callable[[Layer, Sequence[Tensor], Tensors], Tensor]] = {
    "conv": _convolution,
    "depthwise": _convolution,
    "conv_transpose": _transposed,
    "dense": _dense,
    "batchnorm": _batchnorm,
    "layernorm": _layernorm,
    "pool": _pool,
    "globalpool": _global_pool,
    "activation": lambda layer, inputs, t: inputs[0],
    "prelu": lambda layer, inputs, t: torch.where(inputs[0] > 0, inputs[0], inputs[0] * t["weight"]),
    "add": _merged(torch.add),
    "average": _merged(torch.add),
    "subtract": _merged(torch.sub),
    "multiply": _merged(torch.mul),
    "maximum": _merged(torch.maximum),
    "minimum": _merged(torch.minimum),
    "concatenate": lambda layer, inputs, t: torch.cat(list(inputs), 1),
    "pad": _sides,
    "crop": _sides,
    "reshape": _reshape,
    "upsample": _upsample,
    "rescale": _rescale,
    "layerscale": lambda layer, inputs, t: inputs[0] * _along_channels(t["weight"], inputs[0]),
    "flatten": _flatten,
    "dropout": _flatten,
    "identity": _flatten,
}
