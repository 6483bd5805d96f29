"""Why ports differ, layer by layer: each known mistake as a change of one row of the table, most frequent first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.contract.layers import Layer
from torch_impl.twin.compute import (
    ACTIVATIONS,
    WITH_ACTIVATION,
    NotComputedError,
    Tensors,
    computed,
    same_padding,
)

EPSILONS = (1e-3, 1e-5, 1.001e-5, 1e-6, 1e-4, 2e-5, 1e-12, 0.0)
SLOPES = (0.01, 0.3, 0.2, 0.1, 0.25, 0.05)

Formula = Callable[[Layer, Sequence[Tensor], Tensors], Tensor]


@dataclass(frozen=True)
class Change:
    """A mistake made on purpose.

    Attributes:
        words: for a reader; the port's first, then the reference's.
        config: of the row, in place of what the table says.
        without: tensors that are left out.
        formula: in place of the row's own.
    """

    words: str
    config: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    formula: Formula = computed

    def output(self, layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Tensor:
        """What the layer would give."""
        kept = {name: tensor for name, tensor in tensors.items() if name not in self.without}
        return self.formula(replace(layer, config={**layer.config, **self.config}), inputs, kept)


def changes(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    """Every mistake that may be made at a layer."""
    for kinds, mistakes in MISTAKES:
        if layer.kind in kinds:
            yield from mistakes(layer, inputs, tensors)


def _window(layer: Layer) -> list[int]:
    return list(layer.config.get("kernel") or layer.config["window"])


def _strides(layer: Layer) -> list[int]:
    return list(layer.config.get("strides") or _window(layer))


def _sides_of(layer: Layer, x: Tensor) -> str:
    """What a layer's padding adds to the rows, in words."""
    padding, window, strides = layer.config["padding"], _window(layer), _strides(layer)
    if padding == "same":
        return str(same_padding(x.shape[2], window[0], strides[0], (layer.config.get("dilation") or [1])[0]))
    return "(0, 0)" if padding == "valid" else str((padding, padding))


