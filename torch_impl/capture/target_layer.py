"""The layer that class activation maps are drawn on: by name, by itself, or found."""

from __future__ import annotations

import contextlib
import difflib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torch_impl.arrays import Images
from torch_impl.capture.layout import POOLS, LayerError, Told, layout_of
from torch_impl.preserve import Double, failure, own_gradients, unwrapped

NOT_ON_THE_WAY = "the target layer does not lie on the way to the logits: choose one that does"

NO_GRADIENTS = (
    "the model switches gradients off (torch.no_grad, or reentrant checkpointing) where the target layer runs: choose a layer "
    "behind that part, or take the no_grad or the checkpointing away"
)

_PASSIVE = (*POOLS, nn.modules.dropout._DropoutNd, nn.Identity, nn.Flatten, nn.Unflatten)
"""Layers that compute nothing a map could be read from: they pool, drop, pass on or reshape."""


def find_layer(model: nn.Module, target_layer: Any) -> nn.Module:
    """A module of the model.

    Args:
        model: the network.
        target_layer: a module, its name as in `named_modules` (any of its names), or a list of one of these, as
            pytorch-grad-cam takes them.

    Raises:
        LayerError: no such layer; the message lists the nearest names.
        ModelError: a model that cannot be explained.
    """
    inner = unwrapped(model)
    if isinstance(target_layer, (list, tuple)):
        if len(target_layer) != 1:
            raise LayerError(f"target_layer holds {len(target_layer)} layers: give one")
        target_layer = target_layer[0]
    if isinstance(target_layer, nn.Module):
        if target_layer in (model, inner):
            raise LayerError("the target layer is the whole model: give one of its parts")
        if all(target_layer is not module for module in model.modules()):
            raise LayerError("the target layer is not a module of this model")
        return target_layer
    if not isinstance(target_layer, str):
        raise LayerError(f"target_layer {target_layer!r}: give a module of the model, or its name")
    names: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    names |= dict(inner.named_modules(remove_duplicate=False))  # also without "module." or "_orig_mod."
    if not target_layer or target_layer not in names:
        nearest = difflib.get_close_matches(target_layer, filter(None, names), n=5, cutoff=0.3) or [*names][-5:]
        raise LayerError(f"the model has no layer {target_layer!r}; nearest: {', '.join(nearest)}")
    return names[target_layer]


def name_of(model: nn.Module, layer: nn.Module) -> str:
    """The first name of a module."""
    names: list[str] = [name for name, module in model.named_modules() if module is layer]
    return names[0]


def tensor_of(output: object, *, gradients: bool = True) -> Tensor:
    """The one tensor in a layer's output.

    Args:
        output: of the target layer.
        gradients: whether gradients are to be had there.

    Raises:
        LayerError: it is none, or gradients are switched off.
    """
    if isinstance(output, (tuple, list)) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor):
        kind = f"a {type(output).__name__}" + (f" of {len(output)}" if isinstance(output, (tuple, list)) else "")
        raise LayerError(f"the target layer's output is {kind}, not one tensor: choose a layer that gives feature maps")
    if gradients and not torch.is_grad_enabled():
        raise LayerError(NO_GRADIENTS)
    return output


def in_place_of(output: object, tensor: Tensor) -> object:
    """A layer's output with another tensor in it."""
    return type(output)([tensor]) if isinstance(output, (tuple, list)) else tensor


@contextlib.contextmanager
def cut_off(layer: nn.Module) -> Iterator[None]:
    """A layer's own backward hooks are not called within: they ask for gradients below it, where the backward pass ends."""
    hooks = layer._backward_hooks
    layer._backward_hooks = OrderedDict()
    try:
        yield
    finally:
        layer._backward_hooks = hooks


def check_runs(count: int) -> None:
    """Refuse a layer that did not run exactly once in a pass.

    Raises:
        LayerError: the message says how often it ran.
    """
    if count != 1:
        raise LayerError(f"the target layer ran {count} times in one pass: choose a layer that runs once")


def found_layer(model: nn.Module, inputs: Images) -> nn.Module:
    """The last layer with feature maps of more than one place on the way to the output that computes something.

    Of modules that give the very same feature maps (a block and its last layer), the outermost.

    Args:
        model: the network.
        inputs: a photograph (1, C, H, W) to run it on.

    Raises:
        LayerError: there is none, or tokens come behind it.
    """
    double = Double(model)
    originals = {id(double.of(module)): module for module in unwrapped(model).modules()}
    outputs: list[tuple[nn.Module, Tensor, str, bool]] = []
    passive: set[int] = set()
    told = Told()

    def note(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        told.hear(module, args, output)
        given = args[0] if args and isinstance(args[0], Tensor) else None
        if isinstance(module, _PASSIVE) and (given is None or given.data_ptr() != output.data_ptr()):
            passive.add(output.data_ptr())
        outputs.append((module, output, told.layout, told.sure(output)))

    for module in double.model.modules():
        module.register_forward_hook(note)
    with own_gradients():
        inputs = inputs.detach().clone().requires_grad_()
        try:
            logits = double.model(inputs.clone())  # a copy: the model may work in place on it
        except (RuntimeError, TypeError) as error:
            raise failure(error, inputs, double.model) from error
    return _chosen(outputs, passive, logits, inputs, originals)


def _chosen(
    outputs: list[tuple[nn.Module, Tensor, str, bool]],
    passive: set[int],
    logits: object,
    inputs: Images,
    originals: dict[int, nn.Module],
) -> nn.Module:
    advice = "give target_layer=, the name of a layer with feature maps"
    runs = [id(module) for module, *_ in outputs]
    for module, output, told, sure in reversed(outputs):
        if runs.count(id(module)) != 1 or output is logits or not output.requires_grad or output.data_ptr() in passive:
            continue
        if output.ndim == 3 and output.shape[1] > 1:
            raise LayerError(f"no target layer was found: this network ends in tokens: {advice}, and feature_layout=")
        if output.ndim != 4 or isinstance(module, _PASSIVE) or type(module).__name__ == "Permute":
            continue
        try:
            layout = layout_of(output.shape, told, inputs.shape, sure=sure)
        except LayerError:
            continue
        h, w = output.shape[2:] if layout == "nchw" else output.shape[1:3]
        if h * w > 1:
            return originals[id(module)]
    raise LayerError(f"no target layer was found: no layer gives feature maps of more than one place: {advice}")
