"""The layer that class activation maps are drawn on."""

from __future__ import annotations

import difflib

from torch import Tensor, nn


class LayerError(ValueError):
    """The target layer does not exist, or cannot carry a class activation map."""


NOT_ON_THE_WAY = "the target layer does not lie on the way to the logits: choose one that does"


def find_layer(model: nn.Module, name: str | nn.Module) -> nn.Module:
    """A module of the model by its name, as in `dict(model.named_modules())`.

    Raises:
        LayerError: no such name; the message lists the nearest.
    """
    if isinstance(name, nn.Module):
        if all(name is not module for module in model.modules()):
            raise LayerError("the target layer is not a module of this model")
        return name
    modules = dict(model.named_modules())
    if not name or name not in modules:
        nearest = difflib.get_close_matches(name, modules, n=5, cutoff=0.3) or [n for n in modules if n][-5:]
        raise LayerError(f"the model has no layer {name!r}; nearest: {', '.join(nearest)}")
    layer: nn.Module = modules[name]
    return layer


def feature_maps(output: object) -> Tensor:
    """A layer's output (N, K, h, w), if it can carry a map.

    Raises:
        LayerError: it is not (N, K, h, w).
    """
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = f"{tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise LayerError(f"the target layer's output is {shape}; a class activation map needs (N, K, h, w)")
    return output


def check_runs(count: int) -> None:
    """Refuse a layer that did not run exactly once in a pass.

    Raises:
        LayerError: the message says how often it ran.
    """
    if count != 1:
        raise LayerError(f"the target layer ran {count} times in one pass: choose a layer that runs once")