def _paddings(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    own, average = _sides_of(layer, inputs[0]), layer.config.get("pool") == "average"
    for padding in (*range(max(_window(layer)) + 1), "same"):
        sides = _sides_of(replace(layer, config={**layer.config, "padding": padding}), inputs[0])
        if sides != own:
            words = f"padding: {sides} in the port, {own} in the reference"
            yield Change(words, {"padding": padding, "counts_padding": False})
        if average and padding:
            words = f"padding: {sides} in the port, and the average pool counts it (count_include_pad), {own} in the reference"
            yield Change(words, {"padding": padding, "counts_padding": True})
    if layer.config["padding"] == "same":
        words = f"padding: the odd row and column before the picture in the port, behind it ({own}) in the reference"
        yield Change(words, formula=_padded_before)


def _padded_before(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Tensor:
    (top, bottom), (left, right) = (
        same_padding(inputs[0].shape[2 + i], _window(layer)[i], _strides(layer)[i]) for i in (0, 1)
    )
    fill = -torch.inf if layer.config.get("pool") == "max" else 0.0
    x = F.pad(inputs[0], (right, left, bottom, top), value=fill)
    return computed(replace(layer, config={**layer.config, "padding": "valid"}), [x], tensors)


def _other_strides(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    own, half = _strides(layer), max(_window(layer)) // 2
    for strides in ([1, 1], [2, 2], [3, 3], [4, 4]):
        if strides != own:
            for padding in dict.fromkeys((layer.config["padding"], half, 0)):
                words = f"stride: {tuple(strides)} in the port, {tuple(own)} in the reference"
                yield Change(words, {"strides": strides, "padding": padding})


def _dilations(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    own = list(layer.config.get("dilation") or [1, 1])
    if max(_window(layer)) > 1:
        for dilation in ([1, 1], [2, 2]):
            if dilation != own:
                padding = dilation[0] * (max(_window(layer)) // 2)
                words = f"dilation: {tuple(dilation)} in the port, {tuple(own)} in the reference"
                yield Change(words, {"dilation": dilation, "padding": padding})


def _pools(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    other = {"max": "average", "average": "max"}[layer.config["pool"]]
    yield Change(f"{other} pool in the port, {layer.config['pool']} in the reference", {"pool": other})
    if layer.kind == "pool":
        for padding in range(max(_window(layer)) // 2 + 1):
            words = f"shape: the port's pool rounds its size up (ceil_mode), with padding {padding}"
            yield Change(words, {"padding": padding}, formula=_ceiling)


def _ceiling(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Tensor:
    window, strides, padding = _window(layer), _strides(layer), layer.config["padding"]
    if all((n + 2 * padding - w) % s == 0 for n, w, s in zip(inputs[0].shape[2:], window, strides, strict=True)):
        raise NotComputedError("there is nothing to round up")
    if layer.config["pool"] == "max":
        return F.max_pool2d(inputs[0], window, strides, padding, ceil_mode=True)
    return F.avg_pool2d(inputs[0], window, strides, padding, ceil_mode=True, count_include_pad=False)


def _transposed_paddings(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    (kernel, _), (stride, _) = _window(layer), _strides(layer)
    for padding in range(kernel):
        for extra in range(stride):
            words = f"padding: {padding} with output_padding {extra} in the port, {layer.config['padding']!r} in the reference"
            yield Change(words, {"padding": padding, "output_padding": extra})


def _bias(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    if "bias" in tensors:
        yield Change("a missing bias: the port adds none", without=("bias",))


def _activations(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    own = str(layer.config.get("activation") or "linear")
    named = f"{own} (tanh approximation)" if layer.config.get("approximate") else own
    if layer.config.get("max_value") is not None:
        named = f"{own} up to {layer.config['max_value']:g}"
    if layer.config.get("slope"):
        named += f" (slope {layer.config['slope']:g})"
    plain = {"approximate": False, "max_value": None, "slope": None}
    for name in ACTIVATIONS:
        words = f"activation: {'none' if name == 'linear' else name} in the port, {named} in the reference"
        yield Change(words, {**plain, "activation": name})
    words = "softmax twice: the port gives the softmax of probabilities"
    yield Change(words, {**plain, "activation": "linear"}, formula=_softmax_twice)
    for slope in SLOPES:
        words = f"activation: leaky_relu of slope {slope:g} in the port, {named} in the reference"
        yield Change(words, {**plain, "activation": "leaky_relu", "slope": slope})


def _softmax_twice(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Tensor:
    return computed(layer, inputs, tensors).softmax(1).softmax(1)


def _epsilons(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    own = layer.config["epsilon"]
    for epsilon in EPSILONS:
        if abs(epsilon - own) > 1e-9 * own:
            yield Change(f"epsilon: {epsilon:g} in the port, {own:g} in the reference", {"epsilon": epsilon})


def _batch_statistics(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    def batch(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
        return F.batch_norm(inputs[0], None, None, t.get("weight"), t.get("bias"), True, eps=layer.config["epsilon"])

    yield Change("training mode: the port normalizes by the batch's own statistics (call eval())", formula=batch)
    for name, words in (("weight", "gamma"), ("bias", "a missing bias: beta")):
        if name in tensors:
            yield Change(f"{words} is left out by the port", without=(name,))


def _flatten_order(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    if layer.config.get("flattened"):

        def last(layer: Layer, inputs: Sequence[Tensor], t: Tensors) -> Tensor:
            return computed(layer, [inputs[0].movedim(1, -1).flatten(1) if inputs[0].ndim == 4 else inputs[0]], t)

        words = "flatten order: the port's inputs of this layer run (H, W, C), its weights (C, H, W)"
        yield Change(words, formula=last)


def _merges(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    if layer.kind == "concatenate":
        words = "permutation: the port concatenates in another order"
        yield Change(words, formula=lambda row, x, t: torch.cat(list(x)[::-1], 1))
        return
    for i in range(len(inputs)):
        words = f"the port leaves out what {layer.inbound[1 - i] if len(inputs) == 2 else layer.inbound[i]} gives"
        yield Change(words, formula=lambda row, x, t, i=i: x[i])  # type: ignore[misc]


def _pads(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    own = [list(side) for side in layer.config["sides"]]
    total = sum(own[0])
    for side in [*([before, total - before] for before in range(total + 1)), *([n, n] for n in range(4))]:
        if [side, side] != own:
            words = f"padding: {tuple(side)} in the port, {tuple(own[0])} in the reference"
            yield Change(words, {"sides": [side, side]})


def _upsamplings(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    own = layer.config.get("interpolation", "nearest")
    for mode in ("nearest", "bilinear", "bicubic"):
        for corners in (False, True) if mode != "nearest" else (False,):
            if mode != own or corners:
                grid = ", corner on corner (align_corners)" if corners else ""
                words = f"enlarged by {mode}{grid} in the port, by {own} in the reference"
                yield Change(words, {"interpolation": mode, "align_corners": corners})


def _scales(layer: Layer, inputs: Sequence[Tensor], tensors: Tensors) -> Iterator[Change]:
    yield Change("the layer's scale (gamma) is left out by the port", formula=lambda row, x, t: x[0])


_CONVOLUTIONS = ("conv", "depthwise")
_WINDOWS = (*_CONVOLUTIONS, "pool")

MISTAKES: tuple[tuple[Sequence[str], Callable[[Layer, Sequence[Tensor], Tensors], Iterator[Change]]], ...] = (
    (("pool", "globalpool"), _pools),
    (_WINDOWS, _paddings),
    (_WINDOWS, _other_strides),
    (("conv_transpose",), _transposed_paddings),
    (("batchnorm", "layernorm"), _epsilons),
    (("batchnorm",), _batch_statistics),
    (("dense",), _flatten_order),
    ((*_CONVOLUTIONS, "conv_transpose", "dense"), _bias),
    (WITH_ACTIVATION, _activations),
    (_CONVOLUTIONS, _dilations),
    (("add", "multiply", "concatenate", "average", "maximum"), _merges),
    (("pad",), _pads),
    (("upsample",), _upsamplings),
    (("layerscale",), _scales),
)
